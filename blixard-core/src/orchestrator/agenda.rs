//! Which services are planned, and in which order, within one plan.
//!
//! Services are planned in the order of their names, and again in further passes while steps are taken.
//! Besides those that are due, the services that wait for a node are planned once a node has more room
//! than when they began to wait: in the order of their names, as long as one of those that ask for the
//! same fits. So it does not matter how many wait, but how many there is room for.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::waiting::{Blocker, Waiting};
use crate::id::{NodeId, ServiceName};
use crate::scheduler::{Ask, NodeUsage};

/// The services that are yet to be planned.
pub(super) struct Agenda<'a> {
    waiting: &'a mut Waiting,
    /// Due in this pass.
    queue: BTreeSet<ServiceName>,
    /// Due in the next: their turn in this pass is over.
    next: BTreeSet<ServiceName>,
    /// Nodes that have more room than when those that wait were last planned.
    grown: BTreeSet<NodeId>,
    /// Who comes next of each group of services that ask for the same, while one of them may fit.
    heads: BTreeSet<(ServiceName, Ask)>,
    /// Whose turn it is.
    at: Option<ServiceName>,
}

impl<'a> Agenda<'a> {
    /// An agenda on which services are that are due, and whoever waits for room on the nodes that have
    /// `grown`.
    pub(super) fn new(waiting: &'a mut Waiting, due: BTreeSet<ServiceName>, grown: BTreeSet<NodeId>) -> Self {
        Self { waiting, queue: BTreeSet::new(), next: due, grown, heads: BTreeSet::new(), at: None }
    }

    /// Begins a pass: over what is due, over `again`, and over who waits for room that there is.
    pub(super) fn begin_pass(&mut self, draft: &Draft<'_>, again: impl IntoIterator<Item = ServiceName>) {
        self.at = None;
        self.queue.append(&mut self.next);
        self.queue.extend(again);
        self.heads.clear();
        self.offer(draft, &self.grown.clone());
    }

    /// Has a service planned, in this pass if its turn is yet to come.
    pub(super) fn add(&mut self, service: ServiceName) {
        let over = self.at.as_ref().is_some_and(|at| service <= *at);
        if over {
            self.next.insert(service)
        } else {
            self.queue.insert(service)
        };
    }

    /// The next service of this pass.
    pub(super) fn turn(&mut self, draft: &Draft<'_>) -> Option<ServiceName> {
        while !self.queue.is_empty() || !self.heads.is_empty() {
            let queued = match (self.queue.first(), self.heads.first()) {
                (Some(queued), Some((head, _))) => queued <= head,
                (queued, _) => queued.is_some(),
            };
            let service = if queued { self.queue.pop_first() } else { self.take_head(draft) };
            if service.is_some() {
                self.at.clone_from(&service);
                return service;
            }
        }
        None
    }

    /// Takes the first of those that wait for a node, if it may fit; its group has its next in its place.
    fn take_head(&mut self, draft: &Draft<'_>) -> Option<ServiceName> {
        let (head, ask) = self.heads.pop_first()?;
        let (nodes, usage) = (draft.nodes(), draft.usage());
        if !self.grown.iter().any(|node| ask.fits(nodes, usage, *node)) {
            return None;
        }
        let next = self.waiting.next_asking(&ask, self.at.as_ref())?.clone();
        if next != head {
            // It was planned for another reason meanwhile.
            self.heads.insert((next, ask));
            return None;
        }
        if let Some(after) = self.waiting.next_asking(&ask, Some(&head)).cloned() {
            self.heads.insert((after, ask));
        }
        Some(head)
    }

    /// Takes in what was found of a service, and what its steps changed for others: `before` is what the
    /// nodes held before them.
    pub(super) fn planned(
        &mut self,
        draft: &Draft<'_>,
        before: &NodeUsage,
        service: &ServiceName,
        blockers: &BTreeSet<Blocker>,
    ) {
        self.waiting.set(service, blockers);
        for dependent in self.waiting.dependents_of(draft.state(), service) {
            if dependent != *service {
                self.add(dependent);
            }
        }
        let grown = draft.usage().with_more_room_than(before);
        self.offer(draft, &grown);
        self.grown.extend(grown);
    }

    /// Has those planned that wait for what one of `nodes` has.
    fn offer(&mut self, draft: &Draft<'_>, nodes: &BTreeSet<NodeId>) {
        if nodes.is_empty() {
            return;
        }
        for ask in self.waiting.asking().keys() {
            if nodes.iter().any(|node| ask.fits(draft.nodes(), draft.usage(), *node))
                && let Some(next) = self.waiting.next_asking(ask, self.at.as_ref())
            {
                self.heads.insert((next.clone(), ask.clone()));
            }
        }
    }

    /// What is left when passes are over: every service that is due or waits, if there are any that are.
    pub(super) fn rest(self) -> BTreeSet<ServiceName> {
        if self.queue.is_empty() && self.next.is_empty() && self.heads.is_empty() {
            return BTreeSet::new();
        }
        let due = self.queue.into_iter().chain(self.next);
        due.chain(self.waiting.services().cloned()).collect()
    }
}
