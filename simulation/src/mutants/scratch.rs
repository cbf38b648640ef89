//! The one scratch copy of the workspace in which bugs are planted: its sources and, reused from
//! bug to bug, its build.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::patch::Patch;

/// The profile it is built with, which says why.
const PROFILE: &str = "mutants";

/// The copy.
pub(super) struct Scratch {
    workspace: PathBuf,
    tree: PathBuf,
    build: PathBuf,
}

/// The workspace this program was built from.
pub(super) fn workspace() -> PathBuf {
    let simulation = Path::new(env!("CARGO_MANIFEST_DIR"));
    simulation.parent().unwrap_or(simulation).to_owned()
}

impl Scratch {
    /// Copies the sources as they are now, touching only files that differ.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub(super) fn new() -> anyhow::Result<Self> {
        let workspace = workspace();
        let place = workspace.join("target/mutants");
        let scratch = Self { workspace, tree: place.join("tree"), build: place.join("build") };
        scratch.copy()?;
        Ok(scratch)
    }

    fn copy(&self) -> anyhow::Result<()> {
        let mut wanted = BTreeSet::from(["Cargo.toml".into(), "Cargo.lock".into()]);
        for name in names(&self.workspace)? {
            let hidden = name.to_string_lossy().starts_with('.');
            if !hidden && name != Path::new("target") && self.workspace.join(&name).is_dir() {
                list(&self.workspace, &name, &mut wanted)?;
            }
        }
        for file in &wanted {
            write(&self.tree.join(file), &fs::read(self.workspace.join(file))?)?;
        }
        let mut present = BTreeSet::new();
        list(&self.tree, Path::new(""), &mut present)?;
        for file in present.difference(&wanted) {
            fs::remove_file(self.tree.join(file))?;
        }
        Ok(())
    }

    /// Builds the simulator with `patch` planted and returns the program. The copy's sources are as
    /// they were afterwards.
    ///
    /// # Errors
    /// When the patch does not apply, or with the compiler's words.
    pub(super) fn build(&self, patch: &Patch) -> anyhow::Result<PathBuf> {
        let changed = apply(patch, &self.tree)?;
        let mut originals = Vec::new();
        for (path, text) in &changed {
            let path = self.tree.join(path);
            originals.push((path.clone(), fs::read(&path)?));
            write(&path, text.as_bytes())?;
        }
        let built = self.cargo();
        for (path, original) in &originals {
            write(path, original)?;
        }
        built
    }

    fn cargo(&self) -> anyhow::Result<PathBuf> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--offline", "--package", "simulation", "--profile", PROFILE]);
        let cargo = cargo.arg("--target-dir").arg(&self.build).current_dir(&self.tree);
        let output = cargo.stdin(Stdio::null()).output().context("cannot run cargo")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "it does not compile:\n{words}");
        Ok(self.build.join(PROFILE).join("simulation"))
    }
}

/// The files that a patch changes, as they are with it.
///
/// # Errors
/// When it does not apply to the sources of `workspace`.
pub(super) fn apply(patch: &Patch, workspace: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut changed = Vec::new();
    for (path, hunks) in &patch.files {
        let mut text = fs::read_to_string(workspace.join(path)).with_context(|| path.clone())?;
        for hunk in hunks {
            text = hunk.apply(&text).with_context(|| path.clone())?;
        }
        changed.push((path.clone(), text));
    }
    Ok(changed)
}

fn names(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().into())).collect()
}

/// Adds every file below `within`, relative to `root`, but what was built.
fn list(root: &Path, within: &Path, files: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    for name in names(&root.join(within))? {
        let path = within.join(&name);
        if root.join(&path).is_file() {
            files.insert(path);
        } else if name != Path::new("target") {
            list(root, &path, files)?;
        }
    }
    Ok(())
}

/// Writes a file unless it is so already: cargo goes by the time of the last change.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}
