//! What the leader's task is given, and what of it shares the next entry.

use std::collections::BTreeMap;

use blixard_core::cluster::replica::ReplicaStatus;
use blixard_core::cluster::{Command, Outcome, Write};
use blixard_core::id::{NodeId, ReplicaId};
use blixard_core::{limits, wire};
use tokio::sync::oneshot;

use crate::raft::ProposeError;

/// What most commands, and statuses in a report, take at most, in bytes.
const SMALL_BYTES: usize = 512;

/// What the leader answers to an input: the log index it was applied at and the outcome.
pub(crate) type Reply = oneshot::Sender<Result<(u64, Outcome), ProposeError>>;

/// Something for the leader to take into account.
pub(crate) enum Input {
    /// A command to propose: a client's write, a join, a hold.
    Propose {
        /// What to propose.
        command: Box<Command>,
        /// Where the outcome goes.
        reply: Reply,
    },
    /// What an agent saw; acknowledged once it is in the log.
    Report {
        /// The agent's node.
        node: NodeId,
        /// Which of its reports this is.
        number: ReportNumber,
        /// What it saw.
        statuses: BTreeMap<ReplicaId, ReplicaStatus>,
        /// Where the acknowledgement goes.
        reply: Reply,
    },
}

/// A report's place among those of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReportNumber {
    /// Which start of the node's daemon sent it; rises.
    pub(crate) boot: u64,
    /// Counts the reports of that start.
    pub(crate) generation: u64,
}

/// The newest report of each node. One that a newer has overtaken, as when it was late and sent
/// again, tells of the past: taken in after the newer it would undo what that told.
#[derive(Debug, Default)]
pub(super) struct Newest {
    by_node: BTreeMap<NodeId, ReportNumber>,
}

impl Newest {
    /// Notes a report; false when it was overtaken.
    fn takes(&mut self, node: NodeId, number: ReportNumber) -> bool {
        let newer = self.by_node.get(&node).is_none_or(|known| number > *known);
        if newer {
            self.by_node.insert(node, number);
        }
        newer
    }
}

/// Who waits for what became of an entry.
#[derive(Default)]
pub(super) struct Replies {
    /// By the command's place in the entry.
    pub(super) writes: Vec<(usize, Reply)>,
    /// Those of each report, in the reports' order.
    pub(super) reports: Vec<Vec<Reply>>,
    /// The place of the first report.
    pub(super) first: usize,
}

impl Replies {
    /// Tells everybody what their command did. Requesters that went away need no answer.
    pub(super) fn answer(&mut self, index: u64, outcomes: &[Outcome]) {
        for (place, reply) in self.drain() {
            reply.send(Ok((index, outcomes[place].clone()))).ok();
        }
    }

    /// Tells everybody why nothing is known to have happened.
    pub(super) fn fail(&mut self, error: &ProposeError) {
        for (_, reply) in self.drain() {
            reply.send(Err(error.clone())).ok();
        }
    }

    fn drain(&mut self) -> impl Iterator<Item = (usize, Reply)> {
        let reports = std::mem::take(&mut self.reports).into_iter().zip(self.first..);
        let reports =
            reports.flat_map(|(waiting, place)| waiting.into_iter().map(move |reply| (place, reply)));
        std::mem::take(&mut self.writes).into_iter().chain(reports)
    }
}

/// What waits for the next entry.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) commands: Vec<Command>,
    pub(super) replies: Vec<(usize, Reply)>,
    pub(super) reports: BTreeMap<NodeId, (BTreeMap<ReplicaId, ReplicaStatus>, Vec<Reply>)>,
    /// About how large all this is when encoded.
    bytes: usize,
}

impl Batch {
    /// Adds what fits in this order; the reply of a report that was overtaken is dropped. A command
    /// that no entry should carry is refused by itself: with others it would take them along.
    pub(super) fn add(&mut self, newest: &mut Newest, input: Input) {
        match input {
            Input::Propose { command, reply } => {
                let bytes = size(&command);
                if bytes > limits::COMMAND_BYTES_MAX {
                    let words =
                        format!("it takes {bytes} bytes, at most {} are taken", limits::COMMAND_BYTES_MAX);
                    // A requester that went away needs no answer.
                    reply.send(Err(ProposeError::Invalid(words))).ok();
                    return;
                }
                self.bytes += bytes;
                self.replies.push((self.commands.len(), reply));
                self.commands.push(*command);
            }
            Input::Report { node, number, statuses, reply } => {
                if !newest.takes(node, number) {
                    tracing::debug!(node.id = %node, generation = number.generation, "a report was overtaken");
                    return;
                }
                self.bytes +=
                    statuses.values().map(|status| SMALL_BYTES + status.message.len()).sum::<usize>();
                let (known, replies) = self.reports.entry(node).or_default();
                known.extend(statuses);
                replies.push(reply);
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.commands.len() >= limits::WRITES_PER_ENTRY_MAX || self.bytes >= limits::BATCH_BYTES_MAX
    }
}

/// About how large a command is when encoded: only specifications and what joiners tell vary much.
fn size(command: &Command) -> usize {
    match command {
        Command::Write { write: Write::Submit { spec, .. }, .. } => SMALL_BYTES + wire::encode(&**spec).len(),
        Command::Join { facts, .. } | Command::Facts { facts, .. } => SMALL_BYTES + wire::encode(facts).len(),
        _ => SMALL_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blixard_core::cluster::snapshot::encode_entry;
    use blixard_core::cluster::{Command, Entry, Phase, ReplicaStatus, Write};
    use blixard_core::id::{NodeId, ReplicaId, RequestId};
    use blixard_core::limits;
    use blixard_core::spec::ServiceSpec;
    use blixard_core::time::UtcMs;
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::{Batch, Input, Newest, ReportNumber};

    fn submission(bytes: usize) -> Command {
        let spec = serde_json::json!({
            "name": "web",
            "image": {"reference": "x".repeat(bytes)},
            "replicas": {"min": 1, "max": 1},
        });
        let spec: Arc<ServiceSpec> = Arc::new(serde_json::from_value(spec).expect("a specification"));
        let write = Write::Submit { spec, origin: NodeId(1) };
        Command::Write { request: RequestId([0; 16]), made_at: UtcMs(0), write, by: None }
    }

    #[test]
    fn a_report_that_was_overtaken_is_dropped() {
        const REPLICA: ReplicaId = ReplicaId(7);
        let (mut newest, mut batch) = (Newest::default(), Batch::default());
        let mut report = |boot, generation, phase| {
            let (reply, answer) = oneshot::channel();
            let statuses = [(REPLICA, ReplicaStatus { phase, ..ReplicaStatus::assigned() })].into();
            let number = ReportNumber { boot, generation };
            batch.add(&mut newest, Input::Report { node: NodeId(3), number, statuses, reply });
            batch.replies.clear();
            (answer, batch.reports[&NodeId(3)].0[&REPLICA].phase)
        };
        assert_eq!(report(1, 1, Phase::Starting).1, Phase::Starting);
        assert_eq!(report(1, 2, Phase::Running).1, Phase::Running);
        let (mut late, phase) = report(1, 1, Phase::Starting);
        assert_eq!((phase, late.try_recv()), (Phase::Running, Err(TryRecvError::Closed)));
        let (mut again, _) = report(1, 2, Phase::Running);
        assert_eq!(again.try_recv(), Err(TryRecvError::Closed));
        let (mut next_start, phase) = report(2, 1, Phase::Waiting);
        assert_eq!((phase, next_start.try_recv()), (Phase::Waiting, Err(TryRecvError::Empty)));
        let (mut late, phase) = report(1, 3, Phase::Running);
        assert_eq!((phase, late.try_recv()), (Phase::Waiting, Err(TryRecvError::Closed)));
    }

    #[test]
    fn a_command_that_is_too_large_is_refused_alone() {
        let mut batch = Batch::default();
        let mut propose = |bytes| {
            let (reply, answer) = oneshot::channel();
            let command = Box::new(submission(bytes));
            batch.add(&mut Newest::default(), Input::Propose { command, reply });
            (answer, batch.commands.len())
        };
        assert_eq!(propose(10).1, 1);
        let (mut answer, commands) = propose(limits::COMMAND_BYTES_MAX);
        assert_eq!(commands, 1);
        let refused = answer.try_recv().expect("it is answered").expect_err("it is refused");
        assert!(refused.to_string().contains("at most 1048576 are taken"), "{refused}");
    }

    #[test]
    fn a_full_batch_is_an_entry_that_fits() {
        let check = |bytes: usize, commands_min: usize| {
            let mut batch = Batch::default();
            while !batch.is_full() {
                let (reply, _) = oneshot::channel();
                let command = Box::new(submission(bytes));
                batch.add(&mut Newest::default(), Input::Propose { command, reply });
            }
            assert!(batch.commands.len() >= commands_min, "{} of {bytes} bytes", batch.commands.len());
            let entry = encode_entry(&Entry::new(UtcMs(0), batch.commands));
            assert!(entry.len() < limits::ENTRY_BYTES_MAX / 2, "{} of {bytes} bytes", entry.len());
        };
        check(10, limits::WRITES_PER_ENTRY_MAX);
        check(1 << 10, limits::WRITES_PER_ENTRY_MAX);
        check(limits::SPEC_BYTES_MAX, 8);
        check(limits::SPEC_BYTES_MAX * 3, 4);
    }
}
