//! `blixard events`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use blixard_core::cluster::{Event, EventId};
use http::Method;

use crate::args::{Output, OutputArgs};
use crate::client::Client;
use crate::render::color::{self, Style};
use crate::render::{self, text};

/// How long a broken stream is tried to be resumed.
const RESUME_FOR: Duration = Duration::from_secs(30);
/// The pause between two tries.
const RESUME_PAUSE: Duration = Duration::from_millis(500);

/// Show what happened in the cluster, and with -f what happens
///
/// The stream resumes by itself when the connection breaks. With -o json each line is one event;
/// the index and n of its id, as INDEX.N, are what --after takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard events\n  blixard events -f\n  blixard events -o json --after 812.0"
)]
pub(crate) struct Args {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Only what happened after this event
    #[arg(long, value_name = "INDEX.N", value_parser = parse_position)]
    after: Option<EventId>,
    #[command(flatten)]
    output: OutputArgs,
}

fn parse_position(text: &str) -> Result<EventId, String> {
    let parsed = text.split_once('.').and_then(|(index, n)| Some((index.parse().ok()?, n.parse().ok()?)));
    parsed.map(|(index, n)| EventId { index, n }).ok_or_else(|| "use INDEX.N, such as 812.0".to_owned())
}

pub(crate) async fn events(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let mut after = args.after;
    let mut broken_since: Option<Instant> = None;
    loop {
        let error = match stream(client, &args, &mut after, &mut broken_since).await {
            Ok(()) if !args.follow => return Ok(ExitCode::SUCCESS),
            Ok(()) => None,
            Err(error) if crate::failure::is_broken_pipe(&error) => return Err(error),
            Err(error) => Some(error),
        };
        let since = *broken_since.get_or_insert_with(Instant::now);
        let never_worked = after == args.after && error.is_some();
        if let Some(error) = error
            && (!args.follow || never_worked || since.elapsed() > RESUME_FOR)
        {
            return Err(error);
        }
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

/// Prints one stream to its end.
async fn stream(
    client: &Client,
    args: &Args,
    after: &mut Option<EventId>,
    broken_since: &mut Option<Instant>,
) -> anyhow::Result<()> {
    let mut path = format!("/v1/events?follow={}", args.follow);
    if let Some(EventId { index, n }) = after {
        path.push_str(&format!("&after={index}.{n}"));
    }
    let mut lines = client.lines::<Event>(Method::GET, &path, None).await?;
    *broken_since = None;
    if lines.has_gap() {
        render::warn("some events before the first one shown are forgotten");
    }
    while let Some(event) = lines.next().await? {
        *after = Some(event.id);
        match args.output.output {
            Output::Json => render::line(&serde_json::to_string(&event)?)?,
            Output::Table => render::line(&line(&event))?,
        }
    }
    Ok(())
}

fn line(event: &Event) -> String {
    let kind = serde_json::to_value(event.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default();
    let at = color::stdout().apply(Style::Dim, &event.at.to_string());
    format!("{at}  {kind:<17}  {}", text::printable(&event.message))
}

#[cfg(test)]
mod tests {
    use blixard_core::cluster::{Event, EventId, EventKind};
    use blixard_core::time::UtcMs;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            id: EventId { index: 3, n: 0 },
            at: UtcMs(0),
            kind: EventKind::ReplicaPlaced,
            service: None,
            replica: None,
            node: None,
            message: "web-0 goes to node 2\n".into(),
        };
        assert_eq!(super::line(&event), "1970-01-01T00:00:00.000Z  replica-placed     web-0 goes to node 2 ");
    }

    #[test]
    fn positions_have_two_numbers() {
        assert_eq!(super::parse_position("812.3"), Ok(EventId { index: 812, n: 3 }));
        assert!(super::parse_position("812").is_err());
        assert!(super::parse_position("x.1").is_err());
    }
}
