//! A world: machines on one network under one clock, and what watches them.

use std::sync::Arc;
use std::time::Duration;

use blixard_node::raft::RaftConfig;

use crate::checks::Checks;
use crate::disk::{FULL, Loss};
use crate::machine::{Machine, Running};
use crate::net::Net;
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
}

impl World {
    /// So many machines, all off. `raft` is their nodes' Raft settings.
    pub fn new(seed: u64, machines: u64, raft: &RaftConfig, show: Show) -> Arc<Self> {
        let trace = Trace::new(show);
        let net = Net::new(seed, trace.clone());
        let machines =
            (1..=machines).map(|number| Machine::new(number, seed, &net, &trace, raft.clone())).collect();
        let checks = Arc::new(Checks::new(trace.clone()));
        Arc::new(Self { seed, trace, net, machines, checks })
    }

    /// The machine with this number.
    pub fn machine(&self, number: u64) -> &Machine {
        &self.machines[usize::try_from(number - 1).expect("worlds are small")]
    }

    /// Starts a machine's daemon. The first machine founds the cluster, the others join through
    /// whichever has a ticket. False when nobody has one yet.
    pub fn start(&self, number: u64) -> bool {
        let ticket = self.machines.iter().find_map(Machine::ticket);
        if number != 1 && ticket.is_none() && self.machine(number).lives() == 0 {
            return false;
        }
        let ticket = ticket.filter(|_| number != 1);
        let checks = self.checks.clone();
        let on_up = Box::new(move |running| drop(tokio::spawn(watch(running, checks))));
        self.machine(number).start(ticket, on_up);
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
            if let Some(why) = failure.filter(|why| !why.contains(FULL)) {
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

/// Shows the checks every state that a node publishes and what it knows of Raft.
async fn watch(running: Running, checks: Arc<Checks>) {
    let mut seen = None;
    while !running.is_over() {
        checks.status(running.machine, &running.handle.raft());
        let state = running.handle.state();
        if seen != Some(state.applied) {
            seen = Some(state.applied);
            checks.state(running.machine, &state);
        }
        running.handle.state_after(state.applied, LOOK).await;
    }
}
