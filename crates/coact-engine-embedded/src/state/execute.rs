//! Transactions: decide every comparison first, check what could fail, then apply what cannot.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{MAX_LEASE, State, range::WORKING};
use crate::{
    flat::{
        Answer, Compare, Event, FlatError, FlatResult, IncrementRequest, KeyRange, Op, PutRequest, RangeRequest,
        RangeResponse, Record, Relation, Target, TxnRequest, TxnResponse,
    },
    frame::BatchEncoder,
};

/// One transaction on its way: the state it changes, the frame it writes, the events it makes.
pub(crate) struct Transaction<'a> {
    state: &'a mut State,
    frame: &'a mut BatchEncoder,
    time_ms: u64,
    events: Vec<Event>,
}

/// What a change takes besides its key and value, at most.
const CHANGE_BYTES: usize = 24;
/// The most bytes of one frame: a batch of the log holds several.
const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The first compare that did not hold, with what was there.
type Failed = Option<(usize, Option<Arc<Record>>)>;

/// Which branch each transaction takes, outer ones first, as decided before anything is applied, and what it writes.
#[derive(Default)]
struct Plan {
    failed: Vec<Failed>,
    put: Vec<Bytes>,
    deleted: Vec<KeyRange>,
    /// About how large the frame becomes.
    bytes: usize,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(state: &'a mut State, frame: &'a mut BatchEncoder, time_ms: u64) -> Self {
        Self { state, frame, time_ms, events: Vec::new() }
    }

    /// Runs a request as a frame of its own. An error changes nothing.
    pub(crate) fn run(mut self, request: &TxnRequest) -> FlatResult<TxnResponse> {
        let mut response = self.execute(request)?;
        self.commit();
        response.revision = self.state.applied;
        Ok(response)
    }

    /// Runs a request as a part of the frame that is being written, and returns the revision that the frame then has;
    /// zero if the request writes nothing. An error changes nothing.
    pub(crate) fn run_in_frame(mut self, request: &TxnRequest) -> FlatResult<(TxnResponse, u64)> {
        let mut response = self.execute(request)?;
        let revision = self.revision();
        self.state.end_commit(self.time_ms, std::mem::take(&mut self.events));
        response.revision = self.state.applied;
        Ok((response, revision))
    }

    fn execute(&mut self, request: &TxnRequest) -> FlatResult<TxnResponse> {
        let mut plan = Plan::default();
        self.decide(request, &mut plan);
        self.check(request, &mut plan, &mut 0)?;
        Ok(self.apply(request, &mut plan.failed.into_iter()))
    }

    /// Grants a lease.
    pub(crate) fn grant(self, id: i64, ttl: Duration, now: Instant) -> FlatResult<()> {
        if self.state.leases.contains(id) {
            return Err(FlatError::LeaseExists);
        }
        let ttl = ttl.min(MAX_LEASE);
        self.state.leases.insert(id, ttl, now);
        self.frame.lease_granted(id, ttl.as_millis() as u64);
        self.frame.finish_frame(self.time_ms, 0);
        Ok(())
    }

    /// Ends a lease and deletes its keys.
    pub(crate) fn revoke(mut self, id: i64, expired: bool, now: Instant) -> FlatResult<()> {
        let keys = self.state.leases.end(id, now).ok_or(FlatError::LeaseNotFound)?;
        self.frame.lease_ended(id);
        for key in &keys {
            self.delete(key, expired);
        }
        self.commit();
        Ok(())
    }

    fn commit(&mut self) {
        self.frame.finish_frame(self.time_ms, self.revision());
        self.state.end_commit(self.time_ms, std::mem::take(&mut self.events));
    }

    /// What the frame's revision is: zero without events.
    fn revision(&self) -> u64 {
        if self.events.is_empty() { 0 } else { self.state.applied + 1 }
    }

    fn decide(&self, request: &TxnRequest, plan: &mut Plan) {
        let failed = request.compare.iter().enumerate().find_map(|(index, compare)| {
            (!self.holds(compare)).then(|| (index, self.state.current(&compare.keys.start).cloned()))
        });
        let branch = if failed.is_none() { &request.success } else { &request.failure };
        plan.failed.push(failed);
        for op in branch {
            if let Op::Txn(inner) = op {
                self.decide(inner, plan);
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        if let Target::LeaseAlive(id) = compare.target {
            return self.state.leases.contains(id);
        }
        if self.state.ignore_created_check && matches!(compare.target, Target::Created(revision) if revision != 0) {
            return true;
        }
        let mut records = self.state.slots(&compare.keys).filter_map(|slot| slot.at(WORKING)).peekable();
        if records.peek().is_none() {
            return absent_holds(compare);
        }
        records.all(|record| record_holds(compare, record))
    }

    fn check(&self, request: &TxnRequest, plan: &mut Plan, index: &mut usize) -> FlatResult<()> {
        let branch = if plan.failed[*index].is_none() { &request.success } else { &request.failure };
        *index += 1;
        for op in branch {
            match op {
                Op::Range(range) => self.state.check_revision(range.revision, self.state.applied)?,
                Op::Put(put) => self.check_put(put, plan)?,
                Op::Increment(increment) => self.check_increment(increment, plan)?,
                Op::Delete(delete) => self.check_delete(&delete.keys, plan)?,
                Op::Txn(inner) => self.check(inner, plan, index)?,
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &PutRequest, plan: &mut Plan) -> FlatResult<()> {
        claim(plan, &put.key)?;
        plan.grow(put.key.len() + put.value.len() + CHANGE_BYTES)?;
        if (put.ignore_value || put.ignore_lease) && self.state.current(&put.key).is_none() {
            return Err(FlatError::KeyNotFound);
        }
        if !put.ignore_lease && put.lease != 0 && !self.state.leases.contains(put.lease) {
            return Err(FlatError::LeaseNotFound);
        }
        Ok(())
    }

    fn check_delete(&self, keys: &KeyRange, plan: &mut Plan) -> FlatResult<()> {
        claim_range(plan, keys)?;
        if keys.is_one() {
            return Ok(());
        }
        let doomed = self.state.slots(keys).filter_map(|slot| slot.at(WORKING));
        plan.grow(doomed.map(|record| record.key.len() + CHANGE_BYTES).sum())
    }

    fn check_increment(&self, increment: &IncrementRequest, plan: &mut Plan) -> FlatResult<()> {
        claim(plan, &increment.key)?;
        self.sum(increment).map(|_| ())
    }

    fn sum(&self, increment: &IncrementRequest) -> FlatResult<i64> {
        let Some(record) = self.state.current(&increment.key) else { return Ok(increment.by) };
        let text = String::from_utf8_lossy(&record.value);
        let number = text.parse::<i64>().ok().and_then(|number| number.checked_add(increment.by));
        number.ok_or_else(|| FlatError::NotANumber(text.chars().take(40).collect()))
    }

    fn apply(&mut self, request: &TxnRequest, failed: &mut dyn Iterator<Item = Failed>) -> TxnResponse {
        let failed_here = failed.next().flatten();
        let branch = if failed_here.is_none() { &request.success } else { &request.failure };
        let answers = branch
            .iter()
            .map(|op| match op {
                Op::Range(range) => Answer::Range(self.range(range)),
                Op::Put(put) => Answer::Put(self.put(put)),
                Op::Increment(increment) => Answer::Put(self.increment(increment)),
                Op::Delete(delete) => self.delete_range(&delete.keys, delete.previous),
                Op::Txn(inner) => Answer::Txn(self.apply(inner, failed)),
            })
            .collect();
        TxnResponse { failed: failed_here, answers, revision: self.state.applied }
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let revision = if request.revision == 0 { WORKING } else { request.revision };
        self.state.range_at(request, revision)
    }

    fn put(&mut self, put: &PutRequest) -> Option<Arc<Record>> {
        // A copy of its own, lest a small value keep a whole request in memory.
        let (mut value, mut lease) = (Bytes::copy_from_slice(&put.value), put.lease);
        if (put.ignore_value || put.ignore_lease)
            && let Some(current) = self.state.current(&put.key)
        {
            value = if put.ignore_value { current.value.clone() } else { value };
            lease = if put.ignore_lease { current.lease } else { lease };
        }
        self.frame.put(&put.key, &value, lease);
        let event = self.state.put(&put.key, value, lease);
        let previous = event.previous.clone();
        self.events.push(event);
        previous.filter(|_| put.previous)
    }

    fn increment(&mut self, increment: &IncrementRequest) -> Option<Arc<Record>> {
        let sum = self.sum(increment).unwrap_or(increment.by);
        let lease = self.state.current(&increment.key).map_or(0, |record| record.lease);
        let value = Bytes::from(sum.to_string());
        self.frame.put(&increment.key, &value, lease);
        let event = self.state.put(&increment.key, value, lease);
        let previous = event.previous.clone();
        self.events.push(event);
        previous
    }

    fn delete_range(&mut self, keys: &KeyRange, previous: bool) -> Answer {
        let first = self.events.len();
        if keys.is_one() {
            self.delete(&keys.start, false);
        } else {
            let doomed: Vec<_> = self.state.slots(keys).filter_map(|slot| slot.at(WORKING)).cloned().collect();
            doomed.iter().for_each(|record| self.delete(&record.key, false));
        }
        let gone = self.events[first..].iter();
        let deleted = gone.len() as u64;
        Answer::Delete {
            deleted,
            previous: if previous { gone.filter_map(|event| event.previous.clone()).collect() } else { Vec::new() },
        }
    }

    fn delete(&mut self, key: &[u8], expired: bool) {
        if let Some(event) = self.state.delete(key, expired) {
            self.frame.delete(key, expired);
            self.events.push(event);
        }
    }
}

impl Plan {
    fn grow(&mut self, bytes: usize) -> FlatResult<()> {
        self.bytes += bytes;
        if self.bytes > FRAME_BYTES_MAX { Err(FlatError::TooLarge(FRAME_BYTES_MAX)) } else { Ok(()) }
    }
}

/// Takes note of a key that is put, and refuses it the second time.
fn claim(plan: &mut Plan, key: &Bytes) -> FlatResult<()> {
    if plan.put.contains(key) || plan.deleted.iter().any(|keys| keys.contains(key)) {
        return Err(FlatError::DuplicateKey);
    }
    plan.put.push(key.clone());
    Ok(())
}

/// Takes note of a range that is deleted; ranges may overlap each other, but not a put.
fn claim_range(plan: &mut Plan, keys: &KeyRange) -> FlatResult<()> {
    if plan.put.iter().any(|key| keys.contains(key)) {
        return Err(FlatError::DuplicateKey);
    }
    plan.deleted.push(keys.clone());
    Ok(())
}

fn absent_holds(compare: &Compare) -> bool {
    match &compare.target {
        Target::Version(number) | Target::Created(number) | Target::Modified(number) => {
            relates(compare.relation, &0, number)
        }
        Target::Lease(lease) => relates(compare.relation, &0, lease),
        // There is no telling an absent value from an empty one, so no comparison with it holds.
        Target::Value(_) | Target::LeaseAlive(_) => false,
    }
}

fn record_holds(compare: &Compare, record: &Record) -> bool {
    match &compare.target {
        Target::Version(number) => relates(compare.relation, &record.version, number),
        Target::Created(number) => relates(compare.relation, &record.created, number),
        Target::Modified(number) => relates(compare.relation, &record.modified, number),
        Target::Lease(lease) => relates(compare.relation, &record.lease, lease),
        Target::Value(value) => relates(compare.relation, &record.value, value),
        Target::LeaseAlive(_) => false,
    }
}

fn relates<T: Ord>(relation: Relation, have: &T, want: &T) -> bool {
    match relation {
        Relation::Equal => have == want,
        Relation::Greater => have > want,
        Relation::Less => have < want,
        Relation::NotEqual => have != want,
    }
}
