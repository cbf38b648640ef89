//! `blixard logs`

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::replica::{LogLine, ReplicaRow};
use blixard_core::api::service::ServiceDetail;
use blixard_core::cluster::Phase;
use futures_util::stream::{self, SelectAll, StreamExt};
use http::{Method, StatusCode};
use tokio::time::sleep;

use crate::client::{Client, Lines, segment};
use crate::failure::{self, Cause, Failure};
use crate::render;
use crate::render::color::{self, Paint, Style};

/// Show what containers wrote, from whichever node they are on
///
/// For a service, the lines of all its containers, each with its container's name when there are
/// several. What a container wrote to stderr goes to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  blixard logs web\n  blixard logs -f -n 20 web-0\n  blixard logs 3f2a9c")]
pub(crate) struct Args {
    /// A service, a replica such as web-0, or a container id or prefix of at least 4 digits
    #[arg(value_name = "NAME|ID")]
    target: String,
    /// Go on until the containers end; for a service, also with those that start later
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines of each container
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "N")]
    tail: Option<usize>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
}

/// How many logs are opened at a time.
const OPENED_MAX: usize = 16;
/// How often a followed service is asked for containers that started meanwhile.
const REFRESH: Duration = Duration::from_secs(1);

pub(crate) async fn logs(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let service = service(client, &args.target).await?;
    let failed = match &service {
        Some(detail) if args.follow => follow(client, &args, detail).await?,
        Some(detail) => {
            let sources = sources(detail);
            if sources.is_empty() {
                let error = format!("`{}` has no container that has started", args.target);
                return Err(Failure::new(error, "`blixard ps` shows what its replicas wait for").into());
            }
            show(client, &args, sources).await?
        }
        None => {
            let container = Source { id: args.target.clone(), name: args.target.clone() };
            show(client, &args, vec![container]).await?
        }
    };
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the logs of `sources`; true when one ended early.
async fn show(client: &Client, args: &Args, sources: Vec<Source>) -> anyhow::Result<bool> {
    let several = sources.len() > 1;
    // Several at a time: a node that does not answer holds up no other's.
    let opening =
        sources.into_iter().map(async |source| (open(client, args, &source, args.tail).await, source));
    let answers: Vec<_> = stream::iter(opening).buffered(OPENED_MAX).collect().await;
    let mut opened = Vec::new();
    for (answer, source) in answers {
        match answer {
            Ok(lines) => opened.push((source.name, lines)),
            Err(error) if several => render::warn(&format!("no lines of {}: {error:#}", source.name)),
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(!opened.is_empty(), "none of the containers of `{}` can be read", args.target);
    let width = opened.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let printer = Printer::new(several.then_some(width), args.timestamps);
    let mut lines = stream::select_all(opened.into_iter().map(|(name, lines)| Box::pin(named(name, lines))));
    if !args.follow {
        return Ok(printer.print_in_order(lines.collect().await)?);
    }
    let mut failed = false;
    while let Some((name, line)) = lines.next().await {
        failed |= printer.print(&name, line)?;
    }
    Ok(failed)
}

/// Prints what the containers of a service write, those that start later among them, until the
/// service is gone or none of its containers is left to come; true when a log ended early.
async fn follow(client: &Client, args: &Args, service: &ServiceDetail) -> anyhow::Result<bool> {
    let name = &service.row.name;
    let width = format!("{name}-{}", service.row.max.saturating_sub(1)).len();
    let printer = Printer::new((service.row.max > 1).then_some(width), args.timestamps);
    let (mut lines, mut opened, mut failed) = (SelectAll::new(), BTreeSet::new(), false);
    let mut latest = Some(service.clone());
    let mut tail = args.tail;
    loop {
        let fresh = latest.iter().flat_map(sources).filter(|source| !opened.contains(&source.id));
        for source in fresh.collect::<Vec<_>>() {
            // One that cannot be read yet is tried again with the next look.
            if let Ok(log) = open(client, args, &source, tail).await {
                opened.insert(source.id);
                lines.push(Box::pin(named(source.name, log)));
            }
        }
        tail = None;
        if lines.is_empty() && latest.as_ref().is_some_and(is_over) {
            return Ok(failed);
        }
        let next_look = sleep(REFRESH);
        tokio::pin!(next_look);
        loop {
            // Cancel safe: what a stream has read stays in it.
            tokio::select! {
                biased;
                Some((name, line)) = lines.next() => failed |= printer.print(&name, line)?,
                () = &mut next_look => break,
            }
        }
        latest = match client.get::<ServiceDetail>(&format!("/v1/services/{name}")).await {
            Ok(detail) => Some(detail),
            Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
                while let Some((name, line)) = lines.next().await {
                    failed |= printer.print(&name, line)?;
                }
                return Ok(failed);
            }
            // The node may be back soon; the logs of others go on meanwhile.
            Err(_) => None,
        };
    }
}

/// Whether no container of the service runs or is to come.
fn is_over(service: &ServiceDetail) -> bool {
    let ended = |row: &ReplicaRow| row.phase.is_some_and(Phase::is_final);
    service.pending.is_empty() && service.replicas.iter().all(ended)
}

async fn open(
    client: &Client,
    args: &Args,
    source: &Source,
    tail: Option<usize>,
) -> anyhow::Result<Lines<LogLine>> {
    let mut path = format!("/v1/replicas/{}/logs?follow={}", segment(&source.id), args.follow);
    if let Some(tail) = tail {
        path.push_str(&format!("&tail={tail}"));
    }
    client.lines::<LogLine>(Method::GET, &path, None).await
}

/// A container whose log is read.
struct Source {
    id: String,
    name: String,
}

/// The service that the user means; absent when it is none.
async fn service(client: &Client, target: &str) -> anyhow::Result<Option<ServiceDetail>> {
    match client.get::<ServiceDetail>(&format!("/v1/services/{}", segment(target))).await {
        Ok(detail) => Ok(Some(detail)),
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The containers of a service that have started.
fn sources(service: &ServiceDetail) -> Vec<Source> {
    let started = |row: &&ReplicaRow| {
        row.attempt > 0 || row.phase.is_some_and(|phase| phase > Phase::Pulling && phase != Phase::Gone)
    };
    let started = service.replicas.iter().filter(started);
    let source =
        |row: &ReplicaRow| Some(Source { id: row.container_id.as_ref()?.0.clone(), name: row.name.clone() });
    started.filter_map(source).collect()
}

type Named = (String, anyhow::Result<LogLine>);

fn named(name: String, lines: Lines<LogLine>) -> impl stream::Stream<Item = Named> {
    stream::unfold(Some((name, lines)), async |state| {
        let (name, mut lines) = state?;
        match lines.next().await {
            Ok(None) => None,
            Ok(Some(line)) => Some(((name.clone(), Ok(line)), Some((name, lines)))),
            Err(error) => Some(((name, Err(error)), None)),
        }
    })
}

/// How lines look.
struct Printer {
    /// The width of the names shown; absent when there is one container.
    names: Option<usize>,
    timestamps: bool,
    stdout: Paint,
    stderr: Paint,
}

impl Printer {
    fn new(names: Option<usize>, timestamps: bool) -> Self {
        Self { names, timestamps, stdout: color::stdout(), stderr: color::stderr() }
    }

    /// Prints lines by the time they were written; true when a stream ended early.
    fn print_in_order(&self, mut lines: Vec<Named>) -> io::Result<bool> {
        let at = |line: &Named| {
            line.1.as_ref().ok().filter(|line| line.error.is_none()).map(|line| line.at.clone())
        };
        lines.sort_by_key(|line| (at(line).is_none(), at(line)));
        let mut failed = false;
        for (name, line) in lines {
            failed |= self.print(&name, line)?;
        }
        Ok(failed)
    }

    /// Prints a line; true when it says that the log ends early.
    fn print(&self, name: &str, line: anyhow::Result<LogLine>) -> io::Result<bool> {
        match line {
            Ok(LogLine { error: Some(error), .. }) => {
                render::warn(&format!("the log of {name} ends early: {error}"));
                Ok(true)
            }
            Err(error) => {
                render::warn(&format!("the log of {name} ends early: {error:#}"));
                Ok(true)
            }
            Ok(line) if line.stderr => {
                io::stderr().write_all(self.format(name, &line, self.stderr).as_bytes())?;
                Ok(false)
            }
            Ok(line) => {
                render::print(&self.format(name, &line, self.stdout))?;
                Ok(false)
            }
        }
    }

    fn format(&self, name: &str, line: &LogLine, paint: Paint) -> String {
        let mut text = String::new();
        if let Some(width) = self.names {
            text.push_str(&paint.apply(Style::Cyan, &format!("{name:<width$} | ")));
        }
        if self.timestamps {
            text.push_str(&paint.apply(Style::Dim, &line.at));
            text.push(' ');
        }
        text.push_str(&line.text);
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{LogLine, Paint, Printer};

    #[test]
    fn lines_carry_names_only_when_there_are_several_containers() {
        let line =
            LogLine { at: "2026-11-21T00:00:00Z".into(), stderr: false, text: "hi".into(), error: None };
        let check = |names, timestamps, expect: &str| {
            let printer = Printer { names, timestamps, stdout: Paint::Plain, stderr: Paint::Plain };
            assert_eq!(printer.format("web-0", &line, Paint::Plain), expect);
        };
        check(None, false, "hi\n");
        check(None, true, "2026-11-21T00:00:00Z hi\n");
        check(Some(6), false, "web-0  | hi\n");
        check(Some(5), true, "web-0 | 2026-11-21T00:00:00Z hi\n");
    }
}
