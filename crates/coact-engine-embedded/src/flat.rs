//! Requests on the flat, ordered key space: what the Kv contract and the etcd surface are both made of.
//!
//! The shapes and rules are etcd v3's, so that a surface only translates names. Keys are bytes; an empty `end` means
//! one key, `[0]` means "to the end of the key space".

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

/// One version of one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub key: Arc<[u8]>,
    /// What; empty in a tombstone.
    pub value: Bytes,
    /// The revision that created the key; zero in a tombstone.
    pub created: u64,
    /// The revision of this version.
    pub modified: u64,
    /// How many versions since the creation, this one included; zero in a tombstone.
    pub version: u64,
    /// The lease whose end deletes the key; zero for none.
    pub lease: i64,
}

impl Record {
    /// Whether this version says that the key is gone.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{}(created {}, version {}, {} bytes)",
            String::from_utf8_lossy(&self.key),
            self.modified,
            self.created,
            self.version,
            self.value.len()
        )
    }
}

/// A half-open range of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub start: Bytes,
    /// Empty: only `start`. `[0]`: every key from `start` on. Otherwise the first key that is not included.
    pub end: Bytes,
}

impl KeyRange {
    /// One key.
    pub fn one(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: Bytes::new() }
    }

    /// Every key that starts with `prefix`, which is not empty and does not consist of `0xff` only.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self { start, end: end.into() };
            }
        }
        Self { start, end: Bytes::from_static(&[0]) }
    }

    /// Whether the range is of one key.
    pub fn is_one(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether the key is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.end.is_empty() {
            return key == self.start;
        }
        key >= &self.start[..] && (self.end[..] == [0] || key < &self.end[..])
    }
}

/// Reads keys of a range.
#[derive(Clone, Debug, Default)]
pub struct RangeRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// The revision to read at; zero for now.
    pub revision: u64,
    /// The most records returned; zero for all.
    pub limit: usize,
    /// The order.
    pub sort: Sort,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Spare the counting of what the limit cuts off: `count` is then what was seen.
    pub skip_count: bool,
    /// Inclusive bounds on the revisions of what is returned; zero for none.
    pub modified: (u64, u64),
    /// Inclusive bounds on the creation revisions of what is returned; zero for none.
    pub created: (u64, u64),
}

/// The order of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sort {
    /// What is compared.
    pub by: SortBy,
    /// Greatest first.
    pub descending: bool,
}

/// What a sort compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// The number of versions.
    Version,
    /// The creation revision.
    Created,
    /// The last revision.
    Modified,
    /// The value.
    Value,
}

/// The answer to a [`RangeRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The records, with values unless only keys were asked for.
    pub records: Vec<Arc<Record>>,
    /// Whether the limit cut it off.
    pub more: bool,
    /// How many keys the range has, without limit and bounds.
    pub count: u64,
}

/// Sets a key.
#[derive(Clone, Debug, Default)]
pub struct PutRequest {
    /// Where.
    pub key: Bytes,
    /// What.
    pub value: Bytes,
    /// The lease whose end deletes it; zero for none.
    pub lease: i64,
    /// Return what was there before.
    pub previous: bool,
    /// Keep the value that is there; the key must exist.
    pub ignore_value: bool,
    /// Keep the lease that is there; the key must exist.
    pub ignore_lease: bool,
}

/// Deletes keys of a range.
#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    /// Which keys.
    pub keys: KeyRange,
    /// Return what was there before.
    pub previous: bool,
}

/// Adds to a decimal number.
#[derive(Clone, Debug)]
pub struct IncrementRequest {
    /// Where.
    pub key: Bytes,
    /// How much.
    pub by: i64,
}

/// Compares, then runs one of two lists, atomically.
#[derive(Clone, Debug, Default)]
pub struct TxnRequest {
    /// All must hold for success.
    pub compare: Vec<Compare>,
    /// What runs if they hold.
    pub success: Vec<Op>,
    /// What runs if not.
    pub failure: Vec<Op>,
}

/// One step of a transaction; each sees the effects of those before it.
#[derive(Clone, Debug)]
pub enum Op {
    /// A read.
    Range(RangeRequest),
    /// A write.
    Put(PutRequest),
    /// A deletion.
    Delete(DeleteRequest),
    /// An addition; not part of etcd's protocol.
    Increment(IncrementRequest),
    /// A transaction in the transaction.
    Txn(TxnRequest),
}

/// A condition on every key of a range (an absent key has version, revisions and lease zero, and no value).
#[derive(Clone, Debug)]
pub struct Compare {
    /// Which keys.
    pub keys: KeyRange,
    /// How.
    pub relation: Relation,
    /// With what.
    pub target: Target,
}

/// How two things compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `=`
    Equal,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `!=`
    NotEqual,
}

/// What is compared.
#[derive(Clone, Debug)]
pub enum Target {
    /// The number of versions.
    Version(u64),
    /// The creation revision.
    Created(u64),
    /// The last revision.
    Modified(u64),
    /// The value.
    Value(Bytes),
    /// The lease of the key.
    Lease(i64),
    /// That this lease is alive, whatever the keys; not part of etcd's protocol.
    LeaseAlive(i64),
}

/// The answer to a [`TxnRequest`].
#[derive(Clone, Debug, Default)]
pub struct TxnResponse {
    /// The first compare that did not hold, with the record that was there.
    pub failed: Option<(usize, Option<Arc<Record>>)>,
    /// One answer for each step of the list that ran.
    pub answers: Vec<Answer>,
    /// The revision after it.
    pub revision: u64,
}

/// The answer to one [`Op`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// To a range.
    Range(RangeResponse),
    /// To a put or an increment: what was there before, if asked for.
    Put(Option<Arc<Record>>),
    /// To a deletion.
    Delete {
        /// How many keys went away.
        deleted: u64,
        /// What was there before, if asked for.
        previous: Vec<Arc<Record>>,
    },
    /// To a transaction.
    Txn(TxnResponse),
}

/// One change, as a watch delivers it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The new version, or a tombstone.
    pub record: Arc<Record>,
    /// The version before, if the key existed.
    pub previous: Option<Arc<Record>>,
    /// Whether a lease's end deleted it.
    pub expired: bool,
}

/// One lease, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Its length when renewed.
    pub granted: Duration,
    /// What is left of it.
    pub left: Duration,
    /// The keys that its end deletes, sorted.
    pub keys: Vec<Arc<[u8]>>,
}

/// Why a flat request failed. Nothing was changed unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlatError {
    /// The revision is older than the history; the field is the oldest that can be read.
    Compacted(u64),
    /// The revision is in the future; the field is the current one.
    Future(u64),
    /// The lease does not exist, or has ended.
    LeaseNotFound,
    /// A lease of this name exists.
    LeaseExists,
    /// The put keeps the value or the lease of a key that does not exist.
    KeyNotFound,
    /// The increment met something that is not a decimal 64-bit number, or would pass its range.
    NotANumber(String),
    /// The transaction writes one key twice.
    DuplicateKey,
    /// The transaction writes or deletes more than one frame of the log holds; the field is how many bytes that is.
    TooLarge(usize),
    /// The engine stopped at a failed write; the text is the first failure. The request may have taken effect.
    Poisoned(String),
    /// The engine is closed.
    Closed,
}

/// The result of a flat request.
pub type FlatResult<T> = Result<T, FlatError>;
