//! One partition as a producer sees it: records that gather, and at most one batch on its way.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::stream::{Append, Appended, Batch, BatchBuilder, Offset, Record, Stamp},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Core, Placed};
use crate::backoff::{Backoff, is_retryable, within};

/// A record that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: Record,
    pub(super) answer: oneshot::Sender<Result<Placed>>,
    pub(super) queued: Instant,
    pub(super) _room: OwnedSemaphorePermit,
}

/// The records of one partition.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) gathered: VecDeque<(u64, Waiting)>,
    /// The number of the first record of the batch that is on its way.
    flying: Option<u64>,
    place: Place,
}

/// Where a producer is in the stamps of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The next batch has this sequence.
    At { epoch: u32, sequence: u64 },
    /// Nobody knows whether the last batch arrived. A new epoch refuses it, should it come late; with the old one, the
    /// next batch might be taken for it.
    Unknown,
}

/// A batch on its way, and who waits for it.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) partition: u32,
    waiting: Vec<oneshot::Sender<Result<Placed>>>,
    rooms: Vec<OwnedSemaphorePermit>,
    batch: Batch,
    place: Place,
    deadline: Instant,
}

/// How a flight ended.
pub(super) struct Landed {
    pub(super) partition: u32,
    pub(super) failed: Option<Error>,
    place: Place,
}

impl Lane {
    pub(super) fn new(epoch: u32) -> Self {
        Self { gathered: VecDeque::new(), flying: None, place: Place::At { epoch, sequence: 0 } }
    }

    /// The number of the oldest record that is not settled.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.flying.or_else(|| self.gathered.front().map(|(number, _)| *number))
    }

    /// Takes what has gathered, if no other batch is on its way.
    pub(super) fn take(&mut self, core: &Core, partition: u32) -> Option<Flight> {
        if self.flying.is_some() {
            return None;
        }
        let (number, oldest) = self.gathered.front().map(|(number, waiting)| (*number, waiting.queued))?;
        let (mut builder, mut waiting, mut rooms) = (BatchBuilder::default(), Vec::new(), Vec::new());
        while let Some((_, next)) = self.gathered.front() {
            let fits = builder.len() + next.record.size() + RECORD_EXTRA <= core.options.batch_bytes;
            if !(fits || builder.is_empty()) {
                break;
            }
            let Some((_, next)) = self.gathered.pop_front() else { break };
            builder.push(&next.record);
            waiting.push(next.answer);
            rooms.push(next._room);
        }
        self.flying = Some(number);
        Some(Flight {
            partition,
            waiting,
            rooms,
            batch: builder.finish(),
            place: self.place,
            deadline: oldest + core.options.delivery_timeout,
        })
    }

    pub(super) fn land(&mut self, landed: &Landed) {
        self.flying = None;
        self.place = landed.place;
    }
}

/// What the encoding adds to a record at most, beside what its size counts.
const RECORD_EXTRA: usize = 64;

impl Flight {
    /// Appends the batch, repeating it with the same stamp while that is harmless, and tells those who wait.
    pub(super) async fn fly(self, core: Arc<Core>) -> Landed {
        let (mut answer, mut place) = self.append(&core, self.place).await;
        if let Err(error) = &answer
            && error.kind() == ErrorKind::Conflict
            && error.effect() == Effect::NotApplied
        {
            // The engine has forgotten this producer: it counts from zero in another epoch.
            tracing::debug!(topic = %core.topic, partition = self.partition, %error, "a producer begins a new epoch");
            (answer, place) = self.append(&core, Place::Unknown).await;
        }
        let failed = answer.as_ref().err().cloned();
        for (index, waiting) in self.waiting.into_iter().enumerate() {
            let placed = answer.clone().map(|appended| Placed {
                partition: self.partition,
                offset: Offset(appended.first.0 + index as u64),
                time_ms: appended.time_ms,
            });
            // Whoever dropped the receipt does not care.
            let _ = waiting.send(placed);
        }
        drop(self.rooms);
        Landed { partition: self.partition, failed, place }
    }

    /// Appends the batch as the one at this place, and says at which the next one is.
    async fn append(&self, core: &Core, place: Place) -> (Result<Appended>, Place) {
        let (epoch, sequence) = match place {
            Place::At { epoch, sequence } => (epoch, sequence),
            Place::Unknown => match core.identity.next_epoch().await {
                Ok(epoch) => (epoch, 0),
                Err(error) => return (Err(error), place),
            },
        };
        let stamp = Stamp { producer: core.identity.id(), epoch, sequence };
        let answer = attempt(core, self, core.streams.guarantees().dedup.map(|_| stamp)).await;
        let place = match &answer {
            Ok(_) => Place::At { epoch, sequence: sequence + u64::from(self.batch.count()) },
            // It changed nothing: the next batch takes its number.
            Err(error) if error.effect() == Effect::NotApplied => Place::At { epoch, sequence },
            Err(_) => Place::Unknown,
        };
        (answer, place)
    }
}

/// Appends until that succeeds, fails for good, or the deadline has passed.
async fn attempt(core: &Core, flight: &Flight, stamp: Option<Stamp>) -> Result<Appended> {
    let env = core.streams.env();
    let mut backoff = Backoff::new(env, FIRST_PAUSE, LONGEST_PAUSE);
    let mut last: Option<Error> = None;
    let mut unknown = false;
    loop {
        let left = flight.deadline.saturating_duration_since(env.now());
        if left.is_zero() {
            let error = too_late(core, flight.partition, last);
            return Err(if unknown { error.effect_unknown() } else { error });
        }
        let append = Append {
            topic: core.topic.clone(),
            partition: flight.partition,
            batch: flight.batch.clone(),
            stamp,
            expect: None,
        };
        let error = match within(env, left, "an append", core.streams.append(append)).await {
            Ok(appended) => return Ok(appended),
            Err(error) => error,
        };
        unknown |= error.effect() == Effect::Unknown;
        let harmless = stamp.is_some() || !unknown;
        if !(harmless && (is_retryable(&error) || error.effect() == Effect::Unknown)) {
            return Err(if unknown { error.effect_unknown() } else { error });
        }
        last = Some(error);
        let left = flight.deadline.saturating_duration_since(env.now());
        env.sleep(backoff.next_pause().min(left)).await;
    }
}

fn too_late(core: &Core, partition: u32, last: Option<Error>) -> Error {
    let (topic, limit) = (&core.topic, core.options.delivery_timeout);
    let message = format!("records for {topic}, partition {partition}, were not appended within {limit:?}");
    let error = Error::new(ErrorKind::Unavailable, message);
    match last {
        Some(last) => error.with_source(last),
        None => error,
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
