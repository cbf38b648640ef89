//! One service's slots, planned on the draft until nothing more is to be done.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::gate::Gate;
use super::slot::{Decision, Slot, Wait, decide};
use super::waiting::Blocker;
use crate::cluster::volume::Home;
use crate::cluster::{Desired, PlanStep};
use crate::id::{NodeId, ServiceName};
use crate::limits::RESTART_BACKOFF_MIN;
use crate::readiness::{Readiness, readiness};
use crate::scheduler::{self, NoFit, Ranking};
use crate::time::UtcMs;

/// How often one slot is looked at in one pass: more than any sequence of its rules needs.
const ROUNDS_MAX: usize = 16;

/// How often a service's slots are looked at in one go: once to act, once to see that nothing
/// more is to be done, and some for steps that make others possible.
const PASSES_MAX: usize = 8;

/// What planning a service found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Why slots do not have what they should.
    pub(super) waits: BTreeMap<u32, String>,
    /// What they wait for, besides time.
    pub(super) blockers: BTreeSet<Blocker>,
    /// When something is due that no change of the state announces.
    pub(super) wake_at: Option<UtcMs>,
}

/// What is known during one pass over a service's slots: answers that hold until a step is taken.
pub(super) struct Pass {
    name: ServiceName,
    wake_at: Option<UtcMs>,
    gate: Option<Gate>,
    /// The nodes, ranked for the replicas of a version.
    ranking: Option<(u64, Ranking)>,
    /// Nodes that hold something else since they were ranked.
    touched: Vec<NodeId>,
    /// That no node fits a version, and why.
    no_fit: Option<(u64, NoFit)>,
    /// The same, when it was found for the slot that is looked at.
    news: Option<NoFit>,
    dependencies: Option<Option<(ServiceName, String)>>,
}

impl Pass {
    fn new(name: &ServiceName) -> Self {
        Self {
            name: name.clone(),
            wake_at: None,
            gate: None,
            ranking: None,
            touched: Vec::new(),
            no_fit: None,
            news: None,
            dependencies: None,
        }
    }

    /// Asks to be planned again at `at`.
    pub(super) fn wake(&mut self, at: UtcMs) {
        self.wake_at = Some(self.wake_at.map_or(at, |wake_at| wake_at.min(at)));
    }

    /// Whether a slot may be moved off its node; if not, it is asked again when it may be.
    pub(super) fn admits_move_of(&mut self, slot: &Slot<'_>) -> bool {
        let gate = self.gate(slot.draft);
        let (admitted, until) = (gate.admits_move_of(slot.number), gate.moving_until());
        until.filter(|_| !admitted).into_iter().for_each(|at| self.wake(at));
        admitted
    }

    /// What keeps the service from touching another slot.
    pub(super) fn gate(&mut self, draft: &Draft<'_>) -> &Gate {
        self.gate.get_or_insert_with(|| Gate::of(draft, &self.name))
    }

    /// The node for a replica in a slot that has none. Nodes are ranked once for all slots that are given
    /// the same version.
    pub(super) fn node_for(&mut self, slot: &Slot<'_>) -> Result<NodeId, NoFit> {
        if let Some(no_fit) = self.known_no_fit(slot) {
            return Err(no_fit);
        }
        let (nodes, usage, request) = (slot.draft.nodes(), slot.draft.usage(), slot.request());
        if request.home != Home::Anywhere || slot.service.knows_host_network() {
            return self.choice(slot, || scheduler::choose(nodes, usage, &request));
        }
        let ask = request.ask(nodes);
        if let Some(no_fit) = slot.draft.no_fit(&ask) {
            self.no_fit = Some((slot.target, no_fit.clone()));
            return Err(no_fit.clone());
        }
        let ranking = match self.ranking.take() {
            Some((version, mut ranking)) if version == slot.target => {
                self.touched.iter().for_each(|node| ranking.refresh(nodes, usage, &request, *node));
                ranking
            }
            _ => Ranking::new(nodes, usage, &request, ask),
        };
        self.touched.clear();
        let choice = self.choice(slot, || ranking.best(nodes, &request));
        self.ranking = Some((slot.target, ranking));
        choice
    }

    /// The node `choose` answers. That none fits is remembered: the next slot asks for the same,
    /// but on the host network, where it matters which nodes the other slots are on.
    pub(super) fn choice(
        &mut self,
        slot: &Slot<'_>,
        choose: impl FnOnce() -> Result<NodeId, NoFit>,
    ) -> Result<NodeId, NoFit> {
        if let Some(no_fit) = self.known_no_fit(slot) {
            return Err(no_fit);
        }
        let choice = choose();
        if let Err(no_fit) = &choice
            && !slot.service.knows_host_network()
        {
            self.no_fit = Some((slot.target, no_fit.clone()));
            self.news = Some(no_fit.clone());
        }
        choice
    }

    fn known_no_fit(&self, slot: &Slot<'_>) -> Option<NoFit> {
        self.no_fit.as_ref().filter(|(version, _)| *version == slot.target).map(|(_, no_fit)| no_fit.clone())
    }

    /// Which service is waited for and why, by `missing`, which is asked once.
    pub(super) fn dependencies(
        &mut self,
        missing: impl FnOnce() -> Option<(ServiceName, String)>,
    ) -> Option<(ServiceName, String)> {
        self.dependencies.get_or_insert_with(missing).clone()
    }

    /// Forgets what steps may have changed, after which `touched` hold something else. `filled` is the
    /// slot that was empty and has a replica of the current version now, if that is all they did.
    ///
    /// That no node fits stands unless they gave room. What each lacks is told anew by the last pass,
    /// which takes no step.
    fn stepped(&mut self, touched: Vec<NodeId>, gave_room: bool, filled: Option<u32>) {
        self.touched.extend(touched);
        self.news = None;
        if gave_room {
            self.no_fit = None;
        }
        match (filled, &mut self.gate) {
            (Some(slot), Some(gate)) => gate.begin(slot),
            (Some(_), None) => {}
            (None, _) => (self.gate, self.dependencies) = (None, None),
        }
    }
}

/// Plans one service on the draft; absent when there is no such service (any more).
pub(super) fn plan_service(draft: &mut Draft<'_>, name: &ServiceName) -> Option<Findings> {
    let mut findings = Findings::default();
    for _ in 0..PASSES_MAX {
        let before = draft.steps().len();
        findings = one_pass(draft, name)?;
        if draft.steps().len() == before {
            break;
        }
    }
    if draft.service(name)?.removing && draft.state().replicas_of(name).next().is_none() {
        let forgotten = draft.take([PlanStep::ForgetService { service: name.clone() }]);
        return forgotten.is_err().then_some(findings);
    }
    Some(findings)
}

/// Looks at every slot once. Slots above the wanted number go first: what they give free may be
/// what another slot waits for. Then those that have no replica to lose, which are what a new
/// version is tried in before it replaces anything.
fn one_pass(draft: &mut Draft<'_>, name: &ServiceName) -> Option<Findings> {
    let service = draft.service(name)?;
    let wanted = service.wanted();
    let slots = draft.state().replicas_of(name).map(|(_, replica)| replica.slot);
    let surplus: BTreeSet<u32> = slots.filter(|&slot| slot >= wanted).collect();
    let mut pass = Pass::new(name);
    let (mut waits, mut blockers) = (BTreeMap::new(), BTreeSet::new());
    let held = |slot: &u32| {
        let counting = draft.state().counting_in(name, *slot);
        counting.is_some_and(|(_, replica)| {
            replica.status.proven || readiness(draft.state(), replica) != Readiness::No
        })
    };
    let (held, bare): (Vec<u32>, Vec<u32>) = (0..wanted).partition(held);
    for number in surplus.into_iter().chain(bare).chain(held) {
        if let Some(wait) = settle(draft, name, number, &mut pass) {
            waits.insert(number, wait.reason);
            blockers.extend(wait.blockers);
        }
    }
    Some(Findings { waits, blockers, wake_at: pass.wake_at })
}

/// Takes the steps of one slot, and answers why it waits.
fn settle(draft: &mut Draft<'_>, name: &ServiceName, number: u32, pass: &mut Pass) -> Option<Wait> {
    for _ in 0..ROUNDS_MAX {
        let service = draft.service(name)?;
        let rows = draft.state().replicas_in(name, number).collect();
        let slot = Slot { draft, name, service, number, target: service.current().version, rows };
        match decide(&slot, pass) {
            Decision::Settled => return None,
            Decision::Wait(wait) => {
                pass.news.take().into_iter().for_each(|no_fit| draft.remember(no_fit));
                return Some(wait);
            }
            Decision::Act(steps) => {
                let fills = slot.rows.is_empty() && matches!(steps[..], [PlanStep::Place { .. }]);
                let gives = steps.iter().any(gives_room);
                if let Err(refused) = draft.take(steps) {
                    debug_assert!(false, "slot {number} of {name}: {refused}");
                    pass.wake(draft.now().after(RESTART_BACKOFF_MIN));
                    return Some(Wait::itself(refused));
                }
                pass.stepped(draft.take_touched(), gives, fills.then_some(number));
            }
        }
    }
    debug_assert!(false, "slot {number} of {name} does not settle: {:?}", draft.steps());
    None
}

/// Whether a step may leave a node with more room.
fn gives_room(step: &PlanStep) -> bool {
    match step {
        PlanStep::SetDesired { desired, .. } => *desired == Desired::Stop,
        PlanStep::Forget { .. } => true,
        PlanStep::Place { .. }
        | PlanStep::PlaceOlder { .. }
        | PlanStep::SetLost { .. }
        | PlanStep::Backoff { .. }
        | PlanStep::Pending { .. }
        | PlanStep::ForgetService { .. }
        | PlanStep::AddVolumeCopy { .. }
        | PlanStep::PromoteVolume { .. } => false,
    }
}
