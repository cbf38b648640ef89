//! `logs_match` and `committed_stays`: entries of one index and term are one entry, with one before
//! it; and what was committed is in the log of every later leader.
//!
//! Log matching and leader completeness (Ongaro, "Consensus", figure 3.2), seen in what leaders
//! send. Shows an entry written over in place, a term used twice, an entry lost to an election
//! that should not have been won, and a commit that no quorum stood behind.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use blixard_node::raft::inspect::EntryMark;

/// What leaders said of the log.
#[derive(Default)]
pub(super) struct Logs {
    /// By index and term: the term of the entry before, once told, and the entry's hash.
    entries: BTreeMap<(u64, u64), (Option<u64>, u64)>,
    /// By index: the term of the committed entry, and the lowest term of a leader that said so.
    committed: BTreeMap<u64, (u64, u64)>,
}

impl Logs {
    /// The lowest term of the entries of some indexes, as they were last told; `None` when a leader
    /// told nothing of one.
    pub(super) fn lowest_term(&self, mut indexes: RangeInclusive<u64>) -> Option<u64> {
        indexes.try_fold(u64::MAX, |lowest, index| {
            let ((_, term), _) = self.entries.range((index, 0)..=(index, u64::MAX)).next_back()?;
            Some(lowest.min(*term))
        })
    }

    pub(super) fn appended(
        &mut self,
        leader: u64,
        previous: Option<(u64, u64)>,
        entries: &[EntryMark],
        committed: Option<(u64, u64)>,
    ) -> Result<(), (&'static str, String)> {
        let mut before = previous.map(|(_, term)| term);
        for entry in entries {
            let known = self.entries.entry((entry.index, entry.term)).or_insert((before, entry.hash));
            if *known != (before, entry.hash) {
                let detail = format!("entry {} of term {} is two", entry.index, entry.term);
                return Err(("logs_match", detail));
            }
            before = Some(entry.term);
            let stays = self.committed.get(&entry.index);
            if let Some((term, _)) = stays.filter(|(term, by)| leader >= *by && *term != entry.term) {
                let detail = format!(
                    "entry {} of term {term} was committed; the leader of term {leader} has one of term {}",
                    entry.index, entry.term
                );
                return Err(("committed_stays", detail));
            }
        }
        let Some((index, term)) = committed else { return Ok(()) };
        let (known, by) = self.committed.entry(index).or_insert((term, leader));
        *by = leader.min(*by);
        if *known == term {
            return Ok(());
        }
        let detail = format!("entry {index} was committed as of term {known} and as of term {term}");
        Err(("committed_stays", detail))
    }
}

#[cfg(test)]
mod tests {
    use blixard_node::raft::inspect::EntryMark;

    use super::Logs;

    fn entry(index: u64, term: u64, hash: u64) -> EntryMark {
        EntryMark { index, term, hash }
    }

    #[test]
    fn what_does_not_match_is_named() {
        let mut logs = Logs::default();
        let mut say = |leader, previous, entries: &[EntryMark], committed| {
            logs.appended(leader, previous, entries, committed).map_err(|(invariant, _)| invariant)
        };
        assert_eq!(say(1, Some((4, 1)), &[entry(5, 1, 7), entry(6, 1, 8)], Some((4, 1))), Ok(()));
        assert_eq!(say(1, Some((5, 1)), &[entry(6, 1, 8)], Some((5, 1))), Ok(()));
        assert_eq!(say(2, Some((5, 1)), &[entry(6, 2, 9)], Some((5, 1))), Ok(()));
        assert_eq!(say(1, Some((5, 1)), &[entry(6, 1, 9)], None), Err("logs_match"));
        assert_eq!(say(3, Some((5, 2)), &[entry(6, 2, 9)], None), Err("logs_match"));
        assert_eq!(say(3, Some((4, 1)), &[entry(5, 3, 1)], None), Err("committed_stays"));
        assert_eq!(say(3, None, &[], Some((5, 2))), Err("committed_stays"));
    }
}
