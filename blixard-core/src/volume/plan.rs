//! How one tree becomes another.
//!
//! What has the same content under another name is moved, not sent; of a file that stays, only pieces whose
//! hashes differ are; zeros that nothing wrote stay holes. The order of the steps is what makes them safe
//! to do again from the first: all that is kept is kept before anything is removed, all that is removed is
//! before anything takes its place, and what a file has besides its content is set last, directories after
//! what they hold.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Entry, Index, Kind, LEAF_BYTES, Leaves, leaf_bytes, leaves_of, zero_leaf};
use super::path::TreePath;
use super::step::{Step, WRITE_BYTES_MAX};

/// The steps that make `target` of `base`. A [`Step::Write`] comes with `content`, which is asked for the
/// bytes of `target`'s file at a path: from an offset, so many. What it answers may differ from what
/// `target` says of them, where the file has changed since: then so will what the steps lead to. Steps are
/// handed to `take` one by one; either may end it by an error.
///
/// # Errors
/// What `content` or `take` fails with.
pub fn plan<E>(
    base: &Index,
    target: &Index,
    mut content: impl FnMut(&TreePath, u64, u64) -> Result<Vec<u8>, E>,
    mut take: impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E> {
    let moves = Moves::find(base, target);
    let kept = |path: &TreePath| is_kept(base, target, &moves, path);
    let mut touched = Touched::default();
    for (slot, (from, _)) in (0..).zip(&moves.pairs) {
        take(Step::Stash { path: from.clone(), slot })?;
    }
    for path in base.entries.keys().rev().filter(|path| !kept(path)) {
        touched.parent(path);
        take(Step::Remove { path: path.clone() })?;
    }
    let news = || target.entries.iter().filter(|(path, _)| !kept(path));
    for (path, entry) in news() {
        touched.parent(path);
        touched.own(path);
        if entry.kind == Kind::Directory {
            take(Step::Directory { path: path.clone() })?;
        }
    }
    for (slot, (_, to)) in (0..).zip(&moves.pairs) {
        take(Step::Restore { slot, path: to.clone() })?;
    }
    for (path, entry) in &target.entries {
        let Kind::File { size, leaves } = &entry.kind else { continue };
        if moves.targets.contains(path) {
            continue;
        }
        let before = kept(path).then(|| base.get(path)).flatten();
        let known = match before.map(|entry| &entry.kind) {
            Some(Kind::File { size: old, leaves: known }) => {
                if old != size {
                    touched.own(path);
                    take(Step::Resize { path: path.clone(), size: *size })?;
                }
                Some((*old, known))
            }
            _ => {
                take(Step::File { path: path.clone(), size: *size })?;
                None
            }
        };
        for (first, count) in runs(*size, leaves, known) {
            touched.own(path);
            let (from, bytes) = (first * LEAF_BYTES, (count * LEAF_BYTES).min(*size - first * LEAF_BYTES));
            let content = content(path, from, bytes)?;
            take(Step::Write { path: path.clone(), leaf: first, content })?;
        }
    }
    for (path, entry) in news() {
        match &entry.kind {
            Kind::Symlink { target } => take(Step::Symlink { path: path.clone(), target: target.clone() })?,
            Kind::Link { to } => take(Step::Link { path: path.clone(), to: to.clone() })?,
            Kind::Directory | Kind::File { .. } => {}
        }
    }
    set_attributes(base, target, &touched, take)
}

fn set_attributes<E>(
    base: &Index,
    target: &Index,
    touched: &Touched,
    mut take: impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E> {
    let changed = |path: &TreePath, entry: &Entry| {
        touched.paths.contains(path) || base.get(path).is_none_or(|old| old.attributes != entry.attributes)
    };
    let set =
        |path: &TreePath, entry: &Entry| Step::Set { path: Some(path.clone()), attributes: entry.attributes };
    let due = || target.entries.iter().rev().filter(|(path, entry)| changed(path, entry));
    for (path, entry) in due().filter(|(_, entry)| entry.kind != Kind::Directory) {
        take(set(path, entry))?;
    }
    // A directory is after all that it holds: in the reverse order of paths.
    for (path, entry) in due().filter(|(_, entry)| entry.kind == Kind::Directory) {
        take(set(path, entry))?;
    }
    if touched.top || base.top != target.top {
        take(Step::Set { path: None, attributes: target.top })?;
    }
    Ok(())
}

/// What steps change besides what they are about: a directory's time, when a name in it comes or goes.
#[derive(Default)]
struct Touched {
    paths: BTreeSet<TreePath>,
    top: bool,
}

impl Touched {
    fn own(&mut self, path: &TreePath) {
        self.paths.insert(path.clone());
    }

    fn parent(&mut self, path: &TreePath) {
        match path.parent() {
            Some(parent) => self.own(&parent),
            None => self.top = true,
        }
    }
}

/// Files whose content the target has under another name.
#[derive(Default)]
struct Moves {
    /// From where to where; each end at most once.
    pairs: Vec<(TreePath, TreePath)>,
    sources: BTreeSet<TreePath>,
    targets: BTreeSet<TreePath>,
}

impl Moves {
    fn find(base: &Index, target: &Index) -> Self {
        let mut sources: BTreeMap<[u8; 32], Vec<&TreePath>> = BTreeMap::new();
        for (path, entry) in base.entries.iter().rev() {
            if let Kind::File { size: 1.., leaves } = &entry.kind
                && gives_up(leaves, target.get(path))
            {
                sources.entry(*leaves.content().as_bytes()).or_default().push(path);
            }
        }
        let mut moves = Self::default();
        if sources.is_empty() {
            return moves;
        }
        for (path, entry) in &target.entries {
            let Kind::File { size: 1.., leaves } = &entry.kind else { continue };
            let stays = base.get(path).is_some_and(|old| old.kind == entry.kind);
            let found = sources.get_mut(leaves.content().as_bytes()).filter(|_| !stays);
            if let Some(from) = found.and_then(Vec::pop) {
                moves.sources.insert(from.clone());
                moves.targets.insert(path.clone());
                moves.pairs.push((from.clone(), path.clone()));
            }
        }
        moves
    }
}

/// Whether a file's content may go to another name: there is nothing of it at its own in the target, or
/// little. Otherwise it is worth more where it is.
fn gives_up(leaves: &Leaves, target: Option<&Entry>) -> bool {
    let Some(Entry { kind: Kind::File { leaves: new, .. }, .. }) = target else { return true };
    let same = leaves.as_slice().iter().zip(new.as_slice()).filter(|(old, new)| old == new).count();
    same * 2 < new.as_slice().len().max(1)
}

/// Whether what is at `path` stays and at most changes: no step removes it.
fn is_kept(base: &Index, target: &Index, moves: &Moves, path: &TreePath) -> bool {
    let (Some(old), Some(new)) = (base.get(path), target.get(path)) else { return false };
    match (&old.kind, &new.kind) {
        (Kind::Directory, Kind::Directory) => true,
        (Kind::File { .. }, Kind::File { .. }) => {
            !moves.sources.contains(path) && !moves.targets.contains(path)
        }
        (Kind::Symlink { .. }, Kind::Symlink { .. }) => old.kind == new.kind,
        // Another name of a file that is replaced would go on being one of the old.
        (Kind::Link { to }, Kind::Link { to: new }) => to == new && is_kept(base, target, moves, to),
        _ => false,
    }
}

/// The runs of pieces to be written: those that differ from what the file holds, and of a new one those
/// that are no zeros. First piece and how many, at most [`WRITE_BYTES_MAX`].
fn runs(size: u64, leaves: &Leaves, known: Option<(u64, &Leaves)>) -> Vec<(u64, u64)> {
    let full_zero = zero_leaf(LEAF_BYTES);
    let is_due = |at: u64| {
        let index = usize::try_from(at).unwrap_or(usize::MAX);
        let Some(wanted) = leaves.as_slice().get(index) else { return true };
        let bytes = leaf_bytes(size, at);
        let zero = || if bytes == LEAF_BYTES { full_zero } else { zero_leaf(bytes) };
        match known {
            Some((old, known)) if at < leaves_of(old) => {
                leaf_bytes(old, at) != bytes || known.as_slice().get(index) != Some(wanted)
            }
            // Beyond what was there, a file is zeros.
            Some(_) | None => *wanted != zero(),
        }
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for at in (0..leaves_of(size)).filter(|at| is_due(*at)) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == at && *count < WRITE_BYTES_MAX / LEAF_BYTES => {
                *count += 1;
            }
            _ => runs.push((at, 1)),
        }
    }
    runs
}
