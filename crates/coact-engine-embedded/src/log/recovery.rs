//! Reading the log back: every batch verified, in order; a torn tail cut; anything else refused.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use coact_core::{
    Result,
    env::{DiskFile, Env, OpenMode},
};

use super::{
    SegmentInfo, corrupt, io_error, named_by_sequence,
    record::{ALIGNMENT, Mask, RECORD_HEADER_BYTES, RecordHeader},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// What a disk writes at once, or not at all.
const SECTOR_BYTES: u64 = 512;

/// A log as found.
pub(super) struct Found {
    pub(super) segments: Vec<SegmentInfo>,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) position: u64,
    pub(super) last_sequence: u64,
    pub(super) chain: u32,
}

/// What replays a batch: its sequence, the address of its payload, the payload.
pub(crate) type Replay<'a> = dyn FnMut(u64, u64, Bytes) -> Result<()> + 'a;

/// Verifies what comes after the snapshot and replays it; `None` if there are no segments. Segments that the snapshot
/// covers may only have bodies, which are verified when they are read: of those, all that it names must be there.
pub(super) fn recover(
    env: &Env,
    dir: &Path,
    after: u64,
    named: &[u64],
    replay: &mut Replay<'_>,
) -> Result<Option<Found>> {
    let paths = segment_paths(env, dir)?;
    if let Some(missing) = named.iter().find(|named| !paths.iter().any(|(first, _)| first == *named)) {
        let path = super::segment::path(dir, *missing);
        return Err(corrupt(&path, 0, "the segment is missing, and the snapshot says that it has messages"));
    }
    let mut segments: Vec<SegmentInfo> = Vec::new();
    let mut end = None;
    for (index, (first, path)) in paths.iter().enumerate() {
        if paths.get(index + 1).is_some_and(|(next, _)| *next <= after.saturating_add(1)) {
            let header = read_header(env, path)?.0;
            segments.push(SegmentInfo::new(path, &header));
            continue;
        }
        let (header, bytes) = read_segment(env, path)?;
        check_place(path, *first, &header, end.as_ref(), after)?;
        let mut walk = Walk {
            path,
            bytes,
            position: SEGMENT_HEADER_BYTES,
            last_sequence: header.first - 1,
            chain: header.chain,
            mask: Mask::of(header.first),
            address: header.address,
            is_last: index + 1 == paths.len(),
            starts: Vec::new(),
            proved_durable: 0,
        };
        let tail = walk.replay(after, replay)?;
        if tail == Tail::Torn {
            walk.cut(env)?;
        }
        if walk.is_last {
            walk.make_durable(env)?;
        }
        segments.push(SegmentInfo::new(path, &header));
        end = Some((walk.last_sequence, walk.chain, walk.position));
    }
    let (Some((last_sequence, chain, position)), Some(active)) = (end, segments.last()) else { return Ok(None) };
    // A kill -9 may have come between a name and its sync: of the segment, or of the snapshot that was just read.
    env.disk().sync_dir(dir).map_err(|error| io_error("sync", dir, error))?;
    let file = env.disk().open(&active.path, OpenMode::Write).map_err(|error| io_error("open", &active.path, error))?;
    Ok(Some(Found { segments, file, position, last_sequence, chain }))
}

/// The segments by their first sequence. Files that were not finished are removed.
fn segment_paths(env: &Env, dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let disk = env.disk();
    let names = disk.list(dir).map_err(|error| io_error("list", dir, error))?;
    if names.iter().any(|name| name == super::PREPARED) {
        let path = dir.join(super::PREPARED);
        disk.remove(&path).map_err(|error| io_error("remove", &path, error))?;
    }
    named_by_sequence(dir, &names, ".seg")
}

fn read_header(env: &Env, path: &Path) -> Result<(SegmentHeader, Box<dyn DiskFile>)> {
    let failed = |error| io_error("read", path, error);
    let file = env.disk().open(path, OpenMode::Read).map_err(failed)?;
    let length = file.len().map_err(failed)?;
    let mut bytes = vec![0; length.min(SEGMENT_HEADER_BYTES) as usize];
    file.read_at(0, &mut bytes).map_err(failed)?;
    Ok((SegmentHeader::decode(path, &bytes, length)?, file))
}

/// Reads a segment whose header is right: only then is the length of the file to be believed.
fn read_segment(env: &Env, path: &Path) -> Result<(SegmentHeader, Vec<u8>)> {
    let failed = |error| io_error("read", path, error);
    let (header, file) = read_header(env, path)?;
    let mut bytes = vec![0; header.length as usize];
    file.read_at(0, &mut bytes).map_err(failed)?;
    Ok((header, bytes))
}

/// A segment must be what its name says, and follow the one before, or what the snapshot has.
fn check_place(
    path: &Path,
    first: u64,
    header: &SegmentHeader,
    before: Option<&(u64, u32, u64)>,
    after: u64,
) -> Result<()> {
    if header.first != first {
        return Err(corrupt(path, 0, &format!("the file begins with batch {}, not as its name says", header.first)));
    }
    let expected = match before {
        Some((last, chain, _)) => {
            if first == last + 1 && header.chain != *chain {
                return Err(corrupt(path, 0, "the segment does not belong after the one before it"));
            }
            last + 1
        }
        None => first.min(after + 1),
    };
    if first != expected {
        return Err(corrupt(
            path,
            0,
            &format!("a segment is missing before it: batch {expected} comes next, this has {first}"),
        ));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Clean,
    Torn,
}

/// A walk over the batches of one segment.
struct Walk<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    position: u64,
    last_sequence: u64,
    chain: u32,
    mask: Mask,
    /// The address of the segment's first batch.
    address: u64,
    is_last: bool,
    /// Where each batch begins.
    starts: Vec<u64>,
    /// The last batch says that everything up to this sequence was durable when it was written.
    proved_durable: u64,
}

impl Walk<'_> {
    fn replay(&mut self, after: u64, replay: &mut Replay<'_>) -> Result<Tail> {
        loop {
            let Some(header) = self.header_here()? else { return self.judge_end() };
            let start = self.position as usize + RECORD_HEADER_BYTES;
            let end = (self.position + header.extent()) as usize;
            if end > self.bytes.len() {
                return Err(corrupt(self.path, self.position, "a batch is longer than its segment"));
            }
            // Masked bytes are needed again if it turns out to be bad.
            let mut rest = self.bytes[start..end].to_vec();
            if !header.reveal(&mut rest, self.mask) {
                return self.judge_record(end);
            }
            rest.truncate(header.length as usize);
            self.last_sequence = header.sequence;
            self.chain = header.checksum();
            self.starts.push(self.position);
            self.proved_durable = header.proves_durable();
            self.position = end as u64;
            if header.sequence > after {
                let address = self.address + (start as u64 - SEGMENT_HEADER_BYTES);
                replay(header.sequence, address, Bytes::from(rest))?;
            }
        }
    }

    /// The header of the next batch; `None` if there is none that is valid.
    fn header_here(&self) -> Result<Option<RecordHeader>> {
        let Some(header) = self.bytes.get(self.position as usize..).and_then(RecordHeader::decode) else {
            return Ok(None);
        };
        if header.sequence != self.last_sequence + 1 {
            let why = format!("batch {} follows batch {}", header.sequence, self.last_sequence);
            return Err(corrupt(self.path, self.position, &why));
        }
        if header.chain != self.chain {
            let why = format!("batch {} was written after another batch than the one before it", header.sequence);
            return Err(corrupt(self.path, self.position, &why));
        }
        Ok(Some(header))
    }

    /// No valid header here: the end of the log, or damage.
    fn judge_end(&self) -> Result<Tail> {
        let from = self.position as usize;
        if self.bytes[from..].iter().all(|byte| *byte == 0) {
            return Ok(Tail::Clean);
        }
        self.refuse_if_durable()?;
        let header_end = (from + RECORD_HEADER_BYTES).min(self.bytes.len());
        if !self.has_unwritten_sector(from, header_end) {
            return Err(corrupt(self.path, self.position, "the checksum of a batch header does not match"));
        }
        Ok(Tail::Torn)
    }

    /// A valid header, but the payload is not what was written.
    fn judge_record(&self, end: usize) -> Result<Tail> {
        self.refuse_if_durable()?;
        if !self.has_unwritten_sector(self.position as usize, end) {
            return Err(corrupt(self.path, self.position, "the checksum of a batch does not match"));
        }
        Ok(Tail::Torn)
    }

    /// What was durable once cannot be torn: refuses if a later batch, or a later segment, proves the one here durable.
    fn refuse_if_durable(&self) -> Result<()> {
        let why = if self.is_last {
            let from = self.position as usize + ALIGNMENT;
            let later = (from..self.bytes.len()).step_by(ALIGNMENT);
            let proof = later
                .filter_map(|at| Some((at, RecordHeader::decode(&self.bytes[at..])?)))
                .find(|(_, header)| header.proves_durable() > self.last_sequence);
            match proof {
                None => return Ok(()),
                Some((at, header)) => {
                    format!("a batch is bad, but batch {} at byte {at} was written after it", header.sequence)
                }
            }
        } else {
            "a batch is bad, but later segments exist".to_owned()
        };
        Err(corrupt(self.path, self.position, &why))
    }

    fn has_unwritten_sector(&self, from: usize, to: usize) -> bool {
        let mut at = from;
        while at < to {
            let end = ((at as u64 / SECTOR_BYTES + 1) * SECTOR_BYTES).min(to as u64) as usize;
            if self.bytes[at..end].iter().all(|byte| *byte == 0) {
                return true;
            }
            at = end;
        }
        false
    }

    /// Makes durable what is about to be shown to readers. After a kill -9 a sync would do. After a failed sync the
    /// system may show what it never wrote, and take it for written (fsyncgate): so it is written once more.
    fn make_durable(&self, env: &Env) -> Result<()> {
        let failed = |error| io_error("sync", self.path, error);
        let file = env.disk().open(self.path, OpenMode::Write).map_err(failed)?;
        let first = self.last_sequence + 1 - self.starts.len() as u64;
        let proved = (self.proved_durable + 1).saturating_sub(first) as usize;
        if let Some(start) = self.starts.get(proved) {
            file.write_at(*start, &self.bytes[*start as usize..self.position as usize]).map_err(failed)?;
        }
        file.sync().map_err(failed)
    }

    /// Zeroes everything after the last good batch, so that nothing of it is taken for a batch later.
    fn cut(&self, env: &Env) -> Result<()> {
        let failed = |error| io_error("cut the torn tail of", self.path, error);
        let from = self.position as usize;
        let used = self.bytes[from..].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        fail::fail_point!("log.torn.before-cut");
        let file = env.disk().open(self.path, OpenMode::Write).map_err(failed)?;
        file.write_at(self.position, &vec![0; used]).map_err(failed)?;
        file.sync().map_err(failed)?;
        fail::fail_point!("log.torn.after-cut");
        Ok(())
    }
}
