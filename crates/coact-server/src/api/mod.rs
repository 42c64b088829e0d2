//! HTTP/JSON: every block under `/v1/{namespace}`, described by an OpenAPI document that is made from this code.
//!
//! Handlers translate: a request to a call of a block or of the contract, its answer to JSON. They keep nothing between
//! two requests: what a client holds hangs on a session in the store, so any node over the same store can go on.
//!
//! Names in paths are percent-encoded (`/` is `%2F`). Changes can be repeated safely under an `Idempotency-Key`. Errors
//! are `application/problem+json` with kind, retry and effect.

mod changes;
mod docs;
mod entry;
mod extract;
mod id;
mod idempotency;
mod kv;
pub(crate) mod problem;
mod session;

use std::{fmt, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit};
use coact_core::{
    Result,
    contract::kv::KvHandle,
    env::Env,
    guarantees::Accepted,
    name::{Key, Namespace, Realm},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{grpc::Node, http::pages};

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    node: Node,
    accepted: Accepted,
    generators: id::Generators,
    records: idempotency::Records,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    pub(crate) fn new(node: Node, accepted: Accepted) -> Self {
        let generators = id::Generators::default();
        Self(Arc::new(Inner { node, accepted, generators, records: idempotency::Records::default() }))
    }

    fn env(&self) -> &Env {
        self.0.node.env()
    }

    fn body_bytes_max(&self) -> usize {
        self.0.node.limits().body_bytes
    }

    /// The part of the store that a request names.
    fn store(&self, namespace: &str, realm: Option<&str>) -> Result<Store> {
        let namespace = Namespace::new(namespace)?;
        let kv = self.0.node.engine().kv(namespace.clone(), self.0.accepted.clone());
        Ok(Store { kv, namespace, realm: realm.map_or(Ok(Realm::default()), Realm::new)? })
    }

    /// Ends what the API itself holds in the store.
    pub(crate) async fn close(&self) {
        self.0.generators.close().await;
    }
}

/// A namespace and a realm in it.
struct Store {
    kv: KvHandle,
    namespace: Namespace,
    realm: Realm,
}

impl Store {
    fn key(&self, text: &str) -> Result<Key> {
        Key::parse(&self.realm, text)
    }
}

/// Every route, and the document that describes them.
pub(crate) fn routes(api: Api) -> Router {
    let body_limit = DefaultBodyLimit::max(api.body_bytes_max());
    let (router, document) = OpenApiRouter::with_openapi(docs::frame())
        .routes(routes!(kv::list))
        .routes(routes!(kv::read, kv::put, kv::delete))
        .routes(routes!(kv::txn))
        .routes(routes!(kv::dirs))
        .routes(routes!(changes::poll))
        .routes(routes!(changes::stream))
        .routes(routes!(session::list, session::create))
        .routes(routes!(session::read, session::end))
        .routes(routes!(session::renew))
        .routes(routes!(id::next))
        .routes(routes!(id::workers))
        .routes(routes!(id::decode))
        .split_for_parts();
    let router = router.layer(body_limit).with_state(api).merge(docs::routes(document));
    router.method_not_allowed_fallback(pages::method_not_allowed)
}
