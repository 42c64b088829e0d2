//! Damage of every kind: whatever is done to the files, the log is equal, or lacks only what was never synced, or is
//! refused with the place. Never a wrong value, never a panic.

use std::{collections::BTreeSet, path::Path};

use super::*;

const SEGMENT: u64 = 4096;

/// In memory where that exists: thousands of opens sync thousands of files.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    place.expect("a directory")
}

fn open(dir: &Path, after: u64) -> Result<(Log, Vec<(u64, Bytes)>)> {
    let mut batches = Vec::new();
    let options = LogOptions { segment_bytes: SEGMENT };
    let log = Log::open(&Env::real(), dir, options, after, &mut |sequence, batch| {
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

/// Opens a copy of the files after a change of one of them.
fn after_damage(from: &Path, path: &Path, damage: impl Fn(&mut Vec<u8>)) -> Result<(Log, Vec<(u64, Bytes)>)> {
    let place = copy(from);
    let damaged = place.path().join(path.file_name().expect("a file"));
    let mut bytes = std::fs::read(&damaged).expect("a file");
    damage(&mut bytes);
    std::fs::write(&damaged, bytes).expect("a file");
    open(place.path(), 0)
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
    log.drop_through(20).expect("dropped");
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
    for path in files(place.path(), ".seg") {
        for length in 0..std::fs::metadata(&path).expect("a file").len() as usize {
            let error = after_damage(place.path(), &path, |bytes| bytes.truncate(length)).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    let place = directory();
    write(place.path(), 9);
    let mut harmless = 0;
    for path in files(place.path(), ".seg") {
        for at in 0..SEGMENT as usize {
            // Every bit of the headers and the first batches; then one of each byte.
            let bits = if at < 200 { 0..8 } else { at % 8..at % 8 + 1 };
            for bit in bits {
                match after_damage(place.path(), &path, |bytes| bytes[at] ^= 1 << bit) {
                    Ok((_, batches)) => {
                        assert_eq!(batches, expected(9), "byte {at} bit {bit} of {}", path.display());
                        harmless += 1;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at} bit {bit}: {error}"),
                }
            }
        }
    }
    assert!(harmless > 0, "a bit beyond the end of the log says nothing");
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

fn write_snapshot(dir: &Path, sequence: u64) {
    let mut writer = SnapshotWriter::create(&Env::real(), dir, sequence).expect("it begins");
    for block in [&b"one"[..], b"", &[7; 100]] {
        writer.write_block(block).expect("written");
    }
    writer.finish().expect("finished");
}

fn read_snapshot(dir: &Path) -> Result<Option<(u64, Vec<Bytes>)>> {
    let Some(mut reader) = SnapshotReader::newest(&Env::real(), dir)? else { return Ok(None) };
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
    std::fs::write(place.path().join("snapshot.tmp"), "unfinished").expect("a file");
    let blocks = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 100])];
    assert_eq!(read_snapshot(place.path()).expect("valid"), Some((9, blocks)));
    assert_eq!(files(place.path(), ".snap").len(), 1);
}

#[test]
fn every_damage_to_a_snapshot_is_refused() {
    let place = directory();
    write_snapshot(place.path(), 5);
    let path = files(place.path(), ".snap").pop().expect("a snapshot");
    let whole = std::fs::read(&path).expect("a file");
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).expect("a file");
        assert_eq!(read_snapshot(place.path()).expect_err("truncated").kind(), ErrorKind::Corrupt, "{length}");
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
