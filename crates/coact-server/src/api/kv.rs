//! Entries: read, list, write under a condition, and small transactions.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use coact_core::contract::kv::{Check, Found, Order, Read, ReadAt, Revision, Txn, Write};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, Store, Verb,
    entry::{EntryView, Value},
    extract::{Condition, IdempotencyKey, Json, Path, Query, invalid},
    idempotency::Outcome,
    problem::{self, Problem},
    session,
};

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

/// An entry.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EntryPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The key, `dir/name`, percent-encoded.
    #[param(example = "config%2Fcolour")]
    key: String,
}

/// A namespace.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct NamespacePath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) namespace: String,
}

/// A page of names.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Start after this one: the last of the page before.
    pub(super) after: Option<String>,
    /// The most of them; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
}

/// Where in the namespace.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct InRealm {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) realm: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// How fresh: `linearizable` (default) or `any`.
    #[param(value_type = Option<String>, example = "linearizable")]
    at: Option<Freshness>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Freshness {
    Linearizable,
    Any,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// The dir.
    #[param(example = "config")]
    dir: String,
    /// The order: `name` (default) or `created`.
    #[param(value_type = Option<String>, example = "name")]
    order: Option<By>,
    /// Start after this: the `next` of the page before.
    after: Option<String>,
    /// The most entries; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    #[default]
    Name,
    Created,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DirsQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    pub(super) realm: Option<String>,
    /// Only what starts with this.
    pub(super) prefix: Option<String>,
    /// Start after this.
    pub(super) after: Option<String>,
    /// The most; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
}

/// Part of a dir.
#[derive(Serialize, ToSchema)]
pub(super) struct EntryPage {
    entries: Vec<EntryView>,
    /// Give this as `after` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// What this shows; a watch after it misses nothing.
    revision: u64,
}

/// The dirs that have entries.
#[derive(Serialize, ToSchema)]
pub(super) struct Dirs {
    dirs: Vec<String>,
}

/// A change that happened.
#[derive(Serialize, ToSchema)]
pub(super) struct Written {
    /// When.
    revision: u64,
}

/// Read an entry.
#[utoipa::path(
    get, path = "/v1/{namespace}/kv/{key}", operation_id = "kv_read", tag = "kv", params(EntryPath, ReadQuery),
    responses(
        (status = 200, description = "The entry; its etag is for If-Match", body = EntryView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<EntryPath>,
    Query(query): Query<ReadQuery>,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let key = store.key(&path.key, Verb::Read)?;
    let at = match query.at.unwrap_or(Freshness::Linearizable) {
        Freshness::Linearizable => ReadAt::Linearizable,
        Freshness::Any => ReadAt::Any,
    };
    let Some(entry) = store.kv.get_at(&key, at).await? else {
        let detail = format!("there is no entry {key} in namespace {}", store.namespace);
        return Err(Problem::new(StatusCode::NOT_FOUND, coact_core::ErrorKind::NotFound, detail));
    };
    let etag = format!("\"{}\"", entry.modified);
    Ok(([(header::ETAG, etag)], axum::Json(EntryView::from(&entry))).into_response())
}

/// List a dir, page by page.
#[utoipa::path(
    get, path = "/v1/{namespace}/kv", operation_id = "kv_list", tag = "kv", params(NamespacePath, ListQuery),
    responses(
        (status = 200, description = "A page", body = EntryPage),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<EntryPage>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let dir = store.dir(&query.dir, Verb::Read)?;
    let by = query.order.unwrap_or_default();
    let order = match by {
        By::Name => Order::Name { after: query.after.unwrap_or_default() },
        By::Created => Order::Created { after: created_after(query.after.as_deref())? },
    };
    let page = store.kv.list(&dir, order, limit(query.limit)?).await?;
    let last = page.entries.last().filter(|_| page.more).map(|last| match by {
        By::Name => last.key.name().to_owned(),
        By::Created => last.created.to_string(),
    });
    let entries = page.entries.iter().map(EntryView::from).collect();
    Ok(axum::Json(EntryPage { entries, next: last, revision: page.revision.0 }))
}

pub(super) fn created_after(after: Option<&str>) -> Result<Revision, Problem> {
    match after.map(str::parse) {
        None => Ok(Revision::default()),
        Some(Ok(after)) => revision(after),
        Some(Err(_)) => Err(invalid("after must be a revision here: use the next of a page")),
    }
}

/// Revisions are below 2^63, which clients in any language can hold.
pub(super) fn revision(number: i64) -> Result<Revision, Problem> {
    match u64::try_from(number) {
        Ok(number) => Ok(Revision(number)),
        Err(_) => Err(invalid(format!("revision {number} is not allowed: use one from an answer, or 0"))),
    }
}

pub(super) fn limit(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(PAGE_DEFAULT) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        other => Err(invalid(format!("limit {other} is not allowed: use 1 to {PAGE_MAX}"))),
    }
}

/// List the dirs that have entries.
#[utoipa::path(
    get, path = "/v1/{namespace}/dirs", operation_id = "kv_dirs", tag = "kv", params(NamespacePath, DirsQuery),
    responses(
        (status = 200, description = "The dirs", body = Dirs),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn dirs(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<DirsQuery>,
) -> Result<axum::Json<Dirs>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let (prefix, after) = (query.prefix.unwrap_or_default(), query.after.unwrap_or_default());
    store.allow_dirs(&prefix, Verb::Read)?;
    let dirs = store.kv.dirs(&store.realm, &prefix, &after, limit(query.limit)?).await?;
    Ok(axum::Json(Dirs { dirs: dirs.iter().map(|dir| dir.path().to_owned()).collect() }))
}

/// Write an entry.
#[utoipa::path(
    put, path = "/v1/{namespace}/kv/{key}", operation_id = "kv_put", tag = "kv",
    params(
        EntryPath, InRealm,
        ("If-Match" = Option<String>, Header, description = "Only over the entry with this etag"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is no entry"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating it has one effect, for 10 minutes"),
    ),
    request_body = Value,
    responses(
        (status = 200, description = "Written", body = Written),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<EntryPath>,
    Query(query): Query<InRealm>,
    condition: Option<Condition>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<Value>,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let write = put_write(&store, &path.key, &body).await?;
    change(&api, &store, condition, idempotency, write).await
}

/// Delete an entry; no effect if there is none.
#[utoipa::path(
    delete, path = "/v1/{namespace}/kv/{key}", operation_id = "kv_delete", tag = "kv",
    params(
        EntryPath, InRealm,
        ("If-Match" = Option<String>, Header, description = "Only the entry with this etag"),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating it has one effect, for 10 minutes"),
    ),
    responses(
        (status = 200, description = "Deleted", body = Written),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<EntryPath>,
    Query(query): Query<InRealm>,
    condition: Option<Condition>,
    idempotency: Option<IdempotencyKey>,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let write = Write::Delete(store.key(&path.key, Verb::Write)?);
    change(&api, &store, condition, idempotency, write).await
}

async fn put_write(store: &Store, key: &str, body: &Value) -> Result<Write, Problem> {
    let key = store.key(key, Verb::Write)?;
    let value = body.bytes()?;
    let lease = match &body.session {
        Some(id) => Some(session::lease_of(store, id).await?),
        None => None,
    };
    Ok(Write::Put { key, value, lease })
}

async fn change(
    api: &Api,
    store: &Store,
    condition: Option<Condition>,
    idempotency: Option<IdempotencyKey>,
    write: Write,
) -> Result<Response, Problem> {
    let checks = match condition {
        None => Vec::new(),
        Some(Condition::Absent) => vec![Check::Absent(write.key().clone())],
        Some(Condition::ModifiedAt(revision)) => vec![Check::ModifiedAt(write.key().clone(), Revision(revision))],
    };
    let txn = Txn { checks, reads: Vec::new(), writes: vec![write] };
    match api.0.records.run(store, idempotency, txn).await? {
        Outcome::Committed { revision, .. } => Ok(axum::Json(Written { revision }).into_response()),
        Outcome::Refused { found, .. } => {
            let there = match &found {
                Some(entry) => format!("the entry was last changed at revision {}", entry.modified),
                None => "there is no entry".to_owned(),
            };
            let detail = format!("the condition does not hold: {there}");
            Err(Problem::new(StatusCode::PRECONDITION_FAILED, coact_core::ErrorKind::Conflict, detail))
        }
    }
}

/// A transaction: all checks hold and all writes happen, or none do. Reads see the state before the writes.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TxnBody {
    /// At most 8.
    #[serde(default)]
    checks: Vec<CheckBody>,
    /// At most 16.
    #[serde(default)]
    reads: Vec<ReadBody>,
    /// At most 16, each on another key.
    #[serde(default)]
    writes: Vec<WriteBody>,
}

/// A condition.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum CheckBody {
    /// The key has no entry.
    Absent(String),
    /// The entry was created at this revision, and not deleted since: for fencing tokens.
    CreatedAt(AtRevision),
    /// The entry was last changed at this revision.
    ModifiedAt(AtRevision),
    /// The session has not ended.
    SessionAlive(String),
}

/// A key and a revision.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AtRevision {
    key: String,
    revision: u64,
}

/// A read.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ReadBody {
    /// One entry, by key.
    Get(String),
    /// The entry of a dir that was created first.
    First(String),
    /// The entry of a dir that was created last.
    Last(String),
    /// How many entries a dir has.
    Count(String),
}

/// A change.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WriteBody {
    /// Sets a value.
    Put(PutBody),
    /// Removes an entry, by key.
    Delete(String),
    /// Adds to a decimal number, which starts at zero.
    Incr(IncrBody),
}

/// A key and its value.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PutBody {
    key: String,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// The session whose end deletes the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

/// A key and how much to add to its number.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct IncrBody {
    key: String,
    by: i64,
}

/// How a transaction ended.
#[derive(Serialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum TxnAnswer {
    /// Every check held; every write is as durable as the engine declares.
    Committed {
        /// The revision of the writes; without writes, the revision that was read.
        revision: u64,
        /// One answer for each read; none when the transaction had been committed by an earlier request with the same
        /// idempotency key.
        reads: Vec<FoundView>,
        /// Whether an earlier request with the same idempotency key did it.
        repeated: bool,
    },
    /// A check did not hold; nothing was changed.
    Refused {
        /// The index of the first check that failed.
        check: usize,
        /// The entry that was there instead.
        found: Option<EntryView>,
    },
}

/// The answer to a read.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FoundView {
    /// An entry, or `null`.
    Entry(Option<EntryView>),
    /// How many.
    Count(u64),
}

/// Run a small transaction in one realm. A refusal is an answer, not an error.
#[utoipa::path(
    post, path = "/v1/{namespace}/txn", operation_id = "kv_txn", tag = "kv",
    params(
        NamespacePath, InRealm,
        ("Idempotency-Key" = Option<String>, Header, description = "Repeating it has one effect, for 10 minutes; takes one check and one write of the limits"),
    ),
    request_body = TxnBody,
    responses(
        (status = 200, description = "How it ended", body = TxnAnswer),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn txn(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<InRealm>,
    idempotency: Option<IdempotencyKey>,
    Json(body): Json<TxnBody>,
) -> Result<axum::Json<TxnAnswer>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let txn = contract_txn(&store, body).await?;
    Ok(axum::Json(match api.0.records.run(&store, idempotency, txn).await? {
        Outcome::Committed { revision, reads, repeated } => {
            let view = |found: &Found| match found {
                Found::Entry(entry) => FoundView::Entry(entry.as_ref().map(EntryView::from)),
                Found::Count(count) => FoundView::Count(*count),
            };
            TxnAnswer::Committed { revision, reads: reads.iter().map(view).collect(), repeated }
        }
        Outcome::Refused { check, found } => TxnAnswer::Refused { check, found: found.as_ref().map(EntryView::from) },
    }))
}

async fn contract_txn(store: &Store, body: TxnBody) -> Result<Txn, Problem> {
    let mut txn = Txn::default();
    for check in &body.checks {
        txn.checks.push(match check {
            CheckBody::Absent(key) => Check::Absent(store.key(key, Verb::Read)?),
            CheckBody::CreatedAt(at) => Check::CreatedAt(store.key(&at.key, Verb::Read)?, Revision(at.revision)),
            CheckBody::ModifiedAt(at) => Check::ModifiedAt(store.key(&at.key, Verb::Read)?, Revision(at.revision)),
            CheckBody::SessionAlive(id) => Check::LeaseAlive(session::lease_of(store, id).await?),
        });
    }
    for read in &body.reads {
        txn.reads.push(match read {
            ReadBody::Get(key) => Read::Get(store.key(key, Verb::Read)?),
            ReadBody::First(dir) => Read::First(store.dir(dir, Verb::Read)?),
            ReadBody::Last(dir) => Read::Last(store.dir(dir, Verb::Read)?),
            ReadBody::Count(dir) => Read::Count(store.dir(dir, Verb::Read)?),
        });
    }
    for write in body.writes {
        txn.writes.push(match write {
            WriteBody::Put(PutBody { key, value, value_base64, session }) => {
                put_write(store, &key, &Value { value, value_base64, session }).await?
            }
            WriteBody::Delete(key) => Write::Delete(store.key(&key, Verb::Write)?),
            WriteBody::Incr(IncrBody { key, by }) => Write::Incr { key: store.key(&key, Verb::Write)?, by },
        });
    }
    Ok(txn)
}
