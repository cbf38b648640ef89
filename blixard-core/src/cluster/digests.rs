//! Whether the members' states are the same: digests of them, compared by the leader.
//!
//! Every member makes digests of its state at the same places of the log ([`is_due`]) and tells the
//! leader with its signs of life. [`Digests::compare`] says what a majority of the voters agrees on,
//! [`Agreed`], and which members differ. Whoever differs from what was agreed on finds out by itself:
//! it compares with its own digests what the leader answers. Nothing here reads or changes a state.
//!
//! Two members that have applied the same index have the same state (state machine safety; Ongaro,
//! "Consensus", section 3.6.3), so that digests of one index which differ are never in order: a
//! memory that lost a bit, a snapshot damaged before it got its checksum, or a fault in `apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ClusterState;
use super::level::SECOND_LEVEL;
use crate::id::NodeId;
use crate::limits::{DIGEST_ENTRIES, DIGEST_SPACING, DIGESTS_TOLD_MAX, NODE_HEARTBEAT};
use crate::time::{Mono, UtcMs};

/// The version of the encoding that digests are made of. It is raised with each change of what the same
/// state is encoded as (a test holds a digest to it): digests of two versions are never compared.
pub const DIGEST_VERSION: u16 = 1;

/// How long what a member told counts: it tells again with each sign of life.
const TOLD_COUNTS: Duration = Duration::from_secs(8);
const _: () = assert!(TOLD_COUNTS.as_millis() >= 4 * NODE_HEARTBEAT.as_millis());

/// A digest of the state at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateDigest {
    /// The index.
    pub index: u64,
    /// What the digest is made of: [`DIGEST_VERSION`] of who made it.
    pub version: u16,
    /// SHA-256 of the encoded state.
    pub sha256: [u8; 32],
}

/// What a majority of the voters agrees on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// The digest.
    pub digest: StateDigest,
    /// Members that have it.
    pub holders: BTreeSet<NodeId>,
}

/// How a member's state differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// At which index.
    pub index: u64,
    /// Whose states are others at that index: a majority's, or where none agrees all others'.
    pub from: BTreeSet<NodeId>,
    /// Whether those are a majority of the voters, so that this member is the one to be mended.
    pub by_majority: bool,
}

impl Difference {
    /// What is wrong with `node`, and what is done or to be done about it.
    pub fn words(&self, node: NodeId) -> String {
        let others: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        let what = format!(
            "the state of node {node} at log index {} is not that of {} {}",
            self.index,
            if others.len() == 1 { "node" } else { "nodes" },
            others.join(", ")
        );
        if self.by_majority {
            return format!(
                "{what}: it answers nobody until it has the majority's state, its containers run on"
            );
        }
        format!(
            "{what}, and no majority says which is right, so that none is replaced: compare what they answer, give up the one that is wrong (`blixard node rm ID --force`, then `blixard node purge --yes` on it) and have it join anew"
        )
    }
}

/// The outcome of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The newest digest that a majority agrees on.
    pub agreed: Option<Agreed>,
    /// The members that differ.
    pub differing: BTreeMap<NodeId, Difference>,
}

/// Whether every member makes a digest of `state`, where log time was `before` the entry that was just
/// applied: of the first entry of each [`DIGEST_SPACING`] of log time, and of every
/// [`DIGEST_ENTRIES`]th. Members of the first feature level make none.
pub fn is_due(before: UtcMs, state: &ClusterState) -> bool {
    let window = |at: UtcMs| u128::from(at.0) / DIGEST_SPACING.as_millis();
    state.knows(SECOND_LEVEL)
        && (window(before) != window(state.time) || state.applied.is_multiple_of(DIGEST_ENTRIES))
}

/// What each member last told, on the leader.
#[derive(Debug, Default)]
pub struct Digests {
    told: BTreeMap<NodeId, (Vec<StateDigest>, Mono)>,
}

/// Who has which digest of one index.
type Groups = BTreeMap<[u8; 32], BTreeSet<NodeId>>;

impl Digests {
    /// A member told its newest digests; that replaces what it told before.
    pub fn member_told(&mut self, member: NodeId, mut digests: Vec<StateDigest>, now: Mono) {
        digests.truncate(DIGESTS_TOLD_MAX);
        self.told.insert(member, (digests, now));
    }

    /// Compares what `members` told, of which `voters` decide. A digest is agreed on when a majority of
    /// all voters, and two members at least, have it.
    pub fn compare(
        &mut self,
        voters: &BTreeSet<NodeId>,
        members: &BTreeSet<NodeId>,
        now: Mono,
    ) -> Comparison {
        self.told.retain(|member, (_, at)| members.contains(member) && now.since(*at) < TOLD_COUNTS);
        let mut places: BTreeMap<(u64, u16), Groups> = BTreeMap::new();
        for (member, (digests, _)) in &self.told {
            for digest in digests {
                let groups = places.entry((digest.index, digest.version)).or_default();
                groups.entry(digest.sha256).or_default().insert(*member);
            }
        }
        let mut comparison = Comparison::default();
        let mut judged = BTreeSet::new();
        // What a member is by its newest digest that can be judged, it is.
        for ((index, version), groups) in places.into_iter().rev() {
            let Some(verdict) = self.verdict(voters, index, &groups) else { continue };
            if let Verdict::Agreed(sha256) = verdict {
                comparison.agreed.get_or_insert_with(|| Agreed {
                    digest: StateDigest { index, version, sha256 },
                    holders: groups[&sha256].clone(),
                });
            }
            for (sha256, group) in &groups {
                let from = verdict.differs_from(sha256, &groups);
                let by_majority = matches!(verdict, Verdict::Agreed(_));
                for member in group.iter().filter(|member| judged.insert(**member)) {
                    if !from.is_empty() {
                        let difference = Difference { index, from: from.clone(), by_majority };
                        comparison.differing.insert(*member, difference);
                    }
                }
            }
        }
        comparison
    }

    /// What is to be said of the digests of one index; nothing where the members that make a majority
    /// may yet tell theirs, or where there is but one to compare.
    fn verdict(&self, voters: &BTreeSet<NodeId>, index: u64, groups: &Groups) -> Option<Verdict> {
        let votes = |group: &BTreeSet<NodeId>| group.intersection(voters).count();
        let majority = voters.len() / 2 + 1;
        let agreed = groups.iter().find(|(_, group)| votes(group) >= majority && group.len() >= 2);
        if let Some((sha256, _)) = agreed {
            return Some(Verdict::Agreed(*sha256));
        }
        let most = groups.values().map(votes).max().unwrap_or(0);
        let comes = most < majority && most + self.pending(voters, index) >= majority;
        let told: usize = groups.values().map(BTreeSet::len).sum();
        (!comes && told >= 2).then_some(Verdict::Open)
    }

    /// How many voters are heard and have not come to `index` yet.
    fn pending(&self, voters: &BTreeSet<NodeId>, index: u64) -> usize {
        let behind = |voter: &&NodeId| {
            self.told.get(voter).is_some_and(|(digests, _)| digests.iter().all(|told| told.index < index))
        };
        voters.iter().filter(behind).count()
    }
}

/// What the digests of one index say.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    /// This one is a majority's.
    Agreed([u8; 32]),
    /// None is.
    Open,
}

impl Verdict {
    /// From whom those differ that have the digest `own`.
    fn differs_from(self, own: &[u8; 32], groups: &Groups) -> BTreeSet<NodeId> {
        match self {
            Self::Agreed(agreed) if agreed == *own => BTreeSet::new(),
            Self::Agreed(agreed) => groups[&agreed].clone(),
            Self::Open => {
                let others = groups.iter().filter(|(sha256, _)| *sha256 != own);
                others.flat_map(|(_, group)| group.iter().copied()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Entry;
    use crate::cluster::level::FIRST_LEVEL;
    use crate::cluster::testing::{Cluster, START};

    const NOW: Mono = Mono(Duration::from_secs(60));

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn state_digest(index: u64, letter: char) -> StateDigest {
        let mut sha256 = [0; 32];
        letter.encode_utf8(&mut sha256);
        StateDigest { index, version: DIGEST_VERSION, sha256 }
    }

    /// What members told, `"1:10a,20b 2:10a"`: node 1 of index 10 the digest `a`.
    fn told(words: &str) -> Digests {
        let mut digests = Digests::default();
        for member in words.split_whitespace() {
            let (id, rows) = member.split_once(':').expect("a member and its digests");
            let row = |row: &str| {
                let (index, letter) = row.split_at(row.len() - 1);
                let index = index.parse().expect("an index");
                state_digest(index, letter.chars().next().expect("a letter"))
            };
            let rows = rows.split(',').filter(|row| !row.is_empty()).map(row).collect();
            digests.member_told(NodeId(id.parse().expect("an id")), rows, NOW);
        }
        digests
    }

    #[test]
    fn a_majority_of_the_voters_decides_who_differs() {
        // Voters, learners, what was told; the agreed digest with who has it, who differs by a
        // majority, and who differs without one.
        let check =
            |voters: &[u64], learners: &[u64], words: &str, agreed: &str, less: &[u64], open: &[u64]| {
                let members = ids(voters).union(&ids(learners)).copied().collect();
                let found = told(words).compare(&ids(voters), &members, NOW);
                let said = found.agreed.map_or(String::new(), |agreed| {
                    let letter = char::from(agreed.digest.sha256[0]);
                    let holders: Vec<_> = agreed.holders.iter().map(ToString::to_string).collect();
                    format!("{}{letter} {}", agreed.digest.index, holders.join(" "))
                });
                let differ = |by_majority| {
                    let rows = found.differing.iter().filter(|(_, row)| row.by_majority == by_majority);
                    rows.map(|(id, _)| *id).collect::<BTreeSet<_>>()
                };
                assert_eq!(
                    (said.as_str(), differ(true), differ(false)),
                    (agreed, ids(less), ids(open)),
                    "{words}"
                );
            };
        let three = &[1, 2, 3][..];
        check(three, &[], "1:10a 2:10a 3:10a", "10a 1 2 3", &[], &[]);
        check(three, &[], "1:10a 2:10a 3:10b", "10a 1 2", &[3], &[]);
        check(three, &[], "1:10b 2:10a 3:10a", "10a 2 3", &[1], &[]);
        check(three, &[], "1:10a 2:10b 3:10c", "", &[], &[1, 2, 3]);
        // One is away, or has not come so far: two are a majority when they agree. When they do not,
        // the third decides, if it is heard.
        check(three, &[], "1:10a 2:10a", "10a 1 2", &[], &[]);
        check(three, &[], "1:10a 2:10b", "", &[], &[1, 2]);
        check(three, &[], "1:10a 2:10b 3:", "", &[], &[]);
        check(three, &[], "1:10a 2:10b 3:5a", "", &[], &[]);
        check(three, &[], "1:10a 2:10b 3:20a", "", &[], &[1, 2]);
        check(three, &[], "1:5a,10a 2:5a 3:5b", "5a 1 2", &[3], &[]);
        check(three, &[], "1:5a,10a 2:10a 3:5b", "10a 1 2", &[], &[3]);
        // The newest counts: who was mended is as the others, who was not is not.
        check(three, &[], "1:5a,10a 2:5a,10a 3:5b,10a", "10a 1 2 3", &[], &[]);
        check(three, &[], "1:5a,10a 2:5a,10a 3:5a,10b", "10a 1 2", &[3], &[]);
        check(three, &[], "1:5a,10a 2:5a,10a 3:5b", "10a 1 2", &[3], &[]);
        // Even numbers of voters, as while they change.
        check(&[1, 2, 3, 4], &[], "1:10a 2:10a 3:10b 4:10b", "", &[], &[1, 2, 3, 4]);
        check(&[1, 2, 3, 4], &[], "1:10a 2:10a 3:10a 4:10b", "10a 1 2 3", &[4], &[]);
        check(&[1, 2, 3, 4, 5], &[], "1:10a 2:10a 3:10b 4:10b 5:10a", "10a 1 2 5", &[3, 4], &[]);
        check(&[1, 2, 3, 4, 5], &[], "1:10a 2:10b", "", &[], &[1, 2]);
        // Learners are judged and do not decide.
        check(three, &[4, 5], "1:10a 2:10a 3:10b 4:10b 5:10b", "10a 1 2", &[3, 4, 5], &[]);
        check(three, &[4, 5], "1:10a 2:10b 3:10c 4:10b 5:10b", "", &[], &[1, 2, 3, 4, 5]);
        // Of two members one votes: it alone is no majority of states.
        check(&[1], &[2], "1:10a 2:10a", "10a 1 2", &[], &[]);
        check(&[1], &[2], "1:10a 2:10b", "", &[], &[1, 2]);
        check(&[1], &[2, 3], "1:10a 2:10b 3:10a", "10a 1 3", &[2], &[]);
        check(&[1], &[], "1:10a", "", &[], &[]);
        // Who is no member counts nothing.
        check(three, &[], "1:10a 2:10b 9:10b", "", &[], &[1, 2]);
        check(three, &[], "", "", &[], &[]);
    }

    #[test]
    fn digests_of_other_encodings_are_not_compared() {
        let mut digests = told("1:10a 2:10a");
        let newer = StateDigest { version: DIGEST_VERSION + 1, ..state_digest(10, 'b') };
        digests.member_told(NodeId(3), vec![newer], NOW);
        let found = digests.compare(&ids(&[1, 2, 3]), &ids(&[1, 2, 3]), NOW);
        assert!(found.differing.is_empty() && found.agreed.is_some(), "{found:?}");
    }

    #[test]
    fn what_is_not_told_any_more_is_forgotten_and_what_is_told_is_bounded() {
        let three = ids(&[1, 2, 3]);
        let mut digests = told("1:10a 2:10a 3:10b");
        let late = NOW + TOLD_COUNTS;
        assert_eq!(digests.compare(&three, &three, late - Duration::from_millis(1)).differing.len(), 1);
        assert_eq!(digests.compare(&three, &three, late), Comparison::default());
        let many = (0..10_000).map(|index| state_digest(index, 'a')).collect();
        digests.member_told(NodeId(1), many, NOW);
        assert_eq!(digests.told[&NodeId(1)].0.len(), DIGESTS_TOLD_MAX);
    }

    #[test]
    fn the_words_name_whom_and_what_to_do() {
        let check = |by_majority, from: &[u64], phrases: &[&str]| {
            let words = Difference { index: 7, from: ids(from), by_majority }.words(NodeId(3));
            for phrase in phrases {
                assert!(words.contains(phrase), "{phrase}: {words}");
            }
        };
        check(
            true,
            &[1, 2],
            &["the state of node 3 at log index 7 is not that of nodes 1, 2", "answers nobody"],
        );
        check(false, &[1], &["is not that of node 1", "none is replaced", "blixard node rm ID --force"]);
    }

    #[test]
    fn digests_are_due_at_the_same_entries_everywhere() {
        let mut cluster = Cluster::of(1);
        let spacing = u64::try_from(DIGEST_SPACING.as_millis()).expect("short");
        let begun = START.0 / spacing * spacing + spacing;
        let mut due = Vec::new();
        for ms in [0, 1, spacing - 1, spacing, spacing + 1, spacing, 9 * spacing, 9 * spacing] {
            let before = cluster.state.time;
            cluster.state.apply(cluster.state.applied + 1, &Entry::new(UtcMs(begun + ms), Vec::new()));
            due.push(is_due(before, &cluster.state));
        }
        assert_eq!(due, [true, false, false, true, false, false, true, false]);
        let time = cluster.state.time;
        cluster.state.applied = DIGEST_ENTRIES;
        assert!(is_due(time, &cluster.state));
        cluster.state.level = FIRST_LEVEL;
        assert!(!is_due(time, &cluster.state));
    }
}
