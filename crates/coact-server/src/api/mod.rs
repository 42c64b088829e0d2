//! HTTP/JSON: every block under `/v1/{namespace}`, described by an OpenAPI document that is made from this code.
//!
//! Handlers translate: a request to a call of a block or of the contract, its answer to JSON. They keep nothing between
//! two requests: what a client holds hangs on a session in the store, so any node over the same store can go on.
//! Members of groups are the exception: a node reads ahead for them, and they end with it.
//!
//! Names in paths are percent-encoded (`/` is `%2F`). Changes can be repeated safely under an `Idempotency-Key`. Errors
//! are `application/problem+json` with kind, retry and effect.

mod auth;
mod changes;
mod config;
mod count;
mod delay;
mod directory;
mod docs;
mod entry;
mod extract;
mod group;
mod id;
mod idempotency;
mod job;
mod kv;
mod lock;
mod member;
pub(crate) mod problem;
mod produce;
mod queue;
mod record;
mod session;
mod tail;
mod topic;

use std::{fmt, sync::Arc, time::Duration};

use axum::{Router, extract::DefaultBodyLimit};
use coact_core::{
    Error, ErrorKind, Result,
    contract::{kv::KvHandle, queue::QueueHandle, stream::StreamHandle},
    env::Env,
    guarantees::Accepted,
    name::{Dir, Group, Key, Namespace, Queue, Realm, Topic},
    registry,
};
use coact_engine_embedded::flat::KeyRange;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    auth::{Block, Caller, Keys, RESERVED_NAMESPACE, Verb},
    grpc::Node,
    http::pages,
    metrics::messaging::{Overview, Traffic},
};

/// How often a quiet stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    node: Node,
    accepted: Accepted,
    generators: id::Generators,
    directories: directory::Directories,
    limiters: count::Limiters,
    records: idempotency::Records,
    members: member::Members,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    pub(crate) fn new(node: Node, accepted: Accepted) -> Self {
        let generators = id::Generators::new(node.env());
        Self(Arc::new(Inner {
            node,
            accepted,
            generators,
            directories: directory::Directories::default(),
            limiters: count::Limiters::default(),
            records: idempotency::Records::default(),
            members: member::Members::default(),
        }))
    }

    fn env(&self) -> &Env {
        self.0.node.env()
    }

    fn body_bytes_max(&self) -> usize {
        self.0.node.limits().body_bytes
    }

    /// The part of the store that a request names, for this caller.
    fn store(&self, caller: Caller, namespace: &str, realm: Option<&str>) -> Result<Store> {
        let namespace = open_namespace(namespace)?;
        let kv = self.0.node.engine().kv(namespace.clone(), self.0.accepted.clone());
        Ok(Store { caller, kv, namespace, realm: realm.map_or(Ok(Realm::default()), Realm::new)? })
    }

    /// The queues of a namespace and the name of one of them, if the caller may do all of this to it.
    fn queue(&self, caller: &Caller, path: &queue::QueuePath, verbs: &[Verb]) -> Result<(QueueHandle, Queue)> {
        let namespace = open_namespace(&path.namespace)?;
        verbs.iter().try_for_each(|verb| caller.allow(Block::Queue, *verb, &path.namespace, &path.name))?;
        Ok((self.queues_of(namespace)?, Queue::new(&path.name)?))
    }

    /// The queues of a namespace, if the caller may read all of them.
    fn queues(&self, caller: &Caller, namespace: &str) -> Result<QueueHandle> {
        let open = open_namespace(namespace)?;
        caller.allow_prefix(Block::Queue, Verb::Read, namespace, "")?;
        self.queues_of(open)
    }

    fn queues_of(&self, namespace: Namespace) -> Result<QueueHandle> {
        let store = self.0.node.engine().store(namespace, self.0.accepted.clone());
        let queues = store.queues()?;
        queues.require(&coact_blocks::queue::NEEDS)?;
        Ok(queues.clone())
    }

    /// The streams of a namespace and the name of a topic in it, if the caller may do all of this to it.
    fn topic(&self, caller: &Caller, path: &topic::TopicPath, verbs: &[Verb]) -> Result<(StreamHandle, Topic)> {
        let namespace = open_namespace(&path.namespace)?;
        verbs.iter().try_for_each(|verb| caller.allow(Block::Mq, *verb, &path.namespace, &path.name))?;
        Ok((self.streams_of(namespace)?.1, Topic::new(&path.name)?))
    }

    /// The streams of a namespace and the name of a group in it, if the caller may do this to it.
    fn group(&self, caller: &Caller, path: &group::GroupPath, verb: Verb) -> Result<(StreamHandle, Group)> {
        let namespace = open_namespace(&path.namespace)?;
        caller.allow(Block::Mq, verb, &path.namespace, &path.group)?;
        Ok((self.streams_of(namespace)?.1, Group::new(&path.group)?))
    }

    /// The streams of a namespace with what is beside them, if the caller may read all topics and groups.
    fn streams(&self, caller: &Caller, namespace: &str) -> Result<(registry::Store, StreamHandle)> {
        let open = open_namespace(namespace)?;
        caller.allow_prefix(Block::Mq, Verb::Read, namespace, "")?;
        self.streams_of(open)
    }

    fn streams_of(&self, namespace: Namespace) -> Result<(registry::Store, StreamHandle)> {
        let store = self.0.node.engine().store(namespace, self.0.accepted.clone());
        let streams = store.streams()?.clone();
        streams.require(&coact_blocks::mq::NEEDS)?;
        Ok((store, streams))
    }

    /// What the node knows about its topics, groups and queues.
    fn overview(&self) -> &Overview {
        self.0.node.overview()
    }

    fn traffic(&self) -> &Traffic {
        self.overview().traffic()
    }

    /// Returns when an answer without an end must end: at the shutdown, or when the caller's permissions have changed.
    fn until_cut(&self, caller: Caller) -> impl Future<Output = ()> + Send + 'static {
        let mut signal = self.0.node.signal();
        async move {
            tokio::select! {
                () = signal.draining() => {}
                () = caller.until_changed() => {}
            }
        }
    }

    /// Ends what the API itself holds in the store.
    pub(crate) async fn close(&self) {
        self.0.members.close(self.env()).await;
        self.0.generators.close().await;
        self.0.limiters.close().await;
    }
}

/// A namespace that callers can reach.
fn open_namespace(namespace: &str) -> Result<Namespace> {
    let namespace = Namespace::new(namespace)?;
    if namespace.as_str() == RESERVED_NAMESPACE {
        return Err(Error::new(ErrorKind::Denied, format!("namespace {namespace} is the node's own")));
    }
    Ok(namespace)
}

/// A namespace and a realm in it, as far as a caller may reach.
struct Store {
    caller: Caller,
    kv: KvHandle,
    namespace: Namespace,
    realm: Realm,
}

impl Store {
    /// The key that people write as `dir/name`, if the caller may do this to it.
    fn key(&self, text: &str, verb: Verb) -> Result<Key> {
        let key = Key::parse(&self.realm, text)?;
        self.caller.allow_keys(Keys::one(key.to_flat(&self.namespace).as_bytes()), verb)?;
        Ok(key)
    }

    /// A dir, if the caller may do this to all of its entries.
    fn dir(&self, path: &str, verb: Verb) -> Result<Dir> {
        let dir = Dir::new(&self.realm, path)?;
        self.allow_prefix(dir.to_flat(&self.namespace), verb)?;
        Ok(dir)
    }

    /// Whether the caller may do this to every dir that starts with this.
    fn allow_dirs(&self, prefix: &str, verb: Verb) -> Result<()> {
        self.allow_prefix(format!("{}/{}/{prefix}", self.namespace, self.realm), verb)
    }

    /// Whether the caller may do this to what a block calls by this name.
    fn allow(&self, block: Block, verb: Verb, resource: &str) -> Result<()> {
        self.caller.allow(block, verb, self.namespace.as_str(), resource)
    }

    fn allow_prefix(&self, prefix: String, verb: Verb) -> Result<()> {
        let range = KeyRange::prefix(prefix);
        self.caller.allow_keys(Keys::range(&range.start, &range.end), verb)
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
        .routes(routes!(directory::services))
        .routes(routes!(directory::list))
        .routes(routes!(directory::watch))
        .routes(routes!(directory::register, directory::deregister))
        .routes(routes!(directory::drain, directory::undrain))
        .routes(routes!(directory::report))
        .routes(routes!(directory::targets))
        .routes(routes!(auth::tokens, auth::create_token))
        .routes(routes!(auth::revoke_token))
        .routes(routes!(auth::roles))
        .routes(routes!(auth::put_role, auth::remove_role))
        .routes(routes!(config::groups))
        .routes(routes!(config::list))
        .routes(routes!(config::watch))
        .routes(routes!(config::read, config::put, config::delete))
        .routes(routes!(config::history))
        .routes(routes!(config::rollback))
        .routes(routes!(lock::list))
        .routes(routes!(lock::acquire))
        .routes(routes!(lock::acquire_rw))
        .routes(routes!(lock::acquire_permit))
        .routes(routes!(lock::campaign))
        .routes(routes!(lock::leader))
        .routes(routes!(lock::observe))
        .routes(routes!(lock::proclaim))
        .routes(routes!(lock::check))
        .routes(routes!(lock::release))
        .routes(routes!(lock::withdraw))
        .routes(routes!(count::count_down))
        .routes(routes!(count::wait_latch))
        .routes(routes!(count::reset_latch))
        .routes(routes!(count::wait_barrier))
        .routes(routes!(count::acquire_rate))
        .routes(routes!(queue::list))
        .routes(routes!(queue::read, queue::put, queue::delete))
        .routes(routes!(queue::stats))
        .routes(routes!(queue::pause))
        .routes(routes!(queue::resume))
        .routes(routes!(queue::redrive))
        .routes(routes!(queue::purge))
        .routes(routes!(job::list, job::push))
        .routes(routes!(job::push_all))
        .routes(routes!(job::claim))
        .routes(routes!(job::settle))
        .routes(routes!(job::read, job::cancel))
        .routes(routes!(job::reschedule))
        .routes(routes!(job::promote))
        .routes(routes!(topic::list))
        .routes(routes!(topic::read, topic::put, topic::delete))
        .routes(routes!(record::peek, produce::produce))
        .routes(routes!(tail::stream))
        .routes(routes!(delay::list))
        .routes(routes!(delay::stats))
        .routes(routes!(delay::read, delay::cancel))
        .routes(routes!(delay::reschedule))
        .routes(routes!(delay::fire))
        .routes(routes!(group::list))
        .routes(routes!(group::read, group::delete))
        .routes(routes!(group::seek))
        .routes(routes!(group::parked))
        .routes(routes!(group::redrive))
        .routes(routes!(group::history))
        .routes(routes!(member::join))
        .routes(routes!(member::leave))
        .routes(routes!(member::fetch))
        .routes(routes!(member::settle))
        .routes(routes!(session::list, session::create))
        .routes(routes!(session::read, session::end))
        .routes(routes!(session::renew))
        .routes(routes!(id::next))
        .routes(routes!(id::next_dense))
        .routes(routes!(id::make))
        .routes(routes!(id::workers))
        .routes(routes!(id::decode))
        .split_for_parts();
    let router = router.layer(body_limit).with_state(api).merge(docs::routes(document));
    router.method_not_allowed_fallback(pages::method_not_allowed)
}
