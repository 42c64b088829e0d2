//! Unique ids. In JSON they are strings: JavaScript rounds numbers above 2^53.

use std::collections::HashMap;

use axum::{Json, extract::State};
use coact_blocks::{
    Session, SessionOptions,
    id::{self, Generator, Id, IdOptions, Layout},
};
use coact_core::{
    Error, ErrorKind,
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

/// The generators of this node, opened when they are first asked.
#[derive(Default)]
pub(super) struct Generators(Mutex<HashMap<Space, Open>>);

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
    let count = match query.n.unwrap_or(1) {
        count @ 1..=IDS_MAX => count,
        other => return Err(invalid(format!("n {other} is not allowed: use 1 to {IDS_MAX}"))),
    };
    let generator = api.0.generators.get(store, path.space).await?;
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        ids.extend(generator.next_n(count - ids.len()).await?.map(|id| id.to_string()));
    }
    Ok(Json(IdsView { ids }))
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
    async fn get(&self, store: Store, space: String) -> Result<Generator, Error> {
        let mut open = self.0.lock().await;
        let key = (store.namespace.clone(), store.realm.clone(), space.clone());
        if let Some(known) = open.get(&key).filter(|known| known.session.is_alive()) {
            return Ok(known.generator.clone());
        }
        if open.len() >= SPACES_MAX && !open.contains_key(&key) {
            let message = format!("this node serves {SPACES_MAX} spaces of ids already: use one of them");
            return Err(Error::new(ErrorKind::Exhausted, message));
        }
        store.kv.require(&id::NEEDS)?;
        let session = Session::open(&store.kv, SessionOptions::default()).await?;
        let options = IdOptions { realm: store.realm, space, ..IdOptions::default() };
        let generator = Generator::open(&session, options).await?;
        open.insert(key, Open { generator: generator.clone(), session });
        Ok(generator)
    }

    /// Gives the worker numbers back.
    pub(super) async fn close(&self) {
        for (space, open) in self.0.lock().await.drain() {
            if let Err(error) = open.generator.close().await {
                tracing::debug!(?space, %error, "a worker number was not given back");
            }
            let _ = open.session.close().await;
        }
    }
}
