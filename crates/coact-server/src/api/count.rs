//! What counts instead of excluding: latches, barriers and rate limits.

use std::{collections::HashMap, time::Duration};

use axum::{Json as Answer, extract::State, http::StatusCode};
use coact_blocks::{
    Session, SessionOptions,
    lock::{Barrier, Latch, RateLimiter, RateOptions},
};
use coact_core::{Error, ErrorKind, Result, name::Namespace};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    Api, Block, Caller, Store, Verb,
    extract::{Json, Path, invalid},
    lock::{LockPath, join},
    problem::{self, Problem},
};

const WAIT_MAX_MS: u64 = 60_000;
/// How many rate limits one node keeps chunks of.
const LIMITERS_MAX: usize = 1_000;

/// The rate limits that this node hands out: what it took from the store at once serves many requests.
#[derive(Default)]
pub(super) struct Limiters(Mutex<HashMap<(Namespace, String), Open>>);

struct Open {
    options: RateOptions,
    limiter: RateLimiter,
    session: Session,
}

/// Counting down, waiting, closing again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LatchBody {
    /// The session of who asks.
    session: String,
    /// How often it must be counted down until it opens. Everybody must say the same.
    #[schema(minimum = 1, example = 3)]
    count: u64,
    /// How long a wait may take; 0 by default, at most 60000.
    #[schema(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// How a latch stands.
#[derive(Serialize, ToSchema)]
pub(super) struct LatchView {
    /// Whether it is open.
    open: bool,
    /// How often it is still to be counted down.
    remaining: u64,
}

/// Waiting for the others.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BarrierBody {
    /// The session of the party.
    session: String,
    /// How many parties there are. Everybody must say the same.
    #[schema(minimum = 1, example = 3)]
    parties: u64,
    /// How long to wait for the others; 30000 by default, at most 60000.
    #[schema(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// All parties were there.
#[derive(Serialize, ToSchema)]
pub(super) struct Passed {
    /// Which time it was.
    generation: u64,
    /// As which party this one came, from 0.
    index: u64,
    /// Whether this party is the one that does what one must do.
    leader: bool,
}

/// Asking for permits.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateBody {
    /// The most permits in any window. Everybody must say the same.
    #[schema(minimum = 1, example = 100)]
    permits: u64,
    /// The length of the window.
    #[schema(minimum = 1, example = 1000)]
    per_ms: u64,
    /// How many permits this node takes from the store at once: a divisor of `permits`. Everybody must say the same.
    #[schema(minimum = 1, example = 10)]
    chunk: u64,
    /// How many are asked for now; 1 by default, at most `chunk`.
    #[schema(minimum = 1)]
    n: Option<u64>,
    /// How long to wait for them; 0 by default, at most 60000.
    #[schema(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// Count a latch down by one. A request that is repeated counts again.
#[utoipa::path(
    post, path = "/v1/{namespace}/latches/{name}/count-down", operation_id = "lock_count_down", tag = "lock",
    params(LockPath), request_body = LatchBody,
    responses(
        (status = 200, description = "Counted", body = LatchView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn count_down(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<LatchBody>,
) -> Result<Answer<LatchView>, Problem> {
    let latch = latch(&api, caller, &path, &body).await?;
    latch.count_down().await?;
    view(&latch).await
}

/// Wait until a latch is open.
#[utoipa::path(
    post, path = "/v1/{namespace}/latches/{name}/wait", operation_id = "lock_wait_latch", tag = "lock",
    params(LockPath), request_body = LatchBody,
    responses(
        (status = 200, description = "Whether it opened in time", body = LatchView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn wait_latch(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<LatchBody>,
) -> Result<Answer<LatchView>, Problem> {
    let wait = wait_of(body.wait_ms, 0)?;
    let latch = latch(&api, caller, &path, &body).await?;
    match latch.wait_within(wait).await {
        Err(error) if error.kind() != ErrorKind::Conflict => Err(error.into()),
        _ => view(&latch).await,
    }
}

/// Close a latch again: it counts from the beginning.
#[utoipa::path(
    post, path = "/v1/{namespace}/latches/{name}/reset", operation_id = "lock_reset_latch", tag = "lock",
    params(LockPath), request_body = LatchBody,
    responses(
        (status = 204, description = "It is closed"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn reset_latch(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<LatchBody>,
) -> Result<StatusCode, Problem> {
    latch(&api, caller, &path, &body).await?.reset().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Wait at a barrier until all parties are there. Who gives up, or goes away, is no longer counted.
#[utoipa::path(
    post, path = "/v1/{namespace}/barriers/{name}/wait", operation_id = "lock_wait_barrier", tag = "lock",
    params(LockPath), request_body = BarrierBody,
    responses(
        (status = 200, description = "All are there", body = Passed),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn wait_barrier(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<BarrierBody>,
) -> Result<Answer<Passed>, Problem> {
    let wait = wait_of(body.wait_ms, 30_000)?;
    let store = counting(&api, caller, &path)?;
    let session = join(&store, &body.session).await?;
    let barrier = Barrier::open(&session, &path.name, body.parties).await?;
    match api.env().timeout(wait, barrier.wait()).await {
        Some(arrival) => {
            let arrival = arrival?;
            let (generation, index, leader) = (arrival.generation, arrival.index, arrival.leader);
            Ok(Answer(Passed { generation, index, leader }))
        }
        None => {
            let message = format!("not all {} parties came to barrier {} in time", body.parties, path.name);
            Err(Error::new(ErrorKind::Conflict, message).into())
        }
    }
}

/// Take permits of a rate limit, or wait for them. What was taken does not come back by itself before its window is over.
#[utoipa::path(
    post, path = "/v1/{namespace}/rates/{name}/acquire", operation_id = "lock_acquire_rate", tag = "lock",
    params(LockPath), request_body = RateBody,
    responses(
        (status = 204, description = "Granted"),
        (status = "default", description = "What went wrong; 429 if there is no permit left", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn acquire_rate(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<RateBody>,
) -> Result<StatusCode, Problem> {
    let wait = wait_of(body.wait_ms, 0)?;
    let store = counting(&api, caller, &path)?;
    let per = Duration::from_millis(body.per_ms);
    let options = RateOptions { permits: body.permits, per, chunk: body.chunk };
    let limiter = api.0.limiters.get(&store, &path.name, options).await?;
    let n = body.n.unwrap_or(1);
    let granted = if wait.is_zero() { limiter.try_acquire(n).await? } else { within(&limiter, n, wait).await? };
    if granted {
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!("rate limit {} has no permit left: ask again later", path.name);
    Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::Exhausted, detail))
}

async fn within(limiter: &RateLimiter, n: u64, wait: Duration) -> Result<bool> {
    match limiter.acquire_within(n, wait).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

impl Limiters {
    async fn get(&self, store: &Store, name: &str, options: RateOptions) -> Result<RateLimiter> {
        let mut open = self.0.lock().await;
        let place = (store.namespace.clone(), name.to_owned());
        let fits = |known: &&Open| known.session.is_alive() && known.options == options;
        if let Some(known) = open.get(&place).filter(fits) {
            return Ok(known.limiter.clone());
        }
        if open.len() >= LIMITERS_MAX {
            // What is forgotten ends with its windows; whoever waits keeps what it needs.
            open.clear();
        }
        let session = Session::open(&store.kv, SessionOptions::default()).await?;
        let limiter = RateLimiter::open(&session, name, options).await?;
        open.insert(place, Open { options, limiter: limiter.clone(), session });
        Ok(limiter)
    }

    /// Ends the sessions.
    pub(super) async fn close(&self) {
        for (_, open) in self.0.lock().await.drain() {
            let _ = open.session.close().await;
        }
    }
}

/// What counts is in the main realm.
fn counting(api: &Api, caller: Caller, path: &LockPath) -> Result<Store, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Lock, Verb::Write, &path.name)?;
    Ok(store)
}

async fn latch(api: &Api, caller: Caller, path: &LockPath, body: &LatchBody) -> Result<Latch, Problem> {
    let store = counting(api, caller, path)?;
    let session = join(&store, &body.session).await?;
    Ok(Latch::open(&session, &path.name, body.count).await?)
}

async fn view(latch: &Latch) -> Result<Answer<LatchView>, Problem> {
    let remaining = latch.remaining().await?;
    Ok(Answer(LatchView { open: remaining == 0, remaining }))
}

fn wait_of(wait_ms: Option<u64>, default: u64) -> Result<Duration, Problem> {
    match wait_ms.unwrap_or(default) {
        wait @ 0..=WAIT_MAX_MS => Ok(Duration::from_millis(wait)),
        other => Err(invalid(format!("wait_ms {other} is not allowed: use 0 to {WAIT_MAX_MS}"))),
    }
}
