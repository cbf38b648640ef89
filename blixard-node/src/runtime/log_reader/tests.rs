use std::fs;
use std::io::Write;
use std::path::Path;

use blixard_core::time::UtcMs;

use super::{ENTRY_BYTES_MAX, LogReader};
use crate::platform::{LogLine, LogQuery};
use crate::runtime::logger::{Begin, LogFile, rotated};

fn read_all(reader: &mut LogReader) -> Vec<LogLine> {
    let mut all = Vec::new();
    loop {
        let lines = reader.read().expect("log");
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
    }
}

/// The lines, pieces marked by what follows them.
fn texts(reader: &mut LogReader) -> Vec<String> {
    let text = |line: LogLine| {
        let end = if line.partial { "…" } else { "" };
        format!("{}{end}", String::from_utf8_lossy(&line.bytes))
    };
    read_all(reader).into_iter().map(text).collect()
}

fn open(path: &Path, tail: Option<usize>) -> LogReader {
    LogReader::open(path.to_owned(), &LogQuery { tail, ..LogQuery::default() }).expect("log")
}

fn numbered(range: std::ops::Range<u32>) -> String {
    range.map(|number| format!("T stdout F {number}\n")).collect()
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("file");
    file.write_all(text.as_bytes()).expect("write");
}

#[test]
fn lines_come_in_order_over_rotated_files() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    fs::write(directory.path().join("1.log.2"), numbered(0..100)).expect("file");
    fs::write(directory.path().join("1.log.1"), numbered(100..200)).expect("file");
    fs::write(&path, numbered(200..250)).expect("file");
    let check = |tail: Option<usize>, expect: std::ops::Range<u32>| {
        let expect: Vec<String> = expect.map(|number| number.to_string()).collect();
        assert_eq!(texts(&mut open(&path, tail)), expect, "{tail:?}");
    };
    check(None, 0..250);
    check(Some(0), 250..250);
    check(Some(1), 249..250);
    check(Some(10), 240..250);
    check(Some(50), 200..250);
    check(Some(51), 199..250);
    check(Some(120), 130..250);
    check(Some(1000), 0..250);
    check(Some(usize::MAX), 0..250);
}

#[test]
fn the_last_lines_of_a_log_longer_than_a_chunk_are_found() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    fs::write(&path, numbered(0..20_000)).expect("file");
    for tail in [1, 5_000, 5_001, 19_999, 20_000] {
        let found = texts(&mut open(&path, Some(tail)));
        assert_eq!((found.len(), found.first()), (tail, Some(&(20_000 - tail).to_string())));
    }
}

#[test]
fn a_line_comes_in_the_pieces_it_was_written_in() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    fs::write(&path, "T stdout P one \nT stderr F  err\nnonsense\nT stdout F two\n").expect("file");
    assert_eq!(texts(&mut open(&path, None)), ["one …", " err", "two"]);
    // The last line began before a line of the other stream that is not wanted.
    assert_eq!(texts(&mut open(&path, Some(1))), ["one …", "two"]);
    assert_eq!(texts(&mut open(&path, Some(2))), ["one …", " err", "two"]);
}

#[test]
fn bytes_are_kept_as_they_are() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    fs::write(&path, b"T stdout P a\xc3\nT stdout F \xa9 \xff\0\n").expect("file");
    let bytes: Vec<_> = read_all(&mut open(&path, None)).into_iter().map(|line| line.bytes).collect();
    assert_eq!(bytes, [b"a\xc3".to_vec(), b"\xa9 \xff\0".to_vec()]);
}

#[test]
fn what_is_too_long_for_an_entry_is_passed_over_and_held_by_nobody() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let damaged = format!("T stdout F 1\n{}\nT stdout F 2\n", "x".repeat(40 * ENTRY_BYTES_MAX));
    fs::write(&path, damaged).expect("file");
    let mut reader = open(&path, None);
    assert_eq!(texts(&mut reader), ["1", "2"]);
    assert!(reader.pending.capacity() <= 4 * ENTRY_BYTES_MAX, "{}", reader.pending.capacity());
    append(&path, &"y".repeat(10 * ENTRY_BYTES_MAX));
    assert_eq!(texts(&mut reader), [""; 0]);
    append(&path, "\nT stdout F 3\n");
    assert_eq!(texts(&mut reader), ["3"]);
}

#[test]
fn only_lines_of_the_time_asked_for_are_given() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let entry =
        |ms: u32, tag: &str, text: &str| format!("1970-01-01T00:00:00.{ms:03}456789Z stdout {tag} {text}\n");
    let log = [entry(100, "F", "1"), entry(200, "P", "2"), entry(300, "F", "rest"), entry(400, "F", "4")];
    fs::write(&path, log.concat()).expect("file");
    let check = |since: Option<u64>, until: Option<u64>, expect: &[&str]| {
        let query = LogQuery { since: since.map(UtcMs), until: until.map(UtcMs), ..LogQuery::default() };
        let mut reader = LogReader::open(path.clone(), &query).expect("log");
        assert_eq!(texts(&mut reader), expect, "{since:?} {until:?}");
        assert_eq!(reader.is_over(), until.is_some_and(|until| until < 400), "{until:?}");
    };
    check(None, None, &["1", "2…", "rest", "4"]);
    check(Some(100), Some(100), &["1"]);
    check(Some(101), None, &["2…", "rest", "4"]);
    check(Some(201), None, &["4"]);
    check(None, Some(250), &["1", "2…", "rest"]);
    check(Some(401), Some(999), &[]);
    // The last lines are the last of those.
    let last = |until, expect: &[&str]| {
        let query = LogQuery { tail: Some(1), until: Some(UtcMs(until)), ..LogQuery::default() };
        assert_eq!(texts(&mut LogReader::open(path.clone(), &query).expect("log")), expect, "{until}");
    };
    last(150, &["1"]);
    last(350, &["2…", "rest"]);
    last(500, &["4"]);
}

#[test]
fn a_followed_log_is_read_on_across_rotation() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    append(&path, "T stdout F 1\nT stdout F");
    let mut reader = open(&path, None);
    assert_eq!(texts(&mut reader), ["1"]);
    append(&path, " 2\n");
    fs::rename(&path, directory.path().join("1.log.2")).expect("rename");
    append(&directory.path().join("1.log.1"), "T stdout F 3\n");
    append(&path, "T stdout F 4\n");
    assert_eq!(texts(&mut reader), ["2", "3", "4"]);
    append(&path, "T stdout F 5\n");
    assert_eq!(texts(&mut reader), ["5"]);
}

/// A log each of whose files takes one write.
fn log_of_one_entry_a_file(path: &Path) -> LogFile {
    LogFile::open(path.to_owned(), 1).expect("log")
}

fn gap(bytes: usize) -> String {
    format!("[blixard: {bytes} bytes of the log were removed by rotation before they were read]")
}

#[test]
fn what_rotation_removed_before_it_was_read_is_told_where_it_is_missing_once() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let mut log = log_of_one_entry_a_file(&path);
    let entry = |number: u32| format!("T stdout F {number}\n");
    let length = entry(1).len();
    let mut write = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|number| log.write(entry(number).as_bytes()));
    };
    write(1..2);
    let mut reader = open(&path, None);
    assert_eq!(texts(&mut reader), ["1"]);
    // The last file read is gone, and the next one is not.
    write(2..5);
    assert_eq!(texts(&mut reader), ["2", "3", "4"]);
    write(5..9);
    let lines = read_all(&mut reader);
    let told: Vec<_> = lines.iter().map(|line| (line.note, line.stderr, line.at.as_str())).collect();
    assert_eq!(told, [(true, true, "T"), (false, false, "T"), (false, false, "T"), (false, false, "T")]);
    let said: Vec<_> = lines.into_iter().map(|line| String::from_utf8(line.bytes).expect("text")).collect();
    assert_eq!(said, [gap(length).as_str(), "6", "7", "8"]);
    // A reader that begins with several files reads these first, wherever they are by then.
    let mut late = open(&path, Some(2));
    write(9..19);
    let missing = gap((9..16).map(|number| entry(number).len()).sum());
    assert_eq!(texts(&mut late), ["7", "8", &missing, "16", "17", "18"]);
    assert_eq!(texts(&mut reader), [&missing, "16", "17", "18"]);
    write(19..20);
    assert_eq!(texts(&mut reader), ["19"]);
}

#[test]
fn a_gap_ends_the_lines_before_it_and_nothing_of_other_times_is_missed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let at = |ms: u32| format!("1970-01-01T00:00:00.{ms:03}456789Z");
    let mut log = log_of_one_entry_a_file(&path);
    log.write(format!("{} stdout P begun \n", at(100)).as_bytes());
    let since = |ms| LogQuery { since: Some(UtcMs(ms)), ..LogQuery::default() };
    let reader = |query: &LogQuery| LogReader::open(path.clone(), query).expect("log");
    let (mut all, mut newer, mut newest) = (reader(&since(0)), reader(&since(150)), reader(&since(450)));
    assert_eq!(texts(&mut all), ["begun …"]);
    assert_eq!((texts(&mut newer), texts(&mut newest)), (vec![], vec![]));
    let lost = format!("{} stdout F its end\n", at(200));
    log.write(lost.as_bytes());
    for (ms, text) in [(300, "a"), (400, "b"), (500, "c")] {
        log.write(format!("{} stdout F {text}\n", at(ms)).as_bytes());
    }
    assert_eq!(texts(&mut all), ["", &gap(lost.len()), "a", "b", "c"]);
    assert_eq!(texts(&mut newer), [&gap(lost.len()), "a", "b", "c"]);
    assert_eq!(texts(&mut newest), ["c"], "what is missing was not asked for");
}

#[test]
fn a_gap_whose_size_nothing_tells_is_called_possible() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let mut log = log_of_one_entry_a_file(&path);
    log.write(b"T stdout F 1\n");
    let mut reader = open(&path, None);
    assert_eq!(texts(&mut reader), ["1"]);
    for number in 2..7 {
        log.write(format!("T stdout F {number}\n").as_bytes());
    }
    // As with the logger of an older version, which outlives its daemon.
    fs::remove_file(Begin::path(&path)).expect("it is there");
    let possible = "[blixard: part of the log may have been removed by rotation before it was read]";
    assert_eq!(texts(&mut reader), [possible, "4", "5", "6"]);
    // A file that none of those there is: what is written down is not of them.
    fs::write(Begin::path(&path), "1 1\n").expect("file");
    for number in 7..12 {
        log.write(format!("T stdout F {number}\n").as_bytes());
        fs::write(Begin::path(&path), "1 1\n").expect("file");
    }
    assert_eq!(texts(&mut reader), [possible, "9", "10", "11"]);
}

#[test]
fn logs_survive_every_damage() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let at = "2026-11-28T06:00:00.000000000Z";
    let log = format!("{at} stdout F one\n{at} stderr P two, \n{at} stdout F \n{at} stderr F and its end\n");
    damage::survives("log of a container", &[log.into_bytes()], |input| {
        let (older, newer) = input.split_at(input.len() / 3);
        fs::write(directory.path().join("1.log.1"), older).expect("file");
        fs::write(&path, newer).expect("file");
        let whole = read_all(&mut open(&path, None));
        let text: usize = whole.iter().map(|line| line.bytes.len()).sum();
        assert!(text <= input.len());
        for lines in [0, 1, 2, 1_000] {
            let last = read_all(&mut open(&path, Some(lines)));
            assert!(whole.ends_with(&last) || lines > 0 && last.len() <= whole.len(), "the last {lines}");
        }
        let query = LogQuery { since: Some(UtcMs(1_795_845_600_000)), ..LogQuery::default() };
        let since = read_all(&mut LogReader::open(path.clone(), &query).expect("log"));
        assert!(since.len() <= whole.len());
        Ok(())
    });
}

#[test]
fn where_a_log_begins_survives_every_damage() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("1.log");
    let mut log = log_of_one_entry_a_file(&path);
    for number in 0..4 {
        log.write(format!("T stdout F {number}\n").as_bytes());
    }
    let written = fs::read(Begin::path(&path)).expect("it is there");
    let files = [2, 1, 0].map(|age| fs::read(rotated(&path, age)).expect("file"));
    damage::survives("where a log begins", &[written], |input| {
        let begin = Begin::path(&path);
        fs::write(&begin, input).expect("file");
        let mut reader = open(&path, None);
        assert_eq!(texts(&mut reader).len(), 3);
        let mut log = log_of_one_entry_a_file(&path);
        for number in 4..9 {
            log.write(format!("T stdout F {number}\n").as_bytes());
            if number == 7 {
                fs::write(&begin, input).expect("file");
            }
        }
        let lines = texts(&mut reader);
        assert!(lines.ends_with(&["6", "7", "8"].map(str::to_owned)) && lines.len() <= 4, "{lines:?}");
        for (age, bytes) in files.iter().rev().enumerate() {
            fs::write(rotated(&path, age), bytes).expect("file");
        }
        Begin::read(&path).map(drop).ok_or("it says nothing".to_owned())
    });
}
