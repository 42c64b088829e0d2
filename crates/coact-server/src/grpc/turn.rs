//! Whose turn it is: what lock and election share.
//!
//! Each lease has one key under a name, `name/<lease in hex>`, and the key that was created first has its turn. Who
//! waits, waits for the key before its own to go away, so a release wakes one waiter. This is etcd's layout: clients
//! that do the same from outside, such as `etcdctl lock`, queue up in the same line.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coact_engine_embedded::flat::{
    Answer, Compare, DeleteRequest, KeyRange, Op, PutRequest, RangeRequest, Record, Relation, Sort, SortBy, Target,
    TxnRequest,
};
use tonic::Status;

use super::{
    Node,
    errors::{Refusal, STOPPED, failed, relayed, wrong_answer},
};

/// The lease that is granted to who brings none, as by etcd.
const SESSION_TTL: Duration = Duration::from_secs(60);

/// A place in the line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) key: Bytes,
    /// The revision that created the key: it orders the line.
    pub(super) created: u64,
    pub(super) lease: i64,
    /// The revision at which the place was taken or found.
    pub(super) revision: u64,
    /// What the key held, if the lease had a place already.
    pub(super) found: Option<Bytes>,
}

/// Everything under a name.
pub(super) fn line(name: &Bytes) -> KeyRange {
    KeyRange::prefix([name, &b"/"[..]].concat())
}

/// The key that was created at this revision is still there.
pub(super) fn created_at(key: &Bytes, revision: u64) -> Compare {
    Compare { keys: KeyRange::one(key.clone()), relation: Relation::Equal, target: Target::Created(revision) }
}

impl Node {
    /// Takes a place in the line, waits for the turn, and leaves the line if the caller goes away or it fails.
    ///
    /// `prepare` runs between the two, on the place that was taken. Returns the place, and the revision at which it
    /// was seen to have its turn.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the key, unless the lease had it before.
    pub(super) async fn take_turn(
        &self,
        name: &Bytes,
        lease: i64,
        value: Bytes,
        expired: Refusal,
        prepare: impl AsyncFnOnce(&Place) -> Result<(), Status> + Send,
    ) -> Result<(Place, u64), Status> {
        let lease = if lease == 0 { self.new_session().await? } else { lease };
        let key = place_key(name, lease);
        let withdrawal =
            Withdrawal { node: self.clone(), key: key.clone(), after: self.engine.revision(), armed: true };
        let place = self.join(key, lease, value).await?;
        prepare(&place).await?;
        let revision = self.wait_for_turn(&line(name), &place, expired).await?;
        withdrawal.disarm();
        Ok((place, revision))
    }

    /// The record under a name that has its turn, and the revision of the look.
    pub(super) async fn first(&self, line: KeyRange) -> Result<(Option<Arc<Record>>, u64), Status> {
        let request = RangeRequest {
            keys: line,
            limit: 1,
            sort: Sort { by: SortBy::Created, descending: false },
            skip_count: true,
            ..RangeRequest::default()
        };
        let (found, revision) = self.engine.range(request).await.map_err(failed)?;
        Ok((found.records.into_iter().next(), revision))
    }

    async fn new_session(&self) -> Result<i64, Status> {
        let (lease, _) = self.engine.lease_grant(0, SESSION_TTL).await.map_err(failed)?;
        Ok(lease)
    }

    async fn join(&self, key: Bytes, lease: i64, value: Bytes) -> Result<Place, Status> {
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let look = RangeRequest { keys: KeyRange::one(key.clone()), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![Op::Put(put)],
            failure: vec![Op::Range(look)],
        };
        let response = self.engine.txn(request).await.map_err(relayed)?;
        let revision = response.revision;
        let found = match response.answers.into_iter().next() {
            Some(Answer::Put(_)) => return Ok(Place { key, created: revision, lease, revision, found: None }),
            Some(Answer::Range(found)) => found.records.into_iter().next().ok_or_else(wrong_answer)?,
            _ => return Err(wrong_answer()),
        };
        Ok(Place { key, created: found.created, lease, revision, found: Some(found.value.clone()) })
    }

    /// Returns the revision at which the place was seen to be first.
    async fn wait_for_turn(&self, line: &KeyRange, place: &Place, expired: Refusal) -> Result<u64, Status> {
        let mut signal = self.signal.clone();
        loop {
            let (predecessor, revision) = self.before(line, place.created).await?;
            if !self.still_holds(place).await? {
                return Err(expired.into());
            }
            let Some(predecessor) = predecessor else { return Ok(revision) };
            // A wake-up is a hint; the next round looks again. One's own key is watched too, since a lease that ends
            // ends the wait.
            tokio::select! {
                gone = self.engine.await_gone(&predecessor.key, predecessor.created) => gone.map_err(failed)?,
                gone = self.engine.await_gone(&place.key, place.created) => gone.map_err(failed)?,
                () = signal.draining() => return Err(STOPPED.into()),
            }
        }
    }

    /// The one who is next before this creation revision.
    async fn before(&self, line: &KeyRange, created: u64) -> Result<(Option<Arc<Record>>, u64), Status> {
        let request = RangeRequest {
            keys: line.clone(),
            limit: 1,
            sort: Sort { by: SortBy::Created, descending: true },
            keys_only: true,
            skip_count: true,
            created: (0, created.saturating_sub(1).max(1)),
            ..RangeRequest::default()
        };
        let (found, revision) = self.engine.range(request).await.map_err(failed)?;
        Ok((found.records.into_iter().next(), revision))
    }

    async fn still_holds(&self, place: &Place) -> Result<bool, Status> {
        let request =
            RangeRequest { keys: KeyRange::one(place.key.clone()), keys_only: true, ..RangeRequest::default() };
        let (found, _) = self.engine.range(request).await.map_err(failed)?;
        Ok(found.records.iter().any(|record| record.created == place.created))
    }
}

fn place_key(name: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [&name[..], format!("/{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// Takes the key out again if it was created since, unless disarmed.
struct Withdrawal {
    node: Node,
    key: Bytes,
    /// The key was not there, or was another's, at this revision.
    after: u64,
    armed: bool,
}

impl Withdrawal {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let engine = self.node.engine.clone();
        let keys = KeyRange::one(self.key.clone());
        let since = Compare { keys: keys.clone(), relation: Relation::Greater, target: Target::Created(self.after) };
        let delete = Op::Delete(DeleteRequest { keys, previous: false });
        let request = TxnRequest { compare: vec![since], success: vec![delete], failure: Vec::new() };
        self.node.env().spawn(async move {
            // If it fails, the engine is closing, and the end of the lease does it.
            let _ = engine.txn(request).await;
        });
    }
}
