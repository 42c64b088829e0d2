//! Changes that can be repeated: the record of a request commits in the same transaction as its effect.

use std::time::{Duration, Instant};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, LeaseId, Revision, Txn, TxnOutcome, Write},
    name::Key,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{Store, extract::IdempotencyKey};

/// For how long a request can be repeated, at least.
pub(super) const KEPT: Duration = Duration::from_secs(600);

const DIR: &str = "idempotency";

/// Where records of requests get their end from: one lease for all that are made within a while.
#[derive(Default)]
pub(super) struct Records {
    lease: Mutex<Option<(LeaseId, Instant)>>,
}

/// How a change ended.
pub(super) enum Outcome {
    Committed {
        revision: u64,
        reads: Vec<Found>,
        /// An earlier request did it.
        repeated: bool,
    },
    Refused {
        check: usize,
        found: Option<Entry>,
    },
}

impl Records {
    /// Runs a transaction; under a key, at most once.
    pub(super) async fn run(&self, store: &Store, key: Option<IdempotencyKey>, mut txn: Txn) -> Result<Outcome> {
        let Some(IdempotencyKey(text)) = key else {
            return Ok(match store.kv.txn(&store.realm, txn).await? {
                TxnOutcome::Committed { revision, reads } => committed(revision, reads),
                TxnOutcome::Refused { check, found } => Outcome::Refused { check, found },
            });
        };
        let request = digest(format!("{txn:?}").as_bytes());
        let record = Key::new(&store.realm, DIR, &digest(text.as_bytes()))?;
        let lease = Some(self.lease(store).await?);
        txn.checks.insert(0, Check::Absent(record.clone()));
        txn.writes.push(Write::Put { key: record.clone(), value: Bytes::from(request.clone()), lease });
        match store.kv.txn(&store.realm, txn).await? {
            TxnOutcome::Committed { revision, reads } => Ok(committed(revision, reads)),
            TxnOutcome::Refused { check: 0, found } => repeat(&request, found, store, &record).await,
            TxnOutcome::Refused { check, found } => Ok(Outcome::Refused { check: check - 1, found }),
        }
    }

    /// A lease with at least [`KEPT`] to live.
    async fn lease(&self, store: &Store) -> Result<LeaseId> {
        let now = store.kv.env().now();
        if let Some((lease, until)) = *self.lease.lock()
            && now + KEPT < until
        {
            return Ok(lease);
        }
        let lease = store.kv.lease_grant(2 * KEPT).await?;
        *self.lease.lock() = Some((lease.id, now + lease.ttl));
        Ok(lease.id)
    }
}

async fn repeat(request: &str, found: Option<Entry>, store: &Store, record: &Key) -> Result<Outcome> {
    let found = match found {
        Some(found) => Some(found),
        None => store.kv.get(record).await?,
    };
    match found {
        Some(found) if found.value == request.as_bytes() => {
            Ok(Outcome::Committed { revision: found.created.0, reads: Vec::new(), repeated: true })
        }
        Some(_) => Err(Error::new(
            ErrorKind::Conflict,
            "this idempotency key was used for another request: use a new one for each change",
        )),
        None => Err(Error::new(ErrorKind::Unavailable, "the record of the request ended just now")),
    }
}

fn committed(revision: Revision, reads: Vec<Found>) -> Outcome {
    Outcome::Committed { revision: revision.0, reads, repeated: false }
}

/// 128 bits of SHA-256, in hexadecimal.
pub(super) fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
