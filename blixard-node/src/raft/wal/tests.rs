//! The log's file against power that fails, processes that die, and disks that lie.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use blixard_core::id::{ClusterId, NodeId};
use bytes::Bytes;
use damage::Random;
use openraft::EntryPayload;
use redb::{BackendError, StorageBackend};

use super::*;
use crate::platform::DurableWriter;
use crate::raft::codec::{LogIdRecord, unseal_entry};
use crate::raft::tail::next_index;
use crate::raft::types::{LogEntry, LogId, Proposal, Vote};

const FILES: Files = Files { name: "log", mark: "mark" };
const OWNER: Owner = Owner { cluster: ClusterId([7; 16]), node: NodeId(1) };
/// Two blocks: every group of more than one goes on into the next unit.
const SMALL: u64 = 8192;
const SECTOR: usize = 512;

/// A disk in memory whose power may fail.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, File>>>);

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// What was written and not flushed.
    open: Vec<(usize, Vec<u8>)>,
}

impl Memory {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.0.lock().expect("no test panicked")
    }

    /// Another disk with what a loss of power leaves: of what was not flushed, any sectors. The mark was
    /// never flushed, so it may be an older one.
    fn after_power_loss(&self, random: &mut Random) -> Self {
        let mut files = self.files().clone();
        for file in files.values_mut() {
            for (offset, data) in std::mem::take(&mut file.open) {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    if random.below(2) == 0 {
                        put(&mut file.durable, offset + number * SECTOR, sector);
                    }
                }
            }
            file.current.clone_from(&file.durable);
        }
        Self(Arc::new(Mutex::new(files)))
    }

    /// Another disk with all that was written.
    fn after_process_death(&self) -> Self {
        let mut files = self.files().clone();
        for file in files.values_mut() {
            file.open.clear();
            file.durable.clone_from(&file.current);
        }
        Self(Arc::new(Mutex::new(files)))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.files()[name].current.clone()
    }

    fn set_bytes(&self, name: &str, bytes: Vec<u8>) {
        let file = File { durable: bytes.clone(), current: bytes, open: Vec::new() };
        self.files().insert(name.to_owned(), file);
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("test files are small")
}

struct Handle(Memory, String);

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.1)
    }
}

impl Handle {
    fn with<T>(&self, work: impl FnOnce(&mut File) -> T) -> T {
        work(self.0.files().get_mut(&self.1).expect("it was opened"))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|file| file.current.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let found = file.current.get(place(offset)..place(offset) + out.len());
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|file| {
            // The length of a file is not what these tests lose.
            file.current.resize(place(len), 0);
            file.durable.resize(place(len), 0);
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|file| {
            file.open.clear();
            file.durable.clone_from(&file.current);
        });
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|file| {
            put(&mut file.current, place(offset), data);
            file.open.push((place(offset), data.to_vec()));
        });
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }
}

impl Disk for Memory {
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        self.files().entry(name.to_owned()).or_default();
        Ok(Box::new(Handle(self.clone(), name.to_owned())))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.files().contains_key(name))
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        unreachable!("a log's file keeps its name")
    }

    fn start_writer(&self, _: &'static str, _: Box<dyn DurableWriter>) -> io::Result<()> {
        unreachable!("these tests write themselves")
    }
}

/// What a log is to hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    facts: Facts,
    entries: BTreeMap<u64, LogEntry>,
}

impl Model {
    fn take(&mut self, changes: &[Change]) {
        for change in changes {
            self.facts.note(change);
            match change {
                Change::Append(entries) => {
                    self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                }
                Change::Truncate(after) => drop(self.entries.split_off(&next_index(*after))),
                Change::Purge(upto) => self.entries = self.entries.split_off(&(upto.index + 1)),
                Change::Vote(_) | Change::Committed(_) => {}
            }
        }
    }

    fn last(&self) -> Option<LogId> {
        self.facts.last.map(LogId::from)
    }

    /// Something that may come next.
    fn change(&self, random: &mut Random) -> Change {
        let (last, purged) = (self.last(), self.facts.purged.map(LogId::from));
        let term = last.map_or(1, |last| last.leader_id.term);
        match random.below(12) {
            0 => Change::Vote(Vote::new(term + 1, 1)),
            1 if !self.entries.is_empty() => {
                let kept = self.entries.keys().nth(random.below(self.entries.len())).copied();
                let kept = kept.map(|index| self.entries[&index].log_id);
                Change::Truncate(kept)
            }
            2 if last == purged => Change::Truncate(purged),
            3 if !self.entries.is_empty() => {
                let upto = self.entries.keys().nth(random.below(self.entries.len())).copied();
                Change::Purge(self.entries[&upto.expect("there are some")].log_id)
            }
            4 if random.below(8) == 0 => Change::Purge(LogId::new_term_index(term, next_index(last) + 5)),
            5 => last.map_or(Change::Vote(Vote::new(term, 2)), Change::Committed),
            _ => {
                let term = term + u64::from(random.below(6) == 0);
                let first = next_index(last);
                let count = 1 + random.below(4) as u64;
                Change::Append((first..first + count).map(|index| entry(term, index, random)).collect())
            }
        }
    }
}

fn entry(term: u64, index: u64, random: &mut Random) -> LogEntry {
    let bytes = match random.below(10) {
        0 => random.below(20_000),
        _ => random.below(300),
    };
    let byte = u8::try_from(random.below(256)).expect("a byte");
    let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![byte; bytes])));
    LogEntry { log_id: LogId::new_term_index(term, index), payload }
}

fn opened(disk: &Memory) -> io::Result<Opened> {
    super::open(disk, FILES, SMALL, OWNER, [3; 16])
}

/// What a log holds.
fn found(log: &Opened) -> Model {
    let read = log.wal.begin(0..u64::MAX, usize::MAX);
    let entries = read.entries().map(|read| {
        let (index, sealed) = read.expect("it reads");
        (index, unseal_entry(index, &sealed).expect("it is as it was"))
    });
    Model { facts: log.facts, entries: entries.collect() }
}

/// Writes as the queue's writer does.
fn write(writer: &mut Writer, changes: Vec<Change>) {
    writer.commit(vec![changes]).expect("there is room")();
    writer.rest();
}

/// A history of a log: what it was to hold after each group, and the disk before the last was flushed.
fn history(disk: &Memory, model: &mut Model, random: &mut Random) {
    let mut log = opened(disk).expect("it opens");
    assert_eq!(found(&log), *model);
    for _ in 0..random.below(30) {
        let mut changes = Vec::new();
        for _ in 0..=random.below(3) {
            let change = model.change(random);
            model.take(std::slice::from_ref(&change));
            changes.push(change);
        }
        write(&mut log.writer, changes);
    }
}

#[test]
fn a_log_holds_what_was_written_to_it() {
    for seed in 0..60 {
        let (disk, mut random) = (Memory::default(), Random::new(seed));
        let mut model = Model::default();
        for _ in 0..6 {
            history(&disk, &mut model, &mut random);
            let facts = opened(&disk).expect("it opens").facts;
            assert_eq!(facts, model.facts, "seed {seed}");
        }
    }
}

/// Power fails while a group is being written: all before it is there, and of it everything or nothing.
#[test]
fn what_was_flushed_outlives_every_loss_of_power() {
    let mut torn = 0;
    for seed in 0..300 {
        let (disk, mut random) = (Memory::default(), Random::new(seed));
        let mut model = Model::default();
        history(&disk, &mut model, &mut random);
        let before = model.clone();
        let mut log = opened(&disk).expect("it opens");
        let change = model.change(&mut random);
        model.take(std::slice::from_ref(&change));
        // As the writer does, without the flush.
        let cut = Memory(Arc::new(Mutex::new(disk.files().clone())));
        log.writer.wal = Arc::new(Wal {
            file: Box::new(Unflushed(Handle(cut.clone(), FILES.name.to_owned()))),
            geometry: Geometry { place_bytes: SMALL },
            layout: Mutex::new(
                recover(&*disk.open(FILES.name).expect("it is there"), Geometry { place_bytes: SMALL }, 0)
                    .expect("it reads")
                    .expect("a log")
                    .layout,
            ),
            _open: Open::new().0,
        });
        drop(log.writer.commit(vec![vec![change]]).expect("there is room"));
        for _ in 0..4 {
            let cut = cut.after_power_loss(&mut random);
            let mut log = opened(&cut).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let found = found(&log);
            assert!(found == before || found == model, "seed {seed}: neither before nor after");
            torn += u64::from(found == before);
            // It goes on from there.
            let mut next = found;
            for _ in 0..5 {
                let change = next.change(&mut random);
                next.take(std::slice::from_ref(&change));
                write(&mut log.writer, vec![change]);
            }
            drop(log);
            assert_eq!(super::tests::found(&opened(&cut).expect("it opens")), next, "seed {seed}");
        }
        let whole = opened(&cut.after_process_death()).expect("it opens");
        assert_eq!(super::tests::found(&whole), model, "seed {seed}: the kernel had all of it");
    }
    assert!(torn > 200, "only {torn} groups were torn");
}

/// A file whose flush does nothing.
#[derive(Debug)]
struct Unflushed(Handle);

impl StorageBackend for Unflushed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A disk that lies: a log opens as it was, or is called damaged, however often it is tried.
#[test]
fn a_damaged_log_opens_as_it_was_or_not_at_all() {
    let mut refused = 0;
    for seed in 0..400 {
        let (disk, mut random) = (Memory::default(), Random::new(seed));
        let mut model = Model::default();
        history(&disk, &mut model, &mut random);
        let mut bytes = disk.bytes(FILES.name);
        let how = damage::file(&mut bytes, &mut random);
        disk.set_bytes(FILES.name, bytes);
        let mut outcomes = Vec::new();
        for _ in 0..2 {
            outcomes.push(match opened(&disk) {
                Ok(log) => {
                    assert_eq!(found(&log), model, "seed {seed}: {how}");
                    true
                }
                Err(error) => {
                    let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::NotFound];
                    assert!(kinds.contains(&error.kind()), "seed {seed}: {how}: {error}");
                    false
                }
            });
        }
        assert_eq!(outcomes[0], outcomes[1], "seed {seed}: {how}");
        refused += u64::from(!outcomes[0]);
    }
    assert!(refused > 100, "only {refused} damages were found");
}

/// Without the mark the disk cannot say what was durable: but what was written after the damage does.
#[test]
fn damage_before_the_last_group_is_found_without_the_mark() {
    let (disk, mut random) = (Memory::default(), Random::new(1));
    let mut log = opened(&disk).expect("it opens");
    for index in 0..40 {
        write(&mut log.writer, vec![Change::Append(vec![entry(1, index, &mut random)])]);
    }
    drop(log);
    disk.set_bytes(FILES.mark, Vec::new());
    let whole = disk.bytes(FILES.name);
    let mut checked = 0;
    for at in (0..whole.len()).step_by(4096) {
        // The head of a group, not of the last one.
        let Some(head) = GroupHead::read(&whole[at..]).filter(|head| head.number < 40) else { continue };
        let mut bytes = whole.clone();
        bytes[at + 30] ^= 4;
        disk.set_bytes(FILES.name, bytes);
        let error = opened(&disk).err().unwrap_or_else(|| panic!("group {} is damaged", head.number));
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        checked += 1;
    }
    assert!(checked > 30, "{checked} groups were damaged");
}

#[test]
fn places_are_written_anew_and_the_file_shrinks_after_a_peak() {
    let (disk, mut random) = (Memory::default(), Random::new(1));
    let mut log = opened(&disk).expect("it opens");
    let places = || disk.bytes(FILES.name).len() as u64 / SMALL;
    let mut index = 0;
    let mut append = |writer: &mut Writer, count: u64| {
        for _ in 0..count {
            write(writer, vec![Change::Append(vec![entry(1, index, &mut random)])]);
            index += 1;
        }
        LogId::new_term_index(1, index - 1)
    };
    let mut sizes = Vec::new();
    for _ in 0..20 {
        let last = append(&mut log.writer, 20);
        write(&mut log.writer, vec![Change::Purge(last)]);
        sizes.push(places());
    }
    assert_eq!(sizes[5], sizes[19], "{sizes:?}");
    let last = append(&mut log.writer, 400);
    let peak = places();
    write(&mut log.writer, vec![Change::Purge(last)]);
    append(&mut log.writer, 60);
    let last = append(&mut log.writer, 1);
    write(&mut log.writer, vec![Change::Purge(last)]);
    append(&mut log.writer, 3);
    assert!(peak > 400 && places() < peak / 4, "{peak} places became {}", places());
}

#[test]
fn entries_that_are_being_read_stay_where_they_are() {
    let (disk, mut random) = (Memory::default(), Random::new(1));
    let mut log = opened(&disk).expect("it opens");
    let entries: Vec<_> = (0..30).map(|index| entry(1, index, &mut random)).collect();
    write(&mut log.writer, vec![Change::Append(entries.clone())]);
    let reading = log.wal.begin(0..30, usize::MAX);
    write(&mut log.writer, vec![Change::Purge(LogId::new_term_index(1, 29))]);
    for index in 30..200 {
        write(&mut log.writer, vec![Change::Append(vec![entry(1, index, &mut random)])]);
    }
    let read: Vec<_> = reading.entries().map(|read| read.expect("it reads")).collect();
    let read = read.iter().map(|(index, sealed)| unseal_entry(*index, sealed).expect("it is as it was"));
    assert_eq!(read.collect::<Vec<_>>(), entries);
}

#[test]
fn reads_are_cut_by_their_bytes_and_say_so() {
    let (disk, mut random) = (Memory::default(), Random::new(1));
    let mut log = opened(&disk).expect("it opens");
    let entries: Vec<_> = (0..30).map(|index| entry(1, index, &mut random)).collect();
    write(&mut log.writer, vec![Change::Append(entries)]);
    let reading = log.wal.begin(3..30, 1);
    assert_eq!(reading.entries().map(|read| read.expect("it reads").0).collect::<Vec<_>>(), [3]);
    assert!(reading.is_cut);
    assert!(!log.wal.begin(3..30, usize::MAX).is_cut);
}

#[test]
fn a_lost_log_is_not_made_anew_and_an_unfinished_one_is() {
    let disk = Memory::default();
    drop(opened(&disk).expect("it opens"));
    let whole = disk.bytes(FILES.name);
    disk.set_bytes(FILES.name, Vec::new());
    assert_eq!(opened(&disk).err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    disk.set_bytes(FILES.name, vec![0; whole.len()]);
    assert_eq!(opened(&disk).err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
    // Its mark was never written: it was never used.
    disk.set_bytes(FILES.mark, Vec::new());
    disk.set_bytes(FILES.name, vec![0; 100]);
    assert_eq!(found(&opened(&disk).expect("it is made anew")), Model::default());
    assert!(is_begun(&disk, FILES).expect("it reads"));
}

#[test]
fn groups_and_headers_survive_every_damage() {
    let mut random = Random::new(1);
    let vote = Change::Vote(Vote::new(3, 1));
    let changes = [
        Change::Append(vec![entry(1, 5, &mut random), entry(2, 6, &mut random)]),
        vote,
        Change::Purge(LogId::new_term_index(1, 4)),
        Change::Truncate(Some(LogId::new_term_index(1, 5))),
        Change::Committed(LogId::new_term_index(1, 5)),
    ];
    let seeds: Vec<_> = changes.iter().map(|change| group(std::slice::from_ref(change))).collect();
    damage::survives("group of the log", &seeds, |input| {
        let head = GroupHead::read(input).ok_or("it is no group")?;
        let group = input.get(..head.length).ok_or("it ends early")?;
        if !head.is_whole(&[0; 16], group) {
            return Err("its checksum differs".to_owned());
        }
        records(group).try_for_each(|found| found.map(drop)).map_err(|error| error.to_string())
    });
    // The checksum lets nothing through to the records: damage them behind it.
    let seeds = seeds.iter().map(|seed| seed[..GroupHead::read(seed).expect("a group").length].to_vec());
    damage::survives("records of the log", &seeds.collect::<Vec<_>>(), |input| {
        records(input).try_for_each(|found| found.map(drop)).map_err(|error| error.to_string())
    });
    let facts = Facts { last: Some(LogIdRecord::from(&LogId::new_term_index(1, 5))), ..Facts::default() };
    let header = Header {
        owner: OWNER,
        salt: [3; 16],
        place_bytes: SMALL,
        unit: 4,
        begins: 16_384,
        group: 9,
        before: 77,
        facts,
    };
    damage::survives("header of the log", &[header.to_block()], |input| {
        match Header::read(input).map_err(|error| error.to_string())? {
            Some(read) if read == header => Ok(()),
            Some(_) => panic!("a checksum that fits by chance"),
            None => Err("it is no header".to_owned()),
        }
    });
}
