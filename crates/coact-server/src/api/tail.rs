//! Following a topic as server-sent events. The id of an event is where the stream is in each partition, so a client that
//! connects anew goes on without a gap.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coact_blocks::mq::SeekTo;
use coact_core::{
    contract::stream::{Offset, Read, Seek, StoredRecord, StreamHandle},
    name::Topic,
};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, KEEP_ALIVE, Verb,
    extract::{Path, Query, int32, int64, invalid},
    problem::{self, Problem},
    record::{PAGE_BYTES, RecordView, seek_of},
    topic::{TopicPath, absent},
};

/// How long one look at a partition waits.
const LOOK: Duration = Duration::from_secs(30);
/// How many partitions one stream follows: their places must fit into a header.
const PARTITIONS_MAX: usize = 256;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TailQuery {
    /// Only this partition; all by default, if there are at most 256.
    #[serde(default, deserialize_with = "int32")]
    partition: Option<u32>,
    /// From this offset on, of one partition.
    #[serde(default, deserialize_with = "int64")]
    offset: Option<u64>,
    /// From here on: `latest` (default), which is what comes, or `earliest`.
    #[param(example = "latest")]
    at: Option<String>,
    /// From the first record on that was appended at this time or later, in milliseconds since 1970.
    #[serde(default, deserialize_with = "int64")]
    time_ms: Option<u64>,
}

/// One event of a tail.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum TailEvent {
    /// Where the stream begins, in its id.
    Begin,
    /// A record.
    Record(RecordView),
    /// Records went before they were read: those from `from` up to `to`.
    Gap {
        /// Which partition.
        partition: u32,
        /// The first that is missing.
        from: u64,
        /// Where the stream goes on.
        to: u64,
    },
}

/// Follow a topic as server-sent events: `begin`, `record`, `gap`. The records of a partition come in order. A client that
/// connects anew with `Last-Event-ID` misses nothing; partitions that were added meanwhile are followed from then on, from
/// their beginning.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}/watch", operation_id = "mq_tail", tag = "mq",
    params(TopicPath, TailQuery, ("Last-Event-ID" = Option<String>, Header, description = "Goes before where the query says")),
    responses(
        (status = 200, description = "Events", body = TailEvent, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
    Query(query): Query<TailQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Read])?;
    let count = streams.topic(&topic).await?.ok_or_else(|| absent(&path))?.spec.partitions;
    let followed = match query.partition {
        Some(partition) => partition..partition.saturating_add(1),
        None => 0..count,
    };
    if followed.len() > PARTITIONS_MAX {
        return Err(invalid(format!("{count} partitions are too many for one stream: follow one, with partition")));
    }
    if query.offset.is_some() && query.partition.is_none() {
        return Err(invalid("an offset is of one partition: say which, with partition"));
    }
    let known = match headers.get("last-event-id") {
        Some(id) => Some(Positions::read(id.to_str().unwrap_or_default())?),
        None => None,
    };
    let begin = seek_of(query.offset, query.at.as_deref(), query.time_ms, Seek::Latest)?;
    let mut positions = Positions::default();
    for partition in followed {
        let offset = match (&known, begin) {
            (Some(known), _) => match known.0.get(&partition) {
                Some(offset) => Offset(*offset),
                None => streams.seek(&topic, partition, Seek::Earliest).await?,
            },
            // Also when the offset is known: a partition that is none should be said now.
            (None, SeekTo::Offset(offset)) => streams.bounds(&topic, partition).await.map(|_| offset)?,
            (None, SeekTo::Found(seek)) => streams.seek(&topic, partition, seek).await?,
        };
        positions.0.insert(partition, offset.0);
    }
    let (namespace, name, counting) = (path.namespace.clone(), path.name.clone(), api.clone());
    let note = move |stored: &StoredRecord| {
        counting.traffic().note_out(&namespace, &name, 1, stored.record.size() as u64);
    };
    let events = events(streams, topic, positions, note).take_until(api.until_cut(caller));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Where a stream is: the next offset of each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Positions(BTreeMap<u32, u64>);

impl Positions {
    fn read(text: &str) -> Result<Self, Problem> {
        let place = |part: &str| {
            let (partition, offset) = part.split_once(':')?;
            Some((partition.parse().ok()?, offset.parse().ok().filter(|offset| *offset <= i64::MAX as u64)?))
        };
        let places: Option<BTreeMap<u32, u64>> = text.split(',').map(place).collect();
        places.map(Self).ok_or_else(|| invalid("Last-Event-ID must be the id of an event of this stream"))
    }

    fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (partition, offset)| {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{partition}:{offset}");
            text
        })
    }
}

/// What comes of one partition.
enum Item {
    Record(StoredRecord),
    Gap(Offset, Offset),
}

/// The events of all partitions. A failure ends the stream: the client connects anew after the last id, and is told.
fn events(
    streams: StreamHandle,
    topic: Topic,
    positions: Positions,
    note: impl Fn(&StoredRecord) + Send + 'static,
) -> impl Stream<Item = Result<Event, axum::Error>> + Send {
    let follow = |(partition, offset): (&u32, &u64)| {
        let partition = *partition;
        follow(streams.clone(), topic.clone(), partition, Offset(*offset)).map(move |item| (partition, item)).boxed()
    };
    let items = stream::select_all(positions.0.iter().map(follow).collect::<Vec<_>>());
    let begin = event("begin", &positions, &TailEvent::Begin);
    let items = items.scan(positions, move |positions, (partition, item)| {
        let event = item.map(|item| match item {
            Item::Record(stored) => {
                note(&stored);
                positions.0.insert(partition, stored.offset.0 + 1);
                event("record", positions, &TailEvent::Record(RecordView::new(partition, stored)))
            }
            Item::Gap(from, to) => {
                positions.0.insert(partition, to.0);
                event("gap", positions, &TailEvent::Gap { partition, from: from.0, to: to.0 })
            }
        });
        std::future::ready(event)
    });
    stream::once(std::future::ready(begin)).chain(items)
}

fn event(name: &str, positions: &Positions, data: &TailEvent) -> Result<Event, axum::Error> {
    Event::default().id(positions.text()).event(name).json_data(data)
}

/// What comes of one partition; `None` when it cannot be read any more.
fn follow(
    streams: StreamHandle,
    topic: Topic,
    partition: u32,
    from: Offset,
) -> impl Stream<Item = Option<Item>> + Send {
    let pages = stream::unfold(Some(from), move |from| {
        let (streams, topic) = (streams.clone(), topic.clone());
        async move {
            let from = from?;
            let read = Read { topic, partition, from, max_bytes: PAGE_BYTES, wait: LOOK };
            let Ok(fetched) = streams.read(read).await else { return Some((vec![None], None)) };
            let gap = (fetched.start > from).then(|| Some(Item::Gap(from, fetched.start)));
            let records = fetched.records(from).map(|stored| Some(Item::Record(stored)));
            let items: Vec<_> = gap.into_iter().chain(records).collect();
            Some((items, Some(fetched.next)))
        }
    });
    pages.flat_map(stream::iter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back() {
        let positions = Positions(BTreeMap::from([(0, 17), (3, 0)]));
        assert_eq!(positions.text(), "0:17,3:0");
        assert_eq!(Positions::read("0:17,3:0").expect("positions"), positions);
        for wrong in ["", "1", "a:1", "1:b", "1:-1", "1:9223372036854775808", "1:1,"] {
            assert!(Positions::read(wrong).is_err(), "{wrong}");
        }
    }
}
