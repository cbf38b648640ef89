//! A simulated disk: it remembers what was written and what of that a crash would keep.
//!
//! Writes go to a list beside the durable bytes. A sync closes the list into a batch. Outside a
//! writer's commit a batch is durable when the sync returns; inside one, the commit runs at once
//! but its batches become durable only when its completions run, later in simulated time, as on a
//! disk that takes that long. A crash in between keeps the batches up to a drawn one whole, any
//! subset of the drawn one, perhaps with a torn write, and nothing after it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_node::platform::{Disk, DurableWriter, Spawner};

use crate::random::Stream;
use crate::tasks::SimSpawner;
use crate::trace::Trace;

/// One operation on a file.
#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Op {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let offset = usize::try_from(*offset).expect("simulated files are small");
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(usize::try_from(*len).expect("simulated files are small"), 0),
        }
    }

    /// Sorts operations of one batch that a disk may do in any order.
    fn key(&self) -> (bool, u64) {
        match self {
            Self::SetLen(len) => (false, *len),
            Self::Write(offset, _) => (true, *offset),
        }
    }
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
}

impl File {
    fn settle(&mut self) {
        for op in self.batches.drain(..).flatten() {
            op.apply(&mut self.durable);
        }
    }

    /// Loses what a crash loses.
    fn crash(&mut self, random: &Stream) {
        let mut batches = std::mem::take(&mut self.batches);
        batches.push(std::mem::take(&mut self.open));
        let reached = usize::try_from(random.below(batches.len() as u64)).expect("a small number");
        for batch in &batches[..reached] {
            batch.iter().for_each(|op| op.apply(&mut self.durable));
        }
        for op in &batches[reached] {
            match op {
                Op::Write(offset, data) if random.chance(100) => {
                    let kept = usize::try_from(random.below(data.len() as u64 + 1)).expect("a small number");
                    Op::Write(*offset, data[..kept].to_vec()).apply(&mut self.durable);
                }
                op if random.chance(500) => op.apply(&mut self.durable),
                _ => {}
            }
        }
        self.current = self.durable.clone();
    }
}

/// The disk of one machine: it survives its daemon and its power. Cloning shares it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    files: BTreeMap<String, File>,
    /// Whether a writer's commit is running: syncs become durable later.
    committing: bool,
    node: u64,
    trace: Trace,
    random: Stream,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(node: u64, seed: u64, trace: Trace) -> Self {
        let random = Stream::new(seed, &format!("disk {node}"));
        let inner = Inner { files: BTreeMap::new(), committing: false, node, trace, random };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon crashed with operations in flight.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.committing = false;
        let random = inner.random.clone();
        inner.files.values_mut().for_each(|file| file.crash(&random));
    }

    /// This disk for one life of the daemon, whose tasks `spawner` holds.
    pub fn of_life(&self, spawner: SimSpawner) -> LifeDisk {
        LifeDisk { disk: self.clone(), spawner }
    }

    fn delay(&self) -> Duration {
        let inner = self.lock();
        Duration::from_micros(150 + inner.random.below(700))
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
        self.disk.lock().files.entry(name.to_owned()).or_default();
        Ok(Box::new(Backend { life: self.clone(), name: name.to_owned() }))
    }

    fn start_writer(&self, name: &'static str, mut writer: Box<dyn DurableWriter>) -> io::Result<()> {
        let disk = self.disk.clone();
        self.spawner.spawn(
            name,
            Box::pin(async move {
                while writer.wait_async().await {
                    disk.lock().committing = true;
                    let completions = writer.commit();
                    disk.lock().committing = false;
                    tokio::time::sleep(disk.delay()).await;
                    disk.lock().files.values_mut().for_each(File::settle);
                    completions.into_iter().for_each(|complete| complete());
                }
            }),
        );
        Ok(())
    }
}

/// One open file.
#[derive(Clone)]
struct Backend {
    life: LifeDisk,
    name: String,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "simulated file {}", self.name)
    }
}

impl Backend {
    fn with<T>(&self, work: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        if self.life.spawner.is_crashed() {
            return Err(io::Error::other("the machine has crashed"));
        }
        let mut inner = self.life.disk.lock();
        let file = inner.files.get_mut(&self.name).expect("it was made when it was opened");
        Ok(work(file))
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| file.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let found = file.current.get(start..start + out.len());
            let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "past the end"))?;
            out.copy_from_slice(found);
            Ok(())
        })?
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| {
            let op = Op::SetLen(len);
            op.apply(&mut file.current);
            file.open.push(op);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let (batch, node, trace) = {
            let batch = self.with(|file| std::mem::take(&mut file.open))?;
            let inner = self.life.disk.lock();
            (batch, inner.node, inner.trace.clone())
        };
        let mut sorted: Vec<&Op> = batch.iter().collect();
        sorted.sort_by_key(|op| op.key());
        for op in sorted {
            match op {
                Op::Write(offset, data) => {
                    trace.record("disk offset", node, &offset.to_le_bytes());
                    trace.record("disk write", node, data);
                }
                Op::SetLen(len) => trace.record("disk length", node, &len.to_le_bytes()),
            }
        }
        trace.record("disk sync", node, self.name.as_bytes());
        let committing = self.life.disk.lock().committing;
        self.with(|file| {
            file.batches.push(batch);
            if !committing {
                file.settle();
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|file| {
            let op = Op::Write(offset, data.to_vec());
            op.apply(&mut file.current);
            file.open.push(op);
        })
    }
}
