//! Looks at every source, each on a schedule of its own, merges what they say, and hints the transport
//! with it: a member whose addresses changed while this node was down is found through them.
//!
//! What a source says stays good for a while after it fails. A failure is logged once while it is the
//! same, however often it is met.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blixard_core::discovery::contact::{Contact, merge};
use blixard_core::id::NodeKey;
use blixard_core::time::{Mono, UtcMs};
use futures_util::future::join_all;
use tokio::sync::Notify;

use super::Seams;
use super::source::Source;
use crate::platform::Platform;

/// How often a source that answers is looked at.
pub const REFRESH: Duration = Duration::from_secs(60);
/// The first wait after a source failed; doubled up to [`REFRESH`].
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// For how long what a source said is good after it last answered.
pub const STALE_AFTER: Duration = Duration::from_secs(300);
/// The most members taken from one source. The rest of what it says is left out, and that is logged.
pub const CONTACTS_MAX: usize = 1_000;

/// Every source of a node, and what each said last.
pub struct Finder {
    sources: Vec<Watched>,
    /// The contradiction between sources that was told last.
    contradiction: Mutex<Option<String>>,
}

struct Watched {
    source: Box<dyn Source>,
    demand: Notify,
    said: Mutex<Said>,
}

/// What a source said.
#[derive(Debug, Clone, Default)]
struct Said {
    contacts: Vec<Contact>,
    problem: Option<String>,
    /// Whether that will not change by itself.
    is_final: bool,
    looked_at: Option<UtcMs>,
    /// When it last answered.
    good_at: Option<Mono>,
    failures: u32,
    /// Before when it is not looked at, whoever asks.
    not_before: Mono,
    /// When it is looked at by itself.
    due: Mono,
}

/// What one source said last, for people.
#[derive(Debug, Clone)]
pub struct Report {
    /// The source.
    pub name: String,
    /// Whom it names.
    pub contacts: Vec<Contact>,
    /// Why it could not be used the last time.
    pub problem: Option<String>,
    /// When it was looked at last, by the node's clock.
    pub looked_at: Option<UtcMs>,
    /// How often it failed since it last answered.
    pub failures: u32,
}

/// What the sources say together.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Possible members, merged by key, without this node.
    pub contacts: Vec<Contact>,
    /// What is wrong with sources that could not be used.
    pub problems: Vec<String>,
    /// Whether no source is left that another look could help.
    pub is_hopeless: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Finder {
    /// Begins with nothing looked at.
    pub fn new(sources: Vec<Box<dyn Source>>) -> Arc<Self> {
        let watched = |source| Watched { source, demand: Notify::new(), said: Mutex::default() };
        Arc::new(Self {
            sources: sources.into_iter().map(watched).collect(),
            contradiction: Mutex::default(),
        })
    }

    /// Whether there is any source: then a node without membership joins and never bootstraps by
    /// itself, whatever the sources say.
    pub fn is_configured(&self) -> bool {
        self.sources.iter().any(|watched| watched.source.is_there())
    }

    /// Has the sources looked at at once, as when no member can be reached.
    pub fn demand(&self) {
        self.sources.iter().for_each(|watched| watched.demand.notify_one());
    }

    /// What each source that is there said last.
    pub fn reports(&self) -> Vec<Report> {
        let there = self.sources.iter().filter(|watched| watched.source.is_there());
        let report = |watched: &Watched| {
            let Said { contacts, problem, looked_at, failures, .. } = lock(&watched.said).clone();
            Report { name: watched.source.name(), contacts, problem, looked_at, failures }
        };
        there.map(report).collect()
    }

    /// Looks at all sources that may be looked at now, side by side, and gives what all say.
    pub async fn read<'a>(&self, seams: impl Into<Seams<'a>>) -> Reading {
        let seams = seams.into();
        let now = seams.clock.now();
        let ready = self.sources.iter().filter(|watched| lock(&watched.said).not_before <= now);
        join_all(ready.map(|watched| watched.look(seams))).await;
        self.merged(seams)
    }

    /// Looks at each source now, on its schedule and on demand. Never ends while there is any.
    pub async fn run(self: Arc<Self>, platform: Platform) {
        join_all(self.sources.iter().map(|watched| self.keep(watched, &platform))).await;
    }

    async fn keep(&self, watched: &Watched, platform: &Platform) {
        let seams = Seams::from(platform);
        loop {
            watched.look(seams).await;
            self.merged(seams);
            let (due, not_before) = {
                let said = lock(&watched.said);
                (said.due, said.not_before)
            };
            // Both are cancel safe.
            tokio::select! {
                biased;
                () = watched.demand.notified() => platform.clock.sleep_until(not_before).await,
                () = platform.clock.sleep_until(due) => {}
            }
        }
    }

    /// Merges what all said, and hints the transport.
    fn merged(&self, seams: Seams<'_>) -> Reading {
        let said: Vec<Said> = self.sources.iter().map(|watched| lock(&watched.said).clone()).collect();
        let there = self.sources.iter().zip(&said).filter(|(watched, _)| watched.source.is_there());
        let mut there = there.map(|(_, said)| said).peekable();
        let is_hopeless =
            there.peek().is_some() && there.all(|said| said.is_final && said.contacts.is_empty());
        let mut problems: Vec<String> = said.iter().filter_map(|said| said.problem.clone()).collect();
        let merged = merge(seams.transport.key(), said.into_iter().flat_map(|said| said.contacts));
        let contradiction = merged.as_ref().err().map(ToString::to_string);
        let contacts = merged.unwrap_or_default();
        for contact in &contacts {
            seams.transport.hint(contact.key, &contact.addresses);
        }
        let mut told = lock(&self.contradiction);
        if let Some(contradiction) = contradiction.as_ref().filter(|said| told.as_ref() != Some(*said)) {
            tracing::warn!(err = contradiction, "the sources of members contradict each other");
        }
        told.clone_from(&contradiction);
        problems.extend(contradiction);
        Reading { contacts, problems, is_hopeless }
    }
}

impl Watched {
    /// Looks at the source once and keeps what it says. Cancel safe: then it has not been looked at.
    async fn look(&self, seams: Seams<'_>) {
        let looked = self.source.look(seams).await;
        let (now, name) = (seams.clock.now(), self.source.name());
        let mut said = lock(&self.said);
        said.looked_at = Some(seams.clock.utc());
        match looked {
            Ok(mut contacts) => {
                if contacts.len() > CONTACTS_MAX {
                    let named = contacts.len();
                    tracing::warn!(
                        source = name,
                        named,
                        "a source names more members than are taken ({CONTACTS_MAX})"
                    );
                    contacts.truncate(CONTACTS_MAX);
                }
                if said.problem.take().is_some() {
                    tracing::info!(source = name, "a source of members can be used again");
                }
                tell_news(&name, &said.contacts, &contacts, seams.transport.key());
                said.failures = 0;
                said.is_final = false;
                said.good_at = Some(now);
                said.contacts = contacts;
                said.not_before = now + self.source.pause();
                said.due = now + REFRESH;
            }
            Err(error) => {
                let problem = error.to_string();
                if said.problem.as_ref() != Some(&problem) {
                    let news = match error.is_final() {
                        true => "a source of members cannot be used",
                        false => "a source of members cannot be used; trying on",
                    };
                    tracing::warn!(source = name, err = problem, "{news}");
                }
                (said.problem, said.is_final) = (Some(problem), error.is_final());
                let wait = RETRY_MIN.saturating_mul(1 << said.failures.min(8)).min(REFRESH);
                said.failures = said.failures.saturating_add(1);
                let pause = self.source.pause();
                said.not_before = now + if pause.is_zero() { pause } else { wait.max(pause) };
                said.due = now + wait;
                if said.good_at.is_none_or(|good| now.since(good) > STALE_AFTER) && !said.contacts.is_empty()
                {
                    tracing::info!(source = name, "what a source of members said has expired");
                    said.contacts.clear();
                }
            }
        }
    }
}

/// Logs who is new in what a source says, and who is gone.
fn tell_news(source: &str, before: &[Contact], now: &[Contact], own: NodeKey) {
    let keys = |contacts: &[Contact]| contacts.iter().map(|contact| contact.key).collect::<BTreeSet<_>>();
    let (known, named) = (keys(before), keys(now));
    for contact in now.iter().filter(|contact| contact.key != own && !known.contains(&contact.key)) {
        tracing::info!(source, peer.key = %contact.key, addresses = ?contact.addresses, "found a possible member");
    }
    for key in known.difference(&named).filter(|key| **key != own) {
        tracing::info!(source, peer.key = %key, "a source names a possible member no more");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use async_trait::async_trait;
    use blixard_core::discovery::contact::Contact;
    use blixard_core::id::NodeKey;

    use super::{Finder, REFRESH, STALE_AFTER};
    use crate::discovery::Seams;
    use crate::discovery::source::{Source, SourceError};
    use crate::discovery::testing::{World, run};

    /// Answers as it is told, and counts how often it is looked at.
    #[derive(Default)]
    struct Told {
        key: Option<u8>,
        looks: u32,
    }

    struct Scripted(Arc<Mutex<Told>>, Duration);

    #[async_trait]
    impl Source for Scripted {
        fn name(&self) -> String {
            "scripted".to_owned()
        }

        fn pause(&self) -> Duration {
            self.1
        }

        async fn look(&self, _: Seams<'_>) -> Result<Vec<Contact>, SourceError> {
            let mut told = self.0.lock().unwrap();
            told.looks += 1;
            let silent = SourceError::Silent { name: self.name(), reason: "nobody there".to_owned() };
            let contact = |key| Contact {
                key: NodeKey([key; 32]),
                node: None,
                addresses: Vec::new(),
                relay_url: None,
                cluster: None,
                token: None,
                seen_at: None,
                named: false,
            };
            told.key.map(|key| vec![contact(key)]).ok_or(silent)
        }
    }

    #[test]
    fn what_a_source_said_is_good_for_a_while_after_it_fails() {
        let told = Arc::new(Mutex::new(Told { key: Some(2), looks: 0 }));
        let finder = Finder::new(vec![Box::new(Scripted(told.clone(), Duration::ZERO))]);
        let world = World::default();
        let check = |after: Duration, keys: &[u8], problems: usize| {
            *world.now.lock().unwrap() += after;
            let reading = run(finder.read(world.seams()));
            let read: Vec<u8> = reading.contacts.iter().map(|contact| contact.key.0[0]).collect();
            assert_eq!((read.as_slice(), reading.problems.len()), (keys, problems), "{after:?}");
        };
        check(Duration::ZERO, &[2], 0);
        told.lock().unwrap().key = None;
        check(STALE_AFTER, &[2], 1);
        check(Duration::from_secs(1), &[], 1);
        told.lock().unwrap().key = Some(3);
        check(Duration::from_secs(1), &[3], 0);
        assert_eq!(finder.reports()[0].failures, 0);
    }

    #[test]
    fn a_source_with_a_pause_is_asked_no_more_often_and_less_often_while_it_fails() {
        let told = Arc::new(Mutex::new(Told { key: Some(2), looks: 0 }));
        let finder = Finder::new(vec![Box::new(Scripted(told.clone(), Duration::from_secs(5)))]);
        let world = World::default();
        let looks = |seconds: u64| {
            let before = told.lock().unwrap().looks;
            for _ in 0..seconds {
                run(finder.read(world.seams()));
                *world.now.lock().unwrap() += Duration::from_secs(1);
            }
            told.lock().unwrap().looks - before
        };
        assert_eq!(looks(20), 4);
        told.lock().unwrap().key = None;
        looks(300);
        assert!(looks(2 * REFRESH.as_secs()) <= 2, "a source that fails is asked once in a refresh");
    }
}
