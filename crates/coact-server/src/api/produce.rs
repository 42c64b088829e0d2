//! Producing records: all of a request, or none.

use std::collections::BTreeMap;

use axum::{Json as Answer, extract::State};
use coact_blocks::mq::partition_of;
use coact_core::{
    Error, ErrorKind,
    contract::{
        commit::{Commit, CommitOutcome, Committed},
        stream::{Append, Appended, Batch, DelayId, Delayed, Record, Stamp, StreamHandle},
    },
    name::Topic,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{
    Api, Caller, Verb,
    entry::{Header, bytes, key_of},
    extract::{IdempotencyKey, Json, Path, int32, int64, invalid},
    problem::{self, Problem},
    topic::{TopicPath, absent},
};

/// How many records one request brings.
const RECORDS_MAX: usize = 10_000;

/// Records to append, all or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProduceBody {
    /// In the order in which those of one partition are to be.
    #[schema(min_items = 1, max_items = 10000)]
    records: Vec<RecordBody>,
    /// Which batch of which producer this is, so that appending it again changes nothing. All records must go to one
    /// partition then.
    producer: Option<ProducerBody>,
}

/// A record to append, now or later.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RecordBody {
    /// Records of one key keep their order, and go to one partition.
    #[schema(example = "customer-7")]
    key: Option<String>,
    /// If the key is not text.
    key_base64: Option<String>,
    /// What it says, if that is text.
    #[schema(example = "paid")]
    value: Option<String>,
    /// If it is not.
    value_base64: Option<String>,
    /// Names and values beside it, in order.
    headers: Option<Vec<Header>>,
    /// Which partition, instead of the key's.
    #[serde(default, deserialize_with = "int32")]
    partition: Option<u32>,
    /// Not before this time, in milliseconds since 1970; at most ten years ahead.
    #[serde(default, deserialize_with = "int64")]
    due_ms: Option<u64>,
    /// Not before so long from now.
    #[serde(default, deserialize_with = "int64")]
    delay_ms: Option<u64>,
}

/// Names a batch of a producer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ProducerBody {
    /// Which producer: a random number that nobody else uses.
    #[serde(default, deserialize_with = "int64")]
    #[schema(required = true)]
    id: Option<u64>,
    /// Which incarnation of it; a newer one fences the older. 0 by default.
    #[serde(default, deserialize_with = "int32")]
    epoch: Option<u32>,
    /// The number of the batch's first record, counted for each partition from 0 in each epoch.
    #[serde(default, deserialize_with = "int64")]
    #[schema(required = true)]
    sequence: Option<u64>,
}

/// Where records are, in the order of the request.
#[derive(Serialize, ToSchema)]
pub(super) struct ProducedAll {
    records: Vec<Produced>,
    /// Whether they had been appended before, so that nothing was changed.
    duplicate: bool,
}

/// Where a record is, or by which handle a delayed one is called off.
#[derive(Serialize, ToSchema)]
struct Produced {
    partition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The time that it has, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ms: Option<u64>,
    /// The handle of a delayed record.
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<String>,
}

/// Append records, or keep them until they are due: all, or none. Under an `Idempotency-Key` (or as a batch of a
/// producer) appending the same records again changes nothing, for as long as the engine recognizes it.
#[utoipa::path(
    post, path = "/v1/{namespace}/topics/{name}/records", operation_id = "mq_produce", tag = "mq",
    params(
        TopicPath,
        ("Idempotency-Key" = Option<String>, Header, description = "With the records, names the request; not for delayed ones"),
    ),
    request_body = ProduceBody,
    responses(
        (status = 200, description = "They are there", body = ProducedAll),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn produce(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<ProduceBody>,
) -> Result<Answer<ProducedAll>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Write])?;
    let partitions = streams.topic(&topic).await?.ok_or_else(|| absent(&path))?.spec.partitions;
    let named = Named::read(body.producer, idempotency)?;
    let spread = api.env().random();
    let production = Production::plan(body.records, topic, partitions, named, spread, api.env().wall_ms())?;
    let (records, bytes) = (production.places.len(), production.commit.bytes());
    let produced = production.run(&streams).await?;
    if !produced.duplicate {
        api.traffic().note_in(&path.namespace, &path.name, records as u64, bytes as u64);
    }
    Ok(Answer(produced))
}

/// What makes a repetition harmless.
enum Named {
    No,
    Batch(Stamp),
    Key(String),
}

impl Named {
    fn read(producer: Option<ProducerBody>, key: Option<IdempotencyKey>) -> Result<Self, Problem> {
        match (producer, key) {
            (None, None) => Ok(Self::No),
            (None, Some(IdempotencyKey(key))) => Ok(Self::Key(key)),
            (Some(ProducerBody { id: Some(producer), epoch, sequence: Some(sequence) }), None) => {
                Ok(Self::Batch(Stamp { producer, epoch: epoch.unwrap_or(0), sequence }))
            }
            (Some(_), None) => Err(invalid("a producer needs an id and a sequence")),
            (Some(_), Some(_)) => Err(invalid("producer and Idempotency-Key exclude each other")),
        }
    }
}

/// Records on their way.
struct Production {
    commit: Commit,
    places: Vec<Place>,
}

/// Which part of the commit a record is in. What is appended to a partition is one append.
#[derive(Clone, Copy)]
enum Place {
    Appended { partition: u32, index: u64 },
    Delayed { partition: u32, index: usize },
}

impl Production {
    fn plan(
        records: Vec<RecordBody>,
        topic: Topic,
        partitions: u32,
        named: Named,
        spread: u64,
        now_ms: u64,
    ) -> Result<Self, Problem> {
        if records.is_empty() || records.len() > RECORDS_MAX {
            let have = records.len();
            return Err(invalid(format!("{have} records are not allowed: send 1 to {RECORDS_MAX}")));
        }
        let records = records.into_iter().map(|record| record.read(now_ms)).collect::<Result<Vec<_>, _>>()?;
        let is_batch = matches!(named, Named::Batch(_));
        let (spread, stamp) = match named {
            Named::No => (spread, None),
            Named::Batch(stamp) => (stamp.producer, Some(stamp)),
            // Records without a key must meet the same partition again.
            Named::Key(key) => {
                let producer = producer_of(&key, &topic, &records);
                (producer, Some(Stamp { producer, epoch: 0, sequence: 0 }))
            }
        };
        if stamp.is_some() && records.iter().any(|record| record.due_ms.is_some()) {
            return Err(invalid("repeating is not made harmless for delayed records: send them without a name"));
        }
        let mut batches: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
        let mut places = Vec::new();
        let mut delayed = Vec::new();
        for Asked { record, partition, due_ms } in records {
            let partition = match (partition, &record.key) {
                (Some(partition), _) => partition,
                (None, Some(key)) => partition_of(key, partitions),
                (None, None) => (spread % u64::from(partitions.max(1))) as u32,
            };
            match due_ms {
                Some(due_ms) => {
                    places.push(Place::Delayed { partition, index: delayed.len() });
                    delayed.push(Delayed { topic: topic.clone(), partition, record, due_ms });
                }
                None => {
                    let batch = batches.entry(partition).or_default();
                    places.push(Place::Appended { partition, index: batch.len() as u64 });
                    batch.push(record);
                }
            }
        }
        if is_batch && batches.len() > 1 {
            return Err(invalid("the records of a producer's batch must go to one partition"));
        }
        let append = |(partition, records): (u32, Vec<Record>)| Append {
            topic: topic.clone(),
            partition,
            batch: Batch::new(&records),
            stamp,
            expect: None,
        };
        let appends = batches.into_iter().map(append).collect();
        Ok(Self { commit: Commit { appends, delayed, ..Commit::default() }, places })
    }

    async fn run(self, streams: &StreamHandle) -> Result<ProducedAll, Problem> {
        let partitions: Vec<u32> = self.commit.appends.iter().map(|append| append.partition).collect();
        let Committed { appended, delayed, .. } = match streams.commit(self.commit).await? {
            CommitOutcome::Committed(committed) => committed,
            CommitOutcome::Refused { .. } => {
                return Err(Error::new(ErrorKind::Internal, "an engine refused a commit without checks").into());
            }
        };
        let duplicate = appended.iter().any(|appended| appended.duplicate);
        let appended = partitions.into_iter().zip(appended).collect();
        let records = self.places.into_iter().map(|place| place.answer(&appended, &delayed)).collect();
        Ok(ProducedAll { records, duplicate })
    }
}

impl Place {
    fn answer(self, appended: &BTreeMap<u32, Appended>, delayed: &[DelayId]) -> Produced {
        match self {
            Self::Appended { partition, index } => {
                let appended = appended.get(&partition);
                Produced {
                    partition,
                    offset: appended.map(|appended| appended.first.0 + index),
                    time_ms: appended.map(|appended| appended.time_ms),
                    delay: None,
                }
            }
            Self::Delayed { partition, index } => {
                Produced { partition, offset: None, time_ms: None, delay: delayed.get(index).map(DelayId::to_string) }
            }
        }
    }
}

/// A record as it was asked for.
struct Asked {
    record: Record,
    partition: Option<u32>,
    due_ms: Option<u64>,
}

impl RecordBody {
    fn read(self, now_ms: u64) -> Result<Asked, Problem> {
        let due_ms = match (self.due_ms, self.delay_ms) {
            (Some(_), Some(_)) => return Err(invalid("due_ms and delay_ms exclude each other")),
            (due_ms, delay_ms) => due_ms.or(delay_ms.map(|delay_ms| now_ms.saturating_add(delay_ms))),
        };
        let key = key_of(self.key, self.key_base64)?;
        let value = bytes("value", self.value, self.value_base64)?;
        let headers = self.headers.unwrap_or_default().into_iter().map(Header::read).collect::<Result<_, _>>()?;
        Ok(Asked { record: Record { key, value, headers }, partition: self.partition, due_ms })
    }
}

/// The producer that a key and these records name: another request under the same key is another producer.
fn producer_of(key: &str, topic: &Topic, records: &[Asked]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(format!("{topic} {key}\n"));
    for asked in records {
        hash.update(format!("{:?} {:?}\n", asked.partition, asked.record));
    }
    hash.finalize().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
