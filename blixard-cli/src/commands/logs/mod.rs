//! `blixard logs`

mod follow;
mod order;
mod printer;
mod resume;
mod sources;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use blixard_core::api::replica::LogLine;
use blixard_core::api::service::ServiceDetail;
use blixard_core::time::UtcMs;
use futures_util::stream::{self, SelectAll, StreamExt};
use http::Method;

use self::follow::follow;
use self::order::in_order;
use self::printer::Printer;
use self::sources::{Source, Target};
use crate::args;
use crate::client::{Client, Lines, segment};
use crate::failure::{self, Cause, Failure};
use crate::render;

/// Show what containers wrote, from whichever node they are on
///
/// For a service, the lines of all its containers, each with its container's name when there are
/// several. What a container wrote to stderr goes to stderr. Logs of containers that ended are kept: of a
/// replica's last attempts as long as the replica is there, and for an hour after it is gone. Without
/// --attempt and --previous, the log is that of the newest attempt that has one. When one that is
/// named cannot be read, the others are shown all the same, a warning says why, and the exit code is 1.
///
/// With -f, a service that is named is followed from container to container, also to another node; where
/// a log breaks off because a node goes away, it is read on when the node is back. A container that is
/// named is followed until it ends. What could not be read to its end is warned of, and the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard logs web\n  blixard logs -f -n 20 web-0\n  blixard logs --previous web-0\n  blixard logs --since 10m web db\n  blixard logs 3f2a9c"
)]
pub(crate) struct Args {
    /// Services, replicas such as web-0, or container ids or prefixes of at least 4 digits
    #[arg(value_name = "NAME|ID", required = true)]
    targets: Vec<String>,
    /// Go on until the containers end; for a service, also with those that start later
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines of each container, or `all`
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "N", default_value = "all", allow_negative_numbers = true, value_parser = tail)]
    tail: Tail,
    /// Only lines written at this time or later: 2026-11-21T08:30:00Z, or how long ago: 10m
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    since: Option<UtcMs>,
    /// Only lines written at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    until: Option<UtcMs>,
    /// The log of this attempt: 0 is a replica's first container, 1 the one after its first restart
    #[arg(long, value_name = "N", conflicts_with = "previous")]
    attempt: Option<u32>,
    /// The log of the container before: the attempt before, or the replica that was replaced
    #[arg(short, long)]
    previous: bool,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
}

/// How many last lines; all when absent.
#[derive(Debug, Clone, Copy)]
struct Tail(Option<usize>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => number
            .parse()
            .map(|lines| Tail(Some(lines)))
            .map_err(|_| "give a number from 0, or all".to_owned()),
    }
}

/// How many logs are opened at a time.
const OPENED_MAX: usize = 16;

pub(crate) async fn logs(client: &Client, mut args: Args) -> anyhow::Result<ExitCode> {
    let mut targets = Vec::new();
    let mut named = BTreeSet::new();
    args.targets.retain(|name| named.insert(name.clone()));
    for name in &args.targets {
        targets.push(sources::resolve(client, name).await?);
    }
    let sources_of = |(at, target): (usize, &Target)| {
        target.sources().into_iter().map(move |source| source.of_target(at)).collect::<Vec<_>>()
    };
    let fixed: Vec<Source> = targets.iter().enumerate().flat_map(sources_of).collect();
    let services: Vec<ServiceDetail> = targets.into_iter().filter_map(Target::into_service).collect();
    let failed = match services.is_empty() || !args.follow {
        true => show(client, &args, fixed).await?,
        false => follow(client, &args, fixed, services).await?,
    };
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the logs of `sources`; true when one could not be read, or ended early.
async fn show(client: &Client, args: &Args, sources: Vec<Source>) -> anyhow::Result<bool> {
    let several = sources.len() > 1;
    let what = args.targets.join("`, `");
    if sources.is_empty() {
        let hint = "`blixard ps -a` shows what its replicas wait for";
        return Err(Failure::new(format!("nothing of `{what}` has written anything yet"), hint).into());
    }
    let mut unread: BTreeSet<usize> = (0..args.targets.len()).collect();
    for at in unread.iter().filter(|at| sources.iter().all(|source| source.target != **at)) {
        render::warn(&format!("nothing of {} has written anything yet", args.targets[*at]));
    }
    // Several at a time: a node that does not answer holds up no other's.
    let opening = sources
        .into_iter()
        .map(async |source| (open(client, args, &source, Start::asked(args)).await, source));
    let answers: Vec<_> = stream::iter(opening).buffered(OPENED_MAX).collect().await;
    let (mut opened, mut missing) = (Vec::new(), false);
    for (answer, source) in answers {
        match answer {
            Ok(log) => {
                unread.remove(&source.target);
                opened.push((source.name, Log { is_later: source.before.is_some(), ..log }));
            }
            Err(error) if several => {
                no_lines(&source, &error);
                // Some containers of a service may have no such log, when others have.
                missing |= !is_absent(&error);
            }
            Err(error) => return Err(error),
        }
    }
    if opened.is_empty() {
        return Err(Failure::new(format!("none of the logs of `{what}` can be read"), "").into());
    }
    let width = opened.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut printer = Printer::new(several.then_some(width), args.timestamps);
    if args.follow {
        let mut lines = SelectAll::new();
        for (at, (name, log)) in opened.into_iter().enumerate() {
            lines.push(Box::pin(named(at, name, log.lines)));
        }
        while let Some(said) = lines.next().await {
            printer.take(said)?;
        }
    } else {
        let earlier: Vec<_> = opened.iter().map(|(name, log)| (name.clone(), log.earlier(args))).collect();
        let silent = in_order(opened, &mut printer).await?;
        for (name, log) in &silent {
            log.say_nothing_was_written(name, args);
        }
        // Whoever looks may miss what came before; a program that reads has asked for no more.
        let spoke = earlier.into_iter().filter(|(name, _)| silent.iter().all(|(other, _)| other != name));
        for (name, earlier) in spoke.filter(|_| io::stderr().is_terminal()) {
            if let Some(earlier) = earlier {
                render::note(&format!("{name} is not the first in its place: {earlier}"));
            }
        }
    }
    Ok(printer.finish()? || missing || !unread.is_empty())
}

/// Whether the API said that there is no such log.
fn is_absent(error: &anyhow::Error) -> bool {
    matches!(failure::cause(error), Some(Cause::Refused(status)) if status.is_client_error())
}

fn no_lines(source: &Source, error: &anyhow::Error) {
    render::warn(&format!("no lines of {}: {error:#}", source.name));
}

/// Where in a log is begun.
#[derive(Debug, Clone, Copy)]
struct Start {
    tail: Option<usize>,
    since: Option<UtcMs>,
}

impl Start {
    /// Where the user asked for.
    fn asked(args: &Args) -> Self {
        Self { tail: args.tail.0, since: args.since }
    }
}

/// An open log.
struct Log {
    lines: Lines<LogLine>,
    /// How the API was asked for it.
    id: String,
    /// Whether another container was in its place before, of which there is a log.
    is_later: bool,
}

impl Log {
    /// Says so, when a log turned out to be empty although it need not be.
    fn say_nothing_was_written(&self, name: &str, args: &Args) {
        if args.tail.0 == Some(0) || args.since.is_some() || args.until.is_some() {
            return;
        }
        let attempt = self.lines.attempt().filter(|attempt| *attempt > 0);
        let which = attempt.map(|attempt| format!(" (attempt {attempt})")).unwrap_or_default();
        let hint = self.earlier(args).map(|earlier| format!("; {earlier}")).unwrap_or_default();
        render::note(&format!("{name}{which} has written nothing yet{hint}"));
    }

    /// How to see what was written before this log, where that is kept and was not asked for.
    fn earlier(&self, args: &Args) -> Option<String> {
        if args.attempt.is_some() || args.previous || args.since.is_some() || args.until.is_some() {
            return None;
        }
        let kept = self.lines.attempts().iter().rfind(|kept| Some(**kept) < self.lines.attempt());
        match (kept, self.is_later) {
            (Some(kept), _) => Some(format!("--previous shows what attempt {kept} wrote")),
            (None, true) => Some("--previous shows what the container before it wrote".to_owned()),
            (None, false) => None,
        }
    }
}

async fn open(client: &Client, args: &Args, source: &Source, start: Start) -> anyhow::Result<Log> {
    let query = |chosen: String| {
        let mut query = format!("follow={}{chosen}", args.follow);
        let mut add = |name: &str, value: Option<String>| {
            query.extend(value.map(|value| format!("&{name}={value}")));
        };
        add("tail", start.tail.map(|tail| tail.to_string()));
        add("since", start.since.map(|time| time.to_string()));
        add("until", args.until.map(|time| time.to_string()));
        query
    };
    let chosen = match (args.attempt.or(source.attempt), args.previous) {
        (Some(attempt), _) => format!("&attempt={attempt}"),
        (None, true) => "&previous=true".to_owned(),
        (None, false) => String::new(),
    };
    let get = async |id: &str, chosen: String| {
        let path = format!("/v1/replicas/{}/logs?{}", segment(id), query(chosen));
        client.lines::<LogLine>(Method::GET, &path, None).await
    };
    let error = match get(&source.id, chosen).await {
        Ok(lines) => return Ok(Log { lines, id: source.id.clone(), is_later: false }),
        Err(error) => error,
    };
    let before = source
        .before
        .as_ref()
        .filter(|_| is_absent(&error) && args.attempt.is_none() && source.attempt.is_none());
    let Some(before) = before else { return Err(error) };
    if !args.previous {
        render::note(&format!("{}; this is the log of the container before it", failure::chain(&error)));
    }
    Ok(Log { lines: get(before, String::new()).await?, id: before.clone(), is_later: false })
}

/// What was read of one log: which, whose, and what.
struct Said {
    source: usize,
    name: String,
    line: anyhow::Result<LogLine>,
}

fn named(source: usize, name: String, lines: Lines<LogLine>) -> impl stream::Stream<Item = Said> {
    stream::unfold(Some((name, lines)), move |state| async move {
        let (name, mut lines) = state?;
        match lines.next().await {
            Ok(None) => None,
            Ok(Some(line)) => {
                Some((Said { source, name: name.clone(), line: Ok(line) }, Some((name, lines))))
            }
            Err(error) => Some((Said { source, name, line: Err(error) }, None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use clap::{Args as _, FromArgMatches};

    use crate::client::canned::Canned;

    #[tokio::test]
    async fn a_log_that_there_is_not_fails_the_command_after_the_others_were_shown() {
        let row = serde_json::json!({
            "container_id": "0123456789abcdef", "name": "err-0", "replica": 1, "service": "err",
            "slot": 0, "version": 2, "node": 3, "node_name": "box3", "image": "nginx:1",
            "phase": "completed", "desired": "run", "ready": true, "healthy": null, "lost": false,
            "attempt": 0, "exit_code": 0, "message": "", "since": 1, "created_at": 1,
            "address": null, "node_address": null, "ports": [], "container": null
        });
        let service = serde_json::json!({
            "name": "err", "state": "running", "ready": 1, "desired": 1, "min": 1, "max": 1,
            "image": "nginx:1", "ports": [], "version": 2, "created_at": 1, "versions": [], "origin": 1,
            "pending": [], "replicas": [row]
        });
        let mut gone = row.clone();
        for (key, value) in [("container_id", "00000000"), ("name", "old-0"), ("service", "old")] {
            gone[key] = value.into();
        }
        let mut idle = service.clone();
        (idle["name"], idle["replicas"]) = ("idle".into(), serde_json::json!([]));
        let line = r#"{"at":"1970-01-01T00:00:00.001Z","stderr":false,"text":"oops"}"#.to_owned() + "\n";
        let canned = Canned::new(vec![
            ("/v1/ended", 200, serde_json::json!({ "items": [gone] }).to_string()),
            ("/v1/services/idle", 200, idle.to_string()),
            ("/v1/services/err", 200, service.to_string()),
            ("/v1/replicas/err-0/logs", 200, line.clone()),
            ("/v1/replicas/0123456789abcdef/logs", 200, line),
            ("/v1/replicas/err-0", 200, row.to_string()),
        ]);
        let shown = async |line: &str| {
            let words = std::iter::once("logs").chain(line.split_whitespace());
            let matches = super::Args::augment_args(clap::Command::new("logs")).try_get_matches_from(words);
            super::logs(&canned.client, super::Args::from_arg_matches(&matches.unwrap()).unwrap()).await
        };
        let check = async |line: &str, expect: ExitCode| {
            let before = canned.asked().len();
            let code = shown(line).await.expect(line);
            assert_eq!(format!("{code:?}"), format!("{expect:?}"), "{line}");
            let read = |path: &String| path.starts_with("/v1/replicas/") && path.contains("/logs?");
            let asked = canned.asked();
            assert!(
                asked[before..].iter().any(|path| read(path) && !path.contains("nope")),
                "{line}: {asked:?}"
            );
        };
        for follow in ["", "-f "] {
            check(&format!("{follow}err"), ExitCode::SUCCESS).await;
            check(&format!("{follow}err err-0"), ExitCode::SUCCESS).await;
            for line in ["nope err", "err nope", "nope err-0", "nope err nope2", "old err", "old err-0"] {
                check(&format!("{follow}{line}"), ExitCode::FAILURE).await;
            }
            let line = format!("{follow}nope nope2");
            assert!(shown(&line).await.is_err(), "{line}");
        }
        check("idle err", ExitCode::FAILURE).await;
        check("-f idle err", ExitCode::SUCCESS).await;
    }
}
