//! Reading from the log by address, beside the writer: verified, and from as few reads as there are places near one another.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use coact_core::{
    Result,
    env::{DiskFile, Env, OpenMode},
};
use parking_lot::RwLock;

use super::{SegmentInfo, corrupt, io_error, record::Mask, segment::SEGMENT_HEADER_BYTES};
use crate::body::Place;

/// Places with at most so many bytes between them are read at once.
const GAP_BYTES: u64 = 4 * 1024;
/// About the most bytes of one read.
const READ_BYTES: u64 = 1024 * 1024;
/// The checksum before a body.
const CHECKSUM_BYTES: u64 = 4;

/// Reads bodies from segments. Clones share what they know of them.
#[derive(Clone)]
pub(crate) struct Reader {
    env: Env,
    /// By the address of their first batch; `None` for one that was removed, whose addresses are not the one's before it.
    segments: Arc<RwLock<BTreeMap<u64, Option<Arc<Segment>>>>>,
}

struct Segment {
    path: PathBuf,
    address: u64,
    length: u64,
    mask: Mask,
    /// Opened at the first read. A reader that has it goes on when the file is removed.
    file: OnceLock<Box<dyn DiskFile>>,
}

impl Reader {
    pub(super) fn new(env: &Env, segments: &[SegmentInfo]) -> Self {
        let reader = Self { env: env.clone(), segments: Arc::default() };
        segments.iter().for_each(|segment| reader.add(segment));
        reader
    }

    pub(super) fn add(&self, info: &SegmentInfo) {
        let SegmentInfo { path, first, length, address } = info.clone();
        let segment = Segment { path, address, length, mask: Mask::of(first), file: OnceLock::new() };
        self.segments.write().insert(address, Some(Arc::new(segment)));
    }

    pub(super) fn remove(&self, address: u64) {
        self.segments.write().insert(address, None);
    }

    /// Reads bodies, in the order of their places; `None` for one whose segment is gone.
    pub(crate) fn read(&self, places: &[Place]) -> Result<Vec<Option<Bytes>>> {
        let mut found = Vec::with_capacity(places.len());
        let mut rest = places;
        while let Some(first) = rest.first() {
            let (segment, end) = self.segment_of(first.address);
            let count = run(rest, end);
            match segment {
                None => found.extend(std::iter::repeat_n(None, count)),
                Some(segment) => found.extend(segment.read(&self.env, &rest[..count])?.into_iter().map(Some)),
            }
            rest = &rest[count..];
        }
        Ok(found)
    }

    /// The segment that has an address, and the address at which the next one begins.
    fn segment_of(&self, address: u64) -> (Option<Arc<Segment>>, u64) {
        let segments = self.segments.read();
        let segment = segments.range(..=address).next_back().and_then(|(_, segment)| segment.clone());
        let end = segments.range(address + 1..).next().map_or(u64::MAX, |(next, _)| *next);
        (segment, end)
    }
}

/// How many of the first places are read at once: those near one another before an address.
fn run(places: &[Place], before: u64) -> usize {
    let mut end = place_end(&places[0]);
    let near = places[1..].iter().take_while(|place| {
        let is_near = place.address >= end
            && place.address - end <= GAP_BYTES
            && place.address < before
            && place_end(place) - places[0].address <= READ_BYTES;
        end = place_end(place);
        is_near
    });
    1 + near.count()
}

fn place_end(place: &Place) -> u64 {
    place.address + CHECKSUM_BYTES + u64::from(place.length)
}

impl Segment {
    fn end(&self) -> u64 {
        self.address + (self.length - SEGMENT_HEADER_BYTES)
    }

    /// Reads places that follow one another.
    fn read(&self, env: &Env, places: &[Place]) -> Result<Vec<Bytes>> {
        let (from, to) = (places[0].address, places.last().map_or(0, place_end));
        let position = SEGMENT_HEADER_BYTES + (from - self.address);
        if to > self.end() {
            return Err(corrupt(&self.path, position, "a body is longer than its segment"));
        }
        let mut bytes = vec![0; (to - from) as usize];
        let failed = |error| io_error("read", &self.path, error);
        match self.file.get() {
            Some(file) => file.read_at(position, &mut bytes).map_err(failed)?,
            None => {
                let file = env.disk().open(&self.path, OpenMode::Read).map_err(failed)?;
                file.read_at(position, &mut bytes).map_err(failed)?;
                let _ = self.file.set(file);
            }
        }
        self.mask.apply(position, &mut bytes);
        let bytes = Bytes::from(bytes);
        places.iter().map(|place| self.body(&bytes, from, place)).collect()
    }

    fn body(&self, bytes: &Bytes, from: u64, place: &Place) -> Result<Bytes> {
        let start = (place.address - from) as usize;
        let body = bytes.slice(start + CHECKSUM_BYTES as usize..(place_end(place) - from) as usize);
        if bytes[start..start + CHECKSUM_BYTES as usize] != crc32c::crc32c(&body).to_le_bytes() {
            let position = SEGMENT_HEADER_BYTES + (place.address - self.address);
            return Err(corrupt(&self.path, position, "the checksum of a body does not match"));
        }
        Ok(body)
    }
}
