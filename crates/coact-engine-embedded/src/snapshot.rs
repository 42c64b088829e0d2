//! Snapshots: what the state is written down as, while the writer goes on, and how it is read back.
//!
//! ```text
//! block 1   0x01, store id, applied, compacted
//! leases    0x02, (id, ttl ms)*
//! keys      0x03, (version count, (value, created, modified, version, lease)*, key)*      in key order
//! commits   0x04, (revision, time, event count, (key, expired)*)*                          in revision order
//! messages  0x10 and on: see `message::snapshot`
//! ```
//! Numbers are varints, bytes length-prefixed. The log's part adds block checksums and the footer.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use coact_core::{
    Error, ErrorKind, Result,
    codec::{get_bytes, get_varint, put_bytes, put_varint},
    env::Env,
};
use parking_lot::RwLock;

use crate::{
    flat::Record,
    log::{SnapshotReader, SnapshotWriter},
    message::{Captured, Messages, Sink},
    state::{Commit, SharedKey, Slot, State, StoredCommit},
};

/// The versions of one key, oldest first.
type Versions = Vec<Arc<Record>>;

/// About how large a block gets.
const BLOCK_BYTES: usize = 256 * 1024;
/// How many keys are read under one hold of the state's lock.
const KEYS_PER_LOCK: usize = 256;

/// What is captured at once, under the lock; the keys follow at leisure, since the state is pinned.
pub(crate) struct Capture {
    sequence: u64,
    revision: u64,
    compacted: u64,
    store_id: u64,
    leases: Vec<(i64, Duration)>,
    commits: Vec<Arc<Commit>>,
    messages: Captured,
    /// All segments by the addresses of their first batches.
    segments: Vec<(u64, u64)>,
}

/// A snapshot that is there.
#[derive(Debug)]
pub(crate) struct Written {
    /// The log goes on after this.
    pub(crate) sequence: u64,
    /// Segments that have bodies, by their first sequences.
    pub(crate) named: Vec<u64>,
    /// How large it is.
    pub(crate) bytes: u64,
}

impl Capture {
    /// Pins the state and takes what must be of one moment: right after everything up to `sequence` became visible.
    pub(crate) fn take(state: &mut State, messages: &Messages, segments: Vec<(u64, u64)>, sequence: u64) -> Self {
        state.pin();
        Self {
            messages: Captured::take(messages),
            segments,
            sequence,
            revision: state.visible(),
            compacted: state.compacted(),
            store_id: state.store_id,
            leases: state.leases.iter().map(|(id, lease)| (id, lease.ttl)).collect(),
            commits: state.all_commits(),
        }
    }

    /// Writes the snapshot. The caller unpins the state afterwards, however this ends.
    pub(crate) fn write(&self, env: &Env, dir: &Path, state: &RwLock<State>) -> Result<Written> {
        let mut out = Blocks { writer: SnapshotWriter::create(env, dir, self.sequence)?, block: Vec::new(), bytes: 0 };
        out.begin(0x01);
        for number in [self.store_id, self.revision, self.compacted] {
            put_varint(&mut out.block, number);
        }
        out.flush()?;
        self.write_leases(&mut out)?;
        self.write_keys(&mut out, state)?;
        self.write_commits(&mut out)?;
        let named = self.messages.named(&self.segments);
        self.messages.write(&named, &mut out)?;
        let bytes = out.bytes;
        out.writer.finish()?;
        Ok(Written { sequence: self.sequence, named, bytes })
    }

    fn write_leases(&self, out: &mut Blocks) -> Result<()> {
        out.begin(0x02);
        for (id, ttl) in &self.leases {
            put_varint(&mut out.block, *id as u64);
            put_varint(&mut out.block, ttl.as_millis() as u64);
            out.flush_if_full(0x02)?;
        }
        out.flush()
    }

    fn write_keys(&self, out: &mut Blocks, state: &RwLock<State>) -> Result<()> {
        out.begin(0x03);
        let mut after: Option<Arc<[u8]>> = None;
        loop {
            let chunk: Vec<(SharedKey, Versions)> = {
                let state = state.read();
                let slots = state.slots_after(after.as_ref()).take(KEYS_PER_LOCK);
                slots.map(|(key, slot)| (key.clone(), self.versions(slot))).collect()
            };
            let Some((last, _)) = chunk.last() else { break };
            after = Some(last.clone());
            for (key, versions) in &chunk {
                encode_slot(&mut out.block, key, versions);
                out.flush_if_full(0x03)?;
            }
        }
        out.flush()
    }

    fn versions(&self, slot: &Slot) -> Versions {
        slot.versions().filter(|record| record.modified <= self.revision).cloned().collect()
    }

    fn write_commits(&self, out: &mut Blocks) -> Result<()> {
        out.begin(0x04);
        for commit in &self.commits {
            put_varint(&mut out.block, commit.revision);
            put_varint(&mut out.block, commit.time_ms);
            put_varint(&mut out.block, commit.events.len() as u64);
            for event in &commit.events {
                put_bytes(&mut out.block, &event.record.key);
                put_varint(&mut out.block, event.expired.into());
            }
            out.flush_if_full(0x04)?;
        }
        out.flush()
    }
}

struct Blocks {
    writer: SnapshotWriter,
    block: Vec<u8>,
    bytes: u64,
}

impl Sink for Blocks {
    type Error = Error;

    fn begin(&mut self, tag: u8) {
        self.block.push(tag);
    }

    fn block(&mut self) -> &mut Vec<u8> {
        &mut self.block
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.write_block(&self.block)?;
        self.bytes += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    fn flush_if_full(&mut self, tag: u8) -> Result<()> {
        if self.block.len() >= BLOCK_BYTES {
            self.flush()?;
            self.begin(tag);
        }
        Ok(())
    }
}

fn encode_slot(out: &mut Vec<u8>, key: &[u8], versions: &[Arc<Record>]) {
    if versions.is_empty() {
        return;
    }
    put_varint(out, versions.len() as u64);
    for record in versions {
        put_bytes(out, &record.value);
        for number in [record.created, record.modified, record.version, record.lease as u64] {
            put_varint(out, number);
        }
    }
    put_bytes(out, key);
}

/// What a snapshot says of the log.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The log goes on after this sequence; zero without a snapshot.
    pub(crate) sequence: u64,
    /// Segments that must be there, by their first sequences.
    pub(crate) named: Vec<u64>,
}

/// Reads the newest snapshot into an empty state.
pub(crate) fn load(env: &Env, dir: &Path, state: &mut State, messages: &mut Messages, now: Instant) -> Result<Found> {
    let Some(mut reader) = SnapshotReader::newest(env, dir)? else { return Ok(Found::default()) };
    let mut parts = Parts::default();
    let mut found = Found { sequence: reader.sequence(), named: Vec::new() };
    while let Some(mut block) = reader.next_block()? {
        let read = match block.first() {
            Some(tag) if *tag >= 0x10 => {
                let tag = block.get_u8();
                messages.load(tag, &mut block, &mut found.named, now)
            }
            _ => parts.read(block, state, now),
        };
        read.ok_or_else(|| malformed(&reader, "a block is malformed"))?;
    }
    let (applied, compacted) = parts.revisions.ok_or_else(|| malformed(&reader, "the first block is missing"))?;
    state.restore((applied, compacted), parts.slots, parts.commits).map_err(|why| malformed(&reader, &why))?;
    Ok(found)
}

fn malformed(reader: &SnapshotReader, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the snapshot at {} has valid checksums but {why}", reader.sequence()))
}

#[derive(Default)]
struct Parts {
    revisions: Option<(u64, u64)>,
    slots: Vec<Versions>,
    commits: Vec<StoredCommit>,
}

impl Parts {
    fn read(&mut self, mut block: Bytes, state: &mut State, now: Instant) -> Option<()> {
        if !block.has_remaining() {
            return None;
        }
        match block.get_u8() {
            0x01 => {
                state.store_id = get_varint(&mut block)?;
                self.revisions = Some((get_varint(&mut block)?, get_varint(&mut block)?));
            }
            0x02 => {
                while block.has_remaining() {
                    let id = get_varint(&mut block)? as i64;
                    state.leases.insert(id, Duration::from_millis(get_varint(&mut block)?), now);
                }
            }
            0x03 => {
                while block.has_remaining() {
                    self.slots.push(decode_slot(&mut block)?);
                }
            }
            0x04 => {
                while block.has_remaining() {
                    self.commits.push(decode_commit(&mut block)?);
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn decode_slot(block: &mut Bytes) -> Option<Versions> {
    let count = get_varint(block)?;
    let mut versions = Vec::new();
    for _ in 0..count {
        let value = Bytes::copy_from_slice(&get_bytes(block)?);
        let mut numbers = [0; 4];
        for number in &mut numbers {
            *number = get_varint(block)?;
        }
        versions.push((value, numbers));
    }
    let key: Arc<[u8]> = Arc::from(&get_bytes(block)?[..]);
    let record = |(value, [created, modified, version, lease]): (Bytes, [u64; 4])| {
        Arc::new(Record { key: key.clone(), value, created, modified, version, lease: lease as i64 })
    };
    Some(versions.into_iter().map(record).collect())
}

fn decode_commit(block: &mut Bytes) -> Option<StoredCommit> {
    let (revision, time_ms, count) = (get_varint(block)?, get_varint(block)?, get_varint(block)?);
    let mut changed = Vec::new();
    for _ in 0..count {
        let key: SharedKey = Arc::from(&get_bytes(block)?[..]);
        changed.push((key, get_varint(block)? != 0));
    }
    Some(StoredCommit { revision, time_ms, changed })
}
