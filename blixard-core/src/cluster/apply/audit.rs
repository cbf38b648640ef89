//! Who did what: kept with events, versions and a record of writes, as of the second feature level.

use std::sync::Arc;

use crate::cluster::level::SECOND_LEVEL;
use crate::cluster::{Actor, AuditRecord, ClusterState, EventId, Outcome, Refusal, Write};
use crate::limits::AUDIT_MAX;

impl ClusterState {
    /// Applies a write that `by` made, when they may make it, and keeps that they did.
    pub(super) fn write_by(&mut self, by: Option<&Actor>, write: &Write) -> Result<Outcome, Refusal> {
        if !self.knows(SECOND_LEVEL) {
            return self.write(write);
        }
        let (what, first) = (write.describe(self), self.next_event());
        let answer = match by.map(|by| self.check_rights(by, write)) {
            Some(Err(refusal)) => Err(refusal),
            Some(Ok(())) | None => self.write(write),
        };
        self.attribute(first, by, write, &answer);
        self.record(by, what, answer.as_ref().err().map(ToString::to_string));
        answer
    }

    fn next_event(&self) -> EventId {
        let last = self.events.last().map(|event| event.id).filter(|id| id.index == self.applied);
        EventId { index: self.applied, n: last.map_or(0, |last| last.n + 1) }
    }

    /// Notes who caused the events from `first` on, and a new version.
    fn attribute(
        &mut self,
        first: EventId,
        by: Option<&Actor>,
        write: &Write,
        answer: &Result<Outcome, Refusal>,
    ) {
        let Some(by) = by else { return };
        let new = self.events.iter().rev().take_while(|event| event.id >= first).count();
        for at in self.events.len() - new..self.events.len() {
            if let Some(event) = self.events.get_mut(at) {
                Arc::make_mut(event).by = Some(by.clone());
            }
        }
        if let (
            Write::Submit { .. } | Write::Rollback { .. },
            Ok(Outcome::Service { version, changed: true }),
        ) = (write, answer)
            && let Some(name) = write.service(self).cloned()
            && let Some(kept) = self.services.get_mut(&name).and_then(|service| service.versions.back_mut())
            && kept.version == *version
        {
            kept.by = Some(by.clone());
        }
    }

    /// Keeps that somebody did something; the oldest record makes room.
    pub(super) fn record(&mut self, by: Option<&Actor>, what: String, mut refused: Option<String>) {
        if !self.knows(SECOND_LEVEL) {
            return;
        }
        if let Some(reason) = &mut refused {
            self.bound(reason);
        }
        let n = match self.audit.last() {
            Some(last) if last.id.index == self.applied => last.id.n + 1,
            _ => 0,
        };
        let id = EventId { index: self.applied, n };
        let record = AuditRecord { id, at: self.time, by: by.cloned(), what, refused };
        self.audit.push_back(Arc::new(record));
        while self.audit.len() > AUDIT_MAX {
            self.audit.pop_front();
        }
    }
}
