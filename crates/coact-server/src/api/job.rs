//! Jobs: pushing, claiming, settling, and looking after single ones.
//!
//! A claim is named by the job's id and a token. Whoever settles with a token that is over is answered `fenced`, under
//! status 200: each claim of a request is settled for itself.

use std::time::Duration;

use axum::{Json as Answer, extract::State, http::StatusCode};
use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::queue::{
        Claim, Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, Receipt, Settle, Settled, Token, Verdict,
    },
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Verb,
    entry::{Header, bytes, text_or_base64},
    extract::{Json, Path, Query, int32, int64, invalid, wait_of},
    kv::limit,
    problem::{self, Problem},
    queue::QueuePath,
};

/// How long a claim lives if nothing else is said.
const LEASE_MS: u64 = 30_000;

/// A job.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct JobPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The queue.
    #[param(example = "mail", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    name: String,
    /// Its id.
    id: u64,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobsQuery {
    /// `ready` (default), `delayed`, `blocked`, `claimed` or `dead`.
    #[param(example = "ready")]
    state: Option<String>,
    /// Start after this job: the last of the page before.
    #[serde(default, deserialize_with = "int64")]
    after: Option<u64>,
    /// The most jobs; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A job to enqueue.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobBody {
    /// What to do, if that is text.
    #[schema(example = "send 17")]
    body: Option<String>,
    /// What to do, if that is not text.
    body_base64: Option<String>,
    /// Names and values beside it, in order.
    headers: Option<Vec<Header>>,
    /// An idempotency key: as long as a job of this name is in the queue, dead ones included, another is not made.
    name: Option<String>,
    /// From 0 (default) to 9, which comes first.
    #[schema(maximum = 9)]
    priority: Option<u8>,
    /// Not before this time, in milliseconds since 1970.
    #[serde(default, deserialize_with = "int64")]
    run_at_ms: Option<u64>,
    /// Not before so long from now.
    #[serde(default, deserialize_with = "int64")]
    delay_ms: Option<u64>,
    /// Jobs of one order key are done one after the other, in the order of arrival.
    order_key: Option<String>,
    /// How often it is claimed before it is dead, instead of what the queue says.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "int32")]
    max_attempts: Option<u32>,
    /// Dead if nobody has claimed it by this time, in milliseconds since 1970.
    #[serde(default, deserialize_with = "int64")]
    expires_ms: Option<u64>,
}

/// Jobs to enqueue, all or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobBodies {
    jobs: Vec<JobBody>,
}

/// Asking for jobs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimBody {
    /// Who asks, as shown to people.
    #[schema(example = "host-1")]
    worker: String,
    /// At most so many; 1 by default.
    #[schema(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// How long each job is the worker's unless it extends the claim; 30000 by default.
    #[schema(minimum = 50)]
    #[serde(default, deserialize_with = "int64")]
    lease_ms: Option<u64>,
    /// How long to wait for a job if there is none; 0 by default, at most 60000.
    #[schema(minimum = 0, maximum = 60000)]
    #[serde(default, deserialize_with = "int64")]
    wait_ms: Option<u64>,
}

/// Results of claims, each for itself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SettleBody {
    settle: Vec<SettleOne>,
}

/// What a worker says about a claim.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SettleOne {
    /// Which job.
    id: u64,
    /// Which claim of it.
    token: u64,
    /// `ack`: it is done. `nack`: it failed, and rests. `kill`: it failed for good. `release`: it was not tried.
    /// `extend`: the worker needs longer.
    #[schema(value_type = String, example = "ack")]
    verdict: Word,
    /// With `nack`: how long it rests; 0 by default.
    #[serde(default, deserialize_with = "int64")]
    delay_ms: Option<u64>,
    /// With `nack` and `kill`: why; at most 1 KiB of it is kept.
    error: Option<String>,
    /// With `extend`: how long the claim lives from now.
    #[schema(minimum = 50)]
    #[serde(default, deserialize_with = "int64")]
    lease_ms: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Ack,
    Nack,
    Kill,
    Release,
    Extend,
}

/// Another time for a job.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RescheduleBody {
    /// In milliseconds since 1970; one that has passed makes it ready.
    run_at_ms: u64,
}

/// Where a job is that was pushed.
#[derive(Serialize, ToSchema)]
pub(super) struct Pushed {
    id: u64,
    /// `false` if a job of its name was there.
    created: bool,
}

/// Where jobs are that were pushed, in the same order.
#[derive(Serialize, ToSchema)]
pub(super) struct PushedAll {
    jobs: Vec<Pushed>,
}

/// A job as it is.
#[derive(Serialize, ToSchema)]
pub(super) struct JobView {
    id: u64,
    /// `ready`, `delayed`, `blocked`, `claimed` or `dead`.
    #[schema(value_type = String, example = "ready")]
    state: &'static str,
    /// How often it was claimed.
    attempts: u32,
    enqueued_ms: u64,
    /// Who claimed it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// What the last failure said, or why it is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// When it died.
    #[serde(skip_serializing_if = "Option::is_none")]
    died_ms: Option<u64>,
    #[serde(flatten)]
    job: ContentView,
}

/// What was enqueued.
#[derive(Serialize, ToSchema)]
struct ContentView {
    /// If it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Header>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at_ms: Option<u64>,
    /// If it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    order_key: Option<String>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    order_key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
}

/// Jobs, by id.
#[derive(Serialize, ToSchema)]
pub(super) struct Jobs {
    jobs: Vec<JobView>,
}

/// A job that is the worker's for a while.
#[derive(Serialize, ToSchema)]
struct ClaimedView {
    id: u64,
    /// Names this claim, and is its fencing token: it grows with each claim in the queue.
    token: u64,
    /// Which attempt this is, from 1.
    attempt: u32,
    /// After how many it is dead.
    max_attempts: u32,
    /// How long the claim lives, from when it was asked for.
    lease_ms: u64,
    enqueued_ms: u64,
    #[serde(flatten)]
    job: ContentView,
}

/// Jobs that are the worker's for a while; none if there was none in time.
#[derive(Serialize, ToSchema)]
pub(super) struct ClaimedJobs {
    jobs: Vec<ClaimedView>,
}

/// What became of claims, in the same order.
#[derive(Serialize, ToSchema)]
pub(super) struct SettledAll {
    /// `done`: as the worker said. `dead`: it is with the dead. `fenced`: the claim was over, and nothing was changed.
    #[schema(value_type = Vec<String>, example = json!(["done"]))]
    settled: Vec<&'static str>,
}

/// Push a job. To repeat it safely, give it a name.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/jobs", operation_id = "queue_push", tag = "queue", params(QueuePath),
    request_body = JobBody,
    responses(
        (status = 200, description = "It is in the queue", body = Pushed),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn push(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<JobBody>,
) -> Result<Answer<Pushed>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    let enqueued = queues.enqueue(&queue, vec![body.job(api.env().wall_ms())?]).await?;
    let pushed = enqueued.into_iter().map(Pushed::from).next();
    pushed.map(Answer).ok_or_else(|| {
        let detail = "the engine took a job without an answer";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal, detail)
    })
}

/// Push jobs, all or none. To repeat it safely, give them names.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/jobs/batch", operation_id = "queue_push_all", tag = "queue",
    params(QueuePath), request_body = JobBodies,
    responses(
        (status = 200, description = "They are in the queue", body = PushedAll),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn push_all(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<JobBodies>,
) -> Result<Answer<PushedAll>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    let now_ms = api.env().wall_ms();
    let jobs = body.jobs.into_iter().map(|job| job.job(now_ms)).collect::<Result<_, _>>()?;
    let enqueued = queues.enqueue(&queue, jobs).await?;
    Ok(Answer(PushedAll { jobs: enqueued.into_iter().map(Pushed::from).collect() }))
}

/// Claim jobs: the most urgent first, then the oldest. Waits for one as long as is asked.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/claim", operation_id = "queue_claim", tag = "queue", params(QueuePath),
    request_body = ClaimBody,
    responses(
        (status = 200, description = "Jobs, or none", body = ClaimedJobs),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn claim(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<ClaimBody>,
) -> Result<Answer<ClaimedJobs>, Problem> {
    // Who claims gets to see the jobs, and takes them from others.
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Read, Verb::Write])?;
    let claim = Claim {
        queue,
        worker: body.worker,
        limit: limit(Some(body.limit.unwrap_or(1)))?,
        lease: Duration::from_millis(body.lease_ms.unwrap_or(LEASE_MS)),
        wait: wait_of(body.wait_ms)?,
    };
    let claimed = tokio::select! {
        biased;
        claimed = queues.claim(claim) => claimed?,
        // What was claimed for nobody is released.
        () = api.until_cut(caller) => Vec::new(),
    };
    Ok(Answer(ClaimedJobs { jobs: claimed.into_iter().map(ClaimedView::from).collect() }))
}

/// Settle claims, each for itself, or extend them.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/settle", operation_id = "queue_settle", tag = "queue", params(QueuePath),
    request_body = SettleBody,
    responses(
        (status = 200, description = "What became of each", body = SettledAll),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn settle(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Json(body): Json<SettleBody>,
) -> Result<Answer<SettledAll>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    let settle = body.settle.into_iter().map(SettleOne::settle).collect::<Result<_, _>>()?;
    let settled = queues.settle(&queue, settle).await?;
    let word = |settled| match settled {
        Settled::Done => "done",
        Settled::Dead => "dead",
        Settled::Fenced => "fenced",
    };
    Ok(Answer(SettledAll { settled: settled.into_iter().map(word).collect() }))
}

/// List jobs in a state, by id.
#[utoipa::path(
    get, path = "/v1/{namespace}/queues/{name}/jobs", operation_id = "queue_jobs", tag = "queue",
    params(QueuePath, JobsQuery),
    responses(
        (status = 200, description = "A page", body = Jobs),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<QueuePath>,
    Query(query): Query<JobsQuery>,
) -> Result<Answer<Jobs>, Problem> {
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Read])?;
    let state = query.state.as_deref().map_or(Ok(JobState::Ready), state_of)?;
    let jobs = queues.jobs(&queue, state, query.after.map(JobId), limit(query.limit)?).await?;
    Ok(Answer(Jobs { jobs: jobs.into_iter().map(JobView::from).collect() }))
}

/// Read a job.
#[utoipa::path(
    get, path = "/v1/{namespace}/queues/{name}/jobs/{id}", operation_id = "queue_job", tag = "queue", params(JobPath),
    responses(
        (status = 200, description = "The job", body = JobView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<JobPath>,
) -> Result<Answer<JobView>, Problem> {
    let (path, id) = path.split();
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Read])?;
    let job = queues.job(&queue, id).await?.ok_or_else(|| absent(format!("there is no job {id}")))?;
    Ok(Answer(job.into()))
}

/// Take a job out of the queue that no worker has.
#[utoipa::path(
    delete, path = "/v1/{namespace}/queues/{name}/jobs/{id}", operation_id = "queue_cancel", tag = "queue",
    params(JobPath),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong; 409 if a worker has it", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<JobPath>,
) -> Result<StatusCode, Problem> {
    let (path, id) = path.split();
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    moved(queues.cancel(&queue, id).await?, id)
}

/// Give a job that no worker has another time.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/jobs/{id}/reschedule", operation_id = "queue_reschedule", tag = "queue",
    params(JobPath), request_body = RescheduleBody,
    responses(
        (status = 204, description = "It has another time"),
        (status = "default", description = "What went wrong; 409 if a worker has it", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn reschedule(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<JobPath>,
    Json(body): Json<RescheduleBody>,
) -> Result<StatusCode, Problem> {
    let (path, id) = path.split();
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    moved(queues.reschedule(&queue, id, body.run_at_ms).await?, id)
}

/// Make a delayed job ready now.
#[utoipa::path(
    post, path = "/v1/{namespace}/queues/{name}/jobs/{id}/promote", operation_id = "queue_promote", tag = "queue",
    params(JobPath),
    responses(
        (status = 204, description = "It is ready"),
        (status = "default", description = "What went wrong; 409 if a worker has it", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn promote(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<JobPath>,
) -> Result<StatusCode, Problem> {
    let (path, id) = path.split();
    let (queues, queue) = api.queue(&caller, &path, &[Verb::Write])?;
    moved(queues.promote(&queue, id).await?, id)
}

impl JobPath {
    fn split(self) -> (QueuePath, JobId) {
        (QueuePath { namespace: self.namespace, name: self.name }, JobId(self.id))
    }
}

impl JobBody {
    fn job(self, now_ms: u64) -> Result<NewJob, Problem> {
        let run_at_ms = match (self.run_at_ms, self.delay_ms) {
            (Some(_), Some(_)) => return Err(invalid("run_at_ms and delay_ms exclude each other")),
            (run_at_ms, delay_ms) => run_at_ms.or(delay_ms.map(|delay_ms| now_ms.saturating_add(delay_ms))),
        };
        let headers = self.headers.unwrap_or_default().into_iter().map(Header::read);
        Ok(NewJob {
            body: bytes("body", self.body, self.body_base64)?,
            headers: headers.collect::<Result<_, Problem>>()?,
            name: self.name,
            priority: self.priority.unwrap_or(0),
            run_at_ms,
            order_key: self.order_key.map(Bytes::from),
            max_attempts: self.max_attempts,
            expires_ms: self.expires_ms,
        })
    }
}

impl SettleOne {
    fn settle(self) -> Result<Settle, Problem> {
        let Self { id, token, verdict, delay_ms, error, lease_ms } = self;
        let verdict = match (verdict, delay_ms, error, lease_ms) {
            (Word::Ack, None, None, None) => Verdict::Ack,
            (Word::Release, None, None, None) => Verdict::Release,
            (Word::Nack, delay_ms, error, None) => {
                Verdict::Nack { delay: Duration::from_millis(delay_ms.unwrap_or(0)), error: error.unwrap_or_default() }
            }
            (Word::Kill, None, error, None) => Verdict::Kill { error: error.unwrap_or_default() },
            (Word::Extend, None, None, Some(lease_ms)) => Verdict::Extend { lease: Duration::from_millis(lease_ms) },
            _ => {
                return Err(invalid(format!(
                    "job {id}: delay_ms goes with nack, error with nack and kill, lease_ms with extend, which needs it"
                )));
            }
        };
        Ok(Settle { receipt: Receipt { id: JobId(id), token: Token(token) }, verdict })
    }
}

impl From<Enqueued> for Pushed {
    fn from(enqueued: Enqueued) -> Self {
        Self { id: enqueued.id().0, created: matches!(enqueued, Enqueued::Created(_)) }
    }
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        Self {
            id: job.id.0,
            state: job.state.name(),
            attempts: job.attempts,
            enqueued_ms: job.enqueued_ms,
            worker: job.worker,
            error: job.error,
            died_ms: job.died_ms,
            job: job.job.into(),
        }
    }
}

impl From<Claimed> for ClaimedView {
    fn from(claimed: Claimed) -> Self {
        Self {
            id: claimed.id.0,
            token: claimed.token.0,
            attempt: claimed.attempt,
            max_attempts: claimed.max_attempts,
            lease_ms: u64::try_from(claimed.lease.as_millis()).unwrap_or(u64::MAX),
            enqueued_ms: claimed.enqueued_ms,
            job: claimed.job.into(),
        }
    }
}

impl From<NewJob> for ContentView {
    fn from(job: NewJob) -> Self {
        let (body, body_base64) = text_or_base64(&job.body);
        let (order_key, order_key_base64) = job.order_key.as_deref().map(text_or_base64).unwrap_or_default();
        let headers = job.headers.into_iter().map(|(name, value)| Header::of(name, &value));
        Self {
            body,
            body_base64,
            headers: headers.collect(),
            name: job.name,
            priority: job.priority,
            run_at_ms: job.run_at_ms,
            order_key,
            order_key_base64,
            expires_ms: job.expires_ms,
        }
    }
}

fn state_of(text: &str) -> Result<JobState, Problem> {
    JobState::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
        let names = JobState::ALL.map(JobState::name).join(", ");
        invalid(format!("state {text:?} is not known: choose from {names}"))
    })
}

fn moved(moved: Moved, id: JobId) -> Result<StatusCode, Problem> {
    match moved {
        Moved::Done => Ok(StatusCode::NO_CONTENT),
        Moved::InFlight => {
            Err(Problem::new(StatusCode::CONFLICT, ErrorKind::Conflict, format!("a worker has job {id}")))
        }
        Moved::NotFound => Err(absent(format!("there is no job {id}, or it is dead"))),
    }
}

fn absent(detail: String) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}
