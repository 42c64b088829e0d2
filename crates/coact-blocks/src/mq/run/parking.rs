//! Parking the records of a key, and bringing them back: each step is one commit, so that a crash falls between steps.
//!
//! The marker, the parked records and how far the group came change together, and only while the partition is this
//! consumer's. While a key has a marker, nothing later of it is processed; the marker goes with the last record that came
//! back.

use std::{collections::VecDeque, sync::Arc};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        commit::Commit,
        kv::{Check, Entry, Revision, Txn, Write},
        stream::{Append, Batch, Offset, Read, Record, StoredRecord},
    },
    name::Dir,
};
use futures::FutureExt;

use super::{
    Call, Done, Message, Work,
    lane::{Lane, LaneId, Which},
};
use crate::{
    json::{read, to_bytes},
    mq::{
        consumer::{Busy, Delivery, Outcome, settle, state::Shared},
        group::TopicPartition,
        parked::{Marker, name, show},
        retry::{KeyHash, ORIGIN_HEADER, ensure_beside, hash, header, origin, parked_topic, shorten},
    },
};

/// Parks keys of one group.
#[derive(Clone, Debug)]
pub(super) struct Parking {
    pub(super) shared: Arc<Shared>,
    pub(super) dir: Dir,
}

/// What a step did to the marker of a key.
#[derive(Debug)]
pub(super) enum Step {
    /// It is this now.
    Wrote((Marker, Revision)),
    /// It is gone: the key is as any other.
    Gone,
    /// Nothing.
    Nothing,
    /// Somebody else had changed it to this, so nothing happened.
    Found(Option<(Marker, Revision)>),
}

/// Where a key is among its parked records.
#[derive(Debug, Default)]
pub(super) struct Back {
    records: VecDeque<StoredRecord>,
    next: Offset,
    attempts: u32,
    failed: bool,
    stopped: bool,
}

impl Back {
    /// Whether the last record failed.
    pub(super) fn failed(&self) -> bool {
        self.failed && !self.stopped
    }

    /// Whether there may be more to bring back.
    pub(super) fn goes_on(&self) -> bool {
        !self.stopped
    }
}

/// How many records are parked at once.
const RECORDS_MAX: usize = 200;
const BYTES_MAX: usize = 1024 * 1024;
const READ_BYTES: usize = 1024 * 1024;

impl Parking {
    /// Parks the head of a lane and what follows it.
    pub(super) fn park<'a>(&self, id: LaneId, lane: &mut Lane, marker: Option<(Marker, Revision)>) -> Option<Work<'a>> {
        let Which::Key(hash) = id.which else { return None };
        let (mut deliveries, mut bytes) = (Vec::new(), 0);
        while let Some(next) = lane.queue.front() {
            bytes += next.message().size();
            if !deliveries.is_empty() && (bytes > BYTES_MAX || deliveries.len() >= RECORDS_MAX) {
                break;
            }
            deliveries.extend(lane.queue.pop_front());
        }
        let why = lane.verdict.clone();
        let (parking, era, attempts) = (self.clone(), lane.era, lane.attempts);
        let work = async move {
            let step = parking.move_away(&id.place, era, &hash, marker, &deliveries, why, attempts).await;
            (id, era, Done::Parked(deliveries, step))
        };
        Some(work.boxed())
    }

    #[allow(clippy::too_many_arguments, reason = "one step of one key, with all that it changes")]
    async fn move_away(
        &self,
        place: &TopicPartition,
        era: u64,
        hash: &KeyHash,
        marker: Option<(Marker, Revision)>,
        deliveries: &[Delivery],
        why: Option<String>,
        attempts: u32,
    ) -> Result<Step> {
        let streams = &self.shared.streams;
        let topic = parked_topic(&place.topic, &self.shared.group)?;
        ensure_beside(streams, &place.topic, &topic).await?;
        let now_ms = streams.env().wall_ms();
        let (before, modified) = match marker {
            Some((marker, modified)) => (marker, Some(modified)),
            None => {
                let key = deliveries.first().and_then(|delivery| delivery.message().key.as_ref());
                let new = Marker {
                    key: key.map(show).unwrap_or_default(),
                    parked: 0,
                    done: 0,
                    from: streams.bounds(&topic, place.partition).await?.end.0,
                    error: shorten(why.as_deref().unwrap_or_default()),
                    attempts,
                    since_ms: now_ms,
                    last_ms: now_ms,
                    redrive: false,
                    nonce: 0,
                };
                (new, None)
            }
        };
        let parked = before.parked + deliveries.len() as u64;
        let after = Marker { parked, last_ms: now_ms, nonce: streams.env().random(), ..before };
        let records = deliveries.iter().map(|delivery| with_origin(place, delivery.record()));
        let batch = Batch::new(&records.collect::<Vec<_>>());
        let append = Append { topic, partition: place.partition, batch, stamp: None, expect: None };
        if modified.is_none() {
            tracing::warn!(topic = %place.topic, partition = place.partition, key = after.key, error = after.error, "a key is parked");
        }
        self.write(place, era, hash, modified, Some(after), deliveries, vec![append]).await
    }

    /// Brings the next parked record of a key back.
    pub(super) fn bring_back<'a>(
        &self,
        id: LaneId,
        era: u64,
        marker: (Marker, Revision),
        mut back: Back,
        call: &'a Call<'a>,
        max_attempts: u32,
    ) -> Option<Work<'a>> {
        let Which::Key(hash) = id.which else { return None };
        let (parking, busy) = (self.clone(), Busy::new(&self.shared, &id.place));
        let work = async move {
            let _busy = busy;
            let step = parking.step_back(&id.place, era, &hash, marker, &mut back, call, max_attempts).await;
            (id, era, Done::Back(Box::new(back), step))
        };
        Some(work.boxed())
    }

    #[allow(clippy::too_many_arguments, reason = "one step of one key, with all that it changes")]
    async fn step_back(
        &self,
        place: &TopicPartition,
        era: u64,
        hash: &KeyHash,
        (marker, modified): (Marker, Revision),
        back: &mut Back,
        call: &Call<'_>,
        max_attempts: u32,
    ) -> Result<Step> {
        back.failed = false;
        self.read_on(place, hash, &marker, back).await?;
        let Some(parked) = back.records.front() else {
            // Nothing of the key is left.
            return self.write(place, era, hash, Some(modified), None, &[], Vec::new()).await;
        };
        let attempt = back.attempts + 1;
        let message =
            Message { topic: place.topic.clone(), partition: place.partition, stored: original(parked), attempt };
        if let Err(why) = call(message).await {
            back.attempts = attempt;
            back.failed = true;
            if attempt < max_attempts {
                return Ok(Step::Nothing);
            }
            back.stopped = true;
            let nonce = self.shared.streams.env().random();
            let error = shorten(&why);
            let stays =
                Marker { redrive: false, error, attempts: marker.attempts.saturating_add(attempt), nonce, ..marker };
            return self.write(place, era, hash, Some(modified), Some(stays), &[], Vec::new()).await;
        }
        let (done, from) = (marker.done + 1, parked.offset.0 + 1);
        let nonce = self.shared.streams.env().random();
        let after = (done < marker.parked).then_some(Marker { done, from, nonce, ..marker });
        let step = self.write(place, era, hash, Some(modified), after, &[], Vec::new()).await?;
        if let Step::Found(_) = step {
            // It was done, but that is not known: it is done again.
            return Ok(step);
        }
        back.records.pop_front();
        back.attempts = 0;
        Ok(step)
    }

    /// Reads parked records until one of the key is there, or the end.
    async fn read_on(&self, place: &TopicPartition, key: &KeyHash, marker: &Marker, back: &mut Back) -> Result<()> {
        let topic = parked_topic(&place.topic, &self.shared.group)?;
        back.next = back.next.max(Offset(marker.from));
        while back.records.is_empty() {
            let wanted = Read {
                topic: topic.clone(),
                partition: place.partition,
                from: back.next,
                max_bytes: READ_BYTES,
                wait: std::time::Duration::ZERO,
            };
            let fetched = self.shared.streams.read(wanted).await?;
            let of_key = |stored: &StoredRecord| stored.record.key.as_ref().is_some_and(|found| hash(found) == *key);
            back.records.extend(fetched.records(back.next).filter(of_key));
            let next = fetched.next.max(fetched.start);
            if next <= back.next || (fetched.batches.is_empty() && next >= fetched.end) {
                return Ok(());
            }
            back.next = next;
        }
        Ok(())
    }

    /// Writes a marker, or deletes it, together with how far the group is and what is parked.
    #[allow(clippy::too_many_arguments, reason = "one step of one key, with all that it changes")]
    async fn write(
        &self,
        place: &TopicPartition,
        era: u64,
        hash: &KeyHash,
        modified: Option<Revision>,
        after: Option<Marker>,
        deliveries: &[Delivery],
        appends: Vec<Append>,
    ) -> Result<Step> {
        let key = self.dir.key(&name(place, hash))?;
        let check = match modified {
            Some(modified) => Check::ModifiedAt(key.clone(), modified),
            None => Check::Absent(key.clone()),
        };
        let write = match &after {
            Some(marker) => Write::Put { key, value: to_bytes(marker)?, lease: None },
            None => Write::Delete(key),
        };
        let txn = Txn { checks: vec![check], writes: vec![write], ..Txn::default() };
        let commit = Commit { kv: Some((self.dir.realm().clone(), txn)), appends, ..Commit::default() };
        match settle(&self.shared, place, era, deliveries, commit, true).await? {
            Outcome::Refused(found) => Ok(Step::Found(found.as_ref().and_then(marker_of))),
            Outcome::Done(revision) => match (after, revision) {
                (None, _) => Ok(Step::Gone),
                (Some(marker), Some(revision)) => Ok(Step::Wrote((marker, revision))),
                (Some(_), None) => Err(Error::new(ErrorKind::Internal, "an engine wrote an entry without a revision")),
            },
        }
    }
}

fn marker_of(entry: &Entry) -> Option<(Marker, Revision)> {
    Some((read(entry)?, entry.modified))
}

fn with_origin(place: &TopicPartition, stored: &StoredRecord) -> Record {
    stored.record.clone().with_header(ORIGIN_HEADER, origin(place, stored))
}

/// A parked record as it was before.
fn original(parked: &StoredRecord) -> StoredRecord {
    let origin = header(&parked.record, ORIGIN_HEADER).unwrap_or_default();
    let mut record = parked.record.clone();
    if record.headers.last().is_some_and(|(name, _)| name == ORIGIN_HEADER) {
        record.headers.pop();
    }
    let mut numbers = origin.rsplit('/');
    let time_ms = numbers.next().and_then(|text| text.parse().ok()).unwrap_or(parked.time_ms);
    let offset = numbers.next().and_then(|text| text.parse().ok()).map_or(parked.offset, Offset);
    StoredRecord { offset, time_ms, record }
}
