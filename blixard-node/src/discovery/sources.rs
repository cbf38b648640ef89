//! The sources a node was given.

use std::path::Path;

use blixard_core::discovery::target::JoinTarget;

use super::address::Host;
use super::announced::Announced;
use super::files::{Given, NamedFile, STATIC_FILE, StaticFile, TicketFile};
use super::program::Program;
use super::source::Source;
use super::url::Web;

/// The sources of a node: the values of `--join`, and [`STATIC_FILE`] in its data directory.
pub fn sources(join: Vec<JoinTarget>, data_dir: Option<&Path>) -> Vec<Box<dyn Source>> {
    let static_file = data_dir.map(|dir| Box::new(StaticFile(dir.join(STATIC_FILE))) as Box<dyn Source>);
    join.into_iter().map(source).chain(static_file).collect()
}

fn source(target: JoinTarget) -> Box<dyn Source> {
    match target {
        JoinTarget::File(path) => Box::new(NamedFile(path)),
        JoinTarget::Ticket(ticket) => Box::new(Given(*ticket)),
        JoinTarget::TicketFile(path) => Box::new(TicketFile(path)),
        JoinTarget::Url(url) => Box::new(Web::new(url)),
        JoinTarget::Program(path) => Box::new(Program(path)),
        JoinTarget::Announced => Box::new(Announced),
        JoinTarget::Address { host, port } => Box::new(Host::new(host, port)),
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
