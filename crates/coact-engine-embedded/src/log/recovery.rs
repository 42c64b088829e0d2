//! Reading the log back: every batch verified, in order; a torn tail cut; anything else refused.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use coact_core::{
    Result,
    env::{DiskFile, Env, OpenMode},
};

use super::{
    SegmentInfo, corrupt, io_error,
    record::{ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader},
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

/// Verifies all segments and replays what comes after `after`; `None` if there are no segments.
pub(super) fn recover(
    env: &Env,
    dir: &Path,
    after: u64,
    replay: &mut dyn FnMut(u64, Bytes) -> Result<()>,
) -> Result<Option<Found>> {
    let paths = segment_paths(env, dir)?;
    let mut segments: Vec<SegmentInfo> = Vec::new();
    let mut end = None;
    for (index, (first, path)) in paths.iter().enumerate() {
        let bytes = read_file(env, path)?;
        let header = SegmentHeader::decode(path, &bytes)?;
        check_place(path, *first, &header, end.as_ref(), after)?;
        let mut walk = Walk {
            path,
            bytes,
            position: SEGMENT_HEADER_BYTES,
            last_sequence: header.first - 1,
            chain: header.chain,
            is_last: index + 1 == paths.len(),
        };
        let tail = walk.replay(after, replay)?;
        if tail == Tail::Torn {
            walk.cut(env)?;
        }
        segments.push(SegmentInfo { path: path.clone(), first: header.first, length: header.length });
        end = Some((walk.last_sequence, walk.chain, walk.position));
    }
    let (Some((last_sequence, chain, position)), Some(active)) = (end, segments.last()) else { return Ok(None) };
    let file = env.disk().open(&active.path, OpenMode::Write).map_err(|error| io_error("open", &active.path, error))?;
    // What was written before a kill -9 may be in no disk yet, and is about to be shown to readers.
    file.sync().map_err(|error| io_error("sync", &active.path, error))?;
    Ok(Some(Found { segments, file, position, last_sequence, chain }))
}

/// The segments by their first sequence. Files that were not finished are removed.
fn segment_paths(env: &Env, dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let disk = env.disk();
    let mut paths = Vec::new();
    for name in disk.list(dir).map_err(|error| io_error("list", dir, error))? {
        let path = dir.join(&name);
        if name == super::PREPARED {
            disk.remove(&path).map_err(|error| io_error("remove", &path, error))?;
        } else if let Some(number) = name.strip_suffix(".seg") {
            let first = number.parse().map_err(|_| corrupt(&path, 0, "the name is not a sequence number"))?;
            paths.push((first, path));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_file(env: &Env, path: &Path) -> Result<Vec<u8>> {
    let failed = |error| io_error("read", path, error);
    let file = env.disk().open(path, OpenMode::Read).map_err(failed)?;
    let mut bytes = vec![0; file.len().map_err(failed)? as usize];
    file.read_at(0, &mut bytes).map_err(failed)?;
    Ok(bytes)
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
    is_last: bool,
}

impl Walk<'_> {
    fn replay(&mut self, after: u64, replay: &mut dyn FnMut(u64, Bytes) -> Result<()>) -> Result<Tail> {
        loop {
            let Some(header) = self.header_here()? else { return self.judge_end() };
            let start = self.position as usize + RECORD_HEADER_BYTES;
            let end = (self.position + header.extent()) as usize;
            if end > self.bytes.len() {
                return Err(corrupt(self.path, self.position, "a batch is longer than its segment"));
            }
            // Masked bytes are needed again if it turns out to be bad.
            let mut rest = self.bytes[start..end].to_vec();
            if !header.reveal(&mut rest) {
                return self.judge_record(end);
            }
            rest.truncate(header.length as usize);
            self.last_sequence = header.sequence;
            self.chain = header.checksum();
            self.position = end as u64;
            if header.sequence > after {
                replay(header.sequence, Bytes::from(rest))?;
            }
        }
    }

    /// The header of the next batch; `None` if there is none that is valid.
    fn header_here(&self) -> Result<Option<RecordHeader>> {
        let Some(header) = self.bytes.get(self.position as usize..).and_then(RecordHeader::decode) else {
            return Ok(None);
        };
        if header.sequence != self.last_sequence + 1 || header.chain != self.chain {
            let why = format!("batch {} follows batch {}", header.sequence, self.last_sequence);
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
