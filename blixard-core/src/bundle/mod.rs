//! What a `.bun` bundle means: its YAML text becomes a [`ServiceSpec`].
//!
//! Every fault is reported, each with its line and column, not only the first. Nothing is read
//! here: the text comes from the caller, and the content of an environment file through a function
//! it gives. Called by the command line before a service is submitted; what only the cluster knows,
//! such as whose a port is, is checked there.
//!
//! [`parse`] makes a tree of the text in which every value knows its place (`tree`), walks it
//! section by section (`service` and its parts) and collects the faults on the way (`walk`).
//! A Compose file is recognised and drafted as bundles (`compose`).
//! [`to_bundle`] writes a specification back. [`check`] holds a specification that came another way to the
//! same rules. The keys are documented in
//! `docs/reference/bundle.md`.

mod check;
mod command;
mod compose;
mod diagnostic;
mod duration;
mod environment;
mod near;
mod number;
mod placement;
mod ports;
mod print;
mod resources;
mod security;
mod service;
mod source;
mod tree;
mod volumes;
mod walk;

#[cfg(test)]
mod tests;

pub(crate) use self::check::check_of;
pub use self::check::{SpecFault, check};
pub use self::compose::Draft;
pub use self::diagnostic::{Diagnostic, Severity};
pub use self::duration::parse_duration;
pub use self::near::near;
pub use self::print::to_bundle;

use self::source::Source;
use self::walk::Walk;
use crate::id::ServiceName;
use crate::spec::ServiceSpec;

/// What a bundle is read with, besides its text.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What messages call the file.
    pub file_name: &'a str,
    /// The name the service gets whatever the bundle says.
    pub name: Option<&'a ServiceName>,
    /// What a service without a name is named after: the file's base name.
    pub default_name: Option<&'a str>,
    /// The absolute directory from which relative volume sources count.
    pub base_dir: Option<&'a str>,
    /// Gives the content of an environment file by its path as the bundle has it, which counts
    /// from the bundle's directory; or why not.
    pub env_files: &'a dyn Fn(&str) -> Result<String, String>,
}

/// What became of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The service, unless there is an error.
    pub spec: Option<ServiceSpec>,
    /// Every fault, by place. Bounded: see [`crate::limits::BUNDLE_FAULTS_MAX`].
    pub diagnostics: Vec<Diagnostic>,
    /// When the text is a Compose file: its services as the bundles that come nearest to them.
    pub drafts: Vec<Draft>,
}

/// Reads a bundle. Takes any bytes.
pub fn parse(source: &[u8], context: &Context<'_>) -> Parsed {
    let source = match Source::new(context.file_name, source) {
        Ok(source) => source,
        Err(diagnostic) => return Parsed { spec: None, diagnostics: vec![*diagnostic], drafts: Vec::new() },
    };
    let mut walk = Walk::new(&source);
    let spec = service::read(&mut walk, &source, context);
    debug_assert!(spec.is_some() || walk.failed(), "a bundle without errors is a service");
    if let Some(spec) = spec.as_ref().filter(|_| !walk.failed()) {
        // What no single value shows: how much there is of all.
        check(spec).into_iter().for_each(|fault| walk.whole(fault));
    }
    let spec = spec.filter(|_| !walk.failed());
    let drafts = walk.take_drafts();
    Parsed { spec, diagnostics: walk.finish(), drafts }
}
