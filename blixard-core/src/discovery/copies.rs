//! Nodes that run twice: a data directory was copied, and a daemon runs on the copy beside the
//! one on the original. Both hold the same key, so each is the member to whomever it links to.
//!
//! Whoever is linked stays while it lives and the second is refused: what Raft was promised by the
//! first the second may not know of. [`Start`]s tell them apart, [`is_another`] says when a
//! member must ask whether the first still lives, and [`Copies`] remembers what was refused, here
//! and elsewhere, so that every member's log and `node ls` say it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dial::DIAL_BACKOFF_MAX;
use crate::id::NodeId;
use crate::limits::NODES_MAX;
use crate::time::Mono;

/// How long a refusal counts as news of a second start. One that lives dials again within
/// [`DIAL_BACKOFF_MAX`], however busy it is within this.
pub const REFUSAL_COUNTS: Duration = Duration::from_secs(8);
const _: () = assert!(REFUSAL_COUNTS.as_millis() >= 3 * DIAL_BACKOFF_MAX.as_millis());

/// One start of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Start {
    /// How often the data directory was started, this time included; a copy counts on from where
    /// the original was.
    pub boot: u64,
    /// Drawn at the start: two copies may count the same.
    pub id: u64,
}

/// A start, and where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Which.
    pub start: Start,
    /// Where its connection came from.
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start {}", self.start.boot)?;
        self.address.map_or(Ok(()), |address| write!(f, " at {address}"))
    }
}

/// Two starts of one node that live at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twice {
    /// The one that keeps its link; the one that is refused itself does not know it.
    #[serde(default)]
    pub linked: Option<Sighting>,
    /// The one that is refused.
    pub refused: Sighting,
}

impl Twice {
    /// What is wrong, and what to do.
    pub fn words(&self, node: NodeId) -> String {
        let linked =
            self.linked.map_or_else(|| "another start of it".to_owned(), |linked| linked.to_string());
        let refused = self.refused;
        format!(
            "node {node} runs twice: {linked} is linked and {refused} is refused; one of them runs on a copy of the other's data directory: end it and delete the copy"
        )
    }
}

/// Whether a newcomer is another start of the daemon than the one that is linked: then either that
/// one has ended without a word, or the node runs twice. Software of before tells no start.
pub fn is_another(linked: Option<Start>, newcomer: Option<Start>) -> bool {
    matches!((linked, newcomer), (Some(linked), Some(newcomer)) if linked != newcomer)
}

/// Who says that a node runs twice. Nobody passes on what it was told by the leader, so that what
/// nobody sees any more is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// This node refused one of the two, or is it.
    Own,
    /// A member, to this node as leader.
    Member(NodeId),
    /// The leader.
    Leader,
}

/// Which nodes run twice, as this node refused them and as it was told.
#[derive(Debug, Default)]
pub struct Copies {
    seen: BTreeMap<(Source, NodeId), (Twice, Mono)>,
}

impl Copies {
    /// This node refused a start of `node`, or, when it is `node` itself, was refused.
    pub fn refused(&mut self, node: NodeId, twice: Twice, now: Mono) {
        self.seen.insert((Source::Own, node), (twice, now));
    }

    /// A member said which it refuses; that replaces what it said before.
    pub fn member_told(&mut self, member: NodeId, twice: BTreeMap<NodeId, Twice>, now: Mono) {
        self.told(Source::Member(member), twice, now);
    }

    /// The leader said which run twice; that replaces what it said before.
    pub fn leader_told(&mut self, twice: BTreeMap<NodeId, Twice>, now: Mono) {
        self.told(Source::Leader, twice, now);
    }

    fn told(&mut self, source: Source, twice: BTreeMap<NodeId, Twice>, now: Mono) {
        self.seen.retain(|(from, _), _| *from != source);
        let rows = twice.into_iter().take(NODES_MAX);
        self.seen.extend(rows.map(|(node, twice)| ((source, node), (twice, now))));
    }

    /// What this node tells the leader.
    pub fn for_leader(&mut self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.known(now, |source| source == Source::Own)
    }

    /// What this node tells the members as leader.
    pub fn for_members(&mut self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.known(now, |source| source != Source::Leader)
    }

    /// What the leader said.
    pub fn by_leader(&mut self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.known(now, |source| source == Source::Leader)
    }

    /// All that run twice.
    pub fn all(&mut self, now: Mono) -> BTreeMap<NodeId, Twice> {
        self.known(now, |_| true)
    }

    /// What this node saw itself goes before what it was told.
    fn known(&mut self, now: Mono, counts: impl Fn(Source) -> bool) -> BTreeMap<NodeId, Twice> {
        self.seen.retain(|_, (_, at)| now.since(*at) < REFUSAL_COUNTS);
        let of = |(&(source, node), &(twice, _)): (&(Source, NodeId), &(Twice, Mono))| {
            counts(source).then_some((node, twice))
        };
        self.seen.iter().rev().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{Copies, REFUSAL_COUNTS, Sighting, Start, Twice, is_another};
    use crate::id::NodeId;
    use crate::time::Mono;

    const TWO: NodeId = NodeId(2);

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn twice(linked: u64, refused: u64) -> Twice {
        let seen = |boot: u64| Sighting {
            start: Start { boot, id: 1 },
            address: format!("10.77.0.{boot}:7001").parse().ok(),
        };
        Twice { linked: Some(seen(linked)), refused: seen(refused) }
    }

    #[test]
    fn starts_are_told_apart_by_their_count_and_by_what_they_drew() {
        let start = |boot, id| Some(Start { boot, id });
        let check = |linked, newcomer, expect| assert_eq!(is_another(linked, newcomer), expect);
        check(start(5, 1), start(5, 1), false);
        check(start(5, 1), start(6, 2), true);
        check(start(6, 2), start(5, 1), true);
        check(start(5, 1), start(5, 2), true);
        check(None, start(5, 1), false);
        check(start(5, 1), None, false);
    }

    #[test]
    fn the_words_name_both_and_what_to_do() {
        let words = twice(5, 6).words(TWO);
        for phrase in
            ["node 2 runs twice", "start 5 at 10.77.0.5:7001", "start 6 at 10.77.0.6:7001", "end it"]
        {
            assert!(words.contains(phrase), "{phrase}: {words}");
        }
        let own = Twice { linked: None, ..twice(5, 6) }.words(TWO);
        assert!(own.contains("node 2 runs twice: another start of it is linked"), "{own}");
    }

    #[test]
    fn what_one_refuses_reaches_all_through_the_leader_and_is_forgotten() {
        let (mut member, mut leader, mut other) = (Copies::default(), Copies::default(), Copies::default());
        let expect: BTreeMap<_, _> = [(TWO, twice(5, 6))].into();
        let mut tell = |member: &mut Copies, now| {
            leader.member_told(NodeId(3), member.for_leader(now), now);
            other.leader_told(leader.for_members(now), now);
            // What the leader said is told nobody.
            assert!(other.for_leader(now).is_empty() && other.for_members(now).is_empty());
            (leader.all(now), other.all(now))
        };
        assert_eq!(tell(&mut member, at(1)), (BTreeMap::new(), BTreeMap::new()));
        member.refused(TWO, twice(5, 6), at(1));
        assert_eq!(tell(&mut member, at(2)), (expect.clone(), expect.clone()));
        let late = at(1) + REFUSAL_COUNTS;
        assert_eq!(tell(&mut member, late - Duration::from_millis(1)), (expect.clone(), expect));
        assert_eq!(tell(&mut member, late), (BTreeMap::new(), BTreeMap::new()));
    }

    #[test]
    fn who_says_nothing_more_is_forgotten_and_ones_own_sight_goes_first() {
        let mut copies = Copies::default();
        copies.member_told(NodeId(3), [(TWO, twice(5, 6))].into(), at(1));
        copies.leader_told([(TWO, twice(7, 8))].into(), at(1));
        copies.refused(TWO, twice(1, 2), at(1));
        assert_eq!(copies.all(at(1)), [(TWO, twice(1, 2))].into());
        let mut told = Copies::default();
        told.member_told(NodeId(3), [(TWO, twice(5, 6))].into(), at(1));
        assert!(!told.for_members(at(1)).is_empty());
        assert!(told.for_members(at(1) + REFUSAL_COUNTS).is_empty());
    }
}
