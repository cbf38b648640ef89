//! Trees on a real disk: what is published is what is received, whatever interrupts it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use blixard_core::cluster::volume::{VersionId, VolumeVersion};
use blixard_core::id::VolumeId;
use blixard_core::time::UtcMs;
use blixard_core::volume::{Index, Step, TreePath};

use super::LinuxVolumes;
use super::files::{Tree, open_directory};
use super::journal::{Head, Held, Reader, Writer};
use super::scan::{Seen, scan};
use crate::platform::{VolumeError, VolumeStore};

const ID: VolumeId = VolumeId(7);
const EPOCH: u64 = 3;

/// A machine with a volume.
struct Machine {
    data: tempfile::TempDir,
    store: LinuxVolumes,
}

impl Machine {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("temporary directory");
        let store = LinuxVolumes::new(data.path());
        Self { data, store }
    }

    fn primary() -> Self {
        let machine = Self::new();
        machine.store.prepare(ID, EPOCH, true).expect("prepared");
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.data.path().join("volumes/7").join(name)
    }

    fn live(&self, name: &str) -> PathBuf {
        self.at("live").join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.live(name), content).expect("written");
    }

    fn publish(&self) -> Result<Option<VolumeVersion>, VolumeError> {
        self.store.publish(ID, EPOCH, None, UtcMs(9), false)
    }

    fn published(&self) -> VolumeVersion {
        self.publish().expect("published").expect("something has changed")
    }

    fn steps_from(&self, base: &Index) -> (VolumeVersion, Vec<Step>) {
        let (mut version, mut steps) = (None, Vec::new());
        let begin = &mut |of| {
            version = Some(of);
            Ok(())
        };
        let sink = &mut |step| {
            steps.push(step);
            Ok(())
        };
        self.store.send(ID, base, begin, sink).expect("sent");
        (version.expect("a version"), steps)
    }

    /// Brings `other` up to date; answers how many bytes that took.
    fn sync(&self, other: &Self) -> usize {
        let base = other.store.index(ID).expect("an index");
        let (version, steps) = self.steps_from(&base);
        let bytes = steps.iter().map(|step| blixard_core::wire::encode(step).len()).sum();
        let mut steps = steps.into_iter();
        other.store.receive(ID, version, &mut || Ok(steps.next())).expect("received");
        assert_eq!(other.store.held(ID).expect("held"), Some(version));
        assert_eq!(tree(&other.at("copy")).root(), version.root);
        bytes
    }
}

fn tree(path: &Path) -> Index {
    let directory = open_directory(path).expect("a directory");
    scan(&directory, &mut Seen::default()).expect("it is read").index
}

/// What a program that knows nothing of blixard finds in a tree.
fn listing(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("read") {
            let entry = entry.expect("read").path();
            let found = entry.symlink_metadata().expect("found");
            let content = if found.is_dir() {
                open.push(entry.clone());
                Vec::new()
            } else if found.is_symlink() {
                fs::read_link(&entry).expect("a link").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&entry).expect("a file")
            };
            let name = entry.strip_prefix(path).expect("below").to_path_buf();
            let mode = if found.is_symlink() { 0 } else { found.mode() };
            let links = if found.is_dir() { 0 } else { found.nlink() };
            lines.push(format!(
                "{name:?} {mode:o} {}:{} {}.{} {links} {content:?}",
                found.uid(),
                found.gid(),
                found.mtime(),
                found.mtime_nsec()
            ));
        }
    }
    lines.sort();
    lines
}

/// A tree of everything there is.
fn filled() -> Machine {
    let machine = Machine::primary();
    let live = |name: &str| machine.live(name);
    fs::create_dir_all(live("deep/er/empty")).expect("directories");
    machine.write("db", [7; 40_000]);
    machine.write("log", "one\n");
    machine.write("deep/er/exec", "#!");
    fs::set_permissions(live("deep/er/exec"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    machine.write("unreadable", "x");
    fs::set_permissions(live("unreadable"), fs::Permissions::from_mode(0o000)).expect("a mode");
    machine.write("empty", "");
    fs::hard_link(live("db"), live("deep/db")).expect("a link");
    symlink("/etc/passwd", live("out")).expect("a link");
    symlink("nowhere", live("deep/dangling")).expect("a link");
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\n ");
    fs::write(machine.at("live").join(odd), "odd").expect("written");
    let sparse = fs::File::create(live("sparse")).expect("a file");
    sparse.write_all_at(b"end", 50_000_000).expect("written");
    rustix::fs::mknodat(rustix::fs::CWD, live("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("a pipe");
    machine
}

/// What a program does to it.
fn change(machine: &Machine) {
    let live = |name: &str| machine.live(name);
    let db = fs::OpenOptions::new().write(true).open(live("db")).expect("a file");
    db.write_all_at(b"changed", 20_000).expect("written");
    fs::rename(live("log"), live("log.1")).expect("renamed");
    machine.write("log", "two\n");
    fs::remove_dir(live("deep/er/empty")).expect("removed");
    machine.write("deep/er/empty", "a file now");
    fs::remove_file(live("empty")).expect("removed");
    fs::create_dir(live("empty")).expect("a directory now");
    machine.write("empty/in", "it");
    fs::remove_file(live("out")).expect("removed");
    machine.write("out", "no link");
    fs::rename(live("deep/er"), live("moved")).expect("renamed");
    let sparse = fs::OpenOptions::new().write(true).open(live("sparse")).expect("a file");
    sparse.set_len(10).expect("cut");
}

#[test]
fn a_copy_is_what_was_published() {
    let (primary, copy) = (filled(), Machine::new());
    let without_pipe = |machine: &Machine, name: &str| {
        listing(&machine.at(name))
            .into_iter()
            .filter(|line| !line.starts_with("\"pipe\""))
            .collect::<Vec<_>>()
    };
    fs::remove_file(primary.live("pipe")).expect("removed: a reader would wait for a writer");
    primary.published();
    assert_eq!(primary.publish(), Ok(None), "nothing has changed");
    primary.sync(&copy);
    assert_eq!(without_pipe(&primary, "live"), without_pipe(&copy, "copy"));
    let blocks = fs::metadata(copy.at("copy/sparse")).expect("found").blocks();
    assert!(blocks < 1_000, "holes stay holes: {blocks} blocks");
    change(&primary);
    assert_eq!(primary.published().id, VersionId { epoch: EPOCH, seq: 2 });
    let bytes = primary.sync(&copy);
    assert_eq!(without_pipe(&primary, "live"), without_pipe(&copy, "copy"));
    assert_eq!(without_pipe(&primary, "live"), without_pipe(&primary, "copy"));
    assert!(bytes < 20_000, "{bytes} bytes for a page and some names");
    let behind = Machine::new();
    primary.sync(&behind);
    assert_eq!(without_pipe(&primary, "live"), without_pipe(&behind, "copy"), "from nothing at once");
}

#[test]
fn what_is_no_file_is_left_out() {
    let primary = filled();
    primary.published();
    assert!(primary.live("pipe").symlink_metadata().is_ok());
    assert!(primary.at("copy/pipe").symlink_metadata().is_err());
}

#[test]
fn a_version_is_made_in_full_or_not_begun_wherever_it_is_interrupted() {
    let (primary, copy) = (filled(), Machine::new());
    primary.published();
    primary.sync(&copy);
    let base = copy.store.index(ID).expect("an index");
    change(&primary);
    primary.published();
    let (version, steps) = primary.steps_from(&base);
    assert!(steps.len() > 20, "{}", steps.len());
    for done in 0..=steps.len() {
        let after = Machine::new();
        let from = copy.data.path().join("volumes");
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(after.data.path()).status();
        assert!(copied.expect("cp runs").success());
        let journal = after.at("journal");
        let mut body = Writer::create(&journal.with_extension("steps")).expect("a journal");
        steps.iter().for_each(|step| body.put(step).expect("written"));
        body.finish().expect("written");
        if done > 0 {
            let mut head = Writer::create(&journal).expect("a journal");
            head.put(&Head { version }).expect("written");
            head.finish().expect("written");
            fs::create_dir(after.at("stage")).expect("a directory");
            let tree = Tree::open(&after.at("copy"), &after.at("stage")).expect("a tree");
            // The last of them is not done: the crash was in between.
            steps[..done - 1].iter().for_each(|step| tree.step(step).expect("done"));
        }
        let held = after.store.held(ID).expect("it recovers").expect("a version");
        let expect = if done > 0 { version.root } else { base.root() };
        assert_eq!((held.root, tree(&after.at("copy")).root()), (expect, expect), "after {done} steps");
        assert!(!journal.exists() && !after.at("stage").exists());
    }
}

#[test]
fn what_arrives_is_not_made_unless_it_leads_where_it_should() {
    let (primary, copy) = (filled(), Machine::new());
    primary.published();
    primary.sync(&copy);
    let before = (copy.store.held(ID), listing(&copy.at("copy")));
    change(&primary);
    primary.published();
    let (version, steps) = primary.steps_from(&copy.store.index(ID).expect("an index"));
    let check = |steps: Vec<Step>, cut: bool, expect: &str| {
        let mut steps = steps.into_iter();
        let source = &mut || match steps.next() {
            None if cut => Err(VolumeError("cut off".to_owned())),
            step => Ok(step),
        };
        let refused = copy.store.receive(ID, version, source).expect_err("it is refused").to_string();
        assert!(refused.contains(expect), "{refused}");
        assert_eq!((copy.store.held(ID), listing(&copy.at("copy"))), before);
    };
    let falsified = steps.iter().cloned().map(|step| match step {
        Step::Write { path, leaf, mut content } => {
            content[0] ^= 1;
            Step::Write { path, leaf, content }
        }
        step => step,
    });
    check(falsified.collect(), false, "and what arrived is");
    check(steps[..steps.len() - 1].to_vec(), false, "and what arrived is");
    check(steps[..steps.len() / 2].to_vec(), true, "cut off");
    let path = |text: &str| blixard_core::volume::TreePath::new(text.as_bytes()).expect("a path");
    let through_link = vec![Step::File { path: path("deep/dangling/x"), size: 1 }];
    check(through_link, false, "in no directory");
    let mut rest = steps.into_iter();
    copy.store.receive(ID, version, &mut || Ok(rest.next())).expect("the true ones are taken");
}

#[test]
fn no_step_follows_a_link_out_of_its_tree() {
    let machine = Machine::primary();
    let outside = tempfile::tempdir().expect("temporary directory");
    symlink(outside.path(), machine.live("way")).expect("a link");
    fs::create_dir(machine.at("stage")).expect("a directory");
    let tree = Tree::open(&machine.at("live"), &machine.at("stage")).expect("a tree");
    let path = |text: &str| blixard_core::volume::TreePath::new(text.as_bytes()).expect("a path");
    for step in [
        Step::File { path: path("way/in"), size: 1 },
        Step::Directory { path: path("way/in") },
        Step::Symlink { path: path("way/in"), target: b"x".to_vec() },
        Step::Write { path: path("way"), leaf: 0, content: vec![0] },
    ] {
        assert!(tree.step(&step).is_err(), "{step:?}");
    }
    assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0);
}

#[test]
fn a_source_that_loses_its_files_waits_for_a_word() {
    let primary = Machine::primary();
    for n in 0..20 {
        primary.write(&format!("f{n}"), "content");
    }
    let before = primary.published();
    for n in 0..15 {
        fs::remove_file(primary.live(&format!("f{n}"))).expect("removed");
    }
    let refused = primary.publish().expect_err("it waits").to_string();
    assert!(
        refused.contains("it had 20 files and has 5") && refused.contains("--accept-deletes"),
        "{refused}"
    );
    assert_eq!(primary.store.held(ID), Ok(Some(before)));
    let accepted = primary.store.publish(ID, EPOCH, None, UtcMs(9), true).expect("published");
    assert_eq!(accepted.expect("a version").files, 5);
}

#[test]
fn a_copy_takes_over_and_what_an_earlier_primary_did_not_publish_is_kept() {
    let (old, new) = (Machine::primary(), Machine::new());
    assert!(new.store.prepare(ID, EPOCH + 1, false).is_err(), "there is nothing to take over");
    old.write("page", "published");
    let delivered = old.published();
    old.sync(&new);
    old.write("page", "not published");
    old.write("more", "neither");
    new.store.prepare(ID, EPOCH + 1, false).expect("it takes over");
    new.store.prepare(ID, EPOCH + 1, false).expect("once is enough");
    assert_eq!(fs::read_to_string(new.live("page")).expect("read"), "published");
    assert_eq!(new.store.publish(ID, EPOCH, None, UtcMs(9), false), Ok(None), "of an earlier epoch");
    new.write("page", "of the new one");
    let newest = Some(VersionId { epoch: EPOCH, seq: 1 });
    let version = new.store.publish(ID, EPOCH + 1, newest, UtcMs(9), false).expect("published");
    assert_eq!(version.expect("a version").id, VersionId { epoch: EPOCH + 1, seq: 2 });
    let aside = old.store.demote(ID, Some(delivered)).expect("demoted").expect("something is kept");
    assert_eq!(fs::read_to_string(aside.join("more")).expect("read"), "neither");
    new.sync(&old);
    assert_eq!(fs::read_to_string(old.at("copy/page")).expect("read"), "of the new one");
    assert_eq!(old.store.demote(ID, None), Ok(None), "nothing is left to be kept");
    old.store.prepare(ID, EPOCH + 2, false).expect("it takes over in turn");
    assert_eq!(fs::read_to_string(old.live("page")).expect("read"), "of the new one");
    assert_eq!(old.store.list(), Ok(vec![ID]));
    old.store.remove(ID).expect("removed");
    assert_eq!(old.store.list(), Ok(vec![]));
}

#[test]
fn what_was_published_and_not_delivered_is_kept() {
    let (old, new) = (Machine::primary(), Machine::new());
    old.write("page", "delivered");
    let delivered = old.published();
    old.sync(&new);
    old.write("page", "published");
    old.published();
    let aside = old.store.demote(ID, Some(delivered)).expect("demoted").expect("something is kept");
    new.store.prepare(ID, EPOCH + 1, false).expect("it takes over");
    new.write("page", "of the new one");
    new.store.publish(ID, EPOCH + 1, None, UtcMs(9), false).expect("published");
    new.sync(&old);
    assert_eq!(fs::read_to_string(aside.join("page")).expect("read"), "published");
}

#[test]
fn what_was_delivered_is_not_kept_twice() {
    let old = Machine::primary();
    old.write("page", "delivered");
    let delivered = old.published();
    assert_eq!(old.store.demote(ID, Some(delivered)), Ok(None));
    assert!(!old.at("live").exists() && !old.at("aside").exists());
    assert_eq!(fs::read_to_string(old.at("copy/page")).expect("read"), "delivered");
}

#[test]
fn a_damaged_index_has_a_copy_made_anew() {
    let (primary, copy) = (filled(), Machine::new());
    primary.published();
    primary.sync(&copy);
    let index = copy.at("index");
    let mut bytes = fs::read(&index).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&index, bytes).expect("written");
    let again = LinuxVolumes::new(copy.data.path());
    assert_eq!(again.held(ID), Ok(None));
    let again = Machine { store: again, data: copy.data };
    primary.sync(&again);
}

/// Damage that the hash at the end does not show: a disk cannot do it, whoever writes there can.
#[test]
fn records_of_volumes_survive_every_damage() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("record");
    let id = VersionId { epoch: EPOCH, seq: 1 };
    let version = VolumeVersion { id, root: Index::empty().root(), files: 0, bytes: 0, at: UtcMs(5) };
    let written = |write: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::create(&path).expect("a file");
        write(&mut writer);
        writer.finish().expect("it is durable");
        let bytes = fs::read(&path).expect("it was written");
        bytes[..bytes.len() - 32].to_vec()
    };
    let held = written(&|writer| writer.put(&Held { version, index: Index::empty() }).expect("it fits"));
    let journal = written(&|writer| {
        writer.put(&Head { version }).expect("it fits");
        let directory = Step::Directory { path: TreePath::new(b"d").expect("a path") };
        let removal = Step::Remove { path: TreePath::new(b"d").expect("a path") };
        [directory, removal].iter().for_each(|step| writer.put(step).expect("it fits"));
    });
    let sealed = |input: &[u8]| {
        let bytes = [input, blake3::hash(input).as_bytes()].concat();
        fs::write(&path, bytes).expect("a file");
        Reader::open(&path).expect("its hash is right").expect("there is one")
    };
    damage::survives("what a copy of a volume holds", &[held], |input| {
        let read = sealed(input).next::<Held>().map_err(|error| error.to_string())?;
        read.map(drop).ok_or("it is empty".to_owned())
    });
    damage::survives("journal of a volume", &[journal], |input| {
        let mut reader = sealed(input);
        let head = reader.next::<Head>().map_err(|error| error.to_string())?;
        head.ok_or("it is empty")?;
        reader.steps().try_for_each(|step| step.map(drop)).map_err(|error| error.to_string())
    });
}
