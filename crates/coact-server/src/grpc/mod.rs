//! gRPC: etcd v3, and coact's own services for streams and queues; each in a file of its own, all of them on one [`Node`].
//!
//! A handler checks the request as etcd does and in its order ([`check`]), translates it ([`convert`]), asks the
//! engine, and translates back. Errors carry etcd's codes and messages ([`errors`]), which clients compare by text.
//!
//! coact's own services ([`stream`], [`queue`]) mirror the contracts of those names. What is asked often is in [`desk`],
//! for the unary calls and for the [`session`], which carries many requests over one stream. Their messages are
//! translated where the client does it too, in the engine for `coact://`, and errors keep their kind and effect.

mod access;
mod auth;
mod check;
mod cluster;
mod convert;
mod desk;
mod election;
mod errors;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod queue;
mod session;
mod stream;
mod turn;
mod watch;

use std::{convert::Infallible, sync::Arc};

use axum::{Router, extract::Request, http::Response};
use coact_core::{env::Env, guarantees::Accepted, name::Namespace, registry::Store};
use coact_engine_embedded::Engine;
use coact_engine_etcd::wire::{
    coact_v1::{queues_server::QueuesServer, streams_server::StreamsServer},
    etcdserverpb::{
        ResponseHeader, auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
        lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
    },
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tonic::{body::Body, server::NamedService};
use tower::Service;

use crate::{Limits, auth::Auth, lifecycle::Signal, metrics::messaging::Overview};

/// The raft term that a node shows. There is no raft; etcd's first leader has term 2.
const RAFT_TERM: u64 = 2;
/// The most bytes of a message about streams and queues: the largest commit, with room for what is not records.
const MESSAGING_BYTES: usize = 18 * 1024 * 1024;

/// Every service, each under its name.
pub(crate) fn routes(node: Node) -> Router {
    let limit = node.limits.message_bytes;
    let router = Router::new();
    let router = serve(router, KvServer::new(node.clone()).max_decoding_message_size(limit));
    let router = serve(router, WatchServer::new(node.clone()).max_decoding_message_size(limit));
    let router = serve(router, LeaseServer::new(node.clone()).max_decoding_message_size(limit));
    let router = serve(router, ClusterServer::new(node.clone()).max_decoding_message_size(limit));
    let router = serve(router, MaintenanceServer::new(node.clone()).max_decoding_message_size(limit));
    // Only this one call of the service: the fallback says that there are no users of etcd's kind.
    let auth = AuthServer::new(node.clone()).max_decoding_message_size(limit);
    let router = router.route_service("/etcdserverpb.Auth/Authenticate", auth);
    let router = serve(router, LockServer::new(node.clone()).max_decoding_message_size(limit));
    let router = serve(router, StreamsServer::new(node.clone()).max_decoding_message_size(MESSAGING_BYTES));
    let router = serve(router, QueuesServer::new(node.clone()).max_decoding_message_size(MESSAGING_BYTES));
    serve(router, ElectionServer::new(node).max_decoding_message_size(limit))
}

fn serve<S>(router: Router, service: S) -> Router
where
    S: Service<Request, Response = Response<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    router.route_service(&format!("/{}/{{*method}}", S::NAME), service)
}

/// What every service works on; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    engine: Engine,
    auth: Auth,
    /// Where clients reach it.
    url: String,
    limits: Limits,
    signal: Signal,
    cluster_id: u64,
    member_id: u64,
    overview: Arc<Overview>,
}

impl Node {
    pub(crate) fn new(engine: Engine, auth: Auth, url: String, limits: Limits, signal: Signal) -> Self {
        let store = engine.store_id();
        let overview = Arc::new(Overview::new(engine.clone()));
        Self { engine, auth, url, limits, signal, cluster_id: scramble(store), member_id: scramble(!store), overview }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The contracts as the engine has them in one namespace.
    pub(crate) fn store(&self, namespace: Namespace) -> Store {
        // Whoever asks has said what it accepts to its own handle.
        self.engine.store(namespace, Accepted::default())
    }

    /// What it knows about its topics, groups and queues.
    pub(crate) fn overview(&self) -> &Arc<Overview> {
        &self.overview
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.auth
    }

    pub(crate) fn env(&self) -> &Env {
        self.engine.env()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.signal.is_draining()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn signal(&self) -> Signal {
        self.signal.clone()
    }

    /// Who answers, and as of which revision.
    fn header(&self, revision: u64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision: revision as i64,
            raft_term: RAFT_TERM,
        })
    }
}

/// An id that says nothing about the number it is made of and is never zero, which etcd takes for "none".
fn scramble(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}
