//! Where a bundle comes from: a file, or standard input. What it means is decided by
//! [`blixard_core::bundle`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use blixard_core::bundle::{self, Context, Severity};
use blixard_core::id::ServiceName;
use blixard_core::limits::BUNDLE_BYTES_MAX;
use blixard_core::spec::ServiceSpec;

use crate::failure::Failure;
use crate::render::{self, text};

/// Reads the service that the file at `path` describes; `-` is standard input. It is called `name`,
/// else as the bundle says, else after the file. What is wrong with the bundle goes to stderr.
///
/// # Errors
/// When the file cannot be read or does not describe a service.
pub(crate) fn load(path: &Path, name: Option<&ServiceName>) -> anyhow::Result<ServiceSpec> {
    let stdin = path == Path::new("-");
    let source = if stdin { bytes(std::io::stdin()) } else { File::open(path).and_then(bytes) };
    let source = source.map_err(|error| {
        let error = format!("cannot read {}: {error}", path.display());
        Failure::new(error, "give the path of a bundle, or - for standard input")
    })?;
    let directory = if stdin { None } else { directory(path) };
    let file_name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let context = Context {
        file_name: &file_name,
        name,
        default_name: path.file_stem().filter(|_| !stdin).and_then(|stem| stem.to_str()),
        base_dir: directory.as_deref().and_then(Path::to_str),
        env_files: &|file| env_file(directory.as_deref(), file),
    };
    let parsed = bundle::parse(&source, &context);
    for diagnostic in &parsed.diagnostics {
        render::note(&diagnostic.to_string());
    }
    for draft in &parsed.drafts {
        render::note(&format!("\nas a bundle, {}:\n\n{}", draft.file, draft.text));
    }
    if !parsed.drafts.is_empty() {
        let files: Vec<&str> = parsed.drafts.iter().map(|draft| draft.file.as_str()).collect();
        let runs: Vec<String> = files.iter().map(|file| format!("`blixard run {file}`")).collect();
        let error = format!("{file_name} is a Compose file, not a bundle");
        let hint =
            format!("write what is above to {}, look it over, then {}", files.join(", "), runs.join(", "));
        return Err(Failure::new(error, hint).into());
    }
    parsed.spec.ok_or_else(|| {
        let errors = parsed.diagnostics.iter().filter(|fault| fault.severity == Severity::Error).count();
        let error = format!("{file_name} has {}", text::plural(errors, "error"));
        Failure::new(error, "correct them and check with `blixard config`").into()
    })
}

/// The absolute directory that a bundle's relative paths count from.
fn directory(path: &Path) -> Option<PathBuf> {
    Some(std::path::absolute(path).ok()?.parent()?.to_owned())
}

fn env_file(directory: Option<&Path>, file: &str) -> Result<String, String> {
    let path = match directory {
        Some(directory) => directory.join(file),
        None if Path::new(file).is_absolute() => PathBuf::from(file),
        None => return Err("a bundle from standard input has no directory".to_owned()),
    };
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = File::open(&path).and_then(bytes).map_err(|error| named(&error))?;
    String::from_utf8(bytes).map_err(|_| named(&"not UTF-8 text"))
}

/// All bytes, or one more than a bundle may have, which is how its reader knows.
fn bytes(file: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use blixard_core::bundle::to_bundle;

    use super::load;

    #[test]
    fn an_example_is_read_from_its_file() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let spec = load(&directory.join("postgres.bun"), None).unwrap();
        assert_eq!(spec.name.as_str(), "postgres");
        assert!(
            spec.volumes[1].source.starts_with('/') && spec.volumes[1].source.ends_with("/examples/initdb")
        );
        let named = load(&directory.join("postgres.bun"), Some(&"db".parse().unwrap())).unwrap();
        assert!(to_bundle(&named).contains("\nname: db\n"));
    }

    #[test]
    fn a_file_that_is_no_bundle_is_refused() {
        let check = |file: &str, why: &str| {
            let error = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file), None).unwrap_err();
            assert!(error.to_string().contains(why), "{file}: {error}");
        };
        check("missing.bun", "cannot read");
        check("src", "cannot read");
        check("Cargo.toml", "has 1 error");
        check("../blixard-core/testdata/bundles/compose.bun", "is a Compose file, not a bundle");
    }
}
