//! What is done to a tree, and what that makes of it.

use serde::{Deserialize, Serialize};

use super::index::{
    Attributes, Entry, Index, Kind, LEAF_BYTES, Leaf, Leaves, bytes, leaf_bytes, leaf_of, leaves_of,
    zero_leaf,
};
use super::path::TreePath;
use crate::limits::{PATH_BYTES_MAX, VOLUME_BYTES_MAX, VOLUME_FILES_MAX};

/// How much one [`Step::Write`] writes at most, in bytes: what sender and receiver hold in memory.
pub const WRITE_BYTES_MAX: u64 = 256 * LEAF_BYTES;

/// One change of a tree. In a sequence of them, each may be done again, from the first on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Keeps the regular file at `path`, whatever becomes of its name, as number `slot`.
    Stash {
        /// Where it is.
        path: TreePath,
        /// Counts from 0.
        slot: u32,
    },
    /// Removes what is no directory, or an empty one.
    Remove {
        /// What.
        path: TreePath,
    },
    /// Makes a directory.
    Directory {
        /// Where.
        path: TreePath,
    },
    /// Gives a file that was kept its new name.
    Restore {
        /// Which; each once.
        slot: u32,
        /// Where.
        path: TreePath,
    },
    /// Makes a regular file of so many zeros.
    File {
        /// Where.
        path: TreePath,
        /// In bytes.
        size: u64,
    },
    /// Cuts a regular file, or has zeros follow what it holds.
    Resize {
        /// Which.
        path: TreePath,
        /// In bytes.
        size: u64,
    },
    /// Overwrites whole pieces of a regular file.
    Write {
        /// Which.
        path: TreePath,
        /// The first piece, in units of [`LEAF_BYTES`].
        leaf: u64,
        /// At most [`WRITE_BYTES_MAX`]: whole pieces, but for the file's last.
        #[serde(with = "bytes")]
        content: Vec<u8>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Where.
        path: TreePath,
        /// Its text.
        #[serde(with = "bytes")]
        target: Vec<u8>,
    },
    /// Gives a regular file another name.
    Link {
        /// The other name.
        path: TreePath,
        /// The name that it has.
        to: TreePath,
    },
    /// Sets what a file has besides its content; without a path, the root directory.
    Set {
        /// Which.
        path: Option<TreePath>,
        /// What.
        attributes: Attributes,
    },
}

/// Why a step cannot be done to a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step} of `{path}`: {reason}")]
pub struct StepError {
    step: &'static str,
    path: String,
    reason: &'static str,
}

/// What becomes of a tree while steps are done to it.
#[derive(Debug)]
pub struct Advance {
    index: Index,
    stashed: Vec<Option<Kind>>,
    /// What the files had at first, and all that came since.
    bytes: u64,
}

/// Why a file is not made, or not so large.
const TOO_LARGE: &str = "a volume's files would be larger than they may be";

impl Index {
    /// Begins a sequence of steps from this tree.
    pub fn advance(self) -> Advance {
        Advance { bytes: self.size().1, index: self, stashed: Vec::new() }
    }
}

impl Advance {
    /// The tree as the steps so far have made it.
    pub fn into_index(self) -> Index {
        self.index
    }

    /// Takes note of a step.
    ///
    /// # Errors
    /// When the tree is not one that it can be done to. Nothing has changed then.
    pub fn step(&mut self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Stash { path, slot } => self.stash(path, *slot).map_err(|why| error("keeping", path, why)),
            Step::Remove { path } => self.remove(path).map_err(|why| error("removal", path, why)),
            Step::Directory { path } => self.add(path, Kind::Directory),
            Step::Restore { slot, path } => self.restore(*slot, path),
            Step::File { path, size } => {
                self.room(*size).map_err(|why| error("making", path, why))?;
                let leaves = (0..leaves_of(*size)).map(|at| zero_leaf(leaf_bytes(*size, at)));
                self.add(path, Kind::File { size: *size, leaves: Leaves::new(leaves.collect()) })
            }
            Step::Resize { path, size } => {
                self.resize(path, *size).map_err(|why| error("resizing", path, why))
            }
            Step::Write { path, leaf, content } => {
                self.write(path, *leaf, content).map_err(|why| error("writing", path, why))
            }
            Step::Symlink { path, target } => {
                if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
                    return Err(error("making", path, "its text is no path"));
                }
                self.add(path, Kind::Symlink { target: target.clone() })
            }
            Step::Link { path, to } => {
                if !matches!(self.index.get(to), Some(Entry { kind: Kind::File { .. }, .. })) {
                    return Err(error("making", path, "what it is another name of is no regular file"));
                }
                self.add(path, Kind::Link { to: to.clone() })
            }
            Step::Set { path, attributes } => self.set(path.as_ref(), *attributes),
        }
    }

    fn stash(&mut self, path: &TreePath, slot: u32) -> Result<(), &'static str> {
        let Some(Entry { kind: kind @ Kind::File { .. }, .. }) = self.index.get(path) else {
            return Err("it is no regular file");
        };
        if slot as usize != self.stashed.len() {
            return Err("it is out of turn");
        }
        self.stashed.push(Some(kind.clone()));
        Ok(())
    }

    fn remove(&mut self, path: &TreePath) -> Result<(), &'static str> {
        let entry = self.index.get(path).ok_or("it is not there")?;
        let entries = &self.index.entries;
        let next = || entries.range(path.clone()..).skip(1).find(|(other, _)| !is_before_below(other, path));
        if entry.kind == Kind::Directory && next().is_some_and(|(next, _)| next.is_below(path)) {
            return Err("it is a directory that holds something");
        }
        self.index.entries.remove(path);
        Ok(())
    }

    fn add(&mut self, path: &TreePath, kind: Kind) -> Result<(), StepError> {
        let entries = &mut self.index.entries;
        let refused = |why| Err(error("making", path, why));
        if let Some(parent) = path.parent()
            && entries.get(&parent).is_none_or(|parent| parent.kind != Kind::Directory)
        {
            return refused("it is in no directory");
        }
        if entries.contains_key(path) {
            return refused("something is there");
        }
        if entries.len() as u64 >= VOLUME_FILES_MAX {
            return refused("a volume holds no more files");
        }
        let attributes = Attributes { mode: 0, uid: 0, gid: 0, mtime_ns: 0 };
        entries.insert(path.clone(), Entry { kind, attributes });
        Ok(())
    }

    fn restore(&mut self, slot: u32, path: &TreePath) -> Result<(), StepError> {
        let kept = self.stashed.get_mut(slot as usize).and_then(Option::take);
        let kind = kept.ok_or_else(|| error("restoring", path, "it was not kept"))?;
        self.add(path, kind)
    }

    /// Takes room for so many bytes more. What is removed gives none back: one sequence of steps may go
    /// through at most twice what a volume holds.
    fn room(&mut self, bytes: u64) -> Result<(), &'static str> {
        let all = self.bytes.saturating_add(bytes);
        if all > 2 * VOLUME_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        self.bytes = all;
        Ok(())
    }

    fn file(&mut self, path: &TreePath) -> Result<(&mut u64, &mut Vec<Leaf>), &'static str> {
        match self.index.entries.get_mut(path) {
            Some(Entry { kind: Kind::File { size, leaves }, .. }) => Ok((size, leaves.as_mut())),
            _ => Err("it is no regular file"),
        }
    }

    fn resize(&mut self, path: &TreePath, new: u64) -> Result<(), &'static str> {
        let old = *self.file(path)?.0;
        self.room(new.saturating_sub(old))?;
        let (size, leaves) = self.file(path)?;
        let old = std::mem::replace(size, new);
        let count = usize::try_from(leaves_of(new)).map_err(|_| TOO_LARGE)?;
        leaves.truncate(count);
        // The last piece that both have is known only if it keeps its length.
        if let Some(last) = leaves.len().checked_sub(1)
            && leaf_bytes(old, last as u64) != leaf_bytes(new, last as u64)
        {
            leaves[last] = Leaf::UNKNOWN;
        }
        let zeros = (leaves.len()..count).map(|at| zero_leaf(leaf_bytes(new, at as u64)));
        leaves.extend(zeros.collect::<Vec<_>>());
        Ok(())
    }

    fn write(&mut self, path: &TreePath, leaf: u64, content: &[u8]) -> Result<(), &'static str> {
        let (size, leaves) = self.file(path)?;
        let bytes = content.len() as u64;
        let end = leaf.checked_mul(LEAF_BYTES).and_then(|from| from.checked_add(bytes));
        let end = end.filter(|end| end <= size).ok_or("it would write past its end")?;
        if bytes == 0 || bytes > WRITE_BYTES_MAX || !bytes.is_multiple_of(LEAF_BYTES) && end != *size {
            return Err("it writes no whole pieces");
        }
        let at = usize::try_from(leaf).map_err(|_| "it would write past its end")?;
        for (known, piece) in leaves.iter_mut().skip(at).zip(content.chunks(LEAF_BYTES as usize)) {
            *known = leaf_of(piece);
        }
        Ok(())
    }

    fn set(&mut self, path: Option<&TreePath>, attributes: Attributes) -> Result<(), StepError> {
        let Some(path) = path else {
            self.index.top = attributes;
            return Ok(());
        };
        if attributes.mode > 0o7777 {
            return Err(error("setting", path, "its mode has bits that are no permissions"));
        }
        match self.index.entries.get_mut(path) {
            Some(entry) => {
                entry.attributes = attributes;
                Ok(())
            }
            None => Err(error("setting", path, "it is not there")),
        }
    }
}

/// Whether `other` follows `path` and is before what is below it: `a-b` is between `a` and `a/b`.
fn is_before_below(other: &TreePath, path: &TreePath) -> bool {
    let (other, path) = (other.as_bytes(), path.as_bytes());
    other.starts_with(path) && other.get(path.len()).is_some_and(|byte| *byte < b'/')
}

fn error(step: &'static str, path: &TreePath, reason: &'static str) -> StepError {
    StepError { step, path: path.to_string(), reason }
}
