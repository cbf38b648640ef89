//! Follows services from container to container, and through what breaks their logs off.

use std::collections::BTreeSet;
use std::time::Duration;

use blixard_core::api::service::ServiceDetail;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, LocalBoxStream, SelectAll, StreamExt};
use tokio::time::{Instant, sleep};

use super::printer::Printer;
use super::resume::{self, Piece, Place, STEADY};
use super::sources::{self, Key, Source};
use super::{Args, Log, Said, Start, is_absent, named, no_lines, open};
use crate::client::Client;
use crate::failure;
use crate::render::{self, text};

/// How often a followed service is asked for containers that started meanwhile.
const REFRESH: Duration = Duration::from_secs(1);

/// Prints what the containers of services write, those that start later among them, until the services
/// are gone or none of their containers is left to come; true when one that was named could not be read, or
/// a log ended early.
pub(super) async fn follow(
    client: &Client,
    args: &Args,
    fixed: Vec<Source>,
    services: Vec<ServiceDetail>,
) -> anyhow::Result<bool> {
    let several = fixed.len() > 1 || services.len() > 1 || services.iter().any(|detail| detail.row.max > 1);
    let of_service =
        |detail: &ServiceDetail| format!("{}-{}", detail.row.name, detail.row.max.saturating_sub(1)).len();
    let widths = fixed.iter().map(|source| source.name.len()).chain(services.iter().map(of_service));
    let mut follower = Follower {
        client,
        args,
        printer: Printer::new(several.then_some(widths.max().unwrap_or(0)), args.timestamps),
        services,
        followed: Vec::new(),
        opened: BTreeSet::new(),
        lines: SelectAll::new(),
        reopening: FuturesUnordered::new(),
        missing: false,
    };
    let (mut fresh, mut first) = (fixed, true);
    loop {
        for source in fresh {
            follower.begin(source, first).await;
        }
        first = false;
        if follower.is_over() {
            return Ok(follower.printer.finish()? || follower.missing);
        }
        follower.read_on().await?;
        follower.look_anew().await;
        fresh = follower.services.iter().flat_map(sources::started).collect();
        fresh.retain(|source| !follower.opened.contains(&source.key(None)));
    }
}

/// A log that was opened.
struct Followed {
    source: Source,
    key: Key,
    place: Place,
    /// Since when it is open.
    since: Instant,
    /// How often it was opened again since it broke off.
    tries: u32,
}

struct Follower<'a> {
    client: &'a Client,
    args: &'a Args,
    printer: Printer,
    services: Vec<ServiceDetail>,
    /// By the number that their lines carry.
    followed: Vec<Followed>,
    opened: BTreeSet<Key>,
    lines: SelectAll<LocalBoxStream<'a, Said>>,
    /// Logs that broke off, by number, each opened after its pause: none holds up the lines of others.
    reopening: FuturesUnordered<LocalBoxFuture<'a, (usize, anyhow::Result<Log>)>>,
    missing: bool,
}

impl Follower<'_> {
    /// Opens the log of a container that was not followed before.
    async fn begin(&mut self, source: Source, first: bool) {
        let asked = Start::asked(self.args);
        let start = Start { tail: asked.tail.filter(|_| first), ..asked };
        match open(self.client, self.args, &source.clone().exactly(!first), start).await {
            Ok(Log { lines, id, .. }) => {
                let attempt = lines.attempt();
                let source = source.answered(id, attempt);
                let key = source.key(attempt);
                if self.opened.insert(key.clone()) {
                    let named = named(self.followed.len(), source.name.clone(), lines);
                    self.lines.push(named.boxed_local());
                    let (place, since) = (Place::default(), Instant::now());
                    self.followed.push(Followed { source, key, place, since, tries: 0 });
                }
            }
            // One of a service that cannot be read yet is tried again with the next look.
            Err(error) if !self.services.iter().any(|service| source.is_of(service)) => {
                no_lines(&source, &error);
                self.missing = true;
            }
            Err(_) => {}
        }
    }

    fn is_over(&self) -> bool {
        self.lines.is_empty() && self.reopening.is_empty() && self.services.iter().all(sources::is_over)
    }

    /// Prints what is written until the next look.
    async fn read_on(&mut self) -> anyhow::Result<()> {
        let next_look = sleep(REFRESH);
        tokio::pin!(next_look);
        loop {
            // Cancel safe: what a stream has read stays in it, and so does what is being opened.
            tokio::select! {
                biased;
                Some((number, answer)) = self.reopening.next() => self.reopened(number, answer),
                Some(said) = self.lines.next() => self.take(said)?,
                () = &mut next_look => return Ok(()),
            }
        }
    }

    /// Asks what became of the services.
    async fn look_anew(&mut self) {
        let mut known = Vec::new();
        for detail in std::mem::take(&mut self.services) {
            match sources::service(self.client, detail.row.name.as_str()).await {
                Ok(latest) => known.extend(latest),
                // The node may be back soon; the logs of others go on meanwhile.
                Err(_) => known.push(detail),
            }
        }
        self.services = known;
    }

    fn take(&mut self, said: Said) -> anyhow::Result<()> {
        let Some(log) = self.followed.get_mut(said.source) else { return Ok(()) };
        let error = match &said.line {
            Ok(line) if line.error.is_none() => {
                match log.place.take(line) {
                    Piece::Again => return Ok(()),
                    Piece::New => {}
                    Piece::Unsure => {
                        render::warn(&format!(
                            "the line of {} that was shown last is not in its log any more: lines may be \
                             missing, or be shown twice",
                            said.name
                        ));
                        self.missing = true;
                    }
                }
                return Ok(self.printer.take(said)?);
            }
            Ok(line) => line.error.clone().unwrap_or_default(),
            Err(error) => format!("{error:#}"),
        };
        if !self.services.iter().any(|service| log.source.is_of(service)) {
            // A container that was named by itself is not waited for.
            return Ok(self.printer.take(said)?);
        }
        if log.since.elapsed() >= STEADY {
            log.tries = 0;
        }
        if log.tries == 0 {
            let lost = if log.place.is_start() && self.args.tail.0 == Some(0) {
                ", without what it writes until then"
            } else {
                ""
            };
            let error = text::printable(&error);
            render::warn(&format!(
                "the log of {} breaks off, and is read on when it can be{lost}: {error}",
                said.name
            ));
        }
        self.open_again(said.source, &error, false);
        Ok(())
    }

    /// Opens a log that broke off again after a pause, unless that is in vain.
    fn open_again(&mut self, number: usize, error: &str, is_absent: bool) {
        let Some(log) = self.followed.get_mut(number) else { return };
        let goes_on = self.services.iter().any(|service| sources::goes_on(service, &log.key));
        let Some(pause) = resume::pause(log.tries, goes_on, is_absent) else {
            let error = text::printable(error);
            render::warn(&format!("the log of {} ends early: {error}", log.source.name));
            self.missing = true;
            return;
        };
        log.tries = log.tries.saturating_add(1);
        log.place.rewind();
        let asked = Start::asked(self.args);
        let start = Start {
            // Of what was there before, none was asked for.
            tail: asked.tail.filter(|lines| *lines == 0 && log.place.is_start()),
            since: log.place.since().or(asked.since),
        };
        let (client, args, source) = (self.client, self.args, log.source.clone());
        let opening = async move {
            sleep(pause).await;
            (number, open(client, args, &source, start).await)
        };
        self.reopening.push(opening.boxed_local());
    }

    fn reopened(&mut self, number: usize, answer: anyhow::Result<Log>) {
        match answer {
            Ok(log) => {
                let Some(followed) = self.followed.get_mut(number) else { return };
                followed.since = Instant::now();
                self.lines.push(named(number, followed.source.name.clone(), log.lines).boxed_local());
            }
            Err(error) => self.open_again(number, &failure::chain(&error), is_absent(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use clap::{Args as _, FromArgMatches};
    use serde_json::json;

    use crate::client::canned::Canned;

    /// What is asked for while a service with one container that has ended is followed, where another was
    /// before it: each log's query, and how the command ends.
    async fn followed(logs: Vec<(&'static str, u16, &str)>) -> (Vec<String>, ExitCode) {
        let row = json!({
            "container_id": "0123456789abcdef", "name": "tick-0", "replica": 1, "service": "tick",
            "slot": 0, "version": 2, "node": 3, "node_name": "box3", "image": "nginx:1",
            "phase": "completed", "desired": "run", "ready": true, "healthy": null, "lost": false,
            "attempt": 0, "exit_code": 0, "message": "", "since": 1, "created_at": 1,
            "address": null, "node_address": null, "ports": [], "container": null
        });
        let mut before = row.clone();
        before["container_id"] = "fedcba9876543210".into();
        before["replica"] = 0.into();
        let service = json!({
            "name": "tick", "state": "running", "ready": 1, "desired": 1, "min": 1, "max": 1,
            "image": "nginx:1", "ports": [], "version": 2, "created_at": 1, "versions": [], "origin": 1,
            "pending": [], "replicas": [row]
        });
        let mut answers = vec![
            ("/v1/ended", 200, json!({ "items": [before] }).to_string()),
            ("/v1/services/tick", 200, service.to_string()),
        ];
        answers.extend(logs.into_iter().map(|(path, status, body)| (path, status, body.to_owned())));
        let canned = Canned::new(answers);
        let matches = super::Args::augment_args(clap::Command::new("logs"));
        let matches = matches.try_get_matches_from(["logs", "-f", "tick"]).unwrap();
        let args = super::Args::from_arg_matches(&matches).unwrap();
        let code = super::super::logs(&canned.client, args).await.unwrap();
        let queries = canned.asked().into_iter();
        (queries.filter_map(|path| Some(path.split_once("/logs?")?.1.to_owned())).collect(), code)
    }

    const PATH: &str = "/v1/replicas/0123456789abcdef/logs?follow=true";
    const BEFORE: &str = "/v1/replicas/fedcba9876543210/logs?follow=true";
    const LATER: &str = "/v1/replicas/0123456789abcdef/logs?follow=true&attempt=0";
    const AGAIN: &str = "/v1/replicas/0123456789abcdef/logs?follow=true&since=";
    const WHOLE: &str = r#"{"at":"1970-01-01T00:00:02.000000001Z","stderr":false,"text":"tick"}
"#;
    const BROKEN: &str = r#"{"at":"1970-01-01T00:00:02.000000001Z","stderr":false,"text":"tick"}
{"at":"#;

    async fn check(logs: Vec<(&'static str, u16, &str)>, queries: &[&str], expect: ExitCode) {
        let (asked, code) = followed(logs).await;
        assert_eq!(asked, queries);
        assert_eq!(format!("{code:?}"), format!("{expect:?}"), "{asked:?}");
    }

    #[tokio::test]
    async fn a_log_that_breaks_off_is_opened_again_where_it_did_and_one_that_ends_is_not() {
        let again = "follow=true&since=1970-01-01T00:00:02.000Z";
        check(vec![(PATH, 200, WHOLE)], &["follow=true"], ExitCode::SUCCESS).await;
        let resumed = vec![(AGAIN, 200, WHOLE), (PATH, 200, BROKEN)];
        check(resumed, &["follow=true", again], ExitCode::SUCCESS).await;
        let gone = vec![
            (AGAIN, 404, r#"{"error":"there is no log of that attempt","try":""}"#),
            (PATH, 200, BROKEN),
        ];
        check(gone, &["follow=true", again], ExitCode::FAILURE).await;
    }

    #[tokio::test]
    async fn the_log_of_a_container_that_has_none_yet_follows_that_of_the_one_before() {
        let logs = vec![
            (LATER, 200, WHOLE),
            (PATH, 404, r#"{"error":"there is no log yet","try":""}"#),
            (BEFORE, 200, WHOLE),
        ];
        check(logs, &["follow=true", "follow=true", "follow=true&attempt=0"], ExitCode::SUCCESS).await;
    }
}
