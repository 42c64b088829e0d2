//! Damage of every kind: whatever is done to the files, the log is equal, or lacks only what was never synced, or is
//! refused with the place. Never a wrong value, never a panic.

mod faults;
mod machine;

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use coact_core::{Error, ErrorKind, Result, env::Env};

use super::{
    FAILPOINTS, FORMAT_VERSION, Log, LogOptions, PAYLOAD_BYTES_MAX, PREPARED, SnapshotReader, SnapshotWriter,
    record::{RECORD_HEADER_BYTES, extent},
    segment::SEGMENT_HEADER_BYTES,
};

const SEGMENT: u64 = 4096;

/// In memory where that exists: thousands of opens sync thousands of files.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    place.expect("a directory")
}

/// A log, and what it replayed.
type Opened = (Log, Vec<(u64, Bytes)>);

fn open(dir: &Path, after: u64) -> Result<Opened> {
    open_in(&Env::real(), dir, after)
}

fn open_in(env: &Env, dir: &Path, after: u64) -> Result<Opened> {
    let mut batches = Vec::new();
    let options = LogOptions { segment_bytes: SEGMENT };
    let log = Log::open(env, dir, options, after, &[], &mut |sequence, _, batch| {
        batches.push((sequence, batch));
        Ok(())
    })?;
    Ok((log, batches))
}

fn payload(sequence: u64) -> Vec<u8> {
    // Zeros, so that a sector of a payload could be taken for one never written.
    let length = [5, 700, 0, 1500, 64][(sequence % 5) as usize];
    let mut payload = vec![0; length];
    payload.extend_from_slice(format!("batch {sequence}").as_bytes());
    payload
}

/// A log of `count` batches in a few segments.
fn write(dir: &Path, count: u64) {
    let (mut log, _) = open(dir, 0).expect("it opens");
    for sequence in 1..=count {
        assert_eq!(log.append(&payload(sequence)).expect("written"), sequence);
        log.sync().expect("synced");
    }
}

fn expected(count: u64) -> Vec<(u64, Bytes)> {
    (1..=count).map(|sequence| (sequence, payload(sequence).into())).collect()
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    paths
}

/// A log whose files are damaged again and again, each time from its undamaged state.
struct Patient {
    place: tempfile::TempDir,
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Without threads: starting one takes longer than everything else.
    env: Env,
}

impl Patient {
    fn new(place: tempfile::TempDir) -> Self {
        let files = files(place.path(), ".seg").into_iter().map(|path| (path.clone(), read(&path))).collect();
        let _ = std::fs::remove_file(place.path().join(PREPARED));
        Self { place, files, env: machine::without_threads() }
    }

    /// Opens the log after a change of one of its files.
    fn open_damaged(&self, index: usize, damage: impl FnOnce(&mut Vec<u8>)) -> Result<Opened> {
        let (path, whole) = &self.files[index];
        let mut bytes = whole.clone();
        damage(&mut bytes);
        write_file(path, &bytes);
        let result = open_in(&self.env, self.place.path(), 0);
        let afterwards = read(path);
        write_file(path, whole);
        if let Err(error) = &result {
            assert!(afterwards == bytes, "what is refused is left alone: {error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(names_the_place(error), "it says where: {error}");
        }
        result
    }
}

fn names_the_place(error: &Error) -> bool {
    let text = error.to_string();
    (text.contains(".seg") || text.contains(".snap")) && text.contains("at byte ")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

fn write_file(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}

/// Opens a copy of the files after a change of one of them.
fn after_damage(from: &Path, path: &Path, damage: impl Fn(&mut Vec<u8>)) -> Result<Opened> {
    let place = copy(from);
    let damaged = place.path().join(path.file_name().expect("a file"));
    let mut bytes = read(&damaged);
    damage(&mut bytes);
    write_file(&damaged, &bytes);
    // The directory goes when this returns: nothing may write in it any more.
    open_in(&machine::without_threads(), place.path(), 0)
}

fn copy(from: &Path) -> tempfile::TempDir {
    let place = directory();
    for path in files(from, "").iter().filter(|path| !path.ends_with(PREPARED)) {
        std::fs::copy(path, place.path().join(path.file_name().expect("a file"))).expect("a copy");
    }
    place
}

#[test]
fn reads_back_what_was_written_over_segments_and_drops() {
    let place = directory();
    write(place.path(), 40);
    assert!(files(place.path(), ".seg").len() > 3);
    let (mut log, batches) = open(place.path(), 0).expect("it opens");
    assert_eq!(batches, expected(40));
    log.drop_through(20, &[]).expect("dropped");
    assert_eq!(log.append(&payload(41)).expect("written"), 41);
    log.sync().expect("synced");
    drop(log);
    let (log, batches) = open(place.path(), 20).expect("it opens");
    assert_eq!(batches, expected(41)[20..]);
    assert!(log.bytes_after(20) > log.bytes_after(40));
    assert_eq!(log.bytes_after(41), 0);
    drop(log);
    let error = open(place.path(), 3).err().expect("batches 4 to 20 are gone");
    assert!(error.to_string().contains("a segment is missing before it: batch 4 comes next"), "{error}");
}

#[test]
fn a_drop_removes_exactly_what_no_recovery_needs() {
    let place = directory();
    write(place.path(), 20);
    for sequence in 0..=20 {
        let place = copy(place.path());
        let (mut log, _) = open_in(&machine::without_threads(), place.path(), 0).expect("it opens");
        let bytes = log.bytes_after(sequence);
        log.drop_through(sequence, &[]).expect("dropped");
        assert_eq!(log.bytes_after(sequence), bytes, "{sequence}: what was dropped did not count");
        let kept = files(place.path(), ".seg");
        let expected_bytes = (kept.len() as u64 - 1) * SEGMENT + log.position;
        assert_eq!(bytes, if sequence == 20 { 0 } else { expected_bytes }, "{sequence}");
        drop(log);
        let second = kept.get(1).and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
        assert!(second.is_none_or(|first| first > sequence + 1), "{sequence}: {kept:?}");
        let (_, batches) = open(place.path(), sequence).expect("it opens");
        assert_eq!(batches, expected(20)[sequence as usize..], "{sequence}");
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_its_own() {
    let place = directory();
    let (mut log, _) = open(place.path(), 0).expect("it opens");
    let large = vec![7; 3 * SEGMENT as usize];
    for payload in [&large[..], b"small", &large] {
        log.append(payload).expect("written");
    }
    log.sync().expect("synced");
    drop(log);
    let (_, batches) = open(place.path(), 0).expect("it opens");
    assert_eq!(batches.iter().map(|(_, batch)| batch.len()).collect::<Vec<_>>(), [large.len(), 5, large.len()]);
}

#[test]
fn a_missing_segment_is_refused() {
    let place = directory();
    write(place.path(), 40);
    std::fs::remove_file(&files(place.path(), ".seg")[1]).expect("removed");
    let error = open(place.path(), 0).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("a segment is missing"), "{error}");
}

#[test]
fn every_truncation_is_refused() {
    let place = directory();
    write(place.path(), 12);
    let patient = Patient::new(place);
    for (index, (path, whole)) in patient.files.iter().enumerate() {
        for length in 0..whole.len() {
            let result = patient.open_damaged(index, |bytes| bytes.truncate(length));
            assert!(result.is_err(), "{} of {length} bytes was opened", path.display());
        }
        assert!(patient.open_damaged(index, |bytes| bytes.push(0)).is_err(), "a longer file was opened");
    }
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    let place = directory();
    write(place.path(), 9);
    let patient = Patient::new(place);
    let mut next = 1;
    for (index, (path, _)) in patient.files.iter().enumerate() {
        let batches = batches_from(&mut next, 9);
        let end = batches.last().map_or(SEGMENT_HEADER_BYTES, |(_, batch)| batch.end) as usize;
        let is_header = |at: u64| {
            at < SEGMENT_HEADER_BYTES
                || batches.iter().any(|(_, batch)| batch.contains(&at) && at - batch.start < RECORD_HEADER_BYTES as u64)
        };
        for at in 0..SEGMENT as usize {
            // Every bit of all headers and of the first batches; then one of each byte.
            let bits = if at < 200 || is_header(at as u64) { 0..8 } else { at % 8..at % 8 + 1 };
            for bit in bits {
                let context = format!("byte {at} bit {bit} of {}", path.display());
                // Beyond the end it may be refused, too: a bit may look like the beginning of a batch.
                if let Ok((_, batches)) = patient.open_damaged(index, |bytes| bytes[at] ^= 1 << bit) {
                    assert_eq!(batches, expected(9), "{context}");
                    assert!(at >= end, "{context} is in a batch, and nobody noticed");
                }
            }
        }
    }
    assert_eq!(next, 10, "all batches were found");
}

/// Where the next batches lie in a segment, up to a last one.
fn batches_from(next: &mut u64, last: u64) -> Vec<(u64, Range<u64>)> {
    let mut batches = Vec::new();
    let mut position = SEGMENT_HEADER_BYTES;
    while *next <= last {
        let end = position + extent(payload(*next).len());
        if end > SEGMENT {
            break;
        }
        batches.push((*next, position..end));
        position = end;
        *next += 1;
    }
    batches
}

/// A sector that holds the last few bytes of a batch must not look like one that was never written, whatever they are.
#[test]
fn a_flipped_bit_is_refused_however_the_batch_ends() {
    // The batch lies from 64: header, payload, padding. Its end reaches 1 to 8 bytes into the third sector.
    let whole_sectors = 1024 - SEGMENT_HEADER_BYTES as usize - RECORD_HEADER_BYTES;
    for into in 1..=8 {
        for last in 0..=u8::MAX {
            let place = directory();
            let env = machine::without_threads();
            let (mut log, _) = open_in(&env, place.path(), 0).expect("it opens");
            log.append(&[&vec![1; whole_sectors][..], &vec![last; into]].concat()).expect("written");
            log.sync().expect("synced");
            drop(log);
            let patient = Patient::new(place);
            let result = patient.open_damaged(0, |bytes| bytes[500] ^= 1);
            assert!(result.is_err(), "{into} bytes {last}: a synced batch was taken for a torn one, and is gone");
        }
    }
}

type Damage = fn(&mut [u8]);

/// Bytes that no coact wrote, with valid checksums: an error, and no panic.
#[test]
fn impossible_headers_are_refused() {
    let changes: [(&str, Damage, ErrorKind); 4] = [
        ("version", |header| header[8..10].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes()), ErrorKind::Invalid),
        ("length", |header| header[12..20].copy_from_slice(&u64::MAX.to_le_bytes()), ErrorKind::Corrupt),
        ("sequence zero", |header| header[20..28].fill(0), ErrorKind::Corrupt),
        ("largest sequence", |header| header[20..28].fill(0xff), ErrorKind::Corrupt),
    ];
    for (what, change, kind) in changes {
        let place = directory();
        write(place.path(), 1);
        let path = files(place.path(), ".seg").pop().expect("a segment");
        let mut bytes = read(&path);
        change(&mut bytes[..60]);
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        std::fs::remove_file(&path).expect("removed");
        let first = u64::from_le_bytes(bytes[20..28].try_into().expect("eight bytes"));
        write_file(&place.path().join(format!("{first:020}.seg")), &bytes);
        for after in [0, first] {
            let error = open(place.path(), after).err().unwrap_or_else(|| panic!("{what}: it opened"));
            assert_eq!(error.kind(), kind, "{what}: {error}");
        }
    }
}

/// A file of a size that nobody could read into memory.
#[test]
fn an_immense_file_is_refused_without_reading_it() {
    let place = directory();
    write(place.path(), 1);
    let path = files(place.path(), ".seg").pop().expect("a segment");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.set_len(1 << 40).expect("a sparse file");
    let error = open(place.path(), 0).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_name_that_is_no_sequence_is_refused() {
    for name in ["5.seg", "+0000000000000000005.seg", "first.seg", "99999999999999999999.seg"] {
        let place = directory();
        write(place.path(), 1);
        write_file(&place.path().join(name), &[]);
        let error = open(place.path(), 0).err().expect("refused");
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_payload_that_is_too_large_is_refused_and_changes_nothing() {
    let place = directory();
    let (mut log, _) = open(place.path(), 0).expect("it opens");
    let error = log.append(&vec![0; PAYLOAD_BYTES_MAX + 1]).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(log.append(b"small").expect("written"), 1);
}

/// However far the preparation of the next segment got, and even if the segment was begun but not named.
#[test]
fn an_interrupted_preparation_is_removed() {
    let place = directory();
    write(place.path(), 2);
    let begun = read(&files(place.path(), ".seg")[0]);
    for prepared in [&[][..], &[0; 100], &[0; SEGMENT as usize], &begun] {
        let torn = copy(place.path());
        write_file(&torn.path().join(PREPARED), prepared);
        let (mut log, batches) = open(torn.path(), 0).expect("it opens");
        assert_eq!(batches, expected(2));
        for sequence in 3..10 {
            assert_eq!(log.append(&payload(sequence)).expect("written"), sequence);
        }
        log.sync().expect("synced");
        drop(log);
        let (_, batches) = open(torn.path(), 0).expect("it opens");
        assert_eq!(batches, expected(9));
    }
}

#[test]
fn a_log_that_ends_before_the_snapshot_goes_on_after_it() {
    let place = directory();
    write(place.path(), 7);
    let (mut log, batches) = open(place.path(), 20).expect("it opens");
    assert!(batches.is_empty());
    assert_eq!(log.last_sequence(), 20);
    assert_eq!(log.append(b"next").expect("written"), 21);
    log.sync().expect("synced");
    drop(log);
    let (_, batches) = open(place.path(), 20).expect("it opens");
    assert_eq!(batches, [(21, Bytes::from_static(b"next"))]);
    let error = open(place.path(), 0).err().expect("batches 1 to 20 are in the snapshot only");
    assert!(error.to_string().contains("a segment is missing"), "{error}");
}

#[test]
fn an_error_of_the_replay_ends_the_opening() {
    let place = directory();
    write(place.path(), 3);
    let options = LogOptions { segment_bytes: SEGMENT };
    let refuse = &mut |sequence, _, _| if sequence == 2 { Err(Error::invalid("no")) } else { Ok(()) };
    let error = Log::open(&Env::real(), place.path(), options, 0, &[], refuse).err().expect("refused");
    assert_eq!(error.to_string(), "no");
}

/// Every checksum of a batch or segment of another log is right, but it does not continue this one.
#[test]
fn what_another_log_wrote_is_refused() {
    let place = directory();
    write(place.path(), 20);
    let other = directory();
    let (mut log, _) = open(other.path(), 0).expect("it opens");
    for sequence in 1..=20 {
        let other_payload: Vec<u8> = payload(sequence).iter().map(|byte| byte ^ 1).collect();
        log.append(&other_payload).expect("written");
        log.sync().expect("synced");
    }
    drop(log);
    let patient = Patient::new(place);
    let foreign: Vec<Vec<u8>> = files(other.path(), ".seg").iter().map(|path| read(path)).collect();
    assert!(patient.files.len() == foreign.len() && foreign.len() > 2);
    for (index, foreign) in foreign.iter().enumerate() {
        let error = patient.open_damaged(index, |bytes| bytes.copy_from_slice(foreign)).err().expect("refused");
        assert!(error.to_string().contains("does not belong after"), "segment {index}: {error}");
    }
    let mut next = 1;
    for (sequence, place) in batches_from(&mut next, 20) {
        let place = place.start as usize..place.end as usize;
        let damage = |bytes: &mut Vec<u8>| bytes[place.clone()].copy_from_slice(&foreign[0][place.clone()]);
        let error = patient.open_damaged(0, damage).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "batch {sequence}: {error}");
    }
}

/// Every failpoint in the source is listed, and the other way round.
#[test]
fn the_failpoints_are_all_listed() {
    let sources = [
        include_str!("mod.rs"),
        include_str!("recovery.rs"),
        include_str!("segment.rs"),
        include_str!("snapshot.rs"),
        include_str!("record.rs"),
    ];
    let calls = sources.iter().flat_map(|source| source.split("fail_point!(\"").skip(1));
    let used: BTreeSet<&str> = calls.filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(used, FAILPOINTS.iter().copied().collect());
}

/// A power cut during the last write: any of its sectors may be missing.
#[test]
fn every_torn_last_batch_is_cut_and_the_log_goes_on() {
    let place = directory();
    write(place.path(), 2);
    let before = std::fs::read(files(place.path(), ".seg").last().expect("a segment")).expect("a file");
    write_more(place.path(), 3);
    let path = files(place.path(), ".seg").pop().expect("a segment");
    let after = std::fs::read(&path).expect("a file");
    let changed: BTreeSet<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).map(|at| at / 512).collect();
    let changed: Vec<usize> = changed.into_iter().collect();
    assert!(changed.len() >= 3, "the batch has {changed:?} sectors");
    for missing in 1..1u32 << changed.len() {
        let torn = copy(place.path());
        let mut bytes = after.clone();
        for (index, sector) in changed.iter().enumerate() {
            if missing & 1 << index != 0 {
                bytes[sector * 512..][..512].copy_from_slice(&before[sector * 512..][..512]);
            }
        }
        std::fs::write(torn.path().join(path.file_name().expect("a file")), bytes).expect("a file");
        let (mut log, batches) = open(torn.path(), 0).unwrap_or_else(|error| panic!("sectors {missing:b}: {error}"));
        assert_eq!(batches, expected(2), "sectors {missing:b}");
        assert_eq!(log.append(b"another").expect("written"), 3);
        log.sync().expect("synced");
        drop(log);
        let (_, batches) = open(torn.path(), 0).expect("it opens again");
        assert_eq!(batches.last(), Some(&(3, Bytes::from_static(b"another"))));
    }
}

fn write_more(dir: &Path, sequence: u64) {
    let (mut log, _) = open(dir, 0).expect("it opens");
    assert_eq!(log.append(&payload(sequence)).expect("written"), sequence);
    log.sync().expect("synced");
}

/// Without a sync after each batch, several may be torn at once, in any order.
#[test]
fn unsynced_batches_may_be_torn_but_synced_ones_may_not() {
    for (synced, torn_is_legal) in [(false, true), (true, false)] {
        let place = directory();
        let (mut log, _) = open(place.path(), 0).expect("it opens");
        for _ in 0..3 {
            log.append(&[1; 600]).expect("written");
            if synced {
                log.sync().expect("synced");
            }
        }
        drop(log);
        let path = files(place.path(), ".seg").pop().expect("a segment");
        // The second batch lies from 696 to 1328; its middle sector was never written.
        let result = after_damage(place.path(), &path, |bytes| bytes[1024..1328].fill(0));
        match result {
            Ok((_, batches)) => assert!(torn_is_legal && batches.len() == 1, "{} batches", batches.len()),
            Err(error) => {
                assert!(!torn_is_legal, "{error}");
                assert!(error.to_string().contains("was written after it"), "{error}");
            }
        }
    }
}

/// A segment is durable before the next one exists: what looks torn in it is not.
#[test]
fn a_torn_batch_before_a_later_segment_is_corruption() {
    let place = directory();
    write(place.path(), 12);
    let last = batches_from(&mut 1, 12).pop().expect("batches").1;
    let patient = Patient::new(place);
    let sectors = last.start as usize..last.end as usize;
    let result = patient.open_damaged(0, |bytes| bytes[sectors].fill(0));
    assert!(result.is_err(), "all of it was never written, it seems");
    let result = patient.open_damaged(0, |bytes| bytes[last.end as usize - 512..last.end as usize].fill(0));
    assert!(result.is_err(), "some of it was never written, it seems");
}

fn write_snapshot(dir: &Path, sequence: u64) {
    let mut writer = SnapshotWriter::create(&Env::real(), dir, sequence).expect("it begins");
    for block in [&b"one"[..], b"", &[7; 100]] {
        writer.write_block(block).expect("written");
    }
    writer.finish().expect("finished");
}

fn read_snapshot(dir: &Path) -> Result<Option<(u64, Vec<Bytes>)>> {
    read_snapshot_in(&Env::real(), dir)
}

fn read_snapshot_in(env: &Env, dir: &Path) -> Result<Option<(u64, Vec<Bytes>)>> {
    let Some(mut reader) = SnapshotReader::newest(env, dir)? else { return Ok(None) };
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_block()? {
        blocks.push(block);
    }
    Ok(Some((reader.sequence(), blocks)))
}

#[test]
fn a_snapshot_reads_back_and_replaces_older_ones() {
    let place = directory();
    assert_eq!(read_snapshot(place.path()).expect("none"), None);
    write_snapshot(place.path(), 5);
    write_snapshot(place.path(), 9);
    let blocks = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 100])];
    assert_eq!(read_snapshot(place.path()).expect("valid"), Some((9, blocks)));
    assert_eq!(files(place.path(), "").len(), 1);
}

#[test]
fn an_unfinished_snapshot_is_removed() {
    let place = directory();
    write_snapshot(place.path(), 5);
    let mut unfinished = SnapshotWriter::create(&Env::real(), place.path(), 9).expect("it begins");
    unfinished.write_block(b"one").expect("written");
    // A killed process cleans nothing up.
    std::mem::forget(unfinished);
    assert_eq!(files(place.path(), "").len(), 2);
    assert_eq!(read_snapshot(place.path()).expect("valid").map(|(sequence, _)| sequence), Some(5));
    assert_eq!(files(place.path(), "").len(), 1, "{:?}", files(place.path(), ""));
}

#[test]
fn a_snapshot_that_is_given_up_leaves_nothing() {
    let place = directory();
    drop(SnapshotWriter::create(&Env::real(), place.path(), 9).expect("it begins"));
    assert_eq!(files(place.path(), ""), [] as [PathBuf; 0]);
}

/// The thread of a closed engine may still write its snapshot when the directory is open again.
#[test]
fn two_snapshots_at_once_do_not_mix() {
    let place = directory();
    let mut late = SnapshotWriter::create(&Env::real(), place.path(), 5).expect("it begins");
    late.write_block(&[5; 100]).expect("written");
    let mut new = SnapshotWriter::create(&Env::real(), place.path(), 9).expect("it begins");
    new.write_block(b"nine").expect("written");
    late.write_block(&[5; 100]).expect("written");
    new.finish().expect("finished");
    late.finish().expect("finished");
    let nine = vec![Bytes::from_static(b"nine")];
    assert_eq!(read_snapshot(place.path()).expect("valid"), Some((9, nine)));
}

/// All versions of a key are one block: it is as large as its history.
#[test]
fn a_block_may_be_larger_than_a_batch() {
    let place = directory();
    let mut writer = SnapshotWriter::create(&Env::real(), place.path(), 5).expect("it begins");
    let block = vec![7; PAYLOAD_BYTES_MAX + 1];
    writer.write_block(&block).expect("written");
    writer.finish().expect("finished");
    let (_, blocks) = read_snapshot(place.path()).expect("valid").expect("a snapshot");
    assert!(blocks == [block], "the block reads back");
}

#[test]
fn impossible_snapshot_headers_are_refused() {
    for (sequence, version, kind) in [
        (u64::MAX, FORMAT_VERSION, ErrorKind::Corrupt),
        (5, FORMAT_VERSION + 1, ErrorKind::Invalid),
        (6, FORMAT_VERSION, ErrorKind::Corrupt),
    ] {
        let place = directory();
        write_snapshot(place.path(), 5);
        let path = files(place.path(), ".snap").pop().expect("a snapshot");
        let mut bytes = read(&path);
        bytes[8..10].copy_from_slice(&version.to_le_bytes());
        bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
        std::fs::remove_file(&path).expect("removed");
        let named = if sequence == 6 { 5 } else { sequence };
        write_file(&place.path().join(format!("{named:020}.snap")), &bytes);
        let error = read_snapshot(place.path()).expect_err("refused");
        assert_eq!(error.kind(), kind, "{sequence} {version}: {error}");
    }
}

#[test]
fn every_damage_to_a_snapshot_is_refused() {
    let place = directory();
    write_snapshot(place.path(), 5);
    let path = files(place.path(), ".snap").pop().expect("a snapshot");
    let whole = std::fs::read(&path).expect("a file");
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).expect("a file");
        let error = read_snapshot(place.path()).expect_err("truncated");
        assert!(error.kind() == ErrorKind::Corrupt && names_the_place(&error), "{length}: {error}");
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bytes).expect("a file");
        let error = read_snapshot(place.path()).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}: {error}");
    }
    let mut longer = whole;
    longer.push(0);
    std::fs::write(&path, longer).expect("a file");
    assert_eq!(read_snapshot(place.path()).expect_err("longer").kind(), ErrorKind::Corrupt);
}

/// A block of another snapshot is in order by itself.
#[test]
fn a_block_of_another_snapshot_is_refused() {
    let write = |block: &[u8]| {
        let place = directory();
        let mut writer = SnapshotWriter::create(&Env::real(), place.path(), 5).expect("it begins");
        writer.write_block(block).expect("written");
        writer.finish().expect("finished");
        let path = files(place.path(), ".snap").pop().expect("a snapshot");
        (place, path)
    };
    let ((_place, path), (other_place, other_path)) = (write(b"this"), write(b"that"));
    let (mut bytes, other) = (read(&path), read(&other_path));
    bytes[32..52].copy_from_slice(&other[32..52]);
    write_file(&other_path, &bytes);
    let error = read_snapshot(other_place.path()).expect_err("refused");
    assert!(error.to_string().contains("the footer does not match the blocks"), "{error}");
}
