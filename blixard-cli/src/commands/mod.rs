//! The commands, one file each.

pub(crate) mod chirp;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod cp;
pub(crate) mod discover;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod port;
pub(crate) mod ps;
pub(crate) mod restart;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod service;
pub(crate) mod stop;
pub(crate) mod system;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;

use std::process::ExitCode;

use crate::args::Connection;
use crate::cli::{Cli, Command};
use crate::client::Client;

/// Runs the command and gives the process's exit code.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let node = &cli.connection;
    match cli.command {
        Command::Run(args) => {
            let spec = run::read(&args)?;
            ask(node, async |client| run::run(client, args, spec).await)
        }
        Command::Config(args) => config::run(&args),
        Command::Ps(args) => ask(node, async |client| ps::ps(client, args).await),
        Command::Restart(args) => ask(node, async |client| restart::restart(client, args).await),
        Command::Port(args) => ask(node, async |client| port::port(client, args).await),
        Command::Stop(args) => ask(node, async |client| stop::stop(client, args).await),
        Command::Start(args) => ask(node, async |client| stop::start(client, args).await),
        Command::Rm(args) => ask(node, async |client| stop::remove(client, args).await),
        Command::Logs(args) => ask(node, async |client| logs::logs(client, args).await),
        Command::Exec(args) => ask(node, async |client| exec::exec(client, args).await),
        Command::Cp(args) => ask(node, async |client| cp::cp(client, args).await),
        Command::Kill(args) => ask(node, async |client| kill::kill(client, args).await),
        Command::Wait(args) => ask(node, async |client| wait::wait(client, args).await),
        Command::Inspect(args) => ask(node, async |client| inspect::inspect(client, args).await),
        Command::Events(args) => ask(node, async |client| events::events(client, args).await),
        Command::Service(args) => ask(node, async |client| service::service(client, args).await),
        Command::Image(args) => ask(node, async |client| image::image(client, args).await),
        Command::System(args) => ask(node, async |client| system::system(client, args).await),
        Command::Volume(args) => ask(node, async |client| volume::volume(client, args).await),
        Command::Chirp(args) => chirp::run(args),
        Command::Discover(args) => ask(node, async |client| discover::discover(client, args).await),
        Command::Peer(args) => ask(node, async |client| discover::peer(client, args).await),
        Command::Cluster(args) => ask(node, async |client| cluster::cluster(client, args).await),
        Command::Version(args) => version::run(&args, || ask(node, version::ask)),
        Command::Completion(args) => completion::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Node(args) => match args.task(node) {
            node::Task::Here(local) => local.run(),
            node::Task::Ask(question) => ask(node, async |client| node::ask(client, question).await),
        },
    }
}

/// Runs a command that asks a node, on a runtime of its own. A thread that still reads the
/// terminal's input does not hold up the end.
fn ask<T>(
    connection: &Connection,
    command: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let client = Client::new(connection)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command(&client));
    runtime.shutdown_background();
    result
}
