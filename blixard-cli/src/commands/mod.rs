//! The commands, one file each.

pub(crate) mod cluster;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod node;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod service;

use std::future::Future;
use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::client::Client;

/// Runs the command and gives the process's exit code.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let connection = cli.connection;
    let command = match cli.command {
        Command::Node(args) => match args.local(&connection) {
            Ok(local) => return local.run(),
            Err(verb) => Command::Node(verb),
        },
        other => other,
    };
    let client = Client::new(&connection)?;
    block_on(async move {
        match command {
            Command::Run(args) => run::run(&client, args).await,
            Command::Ps(args) => ps::ps(&client, args).await,
            Command::Stop(args) => service::stop(&client, args).await,
            Command::Start(args) => service::start(&client, args).await,
            Command::Rm(args) => service::remove(&client, args).await,
            Command::Logs(args) => logs::logs(&client, args).await,
            Command::Exec(args) => exec::exec(&client, args).await,
            Command::Inspect(args) => inspect::inspect(&client, args).await,
            Command::Events(args) => events::events(&client, args).await,
            Command::Service(args) => service::service(&client, args).await,
            Command::Image(args) => image::image(&client, args).await,
            Command::Node(args) => node::ask(&client, *args).await,
            Command::Cluster(args) => cluster::cluster(&client, args).await,
        }
    })
}

/// Runs `command` on a runtime of its own. A thread that still reads the terminal's input does not
/// hold up the end.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}
