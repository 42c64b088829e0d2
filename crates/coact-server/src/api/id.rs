//! Unique ids. In JSON they are strings: JavaScript rounds numbers above 2^53.

use std::collections::HashMap;

use axum::{Json, extract::State};
use coact_blocks::{
    Session, SessionOptions,
    id::{self, Generator, Id, IdOptions, Layout, Segment, SegmentOptions, UlidGenerator, Uuid7Generator},
};
use coact_core::{
    Error, ErrorKind,
    env::Env,
    name::{Namespace, Realm},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, Store, Verb,
    extract::{Path, Query, invalid},
    kv::InRealm,
    problem::{self, Problem},
};

const IDS_MAX: usize = 10_000;
/// How many spaces one node serves: each holds a worker number.
const SPACES_MAX: usize = 64;

/// The generators of this node; those that need the store are opened when they are first asked.
pub(super) struct Generators {
    snowflakes: Mutex<HashMap<Space, Open>>,
    segments: Mutex<HashMap<Space, Segment>>,
    ulids: UlidGenerator,
    uuids: Uuid7Generator,
}

type Space = (Namespace, Realm, String);

struct Open {
    generator: Generator,
    session: Session,
}

/// A space of ids.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SpacePath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The space: ids are unique within it.
    #[param(example = "default")]
    space: String,
}

/// A counter of dense numbers.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SegmentPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The counter, for example of a table.
    #[param(example = "invoice")]
    tag: String,
}

/// What to make.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SortablePath {
    /// `ulid` or `uuid7`.
    #[param(value_type = String, example = "uuid7")]
    kind: Sortable,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sortable {
    Ulid,
    Uuid7,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct CountQuery {
    /// How many; 1 by default, at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    n: Option<usize>,
}

/// An id.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct IdPath {
    /// The id, in decimal.
    #[param(example = "379412341234123")]
    id: u64,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct NextQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// How many; 1 by default, at most 10000.
    #[param(minimum = 1, maximum = 10000)]
    n: Option<usize>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DecodeQuery {
    /// The layout: `std` (default), `js53`, or bits such as `41/10/12`.
    layout: Option<String>,
}

/// New ids.
#[derive(Serialize, ToSchema)]
pub(super) struct IdsView {
    /// Ascending, in decimal.
    #[schema(example = json!(["379412341234123"]))]
    ids: Vec<String>,
}

/// What an id says.
#[derive(Serialize, ToSchema)]
pub(super) struct DecodedView {
    /// When it was made, in milliseconds since 1970.
    unix_ms: u64,
    /// By which worker.
    worker: u32,
    /// As which of its millisecond.
    sequence: u64,
}

/// Who may issue ids.
#[derive(Serialize, ToSchema)]
pub(super) struct Workers {
    workers: Vec<WorkerView>,
}

/// One worker number.
#[derive(Serialize, ToSchema)]
struct WorkerView {
    /// The number.
    worker: u32,
    /// Until when it may issue ids, in milliseconds since 1970.
    until_ms: u64,
    /// Who reserved that.
    owner: String,
    /// How often the number changed hands.
    epoch: u64,
    /// Who uses it now, if anybody does.
    used_by: Option<String>,
}

/// Get new ids.
#[utoipa::path(
    post, path = "/v1/{namespace}/ids/{space}/next", operation_id = "id_next", tag = "id", params(SpacePath, NextQuery),
    responses(
        (status = 200, description = "Ids that nobody else gets", body = IdsView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn next(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SpacePath>,
    Query(query): Query<NextQuery>,
) -> Result<Json<IdsView>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Id, Verb::Write, &path.space)?;
    let count = count(query.n)?;
    let generator = api.0.generators.snowflake(store, path.space).await?;
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        ids.extend(generator.next_n(count - ids.len()).await?.map(|id| id.to_string()));
    }
    Ok(Json(IdsView { ids }))
}

/// Get dense numbers, for the keys of a table: 1, 2, 3, … with gaps only after a crash or a lost answer.
#[utoipa::path(
    post, path = "/v1/{namespace}/segments/{tag}/next", operation_id = "id_next_dense", tag = "id",
    params(SegmentPath, NextQuery),
    responses(
        (status = 200, description = "Numbers that nobody else gets", body = IdsView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn next_dense(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SegmentPath>,
    Query(query): Query<NextQuery>,
) -> Result<Json<IdsView>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Id, Verb::Write, &format!("segment/{}", path.tag))?;
    let count = count(query.n)?;
    let numbers = api.0.generators.segment(store, path.tag).await?.next_n(count).await?;
    Ok(Json(IdsView { ids: numbers.iter().map(u64::to_string).collect() }))
}

/// Make ULIDs or UUIDs of version 7, without the store: later ones of this node are greater.
#[utoipa::path(
    post, path = "/v1/ids/{kind}", operation_id = "id_make", tag = "id", params(SortablePath, CountQuery),
    responses(
        (status = 200, description = "Ids, as far as randomness goes unique", body = IdsView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn make(
    State(api): State<Api>,
    _caller: Caller,
    Path(path): Path<SortablePath>,
    Query(query): Query<CountQuery>,
) -> Result<Json<IdsView>, Problem> {
    let generators = &api.0.generators;
    let next = || match path.kind {
        Sortable::Ulid => generators.ulids.next().to_string(),
        Sortable::Uuid7 => generators.uuids.next().to_string(),
    };
    Ok(Json(IdsView { ids: std::iter::repeat_with(next).take(count(query.n)?).collect() }))
}

fn count(n: Option<usize>) -> Result<usize, Problem> {
    match n.unwrap_or(1) {
        count @ 1..=IDS_MAX => Ok(count),
        other => Err(invalid(format!("n {other} is not allowed: use 1 to {IDS_MAX}"))),
    }
}

/// See which worker numbers are taken.
#[utoipa::path(
    get, path = "/v1/{namespace}/ids/{space}/workers", operation_id = "id_workers", tag = "id", params(SpacePath, InRealm),
    responses(
        (status = 200, description = "The numbers that were ever used", body = Workers),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn workers(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SpacePath>,
    Query(query): Query<InRealm>,
) -> Result<Json<Workers>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Id, Verb::Read, &path.space)?;
    let workers = id::workers(&store.kv, &store.realm, &path.space).await?.into_iter().map(|info| WorkerView {
        worker: info.worker,
        until_ms: info.until_ms,
        owner: info.owner,
        epoch: info.epoch,
        used_by: info.used_by,
    });
    Ok(Json(Workers { workers: workers.collect() }))
}

/// Read what an id says.
#[utoipa::path(
    get, path = "/v1/ids/decode/{id}", operation_id = "id_decode", tag = "id", params(IdPath, DecodeQuery),
    responses(
        (status = 200, description = "When, by whom, as which", body = DecodedView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn decode(
    Path(path): Path<IdPath>,
    Query(query): Query<DecodeQuery>,
) -> Result<Json<DecodedView>, Problem> {
    let layout = query.layout.as_deref().map_or(Ok(Layout::STD), Layout::parse)?;
    let decoded = layout.decode(Id::new(path.id));
    Ok(Json(DecodedView { unix_ms: decoded.unix_ms, worker: decoded.worker, sequence: decoded.sequence }))
}

impl Generators {
    pub(super) fn new(env: &Env) -> Self {
        Self {
            snowflakes: Mutex::default(),
            segments: Mutex::default(),
            ulids: UlidGenerator::new(env),
            uuids: Uuid7Generator::new(env),
        }
    }

    async fn snowflake(&self, store: Store, space: String) -> Result<Generator, Error> {
        let mut open = self.snowflakes.lock().await;
        let place = (store.namespace.clone(), store.realm.clone(), space.clone());
        if let Some(known) = open.get(&place).filter(|known| known.session.is_alive()) {
            return Ok(known.generator.clone());
        }
        ensure_room(&open, &place)?;
        store.kv.require(&id::NEEDS)?;
        let session = Session::open(&store.kv, SessionOptions::default()).await?;
        let options = IdOptions { realm: store.realm, space, ..IdOptions::default() };
        let generator = Generator::open(&session, options).await?;
        open.insert(place, Open { generator: generator.clone(), session });
        Ok(generator)
    }

    async fn segment(&self, store: Store, tag: String) -> Result<Segment, Error> {
        let mut open = self.segments.lock().await;
        let place = (store.namespace.clone(), store.realm.clone(), tag.clone());
        if let Some(known) = open.get(&place) {
            return Ok(known.clone());
        }
        ensure_room(&open, &place)?;
        let options = SegmentOptions { realm: store.realm, ..SegmentOptions::new(tag) };
        let segment = Segment::open(&store.kv, options).await?;
        open.insert(place, segment.clone());
        Ok(segment)
    }

    /// Gives back what was taken and not issued.
    pub(super) async fn close(&self) {
        for (space, open) in self.snowflakes.lock().await.drain() {
            if let Err(error) = open.generator.close().await {
                tracing::debug!(?space, %error, "a worker number was not given back");
            }
            let _ = open.session.close().await;
        }
        for (space, segment) in self.segments.lock().await.drain() {
            if let Err(error) = segment.close().await {
                tracing::debug!(?space, %error, "numbers were not given back");
            }
        }
    }
}

fn ensure_room<T>(open: &HashMap<Space, T>, place: &Space) -> Result<(), Error> {
    if open.len() < SPACES_MAX || open.contains_key(place) {
        return Ok(());
    }
    let message = format!("this node issues ids of {SPACES_MAX} names already: use one of them");
    Err(Error::new(ErrorKind::Exhausted, message))
}
