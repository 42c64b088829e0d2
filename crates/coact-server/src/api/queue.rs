//! Queues: making, listing, pausing them, and what is done with many jobs at once.

use std::time::Duration;

use axum::{Json as Answer, extract::State, http::StatusCode};
use coact_core::{
    ErrorKind,
    contract::queue::{JobId, QueueInfo, QueueSpec, QueueStats},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Verb,
    extract::{Json, Path, Query, int32, int64, invalid},
    kv::{NamespacePath, PageQuery, limit},
    problem::{self, Problem},
};

/// A queue.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct QueuePath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) namespace: String,
    /// The queue.
    #[param(example = "mail", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) name: String,
}

/// How a queue treats jobs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecBody {
    /// How often a job is claimed before it is dead; 16 by default.
    #[schema(minimum = 1, example = 16)]
    #[serde(default, deserialize_with = "int32")]
    max_attempts: Option<u32>,
    /// How long dead jobs are kept; 30 days by default.
    #[schema(example = 2_592_000_000_u64)]
    #[serde(default, deserialize_with = "int64")]
    keep_dead_ms: Option<u64>,
}

/// Some dead jobs: these, or the oldest.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadBody {
    /// These.
    ids: Option<Vec<u64>>,
    /// The oldest so many.
    #[schema(minimum = 1, example = 100)]
    #[serde(default, deserialize_with = "int64")]
    oldest: Option<u64>,
}

/// A queue as it is.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueView {
    name: String,
    max_attempts: u32,
    keep_dead_ms: u64,
    /// Whether nothing is claimed from it for now.
    paused: bool,
}

/// Queues, by name.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueList {
    queues: Vec<QueueView>,
}

/// Whether it is new.
#[derive(Serialize, ToSchema)]
pub(super) struct Made {
    /// `false` if it was there, and was changed.
    pub(super) created: bool,
}

/// How many jobs it was done to.
#[derive(Serialize, ToSchema)]
pub(super) struct Counted {
    count: u64,
}

/// Numbers about a queue.
#[derive(Serialize, ToSchema)]
pub(super) struct StatsView {
    /// How many can be claimed.
    ready: u64,
    /// How many wait for their time.
    delayed: u64,
    /// How many wait for an earlier job of their order key.
    blocked: u64,
    /// How many workers have.
    claimed: u64,
    /// How many are dead.
    dead: u64,
    /// Since when the longest waiting one can be claimed.
    oldest_ready_ms: Option<u64>,
    /// When the next delayed one is due.
    next_due_ms: Option<u64>,
    /// How many were ever enqueued.
    enqueued: u64,
    /// How many were ever done.
    done: u64,
    /// How often one was ever claimed.
    claims: u64,
}

impl From<QueueInfo> for QueueView {
    fn from(info: QueueInfo) -> Self {
        let keep_dead_ms = u64::try_from(info.spec.keep_dead.as_millis()).unwrap_or(u64::MAX);
        let (name, max_attempts) = (info.name.to_string(), info.spec.max_attempts);
        Self { name, max_attempts, keep_dead_ms, paused: info.paused }
    }
}

impl From<QueueStats> for StatsView {
    fn from(stats: QueueStats) -> Self {
        let QueueStats { ready, delayed, blocked, claimed, dead, oldest_ready_ms, next_due_ms, enqueued, done, claims } =
            stats;
        Self { ready, delayed, blocked, claimed, dead, oldest_ready_ms, next_due_ms, enqueued, done, claims }
    }
}

/// List queues, by name.
#[utoipa::path(
    get, path = "/v1/{namespace}/queues", operation_id = "queue_list", tag = "queue", params(NamespacePath, PageQuery),
    responses(
        (status = 200, description = "A page", body = QueueList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<PageQuery>,
) -> Result<Answer<QueueList>, Problem> {
    let queues = api.queues(&caller, &path.namespace)?;
    let found = queues.queues(query.after.as_deref().unwrap_or_default(), limit(query.limit)?).await?;
    Ok(Answer(QueueList { queues: found.into_iter().map(Into::into).collect() }))
}

/// Make a queue, or change how it treats jobs.
#[utoipa::path(
    put, path = "/v1/{namespace}/queues/{name}", operation_id = "queue_put", tag = "queue", params(QueuePath),
    request_body = SpecBody,
    responses(
        (status = 200, description = "It is there", body = Made),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<SpecBody>,
) -> Result<Answer<Made>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    let usual = QueueSpec::default();
    let spec = QueueSpec {
        max_attempts: body.max_attempts.unwrap_or(usual.max_attempts),
        keep_dead: body.keep_dead_ms.map_or(usual.keep_dead, Duration::from_millis),
    };
    Ok(Answer(Made { created: queues.put_queue(&queue, &spec).await? }))
}

/// Read how a queue treats jobs.
#[utoipa::path(
    get, path = "/v1/{namespace}/queues/{name}", operation_id = "queue_read", tag = "queue", params(QueuePath),
    responses(
        (status = 200, description = "The queue", body = QueueView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
) -> Result<Answer<QueueView>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Read])?;
    let found = queues.queue(&queue).await?.ok_or_else(|| absent(&path))?;
    Ok(Answer(found.into()))
}

/// Delete a queue with all its jobs.
#[utoipa::path(
    delete, path = "/v1/{namespace}/queues/{name}", operation_id = "queue_delete", tag = "queue", params(QueuePath),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
) -> Result<StatusCode, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    if queues.delete_queue(&queue).await? { Ok(StatusCode::NO_CONTENT) } else { Err(absent(&path)) }
}

/// Read numbers about a queue.
#[utoipa::path(
    get, path = "/v1/{namespace}/queues/{name}/stats", operation_id = "queue_stats", tag = "queue", params(QueuePath),
    responses(
        (status = 200, description = "Numbers", body = StatsView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stats(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
) -> Result<Answer<StatsView>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Read])?;
    Ok(Answer(queues.stats(&queue).await?.into()))
}

/// Let nobody claim jobs for now. Claims that are out go on.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/pause", operation_id = "queue_pause", tag = "queue", params(QueuePath),
    responses(
        (status = 204, description = "It is paused"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn pause(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
) -> Result<StatusCode, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    queues.pause(&queue, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let jobs be claimed again.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/resume", operation_id = "queue_resume", tag = "queue", params(QueuePath),
    responses(
        (status = 204, description = "It goes on"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn resume(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
) -> Result<StatusCode, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    queues.pause(&queue, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make dead jobs ready again, with all their attempts.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/redrive", operation_id = "queue_redrive", tag = "queue",
    params(QueuePath), request_body = DeadBody,
    responses(
        (status = 200, description = "How many", body = Counted),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn redrive(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<DeadBody>,
) -> Result<Answer<Counted>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    let (ids, limit) = body.which()?;
    Ok(Answer(Counted { count: queues.redrive(&queue, ids, limit).await? }))
}

/// Remove dead jobs.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/purge", operation_id = "queue_purge", tag = "queue",
    params(QueuePath), request_body = DeadBody,
    responses(
        (status = 200, description = "How many", body = Counted),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn purge(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<DeadBody>,
) -> Result<Answer<Counted>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Admin])?;
    let (ids, limit) = body.which()?;
    Ok(Answer(Counted { count: queues.purge(&queue, ids, limit).await? }))
}

impl DeadBody {
    fn which(self) -> Result<(Vec<JobId>, usize), Problem> {
        match (self.ids, self.oldest) {
            (Some(ids), None) if !ids.is_empty() => Ok((ids.into_iter().map(JobId).collect(), 0)),
            (None, Some(oldest)) if oldest > 0 => Ok((Vec::new(), usize::try_from(oldest).unwrap_or(usize::MAX))),
            _ => Err(invalid("say which dead jobs: either ids, at least one, or oldest, from 1")),
        }
    }
}

fn absent(path: &QueuePath) -> Problem {
    let detail = format!("there is no queue {} in namespace {}", path.name, path.namespace);
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}
