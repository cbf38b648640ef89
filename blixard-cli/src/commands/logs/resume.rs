//! Where a followed log broke off, and when it is opened again.

use std::time::Duration;

use blixard_core::api::replica::LogLine;
use blixard_core::time::UtcMs;

/// How long a log is left alone before it is opened again: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a log must have been open for its end to be news, rather than another of the same trouble.
pub(super) const STEADY: Duration = Duration::from_secs(30);
/// How often a log is opened again that may not be there any more: that of a container that ended, whose
/// node may be gone as well, or one that the API does not find while the container goes on.
const TRIES_MAX: u32 = 5;

/// How long to wait before a log is opened again, after so many tries since it broke off; `None` when it
/// is not. A container that goes on is not given up while its node is away.
pub(super) fn pause(tries: u32, goes_on: bool, is_absent: bool) -> Option<Duration> {
    let given_up = match (goes_on, is_absent) {
        (true, false) => false,
        (false, true) => true,
        (true, true) | (false, false) => tries >= TRIES_MAX,
    };
    (!given_up).then(|| PAUSE_MIN.saturating_mul(2_u32.saturating_pow(tries)).min(PAUSE_MAX))
}

/// What a piece of a line that was read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// It was not read before.
    New,
    /// It was read before the log broke off.
    Again,
    /// It was not read before, as far as can be told: what was read last is not in the log any more.
    Unsure,
}

/// How far a log was read.
///
/// A log is opened again by the time its lines began, to the millisecond, and gives in the same order what
/// it gave before. The pieces that were written at the last time are counted, since many may be.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// When the last piece was written, and how many of that time were read.
    last: Option<(String, usize)>,
    /// When the first of the lines began that these are pieces of.
    from: String,
    /// When the lines began that are not at their ends, of stdout and stderr.
    open: [Option<String>; 2],
    /// How many pieces of the last time come again, while the log is read again up to there.
    again: Option<usize>,
}

impl Place {
    /// Whether nothing was read yet.
    pub(super) fn is_start(&self) -> bool {
        self.last.is_none()
    }

    /// From when on the log is to be read to go on here.
    pub(super) fn since(&self) -> Option<UtcMs> {
        self.last.as_ref()?;
        self.open.iter().flatten().chain([&self.from]).min()?.parse().ok()
    }

    /// The log is read again from [`Place::since`] on.
    pub(super) fn rewind(&mut self) {
        self.again = self.last.as_ref().map(|(_, count)| *count).filter(|count| *count > 0);
    }

    /// Takes what was read next.
    pub(super) fn take(&mut self, line: &LogLine) -> Piece {
        if let (Some(left), Some((at, _))) = (self.again, &self.last) {
            if line.note {
                return Piece::New;
            }
            if line.at <= *at {
                let left = if line.at == *at { left - 1 } else { left };
                self.again = Some(left).filter(|left| *left > 0);
                return Piece::Again;
            }
            *self = Self::default();
            self.advance(line);
            return Piece::Unsure;
        }
        self.advance(line);
        Piece::New
    }

    fn advance(&mut self, line: &LogLine) {
        if line.note {
            // It is not in the log, and neither are the ends that were made up for lines before it.
            *self = Self { last: Some((line.at.clone(), 0)), from: line.at.clone(), ..Self::default() };
            return;
        }
        let [stdout, stderr] = &mut self.open;
        let open = if line.stderr { stderr } else { stdout };
        let begun = open.take().unwrap_or_else(|| line.at.clone());
        *open = line.partial.then(|| begun.clone());
        match &mut self.last {
            Some((at, count)) if *at == line.at => {
                *count += 1;
                self.from = begun.min(std::mem::take(&mut self.from));
            }
            last => {
                *last = Some((line.at.clone(), 1));
                self.from = begun;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blixard_core::api::replica::LogLine;

    use super::{Piece, Place, pause};

    #[test]
    fn a_log_is_opened_again_at_growing_pauses_while_its_container_may_have_more_to_say() {
        let check = |tries, goes_on, is_absent, expect: Option<u64>| {
            let expect = expect.map(Duration::from_secs);
            assert_eq!(pause(tries, goes_on, is_absent), expect, "{tries} {goes_on} {is_absent}");
        };
        for (tries, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (u32::MAX, 10)] {
            check(tries, true, false, Some(seconds));
        }
        check(0, false, false, Some(1));
        check(4, false, false, Some(10));
        check(5, false, false, None);
        check(4, true, true, Some(10));
        check(5, true, true, None);
        check(0, false, true, None);
    }

    /// A piece of a line: the last digits of when it was written, to stderr or not, and whether more comes.
    type Written = (&'static str, bool, bool);

    fn piece((at, stderr, partial): Written) -> LogLine {
        LogLine::new(format!("1970-01-01T00:00:00.{at}Z"), stderr, b"x".to_vec(), partial)
    }

    /// What a node gives of a log from a time on, in milliseconds: the lines begun then or later.
    fn given(log: &[Written], since: Option<u64>) -> Vec<Written> {
        let mut wanted = [None; 2];
        let mut given = Vec::new();
        for written in log {
            let (at, stderr, partial) = *written;
            let line = &mut wanted[usize::from(stderr)];
            let is_wanted = *line
                .get_or_insert_with(|| since.is_none_or(|since| at[..3].parse::<u64>().unwrap() >= since));
            if !partial {
                *line = None;
            }
            given.extend(is_wanted.then_some(*written));
        }
        given
    }

    #[test]
    fn wherever_a_log_breaks_off_it_is_read_on_without_a_loss_or_a_repetition() {
        let log: &[Written] = &[
            ("001000001", false, false),
            ("002000001", false, true),
            ("002000001", true, false),
            ("002000001", true, false),
            ("002000005", true, true),
            ("003000001", false, true),
            // The end of a long line, and others of the same time.
            ("004000001", false, false),
            ("004000001", false, false),
            ("004000001", false, false),
            ("004000002", true, false),
            ("005000001", false, false),
        ];
        for first in 0..=log.len() {
            for second in 0..=log.len() {
                let (mut place, mut read) = (Place::default(), Vec::new());
                let mut since = None;
                for end in [first, second, usize::MAX] {
                    for written in given(log, since).into_iter().take(end) {
                        match place.take(&piece(written)) {
                            Piece::New => read.push(written),
                            Piece::Again => {}
                            Piece::Unsure => panic!("{written:?} after {first} and {second}"),
                        }
                    }
                    since = place.since().map(|since| since.0);
                    assert_eq!(since.is_none(), place.is_start());
                    place.rewind();
                }
                assert_eq!(read, log, "after {first} and {second}");
            }
        }
    }

    #[test]
    fn what_follows_lines_that_were_removed_is_read_and_said_to_be_unsure() {
        let mut place = Place::default();
        let mut check = |line: &LogLine, expect: Piece| assert_eq!(place.take(line), expect, "{line:?}");
        check(&piece(("001", false, false)), Piece::New);
        check(&piece(("002", true, true)), Piece::New);
        place.rewind();
        let mut check = |line: &LogLine, expect: Piece| assert_eq!(place.take(line), expect, "{line:?}");
        check(&piece(("003", false, false)), Piece::Unsure);
        check(&piece(("004", false, false)), Piece::New);
        // What a node says of the log is not in it, and does not come again.
        check(&LogLine::note("1970-01-01T00:00:00.006Z".into(), "removed".into()), Piece::New);
        check(&piece(("006", false, false)), Piece::New);
        place.rewind();
        assert_eq!(place.take(&piece(("006", false, false))), Piece::Again);
        assert_eq!(place.take(&piece(("007", false, false))), Piece::New);
    }
}
