//! Segment files: of their full length from the start. A sync of space that was only reserved costs a journal commit of
//! the file system; to fill it with zeros costs as many bytes again. So what is synced in small pieces is filled, and what
//! is synced in large ones is reserved. Either reads as zeros where nothing was written.

use std::path::{Path, PathBuf};

use coact_core::{
    Error, ErrorKind, Result,
    env::{DiskFile, Env, OpenMode},
};

use super::{FORMAT_VERSION, SEQUENCES, corrupt, io_error};

pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
const MAGIC: &[u8; 8] = b"COACTSEG";
const FILL_BYTES: usize = 512 * 1024;
/// Where as much is made durable at once, or more, filling costs more than it saves.
const LARGE_SYNC_BYTES: u64 = 64 * 1024;

/// How a segment gets its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// By writing zeros: each sync is fast.
    Filled,
    /// By asking the file system: nothing is written twice. Where it cannot, by writing zeros.
    Reserved,
}

impl Room {
    /// What suits a log that was synced so often while so many bytes were written.
    pub(super) fn for_syncs(bytes: u64, syncs: u64) -> Self {
        if bytes / syncs.max(1) >= LARGE_SYNC_BYTES { Self::Reserved } else { Self::Filled }
    }
}

/// The verified header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) length: u64,
    pub(super) first: u64,
    pub(super) chain: u32,
    /// The address of the segment's first batch.
    pub(super) address: u64,
}

impl SegmentHeader {
    fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.length.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.first.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.chain.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.address.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Verifies the header of a segment, the first bytes of a file that has so many, and that this is what it says.
    pub(super) fn decode(path: &Path, bytes: &[u8], file_bytes: u64) -> Result<Self> {
        let damaged = |why| Err(corrupt(path, 0, why));
        let Some(header) = bytes.get(..SEGMENT_HEADER_BYTES as usize) else {
            return damaged("the file is shorter than its header: it was truncated");
        };
        let word = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if &header[..8] != MAGIC || word(60) != crc32c::crc32c(&header[..60]) {
            return damaged("the header's checksum does not match");
        }
        let version = word(8) as u16;
        if version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{} has format version {version}, and this coact reads {FORMAT_VERSION}: open it with the coact that wrote it",
                    path.display()
                ),
            ));
        }
        let found = Self { length: long(12), first: long(20), chain: word(28), address: long(32) };
        if found.length != file_bytes {
            let what = if file_bytes < found.length { "truncated" } else { "extended" };
            let why = format!("the file has {file_bytes} bytes instead of {}: it was {what}", found.length);
            return Err(corrupt(path, file_bytes.min(found.length), &why));
        }
        if !SEQUENCES.contains(&found.first) {
            return damaged("no batch can have the sequence that the header begins with");
        }
        if found.address > u64::MAX / 2 {
            return damaged("no batch can have the address that the header begins with");
        }
        Ok(found)
    }
}

pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// Creates a durable segment without batches.
pub(super) fn create(env: &Env, dir: &Path, header: SegmentHeader) -> Result<Box<dyn DiskFile>> {
    make_room(env, &dir.join(super::PREPARED), header.length, Room::Filled)?;
    begin(env, dir, super::PREPARED, header)
}

/// Makes a file of zeros, durably.
pub(super) fn make_room(env: &Env, path: &Path, length: u64, room: Room) -> Result<()> {
    let failed = |error| io_error("prepare a log segment in", path, error);
    let file = env.disk().open(path, OpenMode::Create).map_err(failed)?;
    if room == Room::Reserved && file.allocate(length).map_err(failed)? {
        return file.sync().map_err(failed);
    }
    let zeros = vec![0; FILL_BYTES.min(length as usize)];
    let mut offset = 0;
    while offset < length {
        let part = zeros.len().min((length - offset) as usize);
        file.write_at(offset, &zeros[..part]).map_err(failed)?;
        // Little by little, since a large sync at the end would hold up those of the writer.
        file.sync().map_err(failed)?;
        offset += part as u64;
    }
    Ok(())
}

/// Gives a file of zeros its header and its name, durably.
pub(super) fn begin(env: &Env, dir: &Path, prepared: &str, header: SegmentHeader) -> Result<Box<dyn DiskFile>> {
    let (from, to) = (dir.join(prepared), path(dir, header.first));
    let failed = |error| io_error("begin the log segment", &to, error);
    let file = env.disk().open(&from, OpenMode::Write).map_err(failed)?;
    file.write_at(0, &header.encode()).map_err(failed)?;
    file.sync().map_err(failed)?;
    fail::fail_point!("log.rotate.before-rename");
    env.disk().rename(&from, &to).map_err(failed)?;
    env.disk().sync_dir(dir).map_err(failed)?;
    fail::fail_point!("log.rotate.after-rename");
    Ok(file)
}
