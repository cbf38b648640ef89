//! The log of earlier releases, in a redb database, becomes a write-ahead log.
//!
//! The old file gets another name once the new one is durable and before it is used, so that an earlier
//! release does not find a log that is no longer the newest. Until it has that name, the migration
//! begins anew with every start.

use std::io;

use redb::{Database, ReadOnlyTable, ReadableDatabase as _, TableDefinition, TableError};

use super::codec::{LogIdRecord, VoteRecord, in_record, unseal, unseal_entry};
use super::owner::{Owner, StoreError};
use super::queue::Sink as _;
use super::tail::next_index;
use super::types::{LogEntry, LogId, Vote};
use super::wal::{self, Change};
use crate::database::{self, Mark, Opened, Values, damaged, guarded, io_error};
use crate::platform::Disk;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const FACTS: Values = TableDefinition::new("facts");
/// The log's file in earlier releases.
pub(super) const OLD_FILE: &str = "raft.redb";
/// What it is called once its log is in the new file.
const MIGRATED_FILE: &str = "raft.redb.migrated";
const OLD_MARK: &str = "raft.mark";
/// How much of the old log is cached while it is read, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// How many entries are read and written at a time.
const ENTRIES_AT_ONCE: usize = 256;

/// Whether there is a log of an earlier release.
pub(super) fn is_there(disk: &dyn Disk) -> io::Result<bool> {
    Ok(disk.exists(OLD_FILE)? && database::is_begun(disk, OLD_FILE)?)
}

/// Moves the log of an earlier release, if there is one, into the files of a new one.
///
/// # Errors
/// Whose it is, when it is not `owner`'s; [`io::ErrorKind::InvalidData`] when it is damaged;
/// [`io::ErrorKind::NotFound`] when there was one and neither it nor a new one is there.
pub(super) fn migrate(
    disk: &dyn Disk,
    files: wal::Files,
    place_bytes: u64,
    owner: Owner,
    salt: [u8; 16],
) -> Result<(), StoreError> {
    if !disk.exists(OLD_FILE)? {
        let was_there = disk.exists(OLD_MARK)? && Mark::open(disk, OLD_MARK)?.commits() > Some(0);
        if was_there && !wal::is_begun(disk, files)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is missing or empty").into());
        }
        return Ok(());
    }
    let Opened { database, .. } = database::open(disk, OLD_FILE, OLD_MARK, FACTS, CACHE_BYTES)?;
    if let Some((found, facts)) = guarded(|| facts(&database, owner))? {
        found.check(owner)?;
        database::reset(disk, files.name, files.mark)?;
        let wal::Opened { mut writer, .. } = wal::open(disk, files, place_bytes, owner, salt)?;
        let mut write = |changes: Vec<Change>| writer.commit(vec![changes]).map(|completion| completion());
        // What is purged comes first: the entries follow it.
        write(facts)?;
        let entries = guarded(|| entries(&database, write))?;
        tracing::info!(
            entries,
            from = OLD_FILE,
            to = files.name,
            "the log of an earlier release is taken over"
        );
    }
    guarded(|| {
        drop(database);
        Ok(())
    })?;
    disk.rename(OLD_FILE, MIGRATED_FILE)?;
    Ok(())
}

/// Whose an old log is, and what it says beside its entries; absent when nothing was ever written to it. One
/// of the first release does not say whose it is: it is whoever's has it.
fn facts(database: &Database, owner: Owner) -> io::Result<Option<(Owner, Vec<Change>)>> {
    let transaction = database.begin_read().map_err(io_error)?;
    let facts = match transaction.open_table(FACTS) {
        Ok(facts) => facts,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let owner = Owner {
        cluster: fact(&facts, "cluster")?.unwrap_or(owner.cluster),
        node: fact(&facts, "node")?.unwrap_or(owner.node),
    };
    let log_id = |name| Ok::<_, io::Error>(fact::<LogIdRecord>(&facts, name)?.map(LogId::from));
    let vote = fact::<VoteRecord>(&facts, "vote")?.map(Vote::from);
    let changes = [
        log_id("purged")?.map(Change::Purge),
        vote.map(Change::Vote),
        log_id("committed")?.map(Change::Committed),
    ];
    Ok(Some((owner, changes.into_iter().flatten().collect())))
}

/// A fact of an old log, if it is there.
fn fact<T: serde::de::DeserializeOwned>(
    facts: &ReadOnlyTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> io::Result<Option<T>> {
    let Some(bytes) = facts.get(name).map_err(io_error)? else { return Ok(None) };
    let read = unseal(name.as_bytes(), bytes.value());
    read.map(Some).map_err(|error| in_record(format_args!("its {name}"), error))
}

/// Hands over the entries of an old log, in order. How many there are.
fn entries(database: &Database, mut write: impl FnMut(Vec<Change>) -> io::Result<()>) -> io::Result<usize> {
    let transaction = database.begin_read().map_err(io_error)?;
    let table = transaction.open_table(ENTRIES).map_err(io_error)?;
    let facts = transaction.open_table(FACTS).map_err(io_error)?;
    let mut last = fact::<LogIdRecord>(&facts, "purged")?.map(LogId::from);
    let (mut count, mut some) = (0, Vec::new());
    for row in table.range::<u64>(..).map_err(io_error)? {
        let (index, bytes) = row.map_err(io_error)?;
        let index = index.value();
        let entry: LogEntry = unseal_entry(index, bytes.value())
            .map_err(|error| in_record(format_args!("entry {index}"), error))?;
        let id = entry.log_id;
        if index != next_index(last) || last.is_some_and(|last| last.leader_id > id.leader_id) {
            return Err(damaged(format!("entry {id} does not follow the one before it")));
        }
        last = Some(id);
        count += 1;
        some.push(entry);
        if some.len() >= ENTRIES_AT_ONCE {
            write(vec![Change::Append(std::mem::take(&mut some))])?;
        }
    }
    if !some.is_empty() {
        write(vec![Change::Append(some)])?;
    }
    Ok(count)
}
