//! Planted bugs: each must be caught by the invariant that it names.
//!
//! `simulation/mutants` holds a patch for each, whose header says what it plants, what it is drawn
//! from and which invariants must fire. They are applied in turn to one scratch copy of the
//! workspace; nothing of them is in what is built otherwise. The copy's simulator must pass
//! [`CALM_SEEDS`] seeds without faults, so that the bug is one that only faults show; then it runs
//! seeds with faults until one ends with a named invariant. A compile failure, another invariant
//! and a panic catch nothing. A bug that no seed finds is a missing check.
//!
//! [`REPEATS`] is the one name that stands for no check inside a world: each seed is run twice, in
//! two processes, and the hashes of their histories must be the same.

mod hunt;
mod patch;
mod scratch;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use self::hunt::{Hunt, Outcome};
use self::patch::Patch;
use self::scratch::{Scratch, apply, workspace};

/// How many seeds without faults a planted bug must pass.
pub const CALM_SEEDS: u64 = 5;
/// The name of what catches a history that differs when it is repeated.
pub const REPEATS: &str = "histories_repeat";

/// A bug to plant.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// Its file's name, without the ending.
    pub name: String,
    /// What it plants.
    pub plants: String,
    /// The real issue or failure it is drawn from.
    pub from: String,
    /// The invariants of which one must fire.
    pub fires: Vec<String>,
    /// How many machines its worlds have.
    pub nodes: u64,
    /// Whether it must pass seeds without faults: `calm: no` is a bug that shows there already.
    pub calm: bool,
    /// What is missing to catch it, when it is known not to be caught.
    pub missing: Option<String>,
    patch: Patch,
}

impl Mutant {
    /// Reads a patch with its header: `field: text`, where further lines are indented, up to an
    /// empty line.
    ///
    /// # Errors
    /// When a field is missing or unknown, or the rest is no diff.
    pub fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let (header, diff) = text.split_once("\n\n").context("it has no header")?;
        let (mut plants, mut from, mut fires, mut nodes) = (String::new(), String::new(), String::new(), 3);
        let (mut calm, mut missing) = (true, None);
        for field in header.replace("\n  ", " ").lines() {
            match field.split_once(": ").context("a header's line is `field: text`")? {
                ("plants", text) => text.clone_into(&mut plants),
                ("from", text) => text.clone_into(&mut from),
                ("fires", text) => text.clone_into(&mut fires),
                ("nodes", text) => nodes = text.parse().context("nodes")?,
                ("calm", "no") => calm = false,
                ("missing", text) => missing = Some(text.to_owned()),
                (other, _) => anyhow::bail!("`{other}` is no field of a header"),
            }
        }
        ensure!(![&plants, &from, &fires].iter().any(|text| text.is_empty()), "plants, from or fires lacks");
        let fires = fires.split(", ").map(str::to_owned).collect();
        let (name, patch) = (name.to_owned(), Patch::parse(diff)?);
        Ok(Self { name, plants, from, fires, nodes, calm, missing, patch })
    }
}

/// Every planted bug, in the order of their names.
///
/// # Errors
/// When one cannot be read.
pub fn all() -> anyhow::Result<Vec<Mutant>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    let mut mutants = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        mutants.push(Mutant::parse(&name, &text).with_context(|| name.clone())?);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

/// Checks that every patch applies to the sources as they are.
///
/// # Errors
/// The first that does not, and why.
pub fn check(mutants: &[Mutant]) -> anyhow::Result<()> {
    let workspace = workspace();
    for mutant in mutants {
        apply(&mutant.patch, &workspace).with_context(|| format!("{} does not apply", mutant.name))?;
    }
    Ok(())
}

/// How to look for them.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// How many seeds run beside each other.
    pub jobs: usize,
    /// After how many seeds with faults a bug counts as not caught.
    pub seeds: u64,
    /// The simulated minutes of each.
    pub minutes: u64,
}

/// Plants each bug in turn and prints what came of it. True when all were caught but those of which
/// it is known what is missing.
///
/// # Errors
/// When the scratch copy cannot be made.
pub fn run(mutants: &[Mutant], search: Search) -> anyhow::Result<bool> {
    let scratch = Scratch::new()?;
    let (mut needed, mut good) = (Vec::new(), true);
    for mutant in mutants {
        let began = Instant::now();
        let outcome = match scratch.build(&mutant.patch) {
            Ok(program) => Hunt::new(program, mutant, search).run(),
            Err(error) => Outcome::Invalid(format!("{error:#}")),
        };
        print(mutant, &outcome, began.elapsed());
        good &= outcome.seeds_needed().is_some() || mutant.missing.is_some();
        needed.extend(outcome.seeds_needed());
    }
    needed.sort_unstable();
    if let Some(median) = needed.get(needed.len() / 2) {
        println!("seeds needed: median {median}, at most {}", needed[needed.len() - 1]);
    }
    println!("mutants: caught {} of {}", needed.len(), mutants.len());
    Ok(good)
}

fn print(mutant: &Mutant, outcome: &Outcome, took: Duration) {
    let (name, seconds) = (&mutant.name, took.as_secs());
    match outcome {
        Outcome::Caught { invariant, seed, detail } => {
            println!("{name}: caught by {invariant}, seeds needed {seed} ({seconds} s)\n  {detail}");
        }
        Outcome::Missed { others } => {
            println!("{name}: NOT CAUGHT by {} ({seconds} s)", mutant.fires.join(" or "));
            if let Some(missing) = &mutant.missing {
                println!("  known not to be: {missing}");
            }
            for (what, seed) in others {
                println!("  seed {seed} ended otherwise: {what}");
            }
        }
        Outcome::Invalid(why) => println!("{name}: NOT CAUGHT ({seconds} s): {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Mutant, all, check};

    #[test]
    fn every_patch_applies_and_names_itself() {
        let mutants = all().expect("every patch is well formed");
        assert!(mutants.len() >= 25, "{} planted bugs", mutants.len());
        check(&mutants).expect("every patch applies to these sources");
    }

    #[test]
    fn headers_are_read_whole() {
        let text =
            "plants: one\n  and two\nfrom: x 1\nfires: a, b\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";
        let mutant = Mutant::parse("01-x", text).expect("it is well formed");
        assert_eq!((mutant.plants.as_str(), mutant.nodes), ("one and two", 3));
        assert_eq!(mutant.fires, ["a", "b"]);
        assert!(mutant.calm && mutant.missing.is_none());
        assert!(Mutant::parse("x", &text.replace("from: x 1\n", "")).is_err());
        let known = text.replace("fires: ", "calm: no\nmissing: a check\nfires: ");
        let known = Mutant::parse("01-x", &known).expect("it is well formed");
        assert_eq!((known.calm, known.missing.as_deref()), (false, Some("a check")));
        assert!(Mutant::parse("x", &text.replace("from", "form")).is_err());
    }
}
