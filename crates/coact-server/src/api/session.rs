//! Sessions as a resource: a lease that the client renews, and the entry by which any node finds it.
//!
//! What a client takes over HTTP (locks, entries, registrations) hangs on its session and goes away with it.

use std::time::Duration;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use coact_core::{
    Error, ErrorKind,
    contract::kv::{Check, Entry, Lease, LeaseId, Order, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, Store, Verb,
    extract::{IdempotencyKey, Json, Path, Query},
    idempotency::digest,
    kv::{NamespacePath, created_after, limit},
    problem::{self, Problem},
};

const DIR: &str = "session";
const TTL_DEFAULT_MS: u64 = 10_000;

/// A session.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SessionPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// Its id.
    id: String,
}

/// How a session is opened.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSession {
    /// How long it lives without renewal, in milliseconds; 10000 by default. Renew it every third of that.
    #[schema(example = 10000, minimum = 1)]
    ttl_ms: Option<u64>,
    /// Who this is, as shown to people.
    #[schema(example = "billing-7")]
    name: Option<String>,
}

/// A session.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionView {
    /// Its id: whoever knows it can act for the session.
    id: String,
    /// Who this is.
    name: String,
    /// How long it lives without renewal.
    ttl_ms: u64,
    /// How long it still lives if nobody renews it.
    left_ms: u64,
}

/// Sessions, as people see them.
#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    sessions: Vec<SessionSummary>,
    /// Give this as `after` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A session without what it takes to act for it.
#[derive(Serialize, ToSchema)]
struct SessionSummary {
    /// Who this is.
    name: String,
    /// How long it lives without renewal.
    ttl_ms: u64,
    /// The lease that its entries hang on, in hexadecimal.
    lease: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Start after this: the `next` of the page before.
    after: Option<String>,
    /// The most sessions; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// What the store keeps about a session.
#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    ttl_ms: u64,
}

/// A session that was found.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) lease: Lease,
}

/// Open a session.
#[utoipa::path(
    post, path = "/v1/{namespace}/sessions", operation_id = "session_create", tag = "session",
    params(
        NamespacePath,
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating it gives the same session while that lives"),
    ),
    request_body = NewSession,
    responses(
        (status = 201, description = "Opened, or found again", body = SessionView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<NewSession>,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Session, Verb::Write, "")?;
    let id = match &idempotency {
        Some(IdempotencyKey(key)) => digest(format!("session {key}").as_bytes()),
        None => format!("{:016x}{:016x}", api.env().random(), api.env().random()),
    };
    let lease = store.kv.lease_grant(Duration::from_millis(body.ttl_ms.unwrap_or(TTL_DEFAULT_MS))).await?;
    let record = Record { name: body.name.unwrap_or_else(|| id[..8].to_owned()), ttl_ms: lease.ttl.as_millis() as u64 };
    let key = key(&id)?;
    let txn = Txn {
        checks: vec![Check::Absent(key.clone())],
        reads: Vec::new(),
        writes: vec![Write::Put { key, value: to_bytes(&record)?, lease: Some(lease.id) }],
    };
    let view = match store.kv.txn(&store.realm, txn).await? {
        TxnOutcome::Committed { .. } => {
            SessionView { id: id.clone(), name: record.name, ttl_ms: record.ttl_ms, left_ms: record.ttl_ms }
        }
        TxnOutcome::Refused { .. } => {
            store.kv.lease_revoke(lease.id).await?;
            view(&store, &id).await?
        }
    };
    let location = format!("/v1/{}/sessions/{id}", store.namespace);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(view)).into_response())
}

/// Look at a session.
#[utoipa::path(
    get, path = "/v1/{namespace}/sessions/{id}", operation_id = "session_read", tag = "session", params(SessionPath),
    responses(
        (status = 200, description = "The session", body = SessionView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SessionPath>,
) -> Result<axum::Json<SessionView>, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Session, Verb::Read, "")?;
    Ok(axum::Json(view(&store, &path.id).await?))
}

/// Keep a session alive. It lives its full `ttl_ms` from when the node got this; count from when you sent it.
#[utoipa::path(
    post, path = "/v1/{namespace}/sessions/{id}/renew", operation_id = "session_renew", tag = "session", params(SessionPath),
    responses(
        (status = 200, description = "It lives on", body = SessionView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn renew(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SessionPath>,
) -> Result<axum::Json<SessionView>, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Session, Verb::Write, "")?;
    let known = find(&store, &path.id).await?;
    let left = store.kv.lease_renew(known.lease.id).await?;
    Ok(axum::Json(SessionView {
        id: path.id,
        name: known.name,
        ttl_ms: known.lease.ttl.as_millis() as u64,
        left_ms: left.as_millis() as u64,
    }))
}

/// End a session and everything that hangs on it; no effect if it has ended.
#[utoipa::path(
    delete, path = "/v1/{namespace}/sessions/{id}", operation_id = "session_end", tag = "session", params(SessionPath),
    responses(
        (status = 204, description = "It is over"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn end(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SessionPath>,
) -> Result<StatusCode, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Session, Verb::Write, "")?;
    if let Some(entry) = store.kv.get(&key(&path.id)?).await?
        && let Some(lease) = entry.lease
    {
        store.kv.lease_revoke(lease).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// List sessions, without their ids.
#[utoipa::path(
    get, path = "/v1/{namespace}/sessions", operation_id = "session_list", tag = "session", params(NamespacePath, PageQuery),
    responses(
        (status = 200, description = "A page", body = Sessions),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Sessions>, Problem> {
    let store = api.store(caller, &path.namespace, None)?;
    store.allow(Block::Session, Verb::Read, "")?;
    let order = Order::Created { after: created_after(query.after.as_deref())? };
    let page = store.kv.list(&Dir::new(&store.realm, DIR)?, order, limit(query.limit)?).await?;
    let next = page.entries.last().filter(|_| page.more).map(|last| last.created.to_string());
    let sessions = page.entries.iter().filter_map(|entry| {
        let (lease, record) = (entry.lease?, from_entry(entry)?);
        Some(SessionSummary { name: record.name, ttl_ms: record.ttl_ms, lease: format!("{:x}", lease.0) })
    });
    Ok(axum::Json(Sessions { sessions: sessions.collect(), next }))
}

/// The session with this id.
pub(super) async fn find(store: &Store, id: &str) -> Result<Known, Problem> {
    let entry = store.kv.get(&key(id)?).await?;
    let known = entry.as_ref().and_then(|entry| Some((entry.lease?, from_entry(entry)?)));
    let Some((lease, record)) = known else { return Err(ended(id)) };
    Ok(Known { name: record.name, lease: Lease { id: lease, ttl: Duration::from_millis(record.ttl_ms) } })
}

/// The lease of a session.
pub(super) async fn lease_of(store: &Store, id: &str) -> Result<LeaseId, Problem> {
    find(store, id).await.map(|known| known.lease.id)
}

async fn view(store: &Store, id: &str) -> Result<SessionView, Problem> {
    let known = find(store, id).await?;
    let left = store.kv.lease_left(known.lease.id).await?.ok_or_else(|| ended(id))?;
    Ok(SessionView {
        id: id.to_owned(),
        name: known.name,
        ttl_ms: known.lease.ttl.as_millis() as u64,
        left_ms: left.as_millis() as u64,
    })
}

fn ended(id: &str) -> Problem {
    let detail = format!("session {id} has ended, or never was: open a new one");
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}

/// Sessions are in the main realm, whatever realm is worked in.
///
/// Named by a digest: who may list the store's entries must not learn what it takes to act for a session.
fn key(id: &str) -> coact_core::Result<Key> {
    Key::new(&Realm::default(), DIR, &digest(id.as_bytes()))
}

fn to_bytes(record: &Record) -> coact_core::Result<Bytes> {
    serde_json::to_vec(record).map(Bytes::from).map_err(|error| {
        Error::new(ErrorKind::Internal, "the record of a session could not be written").with_source(error)
    })
}

fn from_entry(entry: &Entry) -> Option<Record> {
    serde_json::from_slice(&entry.value).ok()
}
