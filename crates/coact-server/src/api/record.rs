//! Looking at records, without taking them from anybody.

use std::time::Duration;

use axum::{Json as Answer, extract::State};
use bytes::Bytes;
use coact_blocks::mq::{SeekTo, partition_of};
use coact_core::{
    contract::stream::{Offset, Read, Record, Seek, StoredRecord, StreamHandle},
    name::Topic,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Verb,
    entry::{Header, key_of, text_or_base64},
    extract::{Path, Query, int32, int64, invalid, wait_of},
    kv::limit,
    problem::{self, Problem},
    topic::{TopicPath, absent},
};

/// How much one answer looks through for a key.
const SCAN_BYTES: usize = 16 * 1024 * 1024;
/// About how much is read at once, and how much one answer holds.
pub(super) const PAGE_BYTES: usize = 1024 * 1024;

/// What a record says.
#[derive(Serialize, ToSchema)]
pub(super) struct ContentView {
    /// If it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// If it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header>,
}

/// A record in its place.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordView {
    pub(super) partition: u32,
    pub(super) offset: u64,
    /// When it was appended, in milliseconds since 1970.
    time_ms: u64,
    #[serde(flatten)]
    content: ContentView,
}

/// Records of one partition.
#[derive(Serialize, ToSchema)]
pub(super) struct Records {
    records: Vec<RecordView>,
    partition: u32,
    /// Give this as the next `offset`.
    next: u64,
    /// The first offset that is kept: greater than the one asked for if records went before they were read.
    start: u64,
    /// Where the partition ends.
    end: u64,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PeekQuery {
    /// Which partition; that of the key, or 0, by default.
    #[serde(default, deserialize_with = "int32")]
    partition: Option<u32>,
    /// From this offset on.
    #[serde(default, deserialize_with = "int64")]
    offset: Option<u64>,
    /// From here on, if no offset is given: `earliest` (default) or `latest`, which is what comes.
    #[param(example = "earliest")]
    at: Option<String>,
    /// From the first record on that was appended at this time or later, in milliseconds since 1970.
    #[serde(default, deserialize_with = "int64")]
    time_ms: Option<u64>,
    /// Only records of this key.
    key: Option<String>,
    /// Only records of this key, if it is not text.
    key_base64: Option<String>,
    /// The most records; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// How long to wait for a record if there is none; 0 by default, at most 60000.
    #[param(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// Look at the records of a partition, without taking them from anybody. Of a key, an answer looks through a part of the
/// partition: go on from `next` until it is `end`.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}/records", operation_id = "mq_peek", tag = "mq",
    params(TopicPath, PeekQuery),
    responses(
        (status = 200, description = "Records, or none", body = Records),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn peek(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
    Query(query): Query<PeekQuery>,
) -> Result<Answer<Records>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Read])?;
    let (limit, wait) = (limit(query.limit)?, wait_of(query.wait_ms)?);
    let key = key_of(query.key, query.key_base64)?;
    let partition = match (query.partition, &key) {
        (Some(partition), _) => partition,
        (None, Some(key)) => {
            partition_of(key, streams.topic(&topic).await?.ok_or_else(|| absent(&path))?.spec.partitions)
        }
        (None, None) => 0,
    };
    let from = seek_of(query.offset, query.at.as_deref(), query.time_ms, Seek::Earliest)?;
    let from = from.offset(&streams, &topic, partition).await?;
    let look = Look { streams, topic, partition, key, limit };
    let records = tokio::select! {
        records = look.run(from, wait) => records?,
        () = api.until_cut(caller) => look.run(from, Duration::ZERO).await?,
    };
    let bytes = records.records.iter().map(|record| record.content.size() as u64).sum();
    api.traffic().note_out(&path.namespace, &path.name, records.records.len() as u64, bytes);
    Ok(Answer(records))
}

/// Where a request says that it goes on.
pub(super) fn seek_of(
    offset: Option<u64>,
    at: Option<&str>,
    time_ms: Option<u64>,
    default: Seek,
) -> Result<SeekTo, Problem> {
    match (offset, at, time_ms) {
        (None, None, None) => Ok(SeekTo::Found(default)),
        (Some(offset), None, None) => Ok(SeekTo::Offset(Offset(offset))),
        (None, None, Some(time_ms)) => Ok(SeekTo::Found(Seek::Time(time_ms))),
        (None, Some("earliest"), None) => Ok(SeekTo::Found(Seek::Earliest)),
        (None, Some("latest"), None) => Ok(SeekTo::Found(Seek::Latest)),
        (None, Some(other), None) => Err(invalid(format!("at {other:?} is not known: choose from earliest, latest"))),
        _ => Err(invalid("offset, at and time_ms exclude each other")),
    }
}

/// What is looked for.
struct Look {
    streams: StreamHandle,
    topic: Topic,
    partition: u32,
    key: Option<Bytes>,
    limit: usize,
}

impl Look {
    async fn run(&self, from: Offset, wait: Duration) -> coact_core::Result<Records> {
        let env = self.streams.env();
        let give_up = env.now() + wait;
        let mut answer = Records { records: Vec::new(), partition: self.partition, next: from.0, start: 0, end: 0 };
        let (mut at, mut scanned, mut size) = (from, 0, 0);
        loop {
            let fetched = self
                .streams
                .read(Read {
                    topic: self.topic.clone(),
                    partition: self.partition,
                    from: at,
                    max_bytes: PAGE_BYTES,
                    wait: if answer.records.is_empty() {
                        give_up.saturating_duration_since(env.now())
                    } else {
                        Duration::ZERO
                    },
                })
                .await?;
            (answer.start, answer.end) = (fetched.start.0, fetched.end.0);
            scanned += fetched.batches.iter().map(|stored| stored.batch.bytes().len()).sum::<usize>();
            for stored in fetched.records(at) {
                if self.key.as_ref().is_some_and(|key| stored.record.key.as_ref() != Some(key)) {
                    continue;
                }
                size += stored.record.size();
                answer.next = stored.offset.0 + 1;
                answer.records.push(RecordView::new(self.partition, stored));
                if answer.records.len() >= self.limit || size >= PAGE_BYTES {
                    return Ok(answer);
                }
            }
            (at, answer.next) = (fetched.next, fetched.next.0);
            let is_end = fetched.batches.is_empty() || fetched.next >= fetched.end;
            let is_late = wait.is_zero() || env.now() >= give_up || !answer.records.is_empty();
            if scanned >= SCAN_BYTES || is_end && is_late {
                return Ok(answer);
            }
        }
    }
}

impl RecordView {
    pub(super) fn new(partition: u32, stored: StoredRecord) -> Self {
        let content = ContentView::from(&stored.record);
        Self { partition, offset: stored.offset.0, time_ms: stored.time_ms, content }
    }
}

impl From<&Record> for ContentView {
    fn from(record: &Record) -> Self {
        let (key, key_base64) = record.key.as_deref().map(text_or_base64).unwrap_or_default();
        let (value, value_base64) = text_or_base64(&record.value);
        let headers = record.headers.iter().map(|(name, value)| Header::of(name.clone(), value)).collect();
        Self { key, key_base64, value, value_base64, headers }
    }
}

impl ContentView {
    /// About how many bytes it takes.
    fn size(&self) -> usize {
        let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        len(&self.key) + len(&self.key_base64) + len(&self.value) + len(&self.value_base64)
    }
}
