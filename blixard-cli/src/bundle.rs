//! Where a bundle comes from: a file, or standard input.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use blixard_core::limits::BUNDLE_BYTES_MAX;
use blixard_core::spec::ServiceSpec;

use crate::failure::Failure;

/// Reads the service that the file at `path` describes; `-` is standard input. A service without a
/// name of its own is named after the file.
///
/// # Errors
/// When the file cannot be read, is too long, or does not describe a service.
pub(crate) fn load(path: &Path) -> anyhow::Result<ServiceSpec> {
    let text = read(path)?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(
            format!("{}:{}:{}: {error}", path.display(), error.line(), error.column()),
            "correct the file; `blixard run --help` shows an example",
        )
        .into()
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| {
            Failure::new(
                format!("cannot read {}: {error}", path.display()),
                "give the path of a bundle, or - for standard input",
            )
        })?)
    };
    let mut text = String::new();
    let limit = BUNDLE_BYTES_MAX as u64;
    let bytes = source
        .take(limit + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes as u64 > limit {
        let error = format!("{} is longer than the {limit} bytes a bundle may have", path.display());
        return Err(
            Failure::new(error, "is it a bundle? images are imported with `blixard image import`").into()
        );
    }
    Ok(text)
}
