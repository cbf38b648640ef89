//! `histories_are_linearizable`: what several clients were told of a service can have happened in
//! one order, in which each operation takes effect between being asked and being answered.
//!
//! Herlihy and Wing, "Linearizability" (1990); the search is that of Wing and Gong (1993) with
//! Lowe's memory of configurations ("Testing for linearizability", 2017), as in the checker
//! Porcupine. A history is linearizable when the part of each service is (locality), so each is
//! searched by itself. An operation without an answer may have taken effect at any time after it
//! was asked, or never. The bound counts steps, not seconds, so that a seed has one verdict. Shows
//! a stale read, a lost or doubled write, and a refusal for what was never so.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use blixard_core::id::ServiceName;

/// How many steps the search of one service takes at most.
pub const STEPS_MAX: u64 = 2_000_000;

/// What a client asks about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A new version, told from others by its mark.
    Submit {
        /// What tells it from others.
        mark: String,
        /// The fewest replicas.
        min: u32,
        /// The most replicas.
        max: u32,
    },
    /// Another number of replicas.
    Scale(u32),
    /// To stop it, or to start it again.
    Suspend(bool),
    /// To remove it.
    Remove,
    /// What it is.
    Read,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The submission is this version.
    Version(u64),
    /// It was done.
    Done,
    /// It was refused.
    Refused,
    /// There is no such service.
    Absent,
    /// This is the service.
    Found(Service),
}

/// What a read shows of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Its version.
    pub version: u64,
    /// The mark of that version.
    pub mark: String,
    /// Its bounds.
    pub bounds: (u32, u32),
    /// How many replicas are desired.
    pub desired: u32,
    /// Whether it is stopped. Not told while it is removed.
    pub suspended: bool,
    /// Whether it is being removed.
    pub removing: bool,
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What was asked.
    pub call: Call,
    /// When, as a position among all events of the history.
    pub asked: u64,
    /// What was answered, and when.
    pub answered: Option<(u64, Answer)>,
}

/// The operations of all clients on all services that they share.
#[derive(Debug, Default)]
pub struct History {
    events: u64,
    services: BTreeMap<ServiceName, Vec<Operation>>,
}

/// Names an operation until it is answered.
#[derive(Debug)]
pub struct Asked {
    service: ServiceName,
    place: usize,
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Not,
    /// The search was given up.
    Unknown,
}

impl History {
    /// A client asks.
    pub fn ask(&mut self, service: &ServiceName, call: Call) -> Asked {
        self.events += 1;
        let operations = self.services.entry(service.clone()).or_default();
        operations.push(Operation { call, asked: self.events, answered: None });
        Asked { service: service.clone(), place: operations.len() - 1 }
    }

    /// A client is answered.
    pub fn answer(&mut self, asked: &Asked, answer: Answer) {
        self.events += 1;
        if let Some(operations) = self.services.get_mut(&asked.service) {
            operations[asked.place].answered = Some((self.events, answer));
        }
    }

    /// How many operations there are, and how many of them were never answered.
    pub fn counts(&self) -> (u64, u64) {
        let all = self.services.values().flatten();
        all.fold((0, 0), |(asked, lost), operation| {
            (asked + 1, lost + u64::from(operation.answered.is_none()))
        })
    }

    /// Searches an order for each service; how many searches were given up.
    ///
    /// # Errors
    /// The first service without one, and its operations.
    pub fn check(&self) -> Result<u64, String> {
        let mut unknown = 0;
        for (name, operations) in &self.services {
            match linearizable(operations, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Unknown => unknown += 1,
                Verdict::Not => {
                    let shown: Vec<String> =
                        operations.iter().map(|operation| format!("{operation:?}")).collect();
                    return Err(format!(
                        "no order explains the answers about `{name}`:\n{}",
                        shown.join("\n")
                    ));
                }
            }
        }
        Ok(unknown)
    }
}

/// What a service may be after what was told so far: removal ends unseen.
type States = BTreeSet<Option<Service>>;

/// The states in which `call` can have been answered so, each after it.
fn step(states: &States, call: &Call, answer: Option<&Answer>) -> States {
    let mut after = States::new();
    for state in states {
        let gone = state.as_ref().is_some_and(|service| service.removing).then_some(None);
        for state in std::iter::once(state.clone()).chain(gone) {
            for (next, told) in effect(state, call) {
                if answer.is_none_or(|answer| agrees(&told, answer)) {
                    after.insert(next);
                }
            }
        }
    }
    after
}

fn agrees(told: &Answer, answer: &Answer) -> bool {
    match (told, answer) {
        // A service that is removed shows nothing else.
        (Answer::Found(told), Answer::Found(answer)) if told.removing => {
            answer.removing && (told.version, &told.mark) == (answer.version, &answer.mark)
        }
        _ => told == answer,
    }
}

/// What a call makes of a state, and what it may be told.
fn effect(state: Option<Service>, call: &Call) -> Vec<(Option<Service>, Answer)> {
    let Some(service) = state else {
        return match call {
            Call::Submit { mark, min, max } => {
                let (mark, bounds) = (mark.clone(), (*min, *max));
                let made =
                    Service { version: 1, mark, bounds, desired: *min, suspended: false, removing: false };
                vec![(Some(made), Answer::Version(1))]
            }
            Call::Read => vec![(None, Answer::Absent)],
            Call::Scale(_) | Call::Suspend(_) | Call::Remove => vec![(None, Answer::Refused)],
        };
    };
    let same = service.clone();
    match call {
        Call::Read => vec![(Some(same), Answer::Found(service))],
        Call::Remove => {
            let removed = Service { removing: true, ..service };
            vec![(Some(removed), Answer::Done)]
        }
        _ if service.removing => vec![(Some(same), Answer::Refused)],
        Call::Submit { mark, min, max } => {
            let version = service.version + 1;
            let desired = service.desired.clamp(*min, *max);
            let (mark, bounds) = (mark.clone(), (*min, *max));
            let made = Service { version, mark, bounds, desired, suspended: false, removing: false };
            vec![(Some(made), Answer::Version(version))]
        }
        Call::Scale(replicas) if (service.bounds.0..=service.bounds.1).contains(replicas) => {
            vec![(Some(Service { desired: *replicas, ..service }), Answer::Done)]
        }
        Call::Scale(_) => vec![(Some(same), Answer::Refused)],
        Call::Suspend(suspended) => vec![(Some(Service { suspended: *suspended, ..service }), Answer::Done)],
    }
}

/// A call or an answer, in a list ordered by time out of which operations are lifted.
struct Event {
    operation: usize,
    is_call: bool,
    before: usize,
    after: usize,
}

/// Searches an order of one service's operations, in `steps_max` steps at most.
pub fn linearizable(operations: &[Operation], steps_max: u64) -> Verdict {
    let mut times: Vec<(u64, usize, bool)> = Vec::new();
    for (place, operation) in operations.iter().enumerate() {
        times.push((operation.asked, place, true));
        times.extend(operation.answered.as_ref().map(|(at, _)| (*at, place, false)));
    }
    times.sort_unstable();
    // Event 0 is the head; the last one's successor is `END`.
    const END: usize = usize::MAX;
    let mut events = vec![Event { operation: END, is_call: false, before: END, after: END }];
    let mut answers = vec![END; operations.len()];
    for (_, operation, is_call) in times {
        let place = events.len();
        events[place - 1].after = place;
        events.push(Event { operation, is_call, before: place - 1, after: END });
        if !is_call {
            answers[operation] = place;
        }
    }
    let unlink = |events: &mut Vec<Event>, place: usize| {
        let (before, after) = (events[place].before, events[place].after);
        events[before].after = after;
        if after != END {
            events[after].before = before;
        }
    };
    let relink = |events: &mut Vec<Event>, place: usize| {
        let (before, after) = (events[place].before, events[place].after);
        events[before].after = place;
        if after != END {
            events[after].before = place;
        }
    };
    let mut open = operations.iter().filter(|operation| operation.answered.is_some()).count();
    let mut done = vec![0_u64; operations.len().div_ceil(64)];
    let mut states = States::from([None]);
    let mut tried: HashSet<(Vec<u64>, Vec<Option<Service>>)> = HashSet::new();
    let mut path: Vec<(usize, States)> = Vec::new();
    let mut at = events[0].after;
    let mut steps = 0;
    while open > 0 {
        steps += 1;
        if steps > steps_max {
            return Verdict::Unknown;
        }
        if at != END && events[at].is_call {
            let place = events[at].operation;
            let operation = &operations[place];
            let next = step(&states, &operation.call, operation.answered.as_ref().map(|(_, answer)| answer));
            done[place / 64] |= 1 << (place % 64);
            if !next.is_empty() && tried.insert((done.clone(), next.iter().cloned().collect())) {
                path.push((at, std::mem::replace(&mut states, next)));
                unlink(&mut events, at);
                if answers[place] != END {
                    unlink(&mut events, answers[place]);
                    open -= 1;
                }
                at = events[0].after;
            } else {
                done[place / 64] &= !(1 << (place % 64));
                at = events[at].after;
            }
            continue;
        }
        // An answer whose call found no place before it, or nothing left to try.
        let Some((last, before)) = path.pop() else { return Verdict::Not };
        let place = events[last].operation;
        done[place / 64] &= !(1 << (place % 64));
        if answers[place] != END {
            relink(&mut events, answers[place]);
            open += 1;
        }
        relink(&mut events, last);
        states = before;
        at = events[last].after;
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use super::{Answer, Call, Operation, Service, Verdict, linearizable};

    fn submit(mark: &str) -> Call {
        Call::Submit { mark: mark.to_owned(), min: 1, max: 2 }
    }

    fn found(version: u64, mark: &str) -> Answer {
        let (mark, bounds) = (mark.to_owned(), (1, 2));
        Answer::Found(Service { version, mark, bounds, desired: 1, suspended: false, removing: false })
    }

    /// Each operation: the call, when it was asked, and when and what it was answered.
    fn check(operations: Vec<(Call, u64, Option<(u64, Answer)>)>, expect: Verdict) {
        let operations: Vec<Operation> = operations
            .into_iter()
            .map(|(call, asked, answered)| Operation { call, asked, answered })
            .collect();
        assert_eq!(linearizable(&operations, 100_000), expect, "{operations:#?}");
    }

    #[test]
    fn what_happens_in_turn_is_linearizable() {
        check(Vec::new(), Verdict::Linearizable);
        check(
            vec![
                (Call::Read, 1, Some((2, Answer::Absent))),
                (submit("a"), 3, Some((4, Answer::Version(1)))),
                (submit("b"), 5, Some((6, Answer::Version(2)))),
                (Call::Read, 7, Some((8, found(2, "b")))),
                (Call::Remove, 9, Some((10, Answer::Done))),
                (Call::Scale(1), 11, Some((12, Answer::Refused))),
                (Call::Read, 13, Some((14, Answer::Absent))),
                (submit("c"), 15, Some((16, Answer::Version(1)))),
            ],
            Verdict::Linearizable,
        );
    }

    #[test]
    fn a_stale_read_is_caught() {
        let history = |read_at| {
            vec![
                (submit("a"), 1, Some((2, Answer::Version(1)))),
                (submit("b"), 3, Some((5, Answer::Version(2)))),
                (Call::Read, read_at, Some((7, found(1, "a")))),
            ]
        };
        check(history(6), Verdict::Not);
        check(history(4), Verdict::Linearizable);
    }

    #[test]
    fn a_lost_write_is_caught() {
        check(
            vec![
                (submit("a"), 1, Some((2, Answer::Version(1)))),
                (Call::Scale(2), 3, Some((4, Answer::Done))),
                (Call::Read, 5, Some((6, found(1, "a")))),
            ],
            Verdict::Not,
        );
    }

    #[test]
    fn a_write_applied_twice_is_caught() {
        check(
            vec![
                (submit("a"), 1, Some((2, Answer::Version(1)))),
                (submit("b"), 3, Some((4, Answer::Version(3)))),
            ],
            Verdict::Not,
        );
    }

    #[test]
    fn a_write_without_an_answer_may_be_applied_later_or_never_but_not_before_or_twice() {
        let history = |reads: &[(u64, &str)]| {
            let mut operations =
                vec![(submit("a"), 1, Some((2, Answer::Version(1)))), (submit("b"), 3, None)];
            for (place, (version, mark)) in reads.iter().enumerate() {
                let at = 10 + 2 * place as u64;
                operations.push((Call::Read, at, Some((at + 1, found(*version, mark)))));
            }
            operations
        };
        check(history(&[(1, "a"), (1, "a")]), Verdict::Linearizable);
        check(history(&[(1, "a"), (2, "b")]), Verdict::Linearizable);
        check(history(&[(2, "b"), (1, "a")]), Verdict::Not);
        check(history(&[(3, "b")]), Verdict::Not);
    }

    #[test]
    fn a_removal_ends_unseen_and_nothing_returns() {
        let removing = || {
            let Answer::Found(service) = found(1, "a") else { unreachable!("it was made so") };
            Answer::Found(Service { removing: true, ..service })
        };
        let history = |reads: Vec<Answer>| {
            let mut operations = vec![
                (submit("a"), 1, Some((2, Answer::Version(1)))),
                (Call::Remove, 3, Some((4, Answer::Done))),
            ];
            for (place, read) in reads.into_iter().enumerate() {
                let at = 10 + 2 * place as u64;
                operations.push((Call::Read, at, Some((at + 1, read))));
            }
            operations
        };
        check(history(vec![removing(), Answer::Absent]), Verdict::Linearizable);
        check(history(vec![Answer::Absent, removing()]), Verdict::Not);
        check(history(vec![found(1, "a")]), Verdict::Not);
    }

    #[test]
    fn a_search_that_takes_too_long_is_given_up() {
        let operations: Vec<Operation> = (0..40)
            .map(|place| Operation { call: submit(&place.to_string()), asked: place + 1, answered: None })
            .chain([Operation { call: Call::Read, asked: 100, answered: Some((101, found(40, "none"))) }])
            .collect();
        assert_eq!(linearizable(&operations, 10_000), Verdict::Unknown);
    }
}
