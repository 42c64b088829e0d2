//! Topics: making, listing, describing, deleting them.

use std::time::Duration;

use axum::{Json as Answer, extract::State, http::StatusCode};
use coact_blocks::mq::{Monitor, TopicStats};
use coact_core::{
    ErrorKind,
    contract::stream::{Bounds, TopicInfo, TopicSpec},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Verb,
    extract::{Json, Path, Query, int32, int64},
    kv::{NamespacePath, PageQuery, limit},
    problem::{self, Problem},
    queue::Made,
};

/// A topic.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TopicPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) namespace: String,
    /// The topic.
    #[param(example = "orders", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) name: String,
}

/// How a topic is laid out, and what it keeps.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecBody {
    /// How many partitions; as it is, or 1, by default. It can grow, which moves keys.
    #[schema(minimum = 1, example = 3)]
    #[serde(default, deserialize_with = "int32")]
    partitions: Option<u32>,
    /// Records older than this may go; none by default.
    #[schema(example = 604_800_000_u64)]
    #[serde(default, deserialize_with = "int64")]
    retention_ms: Option<u64>,
    /// When a partition has more bytes than this, its oldest records may go; none by default.
    #[serde(default, deserialize_with = "int64")]
    retention_bytes: Option<u64>,
    /// Keep the newest record of each key, and let older ones go; a newest one with an empty value lets the key go.
    #[serde(default)]
    compact: bool,
}

/// A topic.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicView {
    name: String,
    partitions: u32,
    /// Records older than this may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_ms: Option<u64>,
    /// When a partition has more bytes than this, its oldest records may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_bytes: Option<u64>,
    /// Whether older records of a key may go.
    compact: bool,
    /// When it was made, in milliseconds since 1970.
    created_ms: u64,
}

/// Topics, by name.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicList {
    topics: Vec<TopicView>,
}

/// A topic with what it holds.
#[derive(Serialize, ToSchema)]
pub(super) struct TopicDetail {
    #[serde(flatten)]
    topic: TopicView,
    /// About how many bytes it keeps.
    bytes: u64,
    /// How many records it keeps, if the engine counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    /// How many delayed records wait.
    delayed: u64,
    /// Each partition, from zero.
    bounds: Vec<BoundsView>,
}

/// What a partition holds.
#[derive(Serialize, ToSchema)]
pub(super) struct BoundsView {
    partition: u32,
    /// The first offset that is kept; equal to `end` if there is none.
    start: u64,
    /// The offset that the next record gets at the earliest.
    end: u64,
    /// When the first record that is kept was appended; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_ms: Option<u64>,
    /// About how many bytes are kept.
    bytes: u64,
}

impl From<TopicInfo> for TopicView {
    fn from(info: TopicInfo) -> Self {
        Self {
            name: info.name.to_string(),
            partitions: info.spec.partitions,
            retention_ms: info.spec.retention_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            retention_bytes: info.spec.retention_bytes,
            compact: info.spec.compact,
            created_ms: info.created_ms,
        }
    }
}

impl From<TopicStats> for TopicDetail {
    fn from(stats: TopicStats) -> Self {
        let (bytes, records, delayed) = (stats.bytes(), stats.records(), stats.delays.pending);
        let bounds =
            (0..).zip(&stats.partitions).map(|(partition, bounds)| BoundsView::new(partition, bounds)).collect();
        Self { topic: stats.info.into(), bytes, records, delayed, bounds }
    }
}

impl BoundsView {
    fn new(partition: u32, bounds: &Bounds) -> Self {
        let oldest_ms = Some(bounds.oldest_ms).filter(|at_ms| *at_ms > 0);
        Self { partition, start: bounds.start.0, end: bounds.end.0, oldest_ms, bytes: bounds.bytes }
    }
}

/// List topics, by name.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics", operation_id = "mq_topics", tag = "mq", params(NamespacePath, PageQuery),
    responses(
        (status = 200, description = "A page", body = TopicList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<PageQuery>,
) -> Result<Answer<TopicList>, Problem> {
    let (_, streams) = api.streams(&caller, &path.namespace)?;
    let found = streams.topics(query.after.as_deref().unwrap_or_default(), limit(query.limit)?).await?;
    Ok(Answer(TopicList { topics: found.into_iter().map(Into::into).collect() }))
}

/// Make a topic, or change what it keeps. What is left out of the body, but for the partitions, is taken back.
#[utoipa::path(
    put, path = "/v1/{namespace}/topics/{name}", operation_id = "mq_put_topic", tag = "mq", params(TopicPath),
    request_body = SpecBody,
    responses(
        (status = 200, description = "It is there", body = Made),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
    Json(body): Json<SpecBody>,
) -> Result<Answer<Made>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Admin])?;
    let spec = |partitions| TopicSpec {
        partitions,
        retention_age: body.retention_ms.map(Duration::from_millis),
        retention_bytes: body.retention_bytes,
        compact: body.compact,
    };
    match streams.create_topic(&topic, &spec(body.partitions.unwrap_or(1))).await {
        Ok(()) => return Ok(Answer(Made { created: true })),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    let partitions = match body.partitions {
        Some(partitions) => partitions,
        None => streams.topic(&topic).await?.ok_or_else(|| absent(&path))?.spec.partitions,
    };
    streams.alter_topic(&topic, &spec(partitions)).await?;
    Ok(Answer(Made { created: false }))
}

/// Read how a topic is laid out, and what it holds.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}", operation_id = "mq_topic", tag = "mq", params(TopicPath),
    responses(
        (status = 200, description = "The topic", body = TopicDetail),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
) -> Result<Answer<TopicDetail>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Read])?;
    let store = api.store(caller, &path.namespace, None)?;
    let monitor = Monitor::new(&store.kv, &streams, &store.realm);
    Ok(Answer(monitor.topic(&topic).await?.into()))
}

/// Delete a topic with its records, its delayed records, and how far groups came in it.
#[utoipa::path(
    delete, path = "/v1/{namespace}/topics/{name}", operation_id = "mq_delete_topic", tag = "mq", params(TopicPath),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
) -> Result<StatusCode, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Admin])?;
    if streams.delete_topic(&topic).await? { Ok(StatusCode::NO_CONTENT) } else { Err(absent(&path)) }
}

pub(super) fn absent(path: &TopicPath) -> Problem {
    let detail = format!("there is no topic {} in namespace {}", path.name, path.namespace);
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}
