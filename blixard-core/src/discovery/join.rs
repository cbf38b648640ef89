//! Whom a joiner asks next, and how long it waits between rounds. It asks for ever: only being
//! admitted or refused ends it, and that is its caller's to see.

use std::time::Duration;

use super::contact::Contact;
use crate::wire::Peer;

/// The longest wait after the first round.
pub const JOIN_BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest wait between rounds: someone may be standing beside the machine.
pub const JOIN_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often one round follows a redirect to the leader: more means that members disagree.
pub const REDIRECTS_MAX: u32 = 3;
/// After how many rounds in a row in which whoever answered refused, and nobody had been named, a
/// joiner gives up. One refusal may be a liar's, which anybody on the network can be.
pub const REFUSED_ROUNDS_MAX: u32 = 6;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinStep {
    /// Ask this one.
    Ask(Peer),
    /// Wait this long.
    Wait(Duration),
}

/// The state of joining.
#[derive(Debug, Clone, Default)]
pub struct JoinPlan {
    candidates: Vec<Peer>,
    next: usize,
    leader: Option<Peer>,
    redirects: u32,
    rounds: u32,
    /// What somebody who was only found refused with last, and in how many rounds on end that was all.
    refusal: Option<String>,
    refused_rounds: u32,
    /// Whether anybody refused in this round.
    refused: bool,
    /// Whether somebody answered otherwise in this round.
    answered: bool,
}

impl JoinPlan {
    /// Begins with the first of `candidates`.
    pub fn new(candidates: &[Contact]) -> Self {
        Self { candidates: candidates.iter().map(Contact::peer).collect(), ..Self::default() }
    }

    /// Replaces the candidates, after their sources were read again.
    pub fn refresh(&mut self, candidates: &[Contact]) {
        self.candidates = candidates.iter().map(Contact::peer).collect();
    }

    /// The next step; `random` spreads the waits of those that started together.
    pub fn step(&mut self, random: u64) -> JoinStep {
        if let Some(leader) = self.leader.take() {
            return JoinStep::Ask(leader);
        }
        if let Some(candidate) = self.candidates.get(self.next) {
            self.next += 1;
            return JoinStep::Ask(candidate.clone());
        }
        let ceiling = JOIN_BACKOFF_MIN.saturating_mul(1 << self.rounds.min(8)).min(JOIN_BACKOFF_MAX);
        let spread = u64::try_from(ceiling.as_micros() / 2).unwrap_or(u64::MAX).max(1);
        let refused = self.refused && !self.answered;
        self.refused_rounds = if refused { self.refused_rounds.saturating_add(1) } else { 0 };
        (self.answered, self.refused) = (false, false);
        self.next = 0;
        self.redirects = 0;
        self.rounds = self.rounds.saturating_add(1);
        JoinStep::Wait(ceiling / 2 + Duration::from_micros(random % spread))
    }

    /// The one asked says that `leader` leads. Returns false when it is not followed, because too
    /// many said so already.
    pub fn redirected(&mut self, leader: Peer) -> bool {
        self.redirects += 1;
        self.answered = true;
        let follows = self.redirects <= REDIRECTS_MAX;
        self.leader = follows.then_some(leader);
        follows
    }

    /// The one asked answered that it may admit later.
    pub fn put_off(&mut self) {
        self.answered = true;
    }

    /// The one asked, who was only found, refuses.
    pub fn refused(&mut self, reason: String) {
        self.refused = true;
        self.refusal = Some(reason);
    }

    /// Why joining ends, once refusals are all that was heard for long enough.
    pub fn given_up(&self) -> Option<&str> {
        self.refusal.as_deref().filter(|_| self.refused_rounds >= REFUSED_ROUNDS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{JOIN_BACKOFF_MAX, JOIN_BACKOFF_MIN, JoinPlan, JoinStep, REDIRECTS_MAX, REFUSED_ROUNDS_MAX};
    use crate::discovery::contact::Contact;
    use crate::id::NodeKey;
    use crate::wire::Peer;

    fn contact(key: u8) -> Contact {
        Contact {
            key: NodeKey([key; 32]),
            node: None,
            addresses: vec![],
            relay_url: None,
            cluster: None,
            token: None,
            seen_at: None,
            named: true,
        }
    }

    fn asks(key: u8) -> JoinStep {
        JoinStep::Ask(Peer { key: NodeKey([key; 32]), addresses: vec![], relay_url: None })
    }

    #[test]
    fn candidates_are_asked_in_turn_then_after_a_wait_again() {
        let mut plan = JoinPlan::new(&[contact(1), contact(2)]);
        for round in 0..10 {
            assert_eq!(plan.step(0), asks(1));
            assert_eq!(plan.step(0), asks(2));
            let JoinStep::Wait(wait) = plan.step(u64::MAX) else { panic!("no wait in round {round}") };
            assert!((JOIN_BACKOFF_MIN / 2..=JOIN_BACKOFF_MAX).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn the_leader_named_is_asked_next_but_not_for_ever() {
        let mut plan = JoinPlan::new(&[contact(1), contact(2)]);
        plan.step(0);
        for _ in 0..REDIRECTS_MAX {
            assert!(plan.redirected(contact(9).peer()));
            assert_eq!(plan.step(0), asks(9));
        }
        assert!(!plan.redirected(contact(9).peer()));
        assert_eq!(plan.step(0), asks(2));
    }

    #[test]
    fn only_refusals_for_long_enough_end_joining() {
        let round = |plan: &mut JoinPlan, put_off: bool| {
            assert_eq!(plan.step(0), asks(1));
            plan.refused("no".to_owned());
            assert_eq!(plan.step(0), asks(2));
            if put_off {
                plan.put_off();
            }
            assert!(matches!(plan.step(0), JoinStep::Wait(_)));
        };
        let mut plan = JoinPlan::new(&[contact(1), contact(2)]);
        for _ in 0..2 {
            for _ in 1..REFUSED_ROUNDS_MAX {
                round(&mut plan, false);
                assert_eq!(plan.given_up(), None);
            }
            // Somebody would admit it later: a liar's refusals count no more.
            round(&mut plan, true);
            assert_eq!(plan.given_up(), None);
        }
        // Nor do they once nobody answers any more.
        round(&mut plan, false);
        for _ in 0..2 * REFUSED_ROUNDS_MAX {
            assert_eq!((plan.step(0), plan.step(0)), (asks(1), asks(2)));
            assert!(matches!(plan.step(0), JoinStep::Wait(_)));
            assert_eq!(plan.given_up(), None);
        }
        for _ in 0..REFUSED_ROUNDS_MAX {
            round(&mut plan, false);
        }
        assert_eq!(plan.given_up(), Some("no"));
    }

    #[test]
    fn without_candidates_it_waits() {
        let mut plan = JoinPlan::new(&[]);
        assert!(matches!(plan.step(0), JoinStep::Wait(_)));
        plan.refresh(&[contact(1)]);
        assert_eq!(plan.step(0), asks(1));
    }
}
