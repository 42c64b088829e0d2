//! A commit over several contracts: everything in it happens, or nothing does.

use bytes::Bytes;

use super::{
    kv,
    queue::{Enqueued, NewJob, Settle, Settled},
    stream::{Append, Appended, DelayId, Delayed, OffsetCommit},
};
use crate::name::{Queue, Realm};

/// What one commit does, in every contract that the engine declares for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// A transaction of the Kv contract. If one of its checks does not hold, nothing of this commit happens.
    pub kv: Option<(Realm, kv::Txn)>,
    /// Batches to append.
    pub appends: Vec<Append>,
    /// Records for later.
    pub delayed: Vec<Delayed>,
    /// How far a group came.
    pub offsets: Option<OffsetCommit>,
    /// Jobs to enqueue.
    pub jobs: Vec<(Queue, NewJob)>,
    /// Claims to settle. If one is fenced, nothing of this commit happens.
    pub settle: Vec<(Queue, Settle)>,
}

/// How a commit ended. A refusal is an outcome, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a refused commit changed nothing"]
pub enum CommitOutcome {
    /// Everything happened, and is as durable as the engine declares.
    Committed(Committed),
    /// A check of the Kv transaction did not hold; nothing was changed.
    Refused {
        /// The index of the first check that failed.
        check: usize,
        /// The entry that was there instead, for checks of a key.
        found: Option<kv::Entry>,
    },
}

/// The answers to the parts of a commit, each in the order of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The revision of the Kv transaction and the answers to its reads.
    pub kv: Option<(kv::Revision, Vec<kv::Found>)>,
    /// For each append.
    pub appended: Vec<Appended>,
    /// For each delayed record.
    pub delayed: Vec<DelayId>,
    /// For each job.
    pub jobs: Vec<Enqueued>,
    /// For each claim.
    pub settled: Vec<Settled>,
}

impl Commit {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// About how many bytes it carries.
    pub fn bytes(&self) -> usize {
        let appends: usize = self.appends.iter().map(|append| append.batch.bytes().len()).sum();
        let delayed: usize = self.delayed.iter().map(|delayed| delayed.record.size()).sum();
        let jobs: usize = self.jobs.iter().map(|(_, job)| job.size()).sum();
        appends + delayed + jobs
    }
}

impl Committed {
    /// The answer to the only append.
    pub fn appended(&self) -> Option<Appended> {
        self.appended.first().copied()
    }
}

/// The most bytes of the note that a group keeps with an offset.
pub const METADATA_BYTES_MAX: usize = 4096;

/// Whether a note fits.
pub(crate) fn metadata_fits(metadata: &Bytes) -> bool {
    metadata.len() <= METADATA_BYTES_MAX
}
