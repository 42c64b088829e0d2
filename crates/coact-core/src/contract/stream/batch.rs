//! Records as they travel and lie: encoded once by whoever produces them, stored as they came, read without a copy.
//!
//! ```text
//! record = place varint (after the batch's first offset), key length + 1 varint (0: none), key,
//!          value length varint, value, header count varint, (name length varint, name, value length varint, value)*
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Offset, StoredRecord};
use crate::{
    codec::{get_bytes, get_headers, get_varint, put_bytes, put_headers, put_varint, take},
    error::{Error, ErrorKind, Result},
};

/// One record, as a producer makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Records of one key keep their order.
    pub key: Option<Bytes>,
    /// What it says.
    pub value: Bytes,
    /// Names and values beside it, in order.
    pub headers: Vec<(String, Bytes)>,
}

impl Record {
    /// A record without a key.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// The same record with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same record with one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + headers + 8
    }
}

/// Encoded records of one partition: what is appended at once, and kept together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
    count: u32,
    span: u32,
}

impl Batch {
    /// Encodes records, in order.
    pub fn new<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut builder = BatchBuilder::default();
        records.into_iter().for_each(|record| builder.push(record));
        builder.finish()
    }

    /// Reads a batch that was encoded elsewhere, and verifies all of it.
    ///
    /// # Errors
    /// `Corrupt` if it is no batch.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let malformed = || Error::new(ErrorKind::Corrupt, "a batch of records is malformed");
        let (mut rest, mut count, mut span) = (bytes.clone(), 0u32, 0u64);
        while rest.has_remaining() {
            let (place, _) = decode_record(&mut rest).ok_or_else(malformed)?;
            if place < span {
                return Err(malformed());
            }
            span = place + 1;
            count = count.checked_add(1).ok_or_else(malformed)?;
        }
        Ok(Self { bytes, count, span: u32::try_from(span).map_err(|_| malformed())? })
    }

    /// A batch whose bytes were verified before, by [`decode`](Self::decode) and by a checksum since.
    pub fn trusted(bytes: Bytes, count: u32, span: u32) -> Self {
        Self { bytes, count, span }
    }

    /// The encoded records.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many records it has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many offsets it takes: more than [`count`](Self::count) if records were compacted away.
    pub fn span(&self) -> u32 {
        self.span
    }

    /// Whether every offset that it takes has a record, as in a batch that was never compacted.
    pub fn is_dense(&self) -> bool {
        self.count == self.span
    }

    /// The records, if the batch begins at this offset. They share the batch's memory.
    pub fn records(&self, first: Offset, time_ms: u64) -> impl Iterator<Item = StoredRecord> + use<> {
        let mut rest = self.bytes.clone();
        std::iter::from_fn(move || {
            let (place, record) = decode_record(&mut rest)?;
            Some(StoredRecord { offset: Offset(first.0 + place), time_ms, record })
        })
    }

    /// The batch with only the records for which `keep` holds, at the offsets that they had.
    #[must_use]
    pub fn retain(&self, mut keep: impl FnMut(u64, &Record) -> bool) -> Self {
        let (mut rest, mut bytes, mut count) = (self.bytes.clone(), BytesMut::new(), 0);
        while let Some((place, record)) = decode_record(&mut rest) {
            if keep(place, &record) {
                encode_record(&mut bytes, place, &record);
                count += 1;
            }
        }
        Self { bytes: bytes.freeze(), count, span: self.span }
    }
}

/// Gathers records into a batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    count: u32,
}

impl BatchBuilder {
    /// Adds a record at the end.
    pub fn push(&mut self, record: &Record) {
        encode_record(&mut self.bytes, self.count.into(), record);
        self.count += 1;
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many records there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The batch.
    pub fn finish(self) -> Batch {
        Batch { bytes: self.bytes.freeze(), count: self.count, span: self.count }
    }
}

fn encode_record(out: &mut BytesMut, place: u64, record: &Record) {
    out.reserve(record.size() + 8);
    put_varint(out, place);
    match &record.key {
        None => put_varint(out, 0),
        Some(key) => {
            put_varint(out, key.len() as u64 + 1);
            out.put_slice(key);
        }
    }
    put_bytes(out, &record.value);
    put_headers(out, &record.headers);
}

fn decode_record(rest: &mut Bytes) -> Option<(u64, Record)> {
    let place = get_varint(rest)?;
    let key = match get_varint(rest)? {
        0 => None,
        length => Some(take(rest, length - 1)?),
    };
    let (value, headers) = (get_bytes(rest)?, get_headers(rest)?);
    Some((place, Record { key, value, headers }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let headers = proptest::collection::vec(("[a-z]{0,9}", bytes()), 0..3);
        (proptest::option::of(bytes()), bytes(), headers).prop_map(|(key, value, headers)| Record {
            key,
            value,
            headers,
        })
    }

    proptest! {
        #[test]
        fn records_read_back(records in proptest::collection::vec(record(), 0..20)) {
            let batch = Batch::new(&records);
            let decoded = Batch::decode(batch.bytes().clone()).expect("a batch");
            prop_assert_eq!(&decoded, &batch);
            let found: Vec<_> = decoded.records(Offset(7), 9).collect();
            prop_assert_eq!(found.len(), records.len());
            for (index, (found, record)) in found.into_iter().zip(records).enumerate() {
                prop_assert_eq!(found, StoredRecord { offset: Offset(7 + index as u64), time_ms: 9, record });
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Batch::decode(Bytes::from(bytes));
        }

        #[test]
        fn what_is_retained_keeps_its_offsets(count in 1u64..30, keep in 1u64..5) {
            let records: Vec<_> = (0..count).map(|number| Record::new(number.to_string())).collect();
            let kept = Batch::new(&records).retain(|place, _| place % keep == 0);
            let offsets: Vec<_> = kept.records(Offset(100), 0).map(|record| record.offset.0).collect();
            prop_assert_eq!(offsets, (0..count).filter(|place| place % keep == 0).map(|place| 100 + place).collect::<Vec<_>>());
            prop_assert_eq!(u64::from(kept.span()), count);
        }
    }
}
