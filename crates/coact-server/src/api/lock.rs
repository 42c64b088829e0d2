//! Locks of every kind: taking, keeping a place in line, checking, releasing.
//!
//! What a client holds is a *ticket*, which hangs on its session. The client names its acquire by an operation (or an
//! `Idempotency-Key`), so that asking again is the same acquire: it gets the same ticket, or keeps its place in line.

use std::time::Duration;

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coact_blocks::{
    Session,
    lock::{
        self, Election, Guard, Inspection, Kind, Leader, Leadership, LockOptions, Mode, Mutex, MutexOptions, Operation,
        Permit, ReadGuard, RwLock, Semaphore, Ticket, TicketKind, WriteGuard,
    },
};
use coact_core::{Error, ErrorKind, Result};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, KEEP_ALIVE, Store, Verb,
    extract::{IdempotencyKey, Json, Path, Query, invalid},
    kv::{InRealm, NamespacePath, limit},
    problem::{self, Problem},
    session,
};

const WAIT_MAX_MS: u64 = 60_000;
/// What taking a place in line, or a lock that is free, may take without counting as waiting.
const LIMIT_MIN: Duration = Duration::from_millis(500);

/// A lock.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct LockPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) namespace: String,
    /// The name, percent-encoded.
    #[param(example = "deploy")]
    pub(super) name: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// `lock` (default), `rw-lock`, `semaphore` or `election`.
    #[param(value_type = Option<String>, example = "lock")]
    kind: Option<Kind>,
    /// Only names that start with this.
    prefix: Option<String>,
    /// The most locks; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A body that asks for a lock: what each kind needs, and who asks for how long. One struct each rather than a part that is
/// flattened in, which would let unknown fields pass.
macro_rules! asking {
    ($(#[$attribute:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$of_field])* $field: $type,)*
            /// The session that it hangs on.
            session: String,
            /// The name of this acquire: asking again with it is the same acquire. Who names it (here or by an
            /// `Idempotency-Key`) keeps a place in line between two requests, until the session ends; others lose it when
            /// the wait is over.
            #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
            operation: Option<Operation>,
            /// How long this request waits; 0 by default, at most 60000.
            #[schema(minimum = 0, maximum = 60000)]
            wait_ms: Option<u64>,
            /// Who it is, as shown to people; the session's name by default.
            label: Option<String>,
        }

        impl $name {
            fn asked(&self) -> Asked {
                let Self { session, operation, wait_ms, label, .. } = self;
                Asked {
                    session: session.clone(),
                    operation: *operation,
                    wait_ms: wait_ms.unwrap_or(0),
                    label: label.clone(),
                }
            }
        }
    };
}

struct Asked {
    session: String,
    operation: Option<Operation>,
    wait_ms: u64,
    label: Option<String>,
}

asking! {
    /// Taking a mutex.
    MutexBody {
        /// `fair` (default) or `barging`. Everybody must choose the same; in barging mode there is no line.
        #[schema(value_type = Option<String>, example = "fair")]
        mode: Option<Mode>,
    }
}

asking! {
    /// Taking one side of a read-write lock.
    RwLockBody {
        /// `read` or `write`.
        #[schema(value_type = String, example = "read")]
        access: Side,
    }
}

asking! {
    /// Taking one permit of a semaphore.
    SemaphoreBody {
        /// How many permits there are. Everybody must say the same.
        #[schema(minimum = 1, example = 3)]
        permits: u32,
    }
}

asking! {
    /// Running for leader.
    CampaignBody {
        /// What the leader says about itself, such as its address.
        #[schema(example = "10.0.0.7:8080")]
        value: Option<String>,
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Read,
    Write,
}

/// A grant as data. Send it back as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketBody {
    /// As it was given.
    #[schema(value_type = TicketView)]
    ticket: Ticket,
}

/// A grant to be changed, by the session that has it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ProclaimBody {
    /// As it was given.
    #[schema(value_type = TicketView)]
    ticket: Ticket,
    /// The session that it hangs on.
    session: String,
    /// What the leader says now.
    value: String,
}

/// A place in line to be given up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceBody {
    /// As in the answer that said `waiting`.
    #[schema(value_type = String, example = "mutex")]
    kind: TicketKind,
    /// The lock.
    name: String,
    /// The acquire.
    #[schema(value_type = String, pattern = "^[0-9a-f]{32}$")]
    operation: Operation,
}

/// A grant.
#[derive(ToSchema)]
#[schema(as = Ticket)]
#[allow(dead_code, reason = "describes how Ticket is written")]
pub(super) struct TicketView {
    /// `mutex`, `barging-mutex`, `read`, `write`, `downgraded`, `permit` or `leadership`.
    #[schema(example = "mutex")]
    kind: String,
    realm: String,
    name: String,
    /// The acquire that it came from.
    operation: String,
    /// The fencing token: give it to what the lock protects, which refuses smaller ones.
    token: u64,
    /// The revision that created its entry.
    created: u64,
}

/// How an acquire stands.
#[derive(Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Standing {
    /// It is held.
    Granted {
        /// What to show, check and release.
        #[schema(value_type = TicketView)]
        ticket: Ticket,
    },
    /// It has a place in line: ask again with the same operation.
    Waiting {
        /// What it waits for, as in a ticket.
        #[schema(value_type = String, example = "mutex")]
        kind: TicketKind,
        /// The acquire.
        #[schema(value_type = String)]
        operation: Operation,
    },
}

/// Locks, as people see them.
#[derive(Serialize, ToSchema)]
pub(super) struct Locks {
    /// In the order of names.
    #[schema(value_type = Vec<Object>)]
    locks: Vec<Inspection>,
}

/// Who leads.
#[derive(Serialize, ToSchema)]
pub(super) struct LeaderView {
    /// `null` if nobody does.
    #[schema(value_type = Option<Object>)]
    leader: Option<Leader>,
}

/// Whether a ticket was still good.
#[derive(Serialize, ToSchema)]
pub(super) struct Released {
    /// `false` if it had been lost before: what it protected may have been in two hands.
    released: bool,
}

/// List locks of one kind, with who holds and who waits.
#[utoipa::path(
    get, path = "/v1/{namespace}/locks", operation_id = "lock_list", tag = "lock", params(NamespacePath, ListQuery),
    responses(
        (status = 200, description = "In the order of names", body = Locks),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<Locks>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let prefix = query.prefix.unwrap_or_default();
    store.caller.allow_prefix(Block::Lock, Verb::Read, store.namespace.as_str(), &prefix)?;
    let kind = query.kind.unwrap_or(Kind::Lock);
    let locks = lock::inspect(&store.kv, &store.realm, kind, &prefix, limit(query.limit)?).await?;
    Ok(Answer(Locks { locks }))
}

/// Take a mutex, or wait for it.
#[utoipa::path(
    post, path = "/v1/{namespace}/locks/{name}/acquire", operation_id = "lock_acquire", tag = "lock",
    params(LockPath, InRealm, ("Idempotency-Key" = Option<String>, Header, description = "Names the acquire")),
    request_body = MutexBody,
    responses(
        (status = 200, description = "Granted", body = Standing),
        (status = 202, description = "Waiting, with a place in line", body = Standing),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn acquire(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<MutexBody>,
) -> Result<Response, Problem> {
    let turn = Turn::new(&api, caller, &path, &query, idempotency, body.asked()).await?;
    let mode = body.mode.unwrap_or_default();
    let kind = if mode == Mode::Fair { TicketKind::Mutex } else { TicketKind::BargingMutex };
    let LockOptions { realm, label, keep_place } = turn.options();
    let options = MutexOptions { realm, mode, label, keep_place };
    let granted = Mutex::with_options(&turn.session, &path.name, options)?.acquire_as(turn.operation, turn.limit).await;
    turn.answer(kind, &path.name, granted.map(Guard::detach)).await
}

/// Take one side of a read-write lock, or wait for it.
#[utoipa::path(
    post, path = "/v1/{namespace}/rwlocks/{name}/acquire", operation_id = "lock_acquire_rw", tag = "lock",
    params(LockPath, InRealm, ("Idempotency-Key" = Option<String>, Header, description = "Names the acquire")),
    request_body = RwLockBody,
    responses(
        (status = 200, description = "Granted", body = Standing),
        (status = 202, description = "Waiting, with a place in line", body = Standing),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn acquire_rw(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<RwLockBody>,
) -> Result<Response, Problem> {
    let turn = Turn::new(&api, caller, &path, &query, idempotency, body.asked()).await?;
    let lock = RwLock::with_options(&turn.session, &path.name, turn.options())?;
    let (kind, granted) = match body.access {
        Side::Read => (TicketKind::Read, lock.read_as(turn.operation, turn.limit).await.map(ReadGuard::detach)),
        Side::Write => (TicketKind::Write, lock.write_as(turn.operation, turn.limit).await.map(WriteGuard::detach)),
    };
    turn.answer(kind, &path.name, granted).await
}

/// Take a permit of a semaphore, or wait for one.
#[utoipa::path(
    post, path = "/v1/{namespace}/semaphores/{name}/acquire", operation_id = "lock_acquire_permit", tag = "lock",
    params(LockPath, InRealm, ("Idempotency-Key" = Option<String>, Header, description = "Names the acquire")),
    request_body = SemaphoreBody,
    responses(
        (status = 200, description = "Granted", body = Standing),
        (status = 202, description = "Waiting, with a place in line", body = Standing),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn acquire_permit(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<SemaphoreBody>,
) -> Result<Response, Problem> {
    let turn = Turn::new(&api, caller, &path, &query, idempotency, body.asked()).await?;
    let semaphore = Semaphore::with_options(&turn.session, &path.name, body.permits, turn.options())?;
    let granted = semaphore.acquire_as(turn.operation, turn.limit).await;
    turn.answer(TicketKind::Permit, &path.name, granted.map(Permit::detach)).await
}

/// Run for leader, or wait for one's turn.
#[utoipa::path(
    post, path = "/v1/{namespace}/elections/{name}/campaign", operation_id = "lock_campaign", tag = "lock",
    params(LockPath, InRealm, ("Idempotency-Key" = Option<String>, Header, description = "Names the candidacy")),
    request_body = CampaignBody,
    responses(
        (status = 200, description = "It leads", body = Standing),
        (status = 202, description = "Waiting, with a place in line", body = Standing),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn campaign(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<CampaignBody>,
) -> Result<Response, Problem> {
    let turn = Turn::new(&api, caller, &path, &query, idempotency, body.asked()).await?;
    let election = Election::with_options(&turn.session, &path.name, turn.options())?;
    let granted = election.campaign_as(turn.operation, body.value.unwrap_or_default(), turn.limit).await;
    turn.answer(TicketKind::Leadership, &path.name, granted.map(Leadership::detach)).await
}

/// See who leads.
#[utoipa::path(
    get, path = "/v1/{namespace}/elections/{name}", operation_id = "lock_leader", tag = "lock",
    params(LockPath, InRealm),
    responses(
        (status = 200, description = "Who leads, if anybody does", body = LeaderView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn leader(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
) -> Result<Answer<LeaderView>, Problem> {
    let store = lock_store(&api, caller, &path, &query, Verb::Read)?;
    let leader = lock::leader(&store.kv, &store.realm, &path.name).await?;
    Ok(Answer(LeaderView { leader }))
}

/// Watch who leads, as server-sent events: one `leader` for each change.
#[utoipa::path(
    get, path = "/v1/{namespace}/elections/{name}/observe", operation_id = "lock_observe", tag = "lock",
    params(LockPath, InRealm),
    responses(
        (status = 200, description = "Who leads, at each change", body = LeaderView, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn observe(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Query(query): Query<InRealm>,
) -> Result<Response, Problem> {
    let store = lock_store(&api, caller, &path, &query, Verb::Read)?;
    let leaders = lock::observe(&store.kv, &store.realm, &path.name)?;
    let events = leaders
        .take_while(|leader| std::future::ready(leader.is_ok()))
        .filter_map(async |leader| {
            Some(Event::default().event("leader").json_data(LeaderView { leader: leader.ok()? }))
        })
        .take_until(api.until_cut(store.caller));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Change what the leader says about itself.
#[utoipa::path(
    post, path = "/v1/{namespace}/elections/{name}/proclaim", operation_id = "lock_proclaim", tag = "lock",
    params(LockPath), request_body = ProclaimBody,
    responses(
        (status = 204, description = "Observers see it"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn proclaim(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<LockPath>,
    Json(body): Json<ProclaimBody>,
) -> Result<StatusCode, Problem> {
    let ProclaimBody { ticket, session, value } = body;
    if ticket.kind != TicketKind::Leadership || ticket.name != path.name {
        return Err(invalid(format!("the ticket is not one of election {}", path.name)));
    }
    let store = ticket_store(&api, caller, &path.namespace, &ticket, Verb::Write)?;
    let session = join(&store, &session).await?;
    // While it holds, campaigning again under the same operation is the same candidacy.
    ticket.check(&store.kv).await?;
    let options = LockOptions { realm: store.realm.clone(), ..LockOptions::default() };
    let election = Election::with_options(&session, &path.name, options)?;
    let leadership = election.campaign_as(ticket.operation, value.as_str(), Some(Duration::from_secs(5))).await?;
    if leadership.token() != ticket.token {
        return Err(Error::new(ErrorKind::Fenced, format!("{ticket} is no longer held")).into());
    }
    let proclaimed = leadership.proclaim(value).await;
    leadership.detach();
    proclaimed?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask whether a ticket is still good. The answer may be old when it arrives: what the lock protects checks the token.
#[utoipa::path(
    post, path = "/v1/{namespace}/tickets/check", operation_id = "lock_check", tag = "lock", params(NamespacePath),
    request_body = TicketBody,
    responses(
        (status = 204, description = "It is held"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn check(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Json(TicketBody { ticket }): Json<TicketBody>,
) -> Result<StatusCode, Problem> {
    let store = ticket_store(&api, caller, &path.namespace, &ticket, Verb::Read)?;
    ticket.check(&store.kv).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Release what a ticket stands for. Releasing again is safe.
#[utoipa::path(
    post, path = "/v1/{namespace}/tickets/release", operation_id = "lock_release", tag = "lock",
    params(NamespacePath), request_body = TicketBody,
    responses(
        (status = 200, description = "It is not held any more", body = Released),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn release(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Json(TicketBody { ticket }): Json<TicketBody>,
) -> Result<Answer<Released>, Problem> {
    let store = ticket_store(&api, caller, &path.namespace, &ticket, Verb::Write)?;
    Ok(Answer(Released { released: ticket.release(&store.kv).await? }))
}

/// Give up an acquire, wherever it stands; no effect if there is none.
#[utoipa::path(
    post, path = "/v1/{namespace}/tickets/withdraw", operation_id = "lock_withdraw", tag = "lock",
    params(NamespacePath, InRealm), request_body = PlaceBody,
    responses(
        (status = 204, description = "It has no place in line any more"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn withdraw(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<InRealm>,
    Json(PlaceBody { kind, name, operation }): Json<PlaceBody>,
) -> Result<StatusCode, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Lock, Verb::Write, &name)?;
    if let Some(ticket) = Ticket::find(&store.kv, kind, &store.realm, &name, operation).await? {
        ticket.release(&store.kv).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// One request for a lock.
struct Turn {
    store: Store,
    session: Session,
    operation: Operation,
    limit: Option<Duration>,
    label: Option<String>,
    /// Whether the client can ask again for the same acquire.
    keeps_place: bool,
}

impl Turn {
    async fn new(
        api: &Api,
        caller: Caller,
        path: &LockPath,
        query: &InRealm,
        idempotency: Option<IdempotencyKey>,
        asked: Asked,
    ) -> Result<Self, Problem> {
        let store = lock_store(api, caller, path, query, Verb::Write)?;
        if asked.wait_ms > WAIT_MAX_MS {
            return Err(invalid(format!("wait_ms {} is not allowed: use 0 to {WAIT_MAX_MS}", asked.wait_ms)));
        }
        let named = match (asked.operation, idempotency) {
            (Some(_), Some(_)) => return Err(invalid("operation and Idempotency-Key exclude each other")),
            (Some(operation), None) => Some(operation),
            // Two sessions may use the same text for different acquires.
            (None, Some(IdempotencyKey(key))) => {
                Some(Operation::from_idempotency_key(&format!("{} {key}", asked.session)))
            }
            (None, None) => None,
        };
        let session = join(&store, &asked.session).await?;
        Ok(Self {
            store,
            session,
            operation: named.unwrap_or_else(|| Operation::random(api.env())),
            limit: Some(Duration::from_millis(asked.wait_ms).max(LIMIT_MIN)),
            label: asked.label,
            keeps_place: named.is_some(),
        })
    }

    fn options(&self) -> LockOptions {
        LockOptions { realm: self.store.realm.clone(), label: self.label.clone(), keep_place: self.keeps_place }
    }

    async fn answer(self, kind: TicketKind, name: &str, granted: Result<Ticket>) -> Result<Response, Problem> {
        let refused = match granted {
            Ok(ticket) => return Ok(Answer(Standing::Granted { ticket }).into_response()),
            Err(refused) => refused,
        };
        let Self { store, operation, .. } = self;
        if self.keeps_place
            && refused.kind() == ErrorKind::Conflict
            && Ticket::find(&store.kv, kind, &store.realm, name, operation).await?.is_some()
        {
            let standing = Standing::Waiting { kind, operation };
            return Ok((StatusCode::ACCEPTED, Answer(standing)).into_response());
        }
        Err(refused.into())
    }
}

pub(super) async fn join(store: &Store, id: &str) -> Result<Session, Problem> {
    let known = session::find(store, id).await?;
    Ok(Session::join(&store.kv, known.lease, known.name).await?)
}

fn lock_store(api: &Api, caller: Caller, path: &LockPath, query: &InRealm, verb: Verb) -> Result<Store, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Lock, verb, &path.name)?;
    Ok(store)
}

fn ticket_store(api: &Api, caller: Caller, namespace: &str, ticket: &Ticket, verb: Verb) -> Result<Store, Problem> {
    let store = api.store(caller, namespace, Some(ticket.realm.as_str()))?;
    store.allow(Block::Lock, verb, &ticket.name)?;
    Ok(store)
}
