//! Snapshot files: blocks with checksums, and a footer without which it is none.
//!
//! ```text
//! header  32 B: "COACTSNP", format u16, zeros, sequence u64 at 16, crc32c u32 at 28
//! block   16 B: length u32, number u32, payload crc32c u32, crc32c u32; payload
//! footer  16 B: 0xffffffff, count of blocks u32, crc32c over the blocks' checksums u32, crc32c u32; then the file ends
//! ```
//! Written under a name of its own, synced, renamed, the directory synced; only then are older ones removed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    env::{DiskFile, Env, OpenMode},
};

use super::{FORMAT_VERSION, SEQUENCES, corrupt, io_error, named_by_sequence};

const MAGIC: &[u8; 8] = b"COACTSNP";
const HEADER_BYTES: u64 = 32;
const BLOCK_HEADER_BYTES: u64 = 16;
const FOOTER: u32 = u32::MAX;
const UNFINISHED: &str = ".snap.tmp";

/// Writes a snapshot.
pub(crate) struct SnapshotWriter {
    env: Env,
    dir: PathBuf,
    sequence: u64,
    /// Where it is until it is finished.
    unfinished: PathBuf,
    renamed: bool,
    file: Box<dyn DiskFile>,
    position: u64,
    blocks: u32,
    checksums: u32,
}

impl SnapshotWriter {
    /// Begins a snapshot of everything up to a sequence.
    pub(crate) fn create(env: &Env, dir: &Path, sequence: u64) -> Result<Self> {
        // A name of its own: the thread of an engine that was closed meanwhile may still be writing another one.
        let unfinished = dir.join(format!("{sequence:020}-{:016x}{UNFINISHED}", env.random()));
        let file =
            env.disk().open(&unfinished, OpenMode::Create).map_err(|error| io_error("create", &unfinished, error))?;
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&sequence.to_le_bytes());
        seal(&mut header);
        let mut writer = Self {
            env: env.clone(),
            dir: dir.to_owned(),
            sequence,
            unfinished,
            renamed: false,
            file,
            position: 0,
            blocks: 0,
            checksums: 0,
        };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Writes one block, of less than 4 GiB.
    pub(crate) fn write_block(&mut self, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).ok().filter(|length| *length != FOOTER).ok_or_else(|| {
            Error::new(ErrorKind::Exhausted, format!("a block of {} bytes is too large for a snapshot", payload.len()))
        })?;
        let checksum = crc32c::crc32c(payload);
        self.write(&block_header(length, self.blocks, checksum))?;
        self.write(payload)?;
        self.blocks += 1;
        self.checksums = crc32c::crc32c_append(self.checksums, &checksum.to_le_bytes());
        Ok(())
    }

    /// Makes it durable, gives it its name, and removes older ones.
    pub(crate) fn finish(mut self) -> Result<()> {
        let footer = block_header(FOOTER, self.blocks, self.checksums);
        self.write(&footer)?;
        self.file.sync().map_err(|error| io_error("sync", &self.unfinished, error))?;
        fail::fail_point!("snapshot.before-rename");
        let disk = self.env.disk();
        let path = self.dir.join(format!("{:020}.snap", self.sequence));
        disk.rename(&self.unfinished, &path).map_err(|error| io_error("rename", &self.unfinished, error))?;
        self.renamed = true;
        disk.sync_dir(&self.dir).map_err(|error| io_error("sync", &self.dir, error))?;
        fail::fail_point!("snapshot.after-rename");
        let names = list(&self.env, &self.dir)?;
        for (sequence, older) in named_by_sequence(&self.dir, &names, ".snap")? {
            if sequence < self.sequence {
                fail::fail_point!("snapshot.before-remove-older");
                disk.remove(&older).map_err(|error| io_error("remove", &older, error))?;
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_at(self.position, bytes).map_err(|error| io_error("write to", &self.unfinished, error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.renamed {
            // Of no use, and perhaps what fills the disk. If it cannot be removed now, the next opening does it.
            let _ = self.env.disk().remove(&self.unfinished);
        }
    }
}

/// Reads a snapshot.
pub(crate) struct SnapshotReader {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    length: u64,
    sequence: u64,
    position: u64,
    blocks: u32,
    checksums: u32,
}

impl SnapshotReader {
    /// Opens the newest snapshot of a directory and removes unfinished ones.
    pub(crate) fn newest(env: &Env, dir: &Path) -> Result<Option<Self>> {
        let names = list(env, dir)?;
        for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
            let path = dir.join(name);
            env.disk().remove(&path).map_err(|error| io_error("remove", &path, error))?;
        }
        let Some((sequence, path)) = named_by_sequence(dir, &names, ".snap")?.pop() else { return Ok(None) };
        let failed = |error| io_error("read", &path, error);
        let file = env.disk().open(&path, OpenMode::Read).map_err(failed)?;
        let length = file.len().map_err(failed)?;
        let mut reader = Self { path: path.clone(), file, length, sequence, position: 0, blocks: 0, checksums: 0 };
        reader.check_header()?;
        Ok(Some(reader))
    }

    /// The snapshot has everything up to this sequence.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The next block; `None` after the footer, which is verified.
    pub(crate) fn next_block(&mut self) -> Result<Option<Bytes>> {
        let header = self.read(BLOCK_HEADER_BYTES)?;
        let word = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        if !is_sealed(&header) || word(4) != self.blocks {
            return Err(self.damaged("the checksum of a block header does not match"));
        }
        let (length, checksum) = (word(0), word(8));
        if length == FOOTER {
            let complete = checksum == self.checksums && self.position == self.length;
            return if complete { Ok(None) } else { Err(self.damaged("the footer does not match the blocks")) };
        }
        let payload = self.read(length.into())?;
        if crc32c::crc32c(&payload) != checksum {
            return Err(self.damaged("the checksum of a block does not match"));
        }
        self.blocks += 1;
        self.checksums = crc32c::crc32c_append(self.checksums, &checksum.to_le_bytes());
        Ok(Some(payload.into()))
    }

    fn check_header(&mut self) -> Result<()> {
        let header = self.read(HEADER_BYTES)?;
        if &header[..8] != MAGIC || !is_sealed(&header) {
            return Err(self.damaged("the header's checksum does not match"));
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{} has format version {version}, and this coact reads {FORMAT_VERSION}: open it with the coact that wrote it",
                    self.path.display()
                ),
            ));
        }
        if header[16..24] != self.sequence.to_le_bytes() {
            return Err(self.damaged("the file is not of the sequence that its name says"));
        }
        if self.sequence != 0 && !SEQUENCES.contains(&self.sequence) {
            return Err(self.damaged("no batch can have the sequence that the header names"));
        }
        Ok(())
    }

    /// The next bytes; never more than the file has, whatever length a header asks for.
    fn read(&mut self, length: u64) -> Result<Vec<u8>> {
        if self.length - self.position < length {
            return Err(self.damaged("the file ends too early: it was truncated"));
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_at(self.position, &mut bytes).map_err(|error| io_error("read", &self.path, error))?;
        self.position += length;
        Ok(bytes)
    }

    fn damaged(&self, why: &str) -> Error {
        corrupt(&self.path, self.position, why)
    }
}

fn list(env: &Env, dir: &Path) -> Result<Vec<String>> {
    env.disk().list(dir).map_err(|error| io_error("list", dir, error))
}

fn block_header(length: u32, number: u32, checksum: u32) -> [u8; BLOCK_HEADER_BYTES as usize] {
    let mut header = [0; BLOCK_HEADER_BYTES as usize];
    header[0..4].copy_from_slice(&length.to_le_bytes());
    header[4..8].copy_from_slice(&number.to_le_bytes());
    header[8..12].copy_from_slice(&checksum.to_le_bytes());
    seal(&mut header);
    header
}

/// Puts the checksum of what precedes them into the last four bytes.
fn seal(header: &mut [u8]) {
    let at = header.len() - 4;
    let checksum = crc32c::crc32c(&header[..at]);
    header[at..].copy_from_slice(&checksum.to_le_bytes());
}

fn is_sealed(header: &[u8]) -> bool {
    let at = header.len() - 4;
    header[at..] == crc32c::crc32c(&header[..at]).to_le_bytes()
}
