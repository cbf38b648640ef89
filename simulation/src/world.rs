//! A world: machines on one network under one clock, and what watches them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use blixard_core::discovery::target::JoinTarget;
use blixard_core::discovery::ticket::Ticket;
use blixard_node::raft::RaftConfig;

use crate::checks::Checks;
use crate::disk::{FAILING, FULL, Loss};
use crate::ether::Ether;
use crate::machine::{Machine, Running};
use crate::net::Net;
use crate::random::Stream;
use crate::registries::Registries;
use crate::trace::{Show, Trace};

/// How often a watcher looks at a node when nothing is applied there.
const LOOK: Duration = Duration::from_millis(100);

/// Machines, their network, the record of what happens and the checks of it.
pub struct World {
    /// What everything random is drawn from.
    pub seed: u64,
    /// The record.
    pub trace: Trace,
    /// The network.
    pub net: Net,
    /// The machines, numbered from 1.
    pub machines: Vec<Machine>,
    /// What must hold.
    pub checks: Arc<Checks>,
    /// By what machines find each other, unless they have tickets.
    pub registries: Registries,
    /// Whether they have tickets.
    pub tickets: bool,
    /// Whether they have the tickets' tokens alone, and find who announces itself.
    pub announced: bool,
}

impl World {
    /// So many machines, all off. `raft` is their nodes' Raft settings.
    pub fn new(seed: u64, machines: u64, raft: &RaftConfig, show: Show) -> Arc<Self> {
        let trace = Trace::new(show);
        let checks = Arc::new(Checks::new(trace.clone()));
        let net = Net::new(seed, trace.clone(), checks.clone());
        let ether = Ether::new(seed);
        let machine = |number| Machine::new(number, seed, &net, &ether, &trace, &checks, raft.clone());
        let machines: Vec<Machine> = (1..=machines).map(machine).collect();
        checks.know_disks(machines.iter().map(|machine| machine.disk.clone()).collect());
        let tickets = Stream::new(seed, "world").chance(300);
        let announced = tickets && Stream::new(seed, "announced").chance(500);
        let registries = Registries::new();
        Arc::new(Self { seed, trace, net, machines, checks, registries, tickets, announced })
    }

    /// The machine with this number.
    pub fn machine(&self, number: u64) -> &Machine {
        &self.machines[usize::try_from(number - 1).expect("worlds are small")]
    }

    /// Starts a machine's daemon. The first machine founds the cluster, the others join by the
    /// registry files of all, through whichever has a ticket, or by its token whom they hear. False when they must have a
    /// ticket and nobody has one yet.
    pub fn start(self: &Arc<Self>, number: u64) -> bool {
        let machine = self.machine(number);
        let founds = number == 1 && machine.rebirths() == 0;
        let ticket = self.machines.iter().find_map(Machine::ticket);
        let token = ticket.as_ref().filter(|_| self.announced).map(|ticket| ticket.token.clone());
        let targets = if founds {
            Vec::new()
        } else if !self.tickets {
            self.registries.others(number, self.machines.len() as u64)
        } else if let Some(ticket) = ticket {
            vec![if self.announced { JoinTarget::Announced } else { JoinTarget::Ticket(Box::new(ticket)) }]
        } else if !machine.has_joined() {
            return false;
        } else {
            Vec::new()
        };
        let world = Arc::downgrade(self);
        let on_up = Box::new(move |running: Running, ticket: Option<Ticket>| {
            let Some(world) = world.upgrade() else { return };
            if let Some(ticket) = &ticket {
                world.registries.publish(number, running.handle.id, ticket);
            }
            tokio::spawn(watch(running, Arc::downgrade(&world), world.checks.clone()));
        });
        machine.start(targets, token, on_up);
        true
    }

    /// The nodes that run now.
    pub fn running(&self) -> Vec<Running> {
        self.machines.iter().filter_map(Machine::running).collect()
    }

    /// The machine whose node leads, by its own word.
    pub fn leader(&self) -> Option<u64> {
        let leads = |running: &Running| running.handle.raft().is_leader(running.handle.id);
        self.running().iter().filter(|running| leads(running)).map(|running| running.machine).next_back()
    }

    /// Clears away daemons that have ended by themselves, for [`World::start`] to start again, as
    /// an init system does. Ending is right for one whose disk is full or whose process has died;
    /// for any other it is a violation.
    pub fn reap(&self) {
        for machine in &self.machines {
            let failure = machine.failure();
            if machine.has_died() || failure.is_some() {
                machine.crash(Loss::Process);
            }
            let Some(why) = failure else { continue };
            if machine.disk.lies() && gives_up(&why) {
                machine.give_up();
                self.trace.say(machine.number, "daemon has ended for good");
            } else if !excused(&why) {
                self.checks.violated("daemons_start", format!("machine {}: {why}", machine.number));
            }
        }
    }

    /// Ends everything, so that what holds each other is let go.
    pub fn end(&self) {
        for machine in &self.machines {
            if machine.current_life().is_some() {
                machine.crash(Loss::Process);
            }
        }
    }
}

/// Whether a daemon says in one line that its stores are no good, and what is to be done.
fn gives_up(why: &str) -> bool {
    let stores = ["damaged", "missing or empty"].into_iter().any(|what| why.contains(what));
    stores && why.contains("node rm ") && why.contains("--force") && !why.contains('\n')
}

/// Whether a daemon may end with these words, which name what goes wrong.
fn excused(why: &str) -> bool {
    [FULL, FAILING, "nothing to join with"].into_iter().any(|cause| why.contains(cause))
}

/// Shows the checks every state that a node publishes and what it knows of Raft.
async fn watch(running: Running, world: Weak<World>, checks: Arc<Checks>) {
    let mut seen = None;
    while !running.is_over() {
        checks.status(running.machine, running.handle.id, &running.handle.raft());
        let state = running.handle.state();
        if seen != Some(state.applied) {
            seen = Some(state.applied);
            let new = checks.state(running.machine, &state);
            if let Some(world) = world.upgrade() {
                checks.applied(&world, new);
            }
        }
        running.handle.state_after(state.applied, LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::id::NodeId;
    use blixard_node::identity::IdentityError;
    use blixard_node::raft::OpenError;

    use super::gives_up;

    #[test]
    fn a_node_gives_up_only_in_a_line_that_says_what_to_do() {
        let reason = || "its checksum differs".to_owned();
        let damaged = OpenError::Damaged { file: "raft.wal", reason: reason(), node: NodeId(2) };
        let lost = OpenError::Lost { file: "raft.wal", node: NodeId(2) };
        for why in
            [damaged.to_string(), lost.to_string(), IdentityError::Damaged { reason: reason() }.to_string()]
        {
            assert!(gives_up(&why), "{why}");
            assert!(!gives_up(&why.replace("--force", "")), "{why}");
            assert!(!gives_up(&format!("{why}\nstack backtrace:")));
        }
        assert!(!gives_up(&OpenError::Store("cannot open raft.wal".to_owned()).to_string()));
    }
}
