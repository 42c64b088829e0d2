//! Delayed records: which wait, and calling them off, putting them off, or having them now.

use axum::{Json as Answer, extract::State, http::StatusCode};
use coact_core::{
    ErrorKind,
    contract::stream::{DELAY_BUCKETS, DelayId, LATENESS_BUCKETS, Pending, StreamHandle},
    name::Topic,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Verb,
    extract::{Json, Path, Query, invalid},
    kv::limit,
    problem::{self, Problem},
    record::ContentView,
    topic::TopicPath,
};

/// A delayed record.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DelayPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The topic.
    #[param(example = "orders", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    name: String,
    /// Its handle, as producing answered it.
    #[param(example = "1700000000000-1", pattern = r"^[0-9]+-[0-9]+$")]
    delay: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Start after this handle: the last of the page before.
    #[param(pattern = r"^[0-9]+-[0-9]+$")]
    after: Option<String>,
    /// The most records; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Another time for a delayed record.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RescheduleBody {
    /// In milliseconds since 1970, at most ten years ahead; one that has passed hands it over now.
    due_ms: u64,
}

/// A delayed record that waits.
#[derive(Serialize, ToSchema)]
pub(super) struct DelayView {
    /// Its handle.
    delay: String,
    /// When it is due, in milliseconds since 1970.
    due_ms: u64,
    /// Which partition it will be in.
    partition: u32,
    #[serde(flatten)]
    record: ContentView,
}

/// Delayed records, by time.
#[derive(Serialize, ToSchema)]
pub(super) struct Delays {
    delays: Vec<DelayView>,
}

/// The new handle of a delayed record.
#[derive(Serialize, ToSchema)]
pub(super) struct Moved {
    delay: String,
}

/// Numbers about delayed records.
#[derive(Serialize, ToSchema)]
pub(super) struct DelayStatsView {
    /// How many wait.
    pending: u64,
    /// When the next is due, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_due_ms: Option<u64>,
    /// How many are due within each time from now that is not within the one before.
    by_due: Vec<CountWithin>,
    /// How many were handed over with each lateness that is not within the one before, since the node started.
    by_lateness: Vec<CountWithin>,
}

/// How many, within how long.
#[derive(Serialize, ToSchema)]
pub(super) struct CountWithin {
    /// The upper edge; absent for what is beyond the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    within_ms: Option<u64>,
    count: u64,
}

impl From<Pending> for DelayView {
    fn from(pending: Pending) -> Self {
        let Pending { id, delayed } = pending;
        Self {
            delay: id.to_string(),
            due_ms: id.due_ms,
            partition: delayed.partition,
            record: ContentView::from(&delayed.record),
        }
    }
}

/// List delayed records, by time.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}/delays", operation_id = "mq_delays", tag = "mq",
    params(TopicPath, ListQuery),
    responses(
        (status = 200, description = "A page", body = Delays),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<Delays>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Read])?;
    let after = query.after.as_deref().map(str::parse).transpose()?;
    let found = streams.pending(&topic, after, limit(query.limit)?).await?;
    Ok(Answer(Delays { delays: found.into_iter().map(Into::into).collect() }))
}

/// Read numbers about the delayed records of a topic.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}/delay-stats", operation_id = "mq_delay_stats", tag = "mq",
    params(TopicPath),
    responses(
        (status = 200, description = "Numbers", body = DelayStatsView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stats(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TopicPath>,
) -> Result<Answer<DelayStatsView>, Problem> {
    let (streams, topic) = api.topic(&caller, &path, &[Verb::Read])?;
    let stats = streams.delay_stats(&topic).await?;
    let due = DELAY_BUCKETS.iter().map(|edge| u64::try_from(edge.as_millis()).unwrap_or(u64::MAX));
    Ok(Answer(DelayStatsView {
        pending: stats.pending,
        next_due_ms: stats.next_due_ms,
        by_due: counts(&stats.by_due, due),
        by_lateness: counts(&stats.by_lateness, LATENESS_BUCKETS.into_iter()),
    }))
}

fn counts(counts: &[u64], edges: impl Iterator<Item = u64>) -> Vec<CountWithin> {
    let edges = edges.map(Some).chain(std::iter::repeat(None));
    counts.iter().zip(edges).map(|(count, within_ms)| CountWithin { within_ms, count: *count }).collect()
}

/// Read a delayed record.
#[utoipa::path(
    get, path = "/v1/{namespace}/topics/{name}/delays/{delay}", operation_id = "mq_delay", tag = "mq", params(DelayPath),
    responses(
        (status = 200, description = "It waits", body = DelayView),
        (status = "default", description = "What went wrong; 404 if it was handed over, cancelled or rescheduled", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<DelayPath>,
) -> Result<Answer<DelayView>, Problem> {
    let (streams, topic, id) = delayed(&api, &caller, &path, Verb::Read)?;
    let found = streams.pending(&topic, before(id), 1).await?.into_iter().find(|pending| pending.id == id);
    found.map(|pending| Answer(pending.into())).ok_or_else(|| gone(id))
}

/// Cancel a delayed record.
#[utoipa::path(
    delete, path = "/v1/{namespace}/topics/{name}/delays/{delay}", operation_id = "mq_cancel_delay", tag = "mq",
    params(DelayPath),
    responses(
        (status = 204, description = "It is cancelled"),
        (status = "default", description = "What went wrong; 404 if it was handed over, cancelled or rescheduled", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<DelayPath>,
) -> Result<StatusCode, Problem> {
    let (streams, topic, id) = delayed(&api, &caller, &path, Verb::Write)?;
    if streams.cancel(&topic, id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(gone(id)) }
}

/// Give a delayed record another time, and so another handle.
#[utoipa::path(
    post, path = "/v1/{namespace}/topics/{name}/delays/{delay}/reschedule", operation_id = "mq_reschedule_delay",
    tag = "mq", params(DelayPath), request_body = RescheduleBody,
    responses(
        (status = 200, description = "It waits until then", body = Moved),
        (status = "default", description = "What went wrong; 404 if it was handed over, cancelled or rescheduled", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn reschedule(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<DelayPath>,
    Json(body): Json<RescheduleBody>,
) -> Result<Answer<Moved>, Problem> {
    let (streams, topic, id) = delayed(&api, &caller, &path, Verb::Write)?;
    let moved = streams.reschedule(&topic, id, body.due_ms).await?;
    moved.map(|delay| Answer(Moved { delay: delay.to_string() })).ok_or_else(|| gone(id))
}

/// Hand a delayed record over now.
#[utoipa::path(
    post, path = "/v1/{namespace}/topics/{name}/delays/{delay}/fire", operation_id = "mq_fire_delay", tag = "mq",
    params(DelayPath),
    responses(
        (status = 204, description = "It is on its way"),
        (status = "default", description = "What went wrong; 404 if it was handed over, cancelled or rescheduled", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn fire(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<DelayPath>,
) -> Result<StatusCode, Problem> {
    let (streams, topic, id) = delayed(&api, &caller, &path, Verb::Write)?;
    let moved = streams.reschedule(&topic, id, api.env().wall_ms()).await?;
    moved.map(|_| StatusCode::NO_CONTENT).ok_or_else(|| gone(id))
}

fn delayed(
    api: &Api,
    caller: &Caller,
    path: &DelayPath,
    verb: Verb,
) -> Result<(StreamHandle, Topic, DelayId), Problem> {
    let of = TopicPath { namespace: path.namespace.clone(), name: path.name.clone() };
    let (streams, topic) = api.topic(caller, &of, &[verb])?;
    let id = path.delay.parse().map_err(|error: coact_core::Error| invalid(error.to_string()))?;
    Ok((streams, topic, id))
}

/// The handle before another.
fn before(id: DelayId) -> Option<DelayId> {
    match (id.due_ms, id.number.checked_sub(1)) {
        (due_ms, Some(number)) => Some(DelayId { due_ms, number }),
        (due_ms, None) => due_ms.checked_sub(1).map(|due_ms| DelayId { due_ms, number: u64::MAX }),
    }
}

fn gone(id: DelayId) -> Problem {
    let detail = format!("no delayed record {id} waits: it was handed over, cancelled or rescheduled, or never was");
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}
