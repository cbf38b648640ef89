//! `blixard logs`

use std::io::{self, Write};
use std::process::ExitCode;

use blixard_core::api::replica::{LogLine, ReplicaRow};
use blixard_core::api::service::ServiceDetail;
use blixard_core::cluster::Phase;
use futures_util::stream::{self, StreamExt};
use http::{Method, StatusCode};

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
    /// Go on until the containers end
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines of each container
    #[arg(short = 'n', long, visible_alias = "lines", value_name = "N")]
    tail: Option<usize>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
}

pub(crate) async fn logs(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let sources = sources(client, &args.target).await?;
    let mut opened = Vec::new();
    for source in &sources {
        let mut path = format!("/v1/replicas/{}/logs?follow={}", segment(&source.id), args.follow);
        if let Some(tail) = args.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        match client.lines::<LogLine>(Method::GET, &path, None).await {
            Ok(lines) => opened.push((source.name.clone(), lines)),
            Err(error) if sources.len() > 1 => {
                render::warn(&format!("no lines of {}: {error:#}", source.name));
            }
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(!opened.is_empty(), "none of the containers of `{}` can be read", args.target);
    let printer = Printer {
        names: (sources.len() > 1).then(|| opened.iter().map(|(name, _)| name.len()).max().unwrap_or(0)),
        timestamps: args.timestamps,
        stdout: color::stdout(),
        stderr: color::stderr(),
    };
    let lines = stream::select_all(opened.into_iter().map(|(name, lines)| Box::pin(named(name, lines))));
    let failed = if args.follow {
        printer.print_as_they_come(lines).await?
    } else {
        printer.print_in_order(lines.collect().await)?
    };
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A container whose log is read.
struct Source {
    id: String,
    name: String,
}

/// The containers that the user means.
async fn sources(client: &Client, target: &str) -> anyhow::Result<Vec<Source>> {
    let detail = match client.get::<ServiceDetail>(&format!("/v1/services/{}", segment(target))).await {
        Ok(detail) => detail,
        Err(error) if failure::cause(&error) == Some(Cause::Refused(StatusCode::NOT_FOUND)) => {
            return Ok(vec![Source { id: target.to_owned(), name: target.to_owned() }]);
        }
        Err(error) => return Err(error),
    };
    let started = |row: &&ReplicaRow| {
        row.attempt > 0 || row.phase.is_some_and(|phase| phase > Phase::Pulling && phase != Phase::Gone)
    };
    let sources: Vec<Source> = detail
        .replicas
        .iter()
        .filter(started)
        .filter_map(|row| Some(Source { id: row.container_id.as_ref()?.0.clone(), name: row.name.clone() }))
        .collect();
    if sources.is_empty() {
        let error = format!("`{target}` has no container that has started");
        return Err(Failure::new(error, "`blixard ps` shows what its replicas wait for").into());
    }
    Ok(sources)
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
    /// Prints lines as they come; true when a stream ended early.
    async fn print_as_they_come(
        &self,
        mut lines: impl stream::Stream<Item = Named> + Unpin,
    ) -> io::Result<bool> {
        let mut failed = false;
        while let Some((name, line)) = lines.next().await {
            failed |= self.print(&name, line)?;
        }
        Ok(failed)
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
