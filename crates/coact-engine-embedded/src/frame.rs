//! Frames: how changes are written in the commit log.
//!
//! A batch of the log is a sequence of frames; a frame is one transaction: all of its changes or none. A change says
//! which contract it belongs to by the high half of its tag, so that later contracts (streams, queues) are more tags in
//! the same log, and one frame can span contracts.
//!
//! ```text
//! frame  = length varint, time (unix ms) varint, revision varint (0: none), change*
//! change = tag u8, fields; bytes are length-prefixed
//!   0x01 store created   id
//!   0x10 put             key, value, lease
//!   0x11 delete          key
//!   0x12 expire          key              (a delete by the end of a lease)
//!   0x13 compact         revision
//!   0x20 lease granted   id, ttl ms
//!   0x21 lease ended     id
//!   0x30 and on          streams and queues: see `message::change`
//! ```
//! The head of a frame has a fixed size: its varints are padded, so that the changes are written where they stay.

use bytes::{Buf, Bytes};
use coact_core::{
    Error, ErrorKind, Result,
    codec::{get_bytes, get_varint, put_bytes, put_varint},
};

use crate::{
    body::Place,
    message::{MessageChange, decode_body, encode_body},
};

/// One change of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    StoreCreated { id: u64 },
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes, expired: bool },
    Compact { revision: u64 },
    LeaseGranted { id: i64, ttl_ms: u64 },
    LeaseEnded { id: i64 },
    Message { change: MessageChange, body: Place },
}

/// A decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) time_ms: u64,
    pub(crate) revision: u64,
    pub(crate) changes: Vec<Change>,
}

/// Bytes of a frame's length, of its time, and of its revision.
const HEAD: [usize; 3] = [4, 7, 9];
const HEAD_BYTES: usize = HEAD[0] + HEAD[1] + HEAD[2];

/// Builds the payload of one batch, frame by frame; nothing is copied more than once.
#[derive(Debug, Default)]
pub(crate) struct BatchEncoder {
    batch: Vec<u8>,
    /// Where the frame begins that is being written.
    frame: Option<usize>,
    /// The address of the batch's first byte.
    address: u64,
    /// How many of its bytes are bodies, which a recovery only passes over.
    bodies: u64,
}

impl BatchEncoder {
    pub(crate) fn batch(&self) -> &[u8] {
        &self.batch
    }

    /// Begins the next batch, whose first byte has this address.
    pub(crate) fn clear(&mut self, address: u64) {
        self.batch.clear();
        self.address = address;
        self.bodies = 0;
    }

    /// About how much a recovery has to do with the batch, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        self.batch.len() as u64 - self.bodies + self.bodies / 8
    }

    /// The address after the last byte so far.
    pub(crate) fn end(&self) -> u64 {
        self.address + self.batch.len() as u64
    }

    /// Where the changes of the frame go.
    fn frame(&mut self) -> &mut Vec<u8> {
        if self.frame.is_none() {
            self.frame = Some(self.batch.len());
            self.batch.extend_from_slice(&[0; HEAD_BYTES]);
        }
        &mut self.batch
    }

    /// Writes a change of a stream or a queue, and returns where its body is.
    pub(crate) fn message(&mut self, change: &MessageChange, body: &[u8]) -> Place {
        let address = self.address;
        let frame = self.frame();
        change.encode(frame);
        if !change.has_body() {
            return Place::default();
        }
        let at = encode_body(frame, body);
        self.bodies += body.len() as u64;
        Place { address: address + at as u64, length: body.len() as u32 }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let frame = self.frame();
        frame.push(0x10);
        put_bytes(frame, key);
        put_bytes(frame, value);
        put_varint(frame, lease as u64);
    }

    pub(crate) fn delete(&mut self, key: &[u8], expired: bool) {
        let frame = self.frame();
        frame.push(if expired { 0x12 } else { 0x11 });
        put_bytes(frame, key);
    }

    pub(crate) fn compact(&mut self, revision: u64) {
        let frame = self.frame();
        frame.push(0x13);
        put_varint(frame, revision);
    }

    pub(crate) fn store_created(&mut self, id: u64) {
        let frame = self.frame();
        frame.push(0x01);
        put_varint(frame, id);
    }

    pub(crate) fn lease_granted(&mut self, id: i64, ttl_ms: u64) {
        let frame = self.frame();
        frame.push(0x20);
        put_varint(frame, id as u64);
        put_varint(frame, ttl_ms);
    }

    pub(crate) fn lease_ended(&mut self, id: i64) {
        let frame = self.frame();
        frame.push(0x21);
        put_varint(frame, id as u64);
    }

    /// Ends the frame; one without changes is left out.
    pub(crate) fn finish_frame(&mut self, time_ms: u64, revision: u64) {
        let Some(start) = self.frame.take() else { return };
        let (length, rest) = self.batch[start..].split_at_mut(HEAD[0]);
        let (time, changes) = rest.split_at_mut(HEAD[1]);
        pad_varint(length, (HEAD[1] + changes.len()) as u64);
        pad_varint(time, time_ms);
        pad_varint(&mut changes[..HEAD[2]], revision);
    }
}

/// Reads the frames of one batch, whose first byte has this address.
pub(crate) fn decode_batch(sequence: u64, address: u64, mut batch: Bytes) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let end = address + batch.len() as u64;
    while batch.has_remaining() {
        let frame = decode_frame(&mut batch, end).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("batch {sequence} of the log has a valid checksum but frame {} is malformed", frames.len()),
            )
        })?;
        frames.push(frame);
    }
    Ok(frames)
}

/// A frame of a batch that ends at an address.
fn decode_frame(batch: &mut Bytes, end: u64) -> Option<Frame> {
    let mut rest = get_bytes(batch)?;
    let end = end - batch.len() as u64;
    let time_ms = get_varint(&mut rest)?;
    let revision = get_varint(&mut rest)?;
    let mut changes = Vec::new();
    while rest.has_remaining() {
        changes.push(decode_change(&mut rest, end)?);
    }
    Some(Frame { time_ms, revision, changes })
}

fn decode_change(rest: &mut Bytes, end: u64) -> Option<Change> {
    Some(match rest.get_u8() {
        0x01 => Change::StoreCreated { id: get_varint(rest)? },
        0x10 => Change::Put { key: get_bytes(rest)?, value: get_bytes(rest)?, lease: get_varint(rest)? as i64 },
        0x11 => Change::Delete { key: get_bytes(rest)?, expired: false },
        0x12 => Change::Delete { key: get_bytes(rest)?, expired: true },
        0x13 => Change::Compact { revision: get_varint(rest)? },
        0x20 => Change::LeaseGranted { id: get_varint(rest)? as i64, ttl_ms: get_varint(rest)? },
        0x21 => Change::LeaseEnded { id: get_varint(rest)? as i64 },
        tag => {
            let change = MessageChange::decode(tag, rest)?;
            let body = if change.has_body() { decode_body(rest, end)? } else { Place::default() };
            Change::Message { change, body }
        }
    })
}

/// Writes a number as a varint of exactly this length.
fn pad_varint(out: &mut [u8], mut value: u64) {
    let last = out.len() - 1;
    for byte in &mut out[..last] {
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    out[last] = value as u8 & 0x7f;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_read_back() {
        let mut encoder = BatchEncoder::default();
        encoder.store_created(u64::MAX);
        encoder.finish_frame(0, 0);
        encoder.put(b"k", b"v", -1);
        encoder.delete(b"gone", true);
        encoder.lease_ended(7);
        encoder.finish_frame(1_700_000_000_000, 9);
        encoder.finish_frame(5, 5);
        encoder.compact(3);
        encoder.lease_granted(i64::MIN, 10_000);
        encoder.finish_frame(1, 0);
        let frames = decode_batch(1, 0, Bytes::copy_from_slice(encoder.batch())).expect("valid");
        assert_eq!(frames.len(), 3);
        assert_eq!(
            frames[1],
            Frame {
                time_ms: 1_700_000_000_000,
                revision: 9,
                changes: vec![
                    Change::Put { key: "k".into(), value: "v".into(), lease: -1 },
                    Change::Delete { key: "gone".into(), expired: true },
                    Change::LeaseEnded { id: 7 },
                ],
            }
        );
        assert_eq!(frames[2].changes[1], Change::LeaseGranted { id: i64::MIN, ttl_ms: 10_000 });
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_batch(1, 0, Bytes::from(bytes));
        }
    }
}
