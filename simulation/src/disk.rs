//! A simulated disk: it remembers what was written and what of that a crash would keep.
//!
//! Writes go to a list beside the durable bytes. A sync closes the list into a batch. Outside a
//! writer's commit a batch is durable when the sync returns; inside one, the commit runs at once
//! but its batches become durable only when its completions run, later in simulated time, as on a
//! disk that takes that long.
//!
//! A process that dies keeps what it had written up to a drawn operation. A machine that loses
//! power keeps the batches up to a drawn one whole, any subset of the drawn one, perhaps with a
//! torn write, and nothing after it. A fuse ends the process inside a chosen operation. A disk that
//! lies gives back other bytes of a file than it took.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::cluster::ClusterState;
use blixard_node::platform::{Disk, DurableWriter};
use blixard_node::raft::inspect::{self, LOG_FILE, STATE_FILE};

use crate::held::{Held, Image};
use crate::random::Stream;
use crate::tasks::SimSpawner;
use crate::trace::Trace;

/// What a full disk answers.
pub const FULL: &str = "no space left on device";
/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// What a failing disk answers.
pub const FAILING: &str = "input/output error";

/// One operation on a file.
#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

impl Op {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let offset = position(*offset);
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(position(*len), 0),
        }
    }

    /// Some of its sectors, as a torn write leaves it.
    fn torn(&self, random: &Stream) -> Vec<Self> {
        match self {
            Self::Write(offset, data) => {
                let sectors = (*offset..).step_by(SECTOR).zip(data.chunks(SECTOR));
                let kept = sectors.filter(|_| random.chance(500));
                kept.map(|(offset, sector)| Self::Write(offset, sector.to_vec())).collect()
            }
            Self::SetLen(len) => vec![Self::SetLen(*len)],
        }
    }
}

/// How a life of a daemon ends without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The process dies: the kernel has what was written.
    Process,
    /// The machine does: only what was synced is certain.
    Power,
}

/// A file: what a crash keeps for certain, and what it may keep.
#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Synced inside a commit whose completions have not run: in order.
    batches: Vec<Vec<Op>>,
    /// Not synced.
    open: Vec<Op>,
    locked: bool,
    /// Whether each write stands for itself, so that a process that dies leaves all that it had written.
    /// A database's mark is so, of which none is written before what it tells of is durable.
    whole: bool,
    /// Which entries the durable bytes hold, when it is a member's log.
    held: Option<Held>,
}

impl File {
    fn new(name: &str) -> Self {
        let (whole, held) = (name.ends_with(".mark"), (name == LOG_FILE).then(Held::default));
        Self { whole, held, ..Self::default() }
    }

    fn keep(&mut self, op: &Op) {
        op.apply(&mut self.durable);
        if let (Some(held), Op::Write(_, data)) = (&mut self.held, op) {
            held.flushed(data);
        }
    }

    /// What the durable bytes hold is not what was flushed: it is to be read from them.
    fn reread(&mut self) {
        self.held.iter_mut().for_each(Held::forget);
    }

    fn write(&mut self, op: Op) {
        op.apply(&mut self.current);
        self.open.push(op);
    }

    fn settle(&mut self) {
        for op in std::mem::take(&mut self.batches).iter().flatten() {
            self.keep(op);
        }
    }

    /// Loses what the end of a life loses.
    fn lose(&mut self, loss: Loss, random: &Stream) {
        self.locked = false;
        let mut batches = std::mem::take(&mut self.batches);
        batches.push(std::mem::take(&mut self.open));
        match loss {
            Loss::Process => {
                let ops: Vec<Op> = batches.into_iter().flatten().collect();
                // More often than not the process dies when it writes nothing.
                let all = random.chance(500);
                let kept =
                    if all || self.whole { ops.len() } else { position(random.below(ops.len() as u64 + 1)) };
                ops[..kept].iter().for_each(|op| op.apply(&mut self.durable));
            }
            Loss::Power => {
                let reached = position(random.below(batches.len() as u64));
                for batch in &batches[..reached] {
                    batch.iter().for_each(|op| op.apply(&mut self.durable));
                }
                for op in &batches[reached] {
                    if random.chance(100) {
                        op.torn(random).iter().for_each(|op| op.apply(&mut self.durable));
                    } else if random.chance(500) {
                        op.apply(&mut self.durable);
                    }
                }
            }
        }
        self.current.clone_from(&self.durable);
        self.reread();
    }
}

/// The disk of one machine: it survives its daemon and its power. Cloning shares it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    files: BTreeMap<String, File>,
    /// The file whose writer's commit is running: its syncs become durable later.
    committing: Option<&'static str>,
    node: u64,
    trace: Trace,
    random: Stream,
    /// How many more operations until the process dies in one.
    fuse: Option<u64>,
    /// Whether every write fails, as when the disk is full.
    full: bool,
    /// How many thousandths of the operations fail.
    failing: u64,
    /// How many times slower than usual a flush is.
    slowness: u64,
    /// Whether it gives back other bytes of some file than it took.
    lies: bool,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(node: u64, seed: u64, trace: Trace) -> Self {
        let random = Stream::new(seed, &format!("disk {node}"));
        let inner = Inner {
            files: BTreeMap::new(),
            committing: None,
            node,
            trace,
            random,
            fuse: None,
            full: false,
            failing: 0,
            slowness: 1,
            lies: false,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life of the daemon ended with operations in flight.
    pub fn lose(&self, loss: Loss) {
        let mut inner = self.lock();
        inner.committing = None;
        inner.fuse = None;
        let random = inner.random.clone();
        inner.files.values_mut().for_each(|file| file.lose(loss, &random));
    }

    /// A life of the daemon ended in order: everything it wrote is there.
    pub fn release(&self) {
        for file in self.lock().files.values_mut() {
            file.settle();
            for op in std::mem::take(&mut file.open) {
                file.keep(&op);
            }
            file.locked = false;
        }
    }

    /// Has the process die in the operation after the next `operations`.
    pub fn set_fuse(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// Has the process live on.
    pub fn clear_fuse(&self) {
        self.lock().fuse = None;
    }

    /// Fills the disk up, or makes room again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Makes so many thousandths of the operations fail. Of what a failed flush was to write, any
    /// subset is there.
    pub fn set_failing(&self, thousandths: u64) {
        self.lock().failing = thousandths;
    }

    /// A new disk takes the place of this one.
    pub fn wipe(&self) {
        let mut inner = self.lock();
        inner.files.clear();
        inner.committing = None;
        inner.fuse = None;
        inner.lies = false;
    }

    /// From now on it gives back other bytes of a file, which no daemon has open, than it took. Says how
    /// they differ; none when there is no such file.
    pub fn lie(&self, name: &str, random: &mut damage::Random) -> Option<String> {
        let mut inner = self.lock();
        let File { held, durable, current, .. } = inner.files.get_mut(name)?;
        // What was promised of it stays promised: it is looked at before.
        if let Some(held) = held {
            held.entry(0, durable);
        }
        let how = damage::file(durable, random);
        current.clone_from(durable);
        inner.lies = true;
        Some(how)
    }

    /// Whether it may give back other bytes than it took.
    pub fn lies(&self) -> bool {
        self.lock().lies
    }

    /// What of a file a loss of power would keep for certain; absent when it was never made.
    pub fn durable(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().files.get(name).map(|file| file.durable.clone())
    }

    /// Changes the state in the snapshot on the disk of a machine whose daemon is off, with all checksums
    /// as they should be: as memory does that loses a bit before the state is encoded. False where there
    /// is no snapshot.
    pub fn alter_snapshot(&self, change: impl FnOnce(&mut ClusterState)) -> bool {
        let mut inner = self.lock();
        let Some(file) = inner.files.get_mut(STATE_FILE) else { return false };
        let image = Image::of(&file.durable);
        let altered = inspect::alter_snapshot(image.clone(), change);
        file.durable = image.bytes();
        file.current.clone_from(&file.durable);
        altered.unwrap_or(false)
    }

    /// The hash of the entry of an index that a loss of power would leave in the log for certain.
    pub fn holds(&self, index: u64) -> Option<u64> {
        let mut inner = self.lock();
        let File { held, durable, .. } = inner.files.get_mut(LOG_FILE)?;
        held.as_mut()?.entry(index, durable)
    }

    /// Makes each flush take `times` as long.
    pub fn set_slowness(&self, times: u64) {
        self.lock().slowness = times;
    }

    /// Whether it writes, and as fast as usual.
    pub fn is_well(&self) -> bool {
        let inner = self.lock();
        !inner.full && inner.failing == 0 && inner.slowness == 1
    }

    /// This disk for one life of the daemon, whose tasks `spawner` holds.
    pub fn of_life(&self, spawner: SimSpawner) -> LifeDisk {
        LifeDisk { disk: self.clone(), spawner }
    }

    fn delay(&self) -> Duration {
        let inner = self.lock();
        Duration::from_micros(150 + inner.random.below(1850)) * u32::try_from(inner.slowness).unwrap_or(1)
    }
}

/// A machine's disk as one life of its daemon has it: what outlives a crash in memory must not
/// write any more.
#[derive(Clone)]
pub struct LifeDisk {
    disk: SimDisk,
    spawner: SimSpawner,
}

impl Disk for LifeDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn redb::StorageBackend>> {
        if self.spawner.is_crashed() {
            return Err(io::Error::other("the process has ended"));
        }
        let mut inner = self.disk.lock();
        let file = inner.files.entry(name.to_owned()).or_insert_with(|| File::new(name));
        if file.locked {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{name} is open already")));
        }
        file.locked = true;
        Ok(Box::new(Backend { life: self.clone(), name: name.to_owned() }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.disk.lock().files.contains_key(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.spawner.is_crashed() {
            return Err(io::Error::other("the process has ended"));
        }
        let mut inner = self.disk.lock();
        let file = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn start_writer(&self, name: &'static str, mut writer: Box<dyn DurableWriter>) -> io::Result<()> {
        let disk = self.disk.clone();
        let life = self.spawner.clone();
        let work = async move {
            while writer.wait_async().await {
                disk.lock().committing = Some(name);
                let completions = writer.commit();
                disk.lock().committing = None;
                if life.is_crashed() {
                    return;
                }
                tokio::time::sleep(disk.delay()).await;
                disk.lock().files.get_mut(name).into_iter().for_each(File::settle);
                completions.into_iter().for_each(|complete| complete());
                writer.rest();
            }
        };
        blixard_node::platform::Spawner::spawn(&self.spawner, name, Box::pin(work));
        Ok(())
    }
}

/// One open file.
struct Backend {
    life: LifeDisk,
    name: String,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "simulated file {}", self.name)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !self.life.spawner.is_crashed()
            && let Some(file) = self.life.disk.lock().files.get_mut(&self.name)
        {
            file.locked = false;
        }
    }
}

impl Backend {
    fn with<T>(&self, work: impl FnOnce(&mut Inner, &str) -> io::Result<T>) -> io::Result<T> {
        if self.life.spawner.is_crashed() {
            return Err(io::Error::other("the process has ended"));
        }
        work(&mut self.life.disk.lock(), &self.name)
    }

    fn write_op(&self, op: Op) -> io::Result<()> {
        self.change(|inner, name| {
            inner.fails(name)?;
            inner.file(name).write(op);
            Ok(())
        })
    }

    /// Runs an operation that changes the file, unless the process dies in it or the disk refuses.
    fn change(&self, work: impl FnOnce(&mut Inner, &str) -> io::Result<()>) -> io::Result<()> {
        self.with(|inner, name| {
            match &mut inner.fuse {
                Some(0) => {
                    inner.trace.record("fuse", inner.node, name.as_bytes());
                    self.life.spawner.crash();
                    return Err(io::Error::other("the process has ended"));
                }
                Some(left) => *left -= 1,
                None => {}
            }
            if inner.full {
                return Err(io::Error::new(io::ErrorKind::StorageFull, FULL));
            }
            work(inner, name)
        })
    }
}

impl Inner {
    fn file(&mut self, name: &str) -> &mut File {
        self.files.get_mut(name).expect("it was made when it was opened")
    }

    /// Whether an operation fails now.
    fn fails(&mut self, name: &str) -> io::Result<()> {
        if self.failing == 0 || !self.random.chance(self.failing) {
            return Ok(());
        }
        self.trace.record("disk fails", self.node, name.as_bytes());
        Err(io::Error::other(FAILING))
    }

    /// A flush that fails: any subset of what was not flushed is there.
    fn lose_open(&mut self, name: &str) {
        let (random, committing) = (self.random.clone(), self.committing == Some(name));
        let file = self.file(name);
        let kept = std::mem::take(&mut file.open).into_iter().filter(|_| random.chance(500)).collect();
        file.batches.push(kept);
        file.reread();
        file.current.clone_from(&file.durable);
        for op in file.batches.iter().flatten() {
            op.apply(&mut file.current);
        }
        if !committing {
            file.settle();
        }
    }

    fn sync(&mut self, name: &str) {
        let batch = std::mem::take(&mut self.file(name).open);
        for op in &batch {
            match op {
                Op::Write(offset, data) => self.trace.record_at("disk write", self.node, *offset, data),
                Op::SetLen(len) => self.trace.record_at("disk length", self.node, *len, &[]),
            }
        }
        self.trace.record("disk sync", self.node, name.as_bytes());
        let committing = self.committing == Some(name);
        let file = self.file(name);
        file.batches.push(batch);
        if !committing {
            file.settle();
        }
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.with(|inner, name| Ok(inner.file(name).current.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|inner, name| {
            inner.fails(name)?;
            let start = position(offset);
            let found = inner.file(name).current.get(start..start + out.len());
            let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "past the end"))?;
            out.copy_from_slice(found);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_op(Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|inner, name| {
            if let Err(error) = inner.fails(name) {
                inner.lose_open(name);
                return Err(error);
            }
            inner.sync(name);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_op(Op::Write(offset, data.to_vec()))
    }
}
