//! The commit log: preallocated segments of checksummed batches, and the snapshots that let old segments go.
//!
//! ```text
//! segment   NNNNNNNNNNNNNNNNNNNN.seg, named by its first sequence; its full length from the start, zeros where nothing was written
//!   header  64 B: "COACTSEG", format u16, zero u16, length u64, first sequence u64, chain u32, address u64, zeros,
//!           crc32c u32
//!   batch   32 B: magic u32, payload length u32, sequence u64, chain u32, payload crc32c u32, unsynced u32, crc32c u32
//!           payload and zeros up to a multiple of 8, masked
//! snapshot  NNNNNNNNNNNNNNNNNNNN.snap, see `snapshot`
//! ```
//! Integers are little-endian. *Address* counts the bytes of all batches before, over all segments: what is in a batch is
//! found by address for as long as its segment is kept. *Chain* is the header checksum of the batch before. *Unsynced* is how many batches right
//! before this one were not known to be durable when it was written: always zero when every batch is synced. The
//! *mask*, eight bytes other than zero made from the segment's first sequence, keeps zeros from looking like a sector never written.
//!
//! A batch is the unit of a write and of a sync, so a crash can tear only what was not synced. A bad batch is a **torn
//! tail**, and is cut, if no later one proves it durable, and if a 512-byte sector of it was never written. Anything
//! else is **corruption**: opening is refused, with the file and the offset. Garbage after zeros is a torn tail, too: of
//! a batch whose first sectors are missing. A newest batch that lost a whole sector after its sync looks just like one
//! that was torn: no log can tell, unless something was written after it.

mod reader;
mod record;
mod recovery;
mod segment;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::mpsc,
};

use coact_core::{
    Error, ErrorKind, Result,
    env::{DiskFile, Env},
};

pub(crate) use reader::Reader;
pub(crate) use recovery::Replay;
pub(crate) use snapshot::{SnapshotReader, SnapshotWriter};

use record::{Mask, RECORD_HEADER_BYTES, RecordHeader};
use segment::{Room, SEGMENT_HEADER_BYTES, SegmentHeader};

/// The version of everything in a data directory.
pub(crate) const FORMAT_VERSION: u16 = 2;
/// The most bytes of one batch.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The sequences that batches have. The end is never reached; up to it, arithmetic does not overflow.
const SEQUENCES: RangeInclusive<u64> = 1..=u64::MAX / 2;
/// The segment that comes next, while it gets its length.
const PREPARED: &str = "next-segment.tmp";

/// Every place at which tests end the process: before and after each step that durability depends on.
pub const FAILPOINTS: &[&str] = &[
    "log.append.before-write",
    "log.append.after-write",
    "log.sync.before",
    "log.sync.after",
    "log.rotate.before-rename",
    "log.rotate.after-rename",
    "log.drop.before-remove",
    "log.drop.after-remove",
    "log.torn.before-cut",
    "log.torn.after-cut",
    "snapshot.before-rename",
    "snapshot.after-rename",
    "snapshot.before-remove-older",
];

/// How a log is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// The size of a segment, preallocated; a batch that does not fit gets a larger one.
    pub(crate) segment_bytes: u64,
}

/// An open log, ready to append.
pub(crate) struct Log {
    env: Env,
    dir: PathBuf,
    options: LogOptions,
    /// Sealed segments, oldest first, then the active one.
    segments: Vec<SegmentInfo>,
    file: Box<dyn DiskFile>,
    /// Where the next batch goes in the active segment.
    position: u64,
    last_sequence: u64,
    synced_sequence: u64,
    chain: u32,
    /// Reads what is in the segments.
    reader: Reader,
    /// How often the active segment was synced.
    syncs: u64,
    /// Answers when the next segment has its length.
    prepared: Option<mpsc::Receiver<Result<()>>>,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug)]
struct SegmentInfo {
    path: PathBuf,
    first: u64,
    length: u64,
    address: u64,
}

impl SegmentInfo {
    fn new(path: &Path, header: &SegmentHeader) -> Self {
        Self { path: path.to_owned(), first: header.first, length: header.length, address: header.address }
    }
}

impl Log {
    /// Opens or creates the log in a directory: verifies every batch after the sequence `after`, which a snapshot has,
    /// cuts a torn tail, and replays them. Earlier segments must be there if they are named by their first sequence.
    pub(crate) fn open(
        env: &Env,
        dir: &Path,
        options: LogOptions,
        after: u64,
        named: &[u64],
        replay: &mut Replay<'_>,
    ) -> Result<Self> {
        let options = LogOptions { segment_bytes: options.segment_bytes.max(SEGMENT_HEADER_BYTES) };
        let mut log = match recovery::recover(env, dir, after, named, replay)? {
            Some(found) if found.last_sequence >= after => Self {
                env: env.clone(),
                dir: dir.to_owned(),
                options,
                reader: Reader::new(env, &found.segments),
                segments: found.segments,
                file: found.file,
                position: found.position,
                last_sequence: found.last_sequence,
                synced_sequence: found.last_sequence,
                chain: found.chain,
                syncs: 0,
                prepared: None,
                buffer: Vec::new(),
            },
            other => Self::create(env, dir, options, after, other.map_or(Vec::new(), |found| found.segments))?,
        };
        log.prepare_next(Room::Filled);
        Ok(log)
    }

    /// A log that goes on after a snapshot that is newer than the log: what was left of it is in the snapshot.
    fn create(env: &Env, dir: &Path, options: LogOptions, after: u64, stale: Vec<SegmentInfo>) -> Result<Self> {
        for segment in stale {
            env.disk().remove(&segment.path).map_err(|error| io_error("remove", &segment.path, error))?;
        }
        let header = SegmentHeader { length: options.segment_bytes, first: after + 1, chain: 0, address: 0 };
        let file = segment::create(env, dir, header)?;
        let segments = vec![SegmentInfo::new(&segment::path(dir, after + 1), &header)];
        Ok(Self {
            reader: Reader::new(env, &segments),
            env: env.clone(),
            dir: dir.to_owned(),
            options,
            segments,
            file,
            position: SEGMENT_HEADER_BYTES,
            last_sequence: after,
            synced_sequence: after,
            chain: 0,
            syncs: 0,
            prepared: None,
            buffer: Vec::new(),
        })
    }

    /// Writes one batch, not yet durable; returns its sequence.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<u64> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a batch of {} bytes is too large: at most {PAYLOAD_BYTES_MAX} are allowed",
                payload.len()
            )));
        }
        let needed = record::extent(payload.len());
        if self.position + needed > self.active().length {
            self.rotate(needed)?;
        }
        let sequence = self.last_sequence + 1;
        let unsynced = u32::try_from(self.last_sequence - self.synced_sequence).unwrap_or(u32::MAX);
        let header = RecordHeader::new(sequence, self.chain, unsynced, payload);
        self.buffer.clear();
        header.encode_with(payload, Mask::of(self.active().first), &mut self.buffer);
        fail::fail_point!("log.append.before-write");
        self.file
            .write_at(self.position, &self.buffer)
            .map_err(|error| io_error("write to", &self.active().path, error))?;
        fail::fail_point!("log.append.after-write");
        self.position += needed;
        self.last_sequence = sequence;
        self.chain = header.checksum();
        Ok(sequence)
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        fail::fail_point!("log.sync.before");
        self.file.sync().map_err(|error| io_error("sync", &self.active().path, error))?;
        fail::fail_point!("log.sync.after");
        self.syncs += 1;
        self.synced_sequence = self.last_sequence;
        Ok(())
    }

    /// The sequence of the newest batch; zero if there never was one.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// About how many bytes of log a recovery from a snapshot at this sequence reads.
    pub(crate) fn bytes_after(&self, sequence: u64) -> u64 {
        let sealed = self.segments.len() - 1;
        let needed = |index: &usize| self.segments[index + 1].first > sequence.saturating_add(1);
        let whole: u64 = (0..sealed).filter(needed).map(|index| self.segments[index].length).sum();
        whole + if self.last_sequence > sequence { self.position } else { 0 }
    }

    /// Removes the segments in which every batch is of this sequence or an earlier one, but for those that are named by
    /// their first sequence; never the active one.
    pub(crate) fn drop_through(&mut self, sequence: u64, named: &[u64]) -> Result<()> {
        let covered = self.segments.windows(2).take_while(|pair| pair[1].first <= sequence.saturating_add(1)).count();
        let mut removed = false;
        for index in (0..covered).rev() {
            if named.contains(&self.segments[index].first) {
                continue;
            }
            fail::fail_point!("log.drop.before-remove");
            let path = &self.segments[index].path;
            self.env.disk().remove(path).map_err(|error| io_error("remove", path, error))?;
            fail::fail_point!("log.drop.after-remove");
            self.reader.remove(self.segments[index].address);
            self.segments.remove(index);
            removed = true;
        }
        if removed {
            self.env.disk().sync_dir(&self.dir).map_err(|error| io_error("sync", &self.dir, error))?;
        }
        Ok(())
    }

    /// The first sequence of each segment by the address of its first batch, oldest first.
    pub(crate) fn segments(&self) -> Vec<(u64, u64)> {
        self.segments.iter().map(|segment| (segment.address, segment.first)).collect()
    }

    /// Reads what is in the segments.
    pub(crate) fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// The address that the payload of the next batch begins at.
    pub(crate) fn next_address(&self) -> u64 {
        self.end() + RECORD_HEADER_BYTES as u64
    }

    /// The address after the newest batch.
    fn end(&self) -> u64 {
        self.active().address + (self.position - SEGMENT_HEADER_BYTES)
    }

    fn active(&self) -> &SegmentInfo {
        // There is always one: open and create make it, and it is never removed.
        &self.segments[self.segments.len() - 1]
    }

    /// Seals the active segment and begins the next. The sealed one is durable from here on, whatever the durability:
    /// so only the last segment can have a torn tail.
    fn rotate(&mut self, needed: u64) -> Result<()> {
        self.sync()?;
        let room = Room::for_syncs(self.position, self.syncs);
        let first = self.last_sequence + 1;
        let fits = SEGMENT_HEADER_BYTES + needed <= self.options.segment_bytes;
        let length = if fits { self.options.segment_bytes } else { SEGMENT_HEADER_BYTES + needed };
        let is_prepared = self.wait_for_prepared();
        if !is_prepared || !fits {
            segment::make_room(&self.env, &self.dir.join(PREPARED), length, room)?;
        }
        let header = SegmentHeader { length, first, chain: self.chain, address: self.end() };
        self.file = segment::begin(&self.env, &self.dir, PREPARED, header)?;
        let segment = SegmentInfo::new(&segment::path(&self.dir, first), &header);
        self.reader.add(&segment);
        // One without batches, left by a torn tail, had the same name: it was replaced.
        self.segments.retain(|earlier| earlier.first != first);
        self.segments.push(segment);
        self.position = SEGMENT_HEADER_BYTES;
        self.syncs = 0;
        self.prepare_next(room);
        Ok(())
    }

    /// Makes the next segment beside the writer, so that a rotation need not wait for it. If that fails, the
    /// rotation does it: the disk may have room by then, and only then does it matter.
    fn prepare_next(&mut self, room: Room) {
        let (answer, prepared) = mpsc::sync_channel(1);
        let (env, path, length) = (self.env.clone(), self.dir.join(PREPARED), self.options.segment_bytes);
        let work = move || {
            // Nobody listens any more if the log was closed meanwhile.
            let _ = answer.send(segment::make_room(&env, &path, length, room));
        };
        if let Ok(Some(work)) = self.env.spawn_thread("coact-segment", work) {
            work();
        }
        self.prepared = Some(prepared);
    }

    /// Whether the next segment has its length. The thread that makes it has ended then, in either case.
    fn wait_for_prepared(&mut self) -> bool {
        // A thread that never started does not answer.
        self.prepared.take().is_some_and(|answer| matches!(answer.recv(), Ok(Ok(()))))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The preparing thread must not write in a directory that somebody else opens.
        self.wait_for_prepared();
    }
}

/// The files with this ending, in the order of the sequences that they are named by.
fn named_by_sequence(dir: &Path, names: &[String], ending: &str) -> Result<Vec<(u64, PathBuf)>> {
    let mut paths = Vec::new();
    for name in names {
        let Some(number) = name.strip_suffix(ending) else { continue };
        let path = dir.join(name);
        let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
        let sequence = number.parse().ok().filter(|_| digits);
        let sequence = sequence.ok_or_else(|| corrupt(&path, 0, "the name is not a sequence number"))?;
        paths.push((sequence, path));
    }
    paths.sort();
    Ok(paths)
}

fn io_error(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("cannot {what} {}", path.display())).with_source(error)
}

fn corrupt(path: &Path, offset: u64, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} is damaged at byte {offset}: {why}", path.display()))
}
