//! One volume's directory.

use std::fs::{self, DirBuilder};
use std::io;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use blixard_core::cluster::volume::{VersionId, VolumeRoot, VolumeVersion};
use blixard_core::time::UtcMs;
use blixard_core::volume::{Index, Step, plan};

use super::files::{Tree, open_directory};
use super::journal::{Head, Held, Reader, Writer, sync_directory};
use super::scan::{Seen, read_part, scan};
use super::{Take, failed};
use crate::platform::{StepSink, StepSource, VolumeError};

pub(super) const LIVE: &str = "live";
const COPY: &str = "copy";
/// A first copy while it is being made.
const COPY_NEW: &str = "copy.new";
const INDEX: &str = "index";
const JOURNAL: &str = "journal";
const STAGE: &str = "stage";
const EPOCH: &str = "epoch";
const ASIDE: &str = "aside";

/// How many versions before the newest are kept in mind, for copies that are a little behind.
const KNOWN_MAX: usize = 4;
/// How often a tree is read anew when it changes while it is read.
const TRIES: u32 = 5;
/// A tree of fewer names may lose them without being asked about.
const FEW: usize = 8;

/// One volume's directory. One piece of work on it at a time; what is sent is read while nothing changes it.
pub(super) struct Slot {
    path: PathBuf,
    work: Mutex<Work>,
    tree: RwLock<()>,
    /// Whether the copy is between two versions: a disk was full, or failed.
    unfinished: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Work {
    seen: Seen,
    /// Whether what an earlier process left was looked at.
    recovered: bool,
}

/// What `copy` holds, and what it held before.
#[derive(Default)]
struct Known {
    held: Option<(VolumeVersion, Arc<Index>)>,
    before: Vec<(VolumeRoot, Arc<Index>)>,
}

/// Something that may differ between two looks at a tree that is written to.
enum Trouble {
    Changed,
    Failed(VolumeError),
}

impl Slot {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            work: Mutex::default(),
            tree: RwLock::default(),
            unfinished: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }

    pub(super) fn held(&self) -> Result<Option<VolumeVersion>, VolumeError> {
        drop(self.begin()?);
        Ok(self.known().held.as_ref().map(|(version, _)| *version))
    }

    /// What the copy holds; nothing at all where there is none.
    pub(super) fn index(&self) -> Result<Arc<Index>, VolumeError> {
        drop(self.begin()?);
        let held = self.known().held.as_ref().map(|(_, index)| Arc::clone(index));
        Ok(held.unwrap_or_else(|| Arc::new(Index::empty())))
    }

    pub(super) fn knows(&self, root: VolumeRoot) -> Option<Arc<Index>> {
        if Index::empty().root() == root {
            return Some(Arc::new(Index::empty()));
        }
        let known = self.known();
        let held = known.held.iter().find(|(version, _)| version.root == root).map(|(_, index)| index);
        held.or_else(|| known.before.iter().find(|(of, _)| *of == root).map(|(_, index)| index)).cloned()
    }

    pub(super) fn prepare(&self, epoch: u64, fresh: bool) -> Result<(), VolumeError> {
        let _work = self.begin()?;
        let live = self.path.join(LIVE);
        if live.exists() {
            if self.epoch()? == Some(epoch) {
                return Ok(());
            }
            self.set_aside()?;
        }
        let held = self.known().held.is_some();
        if !held && !fresh {
            return Err(VolumeError("there is no copy of it on this node".to_owned()));
        }
        let _tree = self.write();
        // Before the directory is there: one that is there is of this epoch.
        self.write_file(EPOCH, &epoch.to_string())?;
        if held {
            fs::rename(self.path.join(COPY), &live).map_err(|error| failed("take over the copy", error))?;
            let mut known = self.known();
            if let Some((version, index)) = known.held.take() {
                remember(&mut known, version.root, index);
            }
        } else {
            fs::create_dir(&live).map_err(|error| failed("make its directory", error))?;
        }
        sync_directory(&live).map_err(|error| failed("make its directory", error))
    }

    pub(super) fn demote(&self, delivered: Option<VolumeVersion>) -> Result<Option<PathBuf>, VolumeError> {
        let mut work = self.begin()?;
        let live = self.path.join(LIVE);
        if !live.exists() {
            return Ok(None);
        }
        // What others have need not be kept twice.
        let root = open_directory(&live).map_err(|error| failed("open what was written to", error))?;
        let found = scan(&root, &mut work.seen).map_err(|error| failed("read what was written to", error))?;
        let others_have = self
            .known()
            .held
            .as_ref()
            .is_some_and(|(version, index)| Some(*version) == delivered && **index == found.index);
        if others_have || found.index.entries.is_empty() {
            fs::remove_dir_all(&live).map_err(|error| failed("remove what was written to", error))?;
            return Ok(None);
        }
        self.set_aside().map(Some)
    }

    pub(super) fn publish(
        &self,
        epoch: u64,
        newest: Option<VersionId>,
        now: UtcMs,
        accept_deletes: bool,
    ) -> Result<Option<VolumeVersion>, VolumeError> {
        let mut work = self.begin()?;
        let live = self.path.join(LIVE);
        if self.epoch()? != Some(epoch) || !live.exists() {
            return Ok(None);
        }
        for _ in 0..TRIES {
            match self.try_publish(&mut work, &live, epoch, newest, now, accept_deletes) {
                Ok(version) => return Ok(version),
                Err(Trouble::Changed) => {}
                Err(Trouble::Failed(error)) => return Err(error),
            }
        }
        Err(VolumeError(format!(
            "its files changed each of {TRIES} times while they were read; trying again"
        )))
    }

    fn try_publish(
        &self,
        work: &mut Work,
        live: &Path,
        epoch: u64,
        newest: Option<VersionId>,
        now: UtcMs,
        accept_deletes: bool,
    ) -> Result<Option<VolumeVersion>, Trouble> {
        let failing = |what: &'static str| move |error: io::Error| Trouble::Failed(failed(what, error));
        let root = open_directory(live).map_err(failing("open its directory"))?;
        let found = scan(&root, &mut work.seen).map_err(failing("read its files"))?;
        let (base, held) = {
            let known = self.known();
            let base = known.held.as_ref().map(|(_, index)| Arc::clone(index));
            (
                base.unwrap_or_else(|| Arc::new(Index::empty())),
                known.held.as_ref().map(|(version, _)| version.id),
            )
        };
        if held.is_some() && *base == found.index {
            return Ok(None);
        }
        if !accept_deletes && let Some(what) = lost(&base, &found.index) {
            return Err(Trouble::Failed(VolumeError(what)));
        }
        let seq = newest.into_iter().chain(held).map(|id| id.seq).max().unwrap_or(0) + 1;
        let mut changed = false;
        let steps = |take: &mut Take<'_>| {
            let content = |path: &_, from, bytes| {
                read_part(&root, path, from, bytes).map_err(|error| {
                    // Gone, cut or replaced since it was looked at.
                    changed = true;
                    failed("read its files", error)
                })
            };
            plan(&base, &found.index, content, take)
        };
        let version = |index: &Index| {
            let (files, bytes) = index.size();
            let id = VersionId { epoch, seq };
            VolumeVersion { id, root: index.root(), files, bytes, at: now }
        };
        let made = self.make(&base, held.is_none(), steps, version);
        made.map(Some).map_err(|error| if changed { Trouble::Changed } else { Trouble::Failed(error) })
    }

    pub(super) fn send(
        &self,
        base: &Index,
        begin: &mut dyn FnMut(VolumeVersion) -> Result<(), VolumeError>,
        sink: &mut StepSink<'_>,
    ) -> Result<(), VolumeError> {
        drop(self.begin()?);
        let _tree = self.read();
        if self.unfinished.load(Ordering::Acquire) {
            return Err(VolumeError("the copy is being brought up to date".to_owned()));
        }
        let held = self.known().held.clone();
        let Some((version, index)) = held else {
            return Err(VolumeError("nothing of it has been published here yet".to_owned()));
        };
        let root = open_directory(&self.path.join(COPY)).map_err(|error| failed("open the copy", error))?;
        begin(version)?;
        let content = |path: &_, from, bytes| {
            read_part(&root, path, from, bytes).map_err(|error| failed("read the copy", error))
        };
        plan(base, &index, content, sink)
    }

    pub(super) fn receive(
        &self,
        version: VolumeVersion,
        source: &mut StepSource<'_>,
    ) -> Result<(), VolumeError> {
        let _work = self.begin()?;
        let held = self.known().held.clone();
        let base = held.as_ref().map_or_else(|| Arc::new(Index::empty()), |(_, index)| Arc::clone(index));
        let steps = |take: &mut Take<'_>| {
            while let Some(step) = source()? {
                take(step)?;
            }
            Ok(())
        };
        self.make(&base, held.is_none(), steps, |_| version).map(drop)
    }

    pub(super) fn remove(&self) -> Result<(), VolumeError> {
        let _work = self.work();
        let _tree = self.write();
        *self.known() = Known::default();
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove its files", error)),
            _ => Ok(()),
        }
    }
}

/// How versions come to be.
impl Slot {
    /// Makes the version that `steps` lead to from `base`, which the copy holds. Nothing of the copy
    /// changes before all of them are here, durable, and found to lead to the root that the version has.
    fn make(
        &self,
        base: &Arc<Index>,
        first: bool,
        steps: impl FnOnce(&mut Take<'_>) -> Result<(), VolumeError>,
        version: impl FnOnce(&Index) -> VolumeVersion,
    ) -> Result<VolumeVersion, VolumeError> {
        if first { self.make_first(steps, version) } else { self.make_next(base, steps, version) }
    }

    /// The first version: of nothing, so that there is nothing to be kept from harm.
    fn make_first(
        &self,
        steps: impl FnOnce(&mut Take<'_>) -> Result<(), VolumeError>,
        version: impl FnOnce(&Index) -> VolumeVersion,
    ) -> Result<VolumeVersion, VolumeError> {
        let new = self.path.join(COPY_NEW);
        let fail = |error: io::Error| failed("make a copy", error);
        remove_tree(&new).map_err(fail)?;
        remove_tree(&self.path.join(COPY)).map_err(fail)?;
        fs::create_dir(&new).map_err(fail)?;
        let tree = self.tree(&new).map_err(fail)?;
        let mut advance = Index::empty().advance();
        let made = steps(&mut |step| {
            advance.step(&step).map_err(|error| VolumeError(error.to_string()))?;
            tree.step(&step).map_err(fail)
        });
        let index = Arc::new(advance.into_index());
        let version = made.and_then(|()| checked(version, &index));
        let version = match version {
            Ok(version) => version,
            Err(error) => {
                // What is left of it is removed before the next try.
                remove_tree(&new).ok();
                return Err(error);
            }
        };
        tree.sync().map_err(fail)?;
        let _tree = self.write();
        fs::rename(&new, self.path.join(COPY)).map_err(fail)?;
        self.write_index(version, &index)?;
        self.hold(version, index);
        remove_tree(&self.path.join(STAGE)).map_err(fail)?;
        Ok(version)
    }

    fn make_next(
        &self,
        base: &Arc<Index>,
        steps: impl FnOnce(&mut Take<'_>) -> Result<(), VolumeError>,
        version: impl FnOnce(&Index) -> VolumeVersion,
    ) -> Result<VolumeVersion, VolumeError> {
        let fail = |error: io::Error| failed("write down what changes", error);
        let path = self.path.join(JOURNAL);
        // The head is known last where the steps are read from files that change.
        let body = path.with_extension("steps");
        let mut journal = Writer::create(&body).map_err(fail)?;
        let mut advance = Index::clone(base).advance();
        steps(&mut |step| {
            advance.step(&step).map_err(|error| VolumeError(error.to_string()))?;
            journal.put(&step).map_err(fail)
        })?;
        let index = Arc::new(advance.into_index());
        let version = checked(version, &index)?;
        journal.finish().map_err(fail)?;
        let mut head = Writer::create(&path).map_err(fail)?;
        head.put(&Head { version }).map_err(fail)?;
        head.finish().map_err(fail)?;
        let _tree = self.write();
        self.replay(version, index)?;
        Ok(version)
    }

    /// Does what the journal says, to its end.
    fn replay(&self, version: VolumeVersion, index: Arc<Index>) -> Result<(), VolumeError> {
        let fail = |error: io::Error| failed("bring the copy up to date", error);
        self.unfinished.store(true, Ordering::Release);
        let tree = self.tree(&self.path.join(COPY)).map_err(fail)?;
        let body = self.path.join(JOURNAL).with_extension("steps");
        let missing = || io::Error::other("the journal lacks its steps");
        let mut steps = Reader::open(&body).map_err(fail)?.ok_or_else(missing).map_err(fail)?;
        let mut kept = false;
        for step in steps.steps() {
            let step = step.map_err(fail)?;
            let keeps = matches!(step, Step::Stash { .. });
            if kept && !keeps {
                // What is kept is durable before its name goes.
                tree.sync().map_err(fail)?;
            }
            kept = keeps;
            tree.step(&step).map_err(fail)?;
        }
        tree.sync().map_err(fail)?;
        self.write_index(version, &index)?;
        self.hold(version, index);
        self.forget_journal()?;
        self.unfinished.store(false, Ordering::Release);
        Ok(())
    }

    fn forget_journal(&self) -> Result<(), VolumeError> {
        let fail = |error: io::Error| failed("remove the journal", error);
        let path = self.path.join(JOURNAL);
        for path in [&path, &path.with_extension("steps"), &path.with_extension("new")] {
            remove_file(path).map_err(fail)?;
        }
        remove_tree(&self.path.join(STAGE)).map_err(fail)
    }

    /// The tree at `root`, and an empty place beside it unless one is there.
    fn tree(&self, root: &Path) -> io::Result<Tree> {
        let stage = self.path.join(STAGE);
        match fs::create_dir(&stage) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Tree::open(root, &stage)
    }

    fn write_index(&self, version: VolumeVersion, index: &Arc<Index>) -> Result<(), VolumeError> {
        let fail = |error: io::Error| failed("write down what the copy holds", error);
        let mut writer = Writer::create(&self.path.join(INDEX)).map_err(fail)?;
        writer.put(&Held { version, index: Index::clone(index) }).map_err(fail)?;
        writer.finish().map_err(fail)
    }

    fn hold(&self, version: VolumeVersion, index: Arc<Index>) {
        let mut known = self.known();
        if let Some((old, index)) = known.held.replace((version, index)) {
            remember(&mut known, old.root, index);
        }
    }
}

/// What an earlier process left.
impl Slot {
    /// Waits for its turn; before the first, brings what was begun to an end.
    fn begin(&self) -> Result<MutexGuard<'_, Work>, VolumeError> {
        let mut work = self.work();
        if !work.recovered || self.unfinished.load(Ordering::Acquire) {
            self.recover()?;
            work.recovered = true;
        }
        Ok(work)
    }

    fn recover(&self) -> Result<(), VolumeError> {
        let fail = |error: io::Error| failed("find out what is here", error);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.path).map_err(fail)?;
        let index = self.path.join(INDEX);
        let held = Reader::open(&index).and_then(|found| match found {
            Some(mut reader) => reader.next::<Held>(),
            None => Ok(None),
        });
        let held = match held {
            Ok(held) => held.filter(|_| self.path.join(COPY).is_dir()),
            // The index is what tells that a copy is whole: without it, it is fetched anew.
            Err(error) => {
                tracing::error!(err = %error, "what a copy holds is not known any more: it is made anew");
                None
            }
        };
        let Some(Held { version, index: held }) = held else {
            remove_file(&index).map_err(fail)?;
            remove_tree(&self.path.join(COPY)).map_err(fail)?;
            return self.forget_journal();
        };
        let _tree = self.write();
        self.known().held = Some((version, Arc::new(held.clone())));
        let journal = Reader::open(&self.path.join(JOURNAL)).map_err(fail)?;
        let head = match journal {
            Some(mut journal) => journal.next::<Head>().map_err(fail)?,
            None => None,
        };
        match head {
            Some(Head { version: next }) if next != version => {
                let body = self.path.join(JOURNAL).with_extension("steps");
                let missing = || io::Error::other("the journal lacks its steps");
                let mut steps = Reader::open(&body).map_err(fail)?.ok_or_else(missing).map_err(fail)?;
                let mut advance = held.advance();
                for step in steps.steps() {
                    let step = step.map_err(fail)?;
                    advance.step(&step).map_err(|error| VolumeError(error.to_string()))?;
                }
                let index = Arc::new(advance.into_index());
                checked(|_| next, &index)?;
                tracing::info!(version = %next.id, "a version that was begun is made in full");
                self.replay(next, index)
            }
            _ => self.forget_journal(),
        }
    }

    /// Moves what was written to out of the way and keeps it.
    fn set_aside(&self) -> Result<PathBuf, VolumeError> {
        let fail = |error: io::Error| failed("set aside what was written to", error);
        let epoch = self.epoch()?.unwrap_or(0);
        let aside = self.path.join(ASIDE);
        DirBuilder::new().recursive(true).mode(0o700).create(&aside).map_err(fail)?;
        let names = (0_u32..).map(|n| aside.join(format!("epoch-{epoch}-{n}")));
        let place = names.into_iter().find(|path| !path.exists()).expect("numbers do not end");
        fs::rename(self.path.join(LIVE), &place).map_err(fail)?;
        sync_directory(&place).and_then(|()| sync_directory(&aside)).map_err(fail)?;
        Ok(place)
    }

    /// The epoch of what is written to.
    fn epoch(&self) -> Result<Option<u64>, VolumeError> {
        match fs::read_to_string(self.path.join(EPOCH)) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read its epoch", error)),
        }
    }

    fn write_file(&self, name: &str, text: &str) -> Result<(), VolumeError> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let written = fs::write(&new, text)
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| sync_directory(&path));
        written.map_err(|error| failed(format_args!("write its {name}"), error))
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, ()> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, ()> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(known: &mut Known, root: VolumeRoot, index: Arc<Index>) {
    known.before.insert(0, (root, index));
    known.before.truncate(KNOWN_MAX);
}

/// The version, if what the steps lead to is what it says.
fn checked(
    version: impl FnOnce(&Index) -> VolumeVersion,
    index: &Index,
) -> Result<VolumeVersion, VolumeError> {
    let version = version(index);
    let found = index.root();
    if version.root == found {
        return Ok(version);
    }
    Err(VolumeError(format!(
        "version {} should be {}, and what arrived is {found}",
        version.id, version.root
    )))
}

/// Why a tree is not published as it is: nearly all of what it held is gone.
fn lost(base: &Index, found: &Index) -> Option<String> {
    let (before, now) = (base.entries.len(), found.entries.len());
    (before >= FEW && now * 2 < before).then(|| {
        format!(
            "it had {before} files and has {now}: no copy is brought up to date until somebody says that they were meant to go (`blixard volume sync NAME --accept-deletes`)"
        )
    })
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
