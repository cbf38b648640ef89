//! `blixard cluster`

use std::process::ExitCode;
use std::time::Duration;

use blixard_core::api::node::ClusterStatus;
use blixard_core::api::token::{RotateAnswer, Scope, TokenAnswer, TokenRequest, TokenRow};
use blixard_core::api::{List, WriteAnswer};
use blixard_core::cluster::AuditRecord;
use blixard_core::id::{NodeId, TokenId};
use blixard_core::limits;
use clap::{Subcommand, ValueEnum};

use crate::args::{Output, OutputArgs, time};
use crate::client::Client;
use crate::render::color::{self, Paint, Style};
use crate::render::table::Table;
use crate::render::{self, text};

/// Show the cluster as a whole, and make tokens for it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  blixard cluster status\n  blixard cluster token create --scope write --services web-"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who leads, who votes, and what the cluster survives
    #[command(after_help = "Example:\n  blixard cluster status\n  blixard cluster status -o json")]
    Status(OutputArgs),
    /// Show the latest writes and who made them, refused ones too
    #[command(after_help = "Example:\n  blixard cluster audit\n  blixard cluster audit -o json")]
    Audit(OutputArgs),
    /// Make, list and revoke tokens
    #[command(after_help = "Example:\n  blixard cluster token create --uses 1 --expires 1h")]
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it: it is shown only this once
    ///
    /// For joining, what is printed is a ticket: the token, and where this cluster is.
    #[command(
        after_help = "Example:\n  blixard cluster token create --uses 1 --expires 1h\n  blixard cluster token create | ssh box2 blixard node --join -\n  blixard cluster token create --scope write --services web-"
    )]
    Create {
        /// What it admits to
        #[arg(long, value_enum, default_value = "join")]
        scope: ScopeArg,
        /// How long until it expires, in seconds, as 1h30m, or never [default: 24h for joining, else never]
        #[arg(long, value_name = "TIME|never", value_parser = life)]
        expires: Option<Life>,
        /// How many nodes can join with it [default: without end]
        #[arg(long, value_name = "N")]
        uses: Option<u32>,
        /// With scope read or write: only for services whose names begin so [default: all]
        #[arg(long, value_name = "PREFIX")]
        services: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Revoke every token for joining: tickets and copies of registry files admit nobody any more
    ///
    /// Each node then makes the registry file in its data directory a new token of its own.
    #[command(after_help = "Example:\n  blixard cluster token rotate")]
    Rotate,
    /// List the tokens, without their secrets
    #[command(visible_alias = "list", after_help = "Example:\n  blixard cluster token ls")]
    Ls(OutputArgs),
    /// Revoke a token; nodes that joined with it stay
    #[command(after_help = "Example:\n  blixard cluster token rm 5f0c1b2a3d4e5f60")]
    Rm {
        /// Its id, as `ls` shows it
        id: TokenId,
    },
}

/// How long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    For(Duration),
    Endless,
}

fn life(text: &str) -> Result<Life, String> {
    if text == "never" { Ok(Life::Endless) } else { time(text).map(Life::For) }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// Joining the cluster as a node
    Join,
    /// Seeing everything but tokens over http://
    Read,
    /// That, and changing services, their containers and images
    Write,
    /// That, and changing nodes and tokens
    Admin,
    /// The same as admin, by its older name
    Api,
}

pub(crate) async fn cluster(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Status(output) => {
            let status: ClusterStatus = client.get("/v1/cluster").await?;
            match output.output {
                Output::Json => render::json(&status)?,
                Output::Table => render::print(&describe(&status, color::stdout()))?,
            }
        }
        Command::Audit(output) => {
            let list: List<AuditRecord> = client.get("/v1/audit").await?;
            match output.output {
                Output::Json => render::json(&list.items)?,
                Output::Table => render::print(&audit(&list.items))?,
            }
        }
        Command::Token { command } => token(client, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(status: &ClusterStatus, paint: Paint) -> String {
    let list = |ids: &[NodeId]| match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let leader = status.leader.map_or_else(
        || paint.apply(Style::Red, "none: nothing can change until a majority of the voters is up"),
        |leader| {
            let unconfirmed = if status.stale { "; no majority confirms it" } else { "" };
            format!("node {leader} (term {}{unconfirmed})", status.term)
        },
    );
    let survives = if status.failures_survived > 0 { Style::Green } else { Style::Yellow };
    let lines = [
        ("Cluster", status.id.to_string()),
        ("Answered by", format!("node {}", status.node)),
        ("Leader", leader),
        ("Voters", list(&status.voters)),
        ("Learners", list(&status.learners)),
        ("Survives", paint.apply(survives, &status.survives)),
        ("Nodes", format!("{} up of {}", status.nodes_up, status.nodes)),
        ("Services", status.services.to_string()),
        ("Replicas", replicas(status)),
        (
            "Log",
            format!("applied {} of {}, snapshot at {}", status.applied, status.last_log, status.snapshot),
        ),
        ("Feature level", status.level.to_string()),
    ];
    let facts = lines.iter().map(|(key, value)| format!("{:<15}{value}\n", format!("{key}:")));
    let warnings = status.warnings.iter().map(|warning| format!("{}\n", text::printable(warning)));
    facts.chain(warnings).collect()
}

fn replicas(status: &ClusterStatus) -> String {
    let lost = match status.replicas_lost {
        0 => String::new(),
        lost => format!(", {lost} lost"),
    };
    format!("{} running{lost}", status.replicas_running)
}

async fn token(client: &Client, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { scope, expires, uses, services, output } => {
            let scope = match scope {
                ScopeArg::Join => Scope::Join,
                ScopeArg::Read => Scope::Read,
                ScopeArg::Write => Scope::Write,
                ScopeArg::Admin => Scope::Admin,
                ScopeArg::Api => Scope::Api,
            };
            let expires = expires.unwrap_or(match scope {
                Scope::Join => Life::For(limits::TICKET_LIFE),
                Scope::Read | Scope::Write | Scope::Admin | Scope::Api => Life::Endless,
            });
            let expires_in_s = match expires {
                Life::For(time) => Some(time.as_secs()),
                Life::Endless => None,
            };
            let request = TokenRequest { scope, expires_in_s, uses, services };
            let answer: TokenAnswer = client.post("/v1/tokens", &request).await?;
            match output.output {
                Output::Json => render::json(&answer)?,
                Output::Table => match &answer.ticket {
                    Some(ticket) => {
                        render::line(ticket)?;
                        render::note(
                            "on the machine to add, run `blixard node --join -` and paste it, or put it in a file and run `blixard node --join @FILE`",
                        );
                    }
                    None => render::line(&answer.token)?,
                },
            }
        }
        TokenCommand::Ls(output) => {
            let list: List<TokenRow> = client.get("/v1/tokens").await?;
            match output.output {
                Output::Json => render::json(&list.items)?,
                Output::Table => render::print(&tokens(&list.items))?,
            }
        }
        TokenCommand::Rotate => {
            let answer: RotateAnswer = client.post_empty("/v1/tokens/rotate").await?;
            render::line(&format!("{} tokens for joining are revoked", answer.revoked))?;
        }
        TokenCommand::Rm { id } => {
            let _: WriteAnswer = client.delete(&format!("/v1/tokens/{id}")).await?;
            render::line(&id.to_string())?;
        }
    }
    Ok(())
}

fn audit(records: &[AuditRecord]) -> String {
    let mut table = Table::new(&["TIME", "WHO", "WHAT", "ANSWER"], color::stdout());
    for record in records {
        let who = record.by.as_ref().map_or_else(|| "the leader".to_owned(), ToString::to_string);
        let answer = record.refused.as_ref().map_or("done".to_owned(), |why| format!("refused: {why}"));
        table.row([record.at.to_string(), who, record.what.clone(), answer]);
    }
    table.render()
}

fn tokens(rows: &[TokenRow]) -> String {
    let now = text::now();
    let mut table = Table::new(&["ID", "SCOPE", "SERVICES", "EXPIRES", "USES LEFT"], color::stdout());
    for row in rows {
        let expires = match row.expires_at {
            None => "never".to_owned(),
            Some(then) if then <= now => "expired".to_owned(),
            Some(then) => format!("in {}", text::until(now, then)),
        };
        let services = row.services.as_ref().map_or_else(|| "all".to_owned(), |prefix| format!("{prefix}*"));
        let uses = row.uses_left.map_or_else(|| "no limit".to_owned(), |uses| uses.to_string());
        table.row([row.id.to_string(), row.scope.to_string(), services, expires, uses]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use blixard_core::api::node::ClusterStatus;

    use crate::render::color::Paint;

    #[test]
    fn cluster_status_looks_like_this() {
        let status: ClusterStatus = serde_json::from_value(serde_json::json!({
            "id": "03030303030303030303030303030303", "node": 2, "leader": 1, "term": 4,
            "voters": [1, 2, 3], "learners": [], "failures_survived": 1,
            "survives": "the loss of any 1 of the voters 1, 2, 3", "level": 1, "last_log": 90,
            "applied": 88, "snapshot": 0, "nodes": 3, "nodes_up": 3, "services": 1, "replicas_running": 2, "replicas_lost": 1,
            "warnings": ["node 3 runs twice"]
        }))
        .unwrap();
        assert_eq!(
            super::describe(&status, Paint::Plain),
            "\
Cluster:       03030303030303030303030303030303
Answered by:   node 2
Leader:        node 1 (term 4)
Voters:        1, 2, 3
Learners:      none
Survives:      the loss of any 1 of the voters 1, 2, 3
Nodes:         3 up of 3
Services:      1
Replicas:      2 running, 1 lost
Log:           applied 88 of 90, snapshot at 0
Feature level: 1
node 3 runs twice
"
        );
    }
}
