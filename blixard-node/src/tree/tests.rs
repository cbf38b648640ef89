use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::{Entry, Target, open_in_root, pack_path, unpack, write_entry};

fn directory(path: &Path) -> std::os::fd::OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("a directory")
}

fn target(path: &Path, name: Option<&str>) -> Target {
    Target { directory: directory(path), name: name.map(Into::into), mode_mask: 0o777 }
}

fn packed(path: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    pack_path(path, &mut stream).expect("a stream");
    stream
}

fn stream(entries: &[Entry]) -> Vec<u8> {
    let mut stream = Vec::new();
    for entry in entries {
        write_entry(&mut stream, entry).expect("an entry");
        if matches!(entry, Entry::File { .. }) {
            stream.extend_from_slice(&[0, 0, 0, 2, b'h', b'i', 0, 0, 0, 0]);
        }
    }
    stream
}

fn names(path: &[&str]) -> Vec<Vec<u8>> {
    path.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn file(path: &[&str]) -> Entry {
    Entry::File { path: names(path), mode: 0o644, modified: 1 }
}

fn folder(path: &[&str]) -> Entry {
    Entry::Directory { path: names(path), mode: 0o755, modified: 1 }
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let root = tempfile::tempdir().expect("temporary directory");
    let from = root.path().join("from");
    fs::create_dir_all(from.join("deep/er")).expect("directories");
    let long: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
    fs::write(from.join("deep/long"), &long).expect("file");
    fs::write(from.join("deep/er/script"), "#!/bin/sh\n").expect("file");
    fs::set_permissions(from.join("deep/er/script"), fs::Permissions::from_mode(0o4751)).expect("mode");
    fs::set_permissions(from.join("deep/er"), fs::Permissions::from_mode(0o500)).expect("mode");
    symlink("/etc/passwd", from.join("link")).expect("link");
    rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
        .expect("fifo");
    let to = root.path().join("to");
    fs::create_dir(&to).expect("directory");
    unpack(&target(&to, Some("copy")), &mut packed(&from).as_slice()).expect("unpacked");
    let copy = to.join("copy");
    assert!(fs::read(copy.join("deep/long")).expect("file") == long);
    let script = fs::metadata(copy.join("deep/er/script")).expect("file");
    assert_eq!(script.permissions().mode() & 0o7777, 0o751);
    assert_eq!(script.mtime(), fs::metadata(from.join("deep/er/script")).expect("file").mtime());
    assert_eq!(fs::metadata(copy.join("deep/er")).expect("directory").permissions().mode() & 0o7777, 0o500);
    assert_eq!(fs::read_link(copy.join("link")).expect("link"), Path::new("/etc/passwd"));
    assert!(!copy.join("fifo").exists());
    // Once more over itself, and the content alone.
    unpack(&target(&to, Some("copy")), &mut packed(&from).as_slice()).expect("unpacked over itself");
    let bare = root.path().join("bare");
    fs::create_dir(&bare).expect("directory");
    unpack(&target(&bare, None), &mut packed(&from).as_slice()).expect("unpacked without its name");
    assert!(bare.join("deep/er/script").exists());
}

#[test]
fn no_path_and_no_link_leads_out_of_where_it_is_unpacked() {
    let check = |what: &str, entries: &[Entry]| {
        let root = tempfile::tempdir().expect("temporary directory");
        let (inside, outside) = (root.path().join("inside"), root.path().join("outside"));
        fs::create_dir(&inside).expect("directory");
        fs::create_dir(&outside).expect("directory");
        symlink(&outside, inside.join("there")).expect("link");
        symlink(outside.join("file"), inside.join("victim")).expect("link");
        let entries: Vec<Entry> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Link { path, .. } => {
                    let target = outside.as_os_str().as_encoded_bytes().to_vec();
                    Entry::Link { path: path.clone(), target }
                }
                other => other.clone(),
            })
            .collect();
        let unpacked = unpack(&target(&inside, None), &mut stream(&entries).as_slice());
        assert_eq!(fs::read_dir(&outside).expect("directory").count(), 0, "{what}");
        unpacked
    };
    let link = |path: &[&str]| Entry::Link { path: names(path), target: Vec::new() };
    assert!(check("dots", &[folder(&[]), file(&["..", "outside", "x"]), Entry::End]).is_err());
    assert!(check("a slash", &[folder(&[]), file(&["../outside/x"]), Entry::End]).is_err());
    assert!(check("an empty name", &[folder(&[]), file(&[""]), Entry::End]).is_err());
    assert!(check("a NUL", &[folder(&[]), file(&["a\0b"]), Entry::End]).is_err());
    assert!(
        check("a link that came along", &[folder(&[]), link(&["l"]), file(&["l", "x"]), Entry::End]).is_err()
    );
    assert!(check("a link that was there", &[folder(&[]), file(&["there", "x"]), Entry::End]).is_err());
    assert!(check("a directory for a link", &[folder(&[]), folder(&["there"]), Entry::End]).is_err());
    // A link in a file's place is replaced, not written through.
    assert!(check("a file for a link", &[folder(&[]), file(&["victim"]), Entry::End]).is_ok());
}

/// A copy as root over `/dev/null` would leave the machine without it.
#[test]
fn a_device_or_a_pipe_is_not_replaced() {
    let root = tempfile::tempdir().expect("temporary directory");
    let from = root.path().join("from");
    fs::write(&from, "hello").expect("file");
    let to = root.path().join("to");
    fs::create_dir(&to).expect("directory");
    let pipe = to.join("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let socket = std::os::unix::net::UnixListener::bind(to.join("socket")).expect("a socket");
    fs::create_dir(to.join("directory")).expect("directory");
    for (name, what) in
        [("pipe", "a pipe"), ("socket", "neither a file nor a directory"), ("directory", "a directory")]
    {
        let error = unpack(&target(&to, Some(name)), &mut packed(&from).as_slice()).expect_err(name);
        assert_eq!(error.to_string(), format!("{name} is {what} there"));
        assert!(to.join(name).symlink_metadata().is_ok_and(|there| !there.is_file()), "{name} was replaced");
    }
    drop(socket);
    let device = unpack(&target(Path::new("/dev"), Some("null")), &mut packed(&from).as_slice());
    assert_eq!(device.expect_err("it is the machine's").to_string(), "null is a device there");
}

#[test]
fn a_stream_that_is_cut_off_or_no_stream_is_an_error() {
    let root = tempfile::tempdir().expect("temporary directory");
    let from = root.path().join("from");
    fs::write(&from, "hello").expect("file");
    let whole = packed(&from);
    for length in 0..whole.len() {
        let cut = &mut whole.get(..length).expect("a prefix");
        assert!(unpack(&target(root.path(), Some("to")), cut).is_err(), "{length} bytes");
        let there = fs::read_to_string(root.path().join("to"));
        assert!(
            there.is_err() || there.is_ok_and(|text| text == "hello"),
            "a part of it after {length} bytes"
        );
    }
    unpack(&target(root.path(), Some("to")), &mut whole.as_slice()).expect("all of it");
    assert_eq!(fs::read_to_string(root.path().join("to")).expect("file"), "hello");
    // What was there stays until all of the new one is, and nothing else is left.
    for length in 0..whole.len() {
        fs::write(root.path().join("to"), "precious").expect("file");
        let cut = &mut whole.get(..length).expect("a prefix");
        assert!(unpack(&target(root.path(), Some("to")), cut).is_err(), "{length} bytes");
        let there = fs::read_to_string(root.path().join("to")).expect("file");
        assert!(there == "precious" || there == "hello", "{there} after {length} bytes");
    }
    fs::write(root.path().join("to"), "precious").expect("file");
    let cut = &mut whole.get(..whole.len() / 2).expect("a prefix");
    assert!(unpack(&target(root.path(), Some("to")), cut).is_err());
    assert_eq!(fs::read_to_string(root.path().join("to")).expect("file"), "precious");
    assert_eq!(fs::read_dir(root.path()).expect("directory").count(), 2, "from and to");
    let junk = vec![0xff; 100_000];
    assert!(unpack(&target(root.path(), Some("to")), &mut junk.as_slice()).is_err());
    let told = stream(&[folder(&[]), Entry::Failed { message: "the disk broke".into() }]);
    let error = unpack(&target(root.path(), Some("dir")), &mut told.as_slice()).expect_err("it failed");
    assert_eq!(error.to_string(), "the disk broke");
}

#[test]
fn a_root_is_not_left_and_the_kernels_files_are_not_copied() {
    let root = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(root.path().join("etc")).expect("directory");
    fs::write(root.path().join("etc/passwd"), "inside").expect("file");
    symlink("/etc/passwd", root.path().join("link")).expect("link");
    symlink("../../../../../../etc/passwd", root.path().join("dots")).expect("link");
    let fd = directory(root.path());
    for path in ["/etc/passwd", "etc/passwd", "/link", "/dots", "/../../etc/passwd"] {
        let found = open_in_root(&fd, Path::new(path)).expect(path);
        let mut copied = Vec::new();
        super::pack(&found, &mut copied).expect(path);
        assert!(copied.windows(6).any(|bytes| bytes == b"inside"), "{path}");
    }
    let missing = open_in_root(&fd, Path::new("/nope")).expect_err("nothing is there");
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(pack_path(Path::new("/proc/self/status"), &mut Vec::new()).is_err());
    assert!(pack_path(Path::new("/dev/null"), &mut Vec::new()).is_err());
}

#[test]
fn streams_survive_every_damage_and_stay_where_they_are_unpacked() {
    let root = tempfile::tempdir().expect("temporary directory");
    let into = root.path().join("into");
    fs::write(root.path().join("outside"), "untouched").expect("file");
    let link = Entry::Link { path: names(&["a", "link"]), target: b"../../outside".to_vec() };
    let entries =
        [folder(&[]), folder(&["a"]), file(&["a", "b"]), link, folder(&["c"]), file(&["d"]), Entry::End];
    damage::survives("stream of files", &[stream(&entries)], |input| {
        fs::create_dir(&into).expect("a directory");
        let unpacked = unpack(&target(&into, None), &mut &*input);
        let here = fs::read_dir(root.path()).expect("a directory").count();
        assert_eq!((here, fs::read(root.path().join("outside")).ok()), (2, Some(b"untouched".to_vec())));
        remove(&into);
        unpacked.map_err(|error| error.to_string())
    });
}

fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a type").is_dir() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700)).expect("mode");
            remove(&entry.path());
        } else {
            fs::remove_file(entry.path()).expect("file");
        }
    }
    fs::remove_dir(directory).expect("a directory");
}
