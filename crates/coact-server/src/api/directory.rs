//! Services and their instances: list, watch, register, drain; and targets for Prometheus.

use std::collections::{BTreeMap, HashMap};

use axum::{
    Json as Answer,
    extract::State as Shared,
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coact_blocks::directory::{Directory, DirectoryOptions, Health, Instance, Seen, Snapshot, State};
use coact_core::{
    Result,
    name::{Namespace, Realm},
};
use futures::stream;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, KEEP_ALIVE, Store, Verb,
    extract::{Json, Path, Query, invalid},
    kv::{InRealm, NamespacePath, limit},
    problem::{self, Problem},
    session,
};

/// How many realms this node remembers its feeds of.
const REALMS_MAX: usize = 256;

/// The directories that this node has open: watchers of one service share one feed.
#[derive(Default)]
pub(super) struct Directories(Mutex<HashMap<(Namespace, Realm), Directory>>);

/// A service.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ServicePath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The service, percent-encoded.
    #[param(example = "web", max_length = 100)]
    service: String,
}

/// An instance of a service.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct InstancePath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The service, percent-encoded.
    #[param(example = "web", max_length = 100)]
    service: String,
    /// The instance.
    #[param(example = "web-1", max_length = 100)]
    id: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ServicesQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// Only services that start with this.
    prefix: Option<String>,
    /// Start after this service.
    after: Option<String>,
    /// The most services; 100 by default, at most 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetsQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// Only this service; all by default.
    service: Option<String>,
    /// Only services that start with this.
    prefix: Option<String>,
}

/// The services that have entries.
#[derive(Serialize, ToSchema)]
pub(super) struct Services {
    services: Vec<String>,
    /// Give this as `after` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A service at one moment.
#[derive(Serialize, ToSchema)]
pub(super) struct ServiceView {
    /// The service.
    service: String,
    /// Up to which revision the list is complete.
    revision: u64,
    /// How far it can be trusted: `fresh`, `stale` (the store does not answer), `degraded` (too much vanished or failed at
    /// once, and is held).
    #[schema(value_type = String, example = "fresh")]
    state: &'static str,
    /// Why it is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// By id.
    instances: Vec<InstanceView>,
}

/// An instance as registered and as seen.
#[derive(Serialize, ToSchema)]
struct InstanceView {
    /// Its name within the service.
    id: String,
    /// Where it runs.
    zone: String,
    /// A host name or an IP address.
    address: String,
    /// The port.
    port: u16,
    /// How much traffic it takes.
    weight: u32,
    /// Words to filter by.
    tags: Vec<String>,
    /// Anything else.
    metadata: BTreeMap<String, String>,
    /// How a node checks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    check: Option<serde_json::Value>,
    /// The revision that created its entry.
    created: u64,
    /// What the last check found: `unchecked`, `passing` or `failing`.
    #[schema(value_type = String, example = "passing")]
    health: &'static str,
    /// Why it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Whether it wishes no traffic.
    draining: bool,
    /// Whether the store no longer has it, and it is shown only because too many vanished at once.
    held: bool,
    /// Whether it should get traffic.
    eligible: bool,
}

/// An instance to be registered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewInstance {
    /// A host name or an IP address.
    #[schema(example = "10.0.0.7")]
    address: String,
    /// The port.
    #[schema(minimum = 1, example = 8080)]
    port: u16,
    /// Where it runs.
    #[serde(default)]
    zone: String,
    /// How much traffic it takes compared with others; 100 by default, 0 for none.
    #[schema(minimum = 0, maximum = 1000)]
    weight: Option<u32>,
    /// Words to filter by, at most 64.
    #[serde(default)]
    tags: Vec<String>,
    /// Anything else, at most 64 pairs.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// How a node finds out whether it works: `{"kind":"tcp"}`, `{"kind":"http","path":"/health"}`,
    /// `{"kind":"grpc","service":""}` or `{"kind":"command","name":"probe"}`, with `interval_ms`, `timeout_ms`,
    /// `failures_to_unhealthy` and `successes_to_healthy`.
    #[schema(value_type = Option<Object>)]
    check: Option<serde_json::Value>,
    /// The session whose end removes it; without one it stays until it is removed.
    session: Option<String>,
}

/// What a caller found out about an instance.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewHealth {
    /// `passing`, `failing` or `unchecked`.
    #[schema(value_type = String, example = "passing")]
    health: Verdict,
    /// Why it fails, for people.
    why: Option<String>,
    /// The session whose end makes it unchecked again.
    session: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passing,
    Failing,
    Unchecked,
}

/// An instance was written.
#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    /// When.
    revision: u64,
}

/// A group of targets, as Prometheus reads it.
#[derive(Serialize, ToSchema)]
pub(super) struct TargetGroup {
    /// `address:port`.
    targets: Vec<String>,
    /// `__meta_coact_service`, `_id`, `_zone`, `_tags`, `_health` and `_metadata_NAME`.
    labels: BTreeMap<String, String>,
}

/// List services, page by page.
#[utoipa::path(
    get, path = "/v1/{namespace}/services", operation_id = "directory_services", tag = "directory",
    params(NamespacePath, ServicesQuery),
    responses(
        (status = 200, description = "A page", body = Services),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn services(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<ServicesQuery>,
) -> Result<Answer<Services>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let prefix = query.prefix.unwrap_or_default();
    store.caller.allow_prefix(Block::Directory, Verb::Read, store.namespace.as_str(), &prefix)?;
    let limit = limit(query.limit)?;
    let services = api.directory(&store)?.services(&prefix, query.after.as_deref().unwrap_or_default(), limit).await?;
    let next = services.last().filter(|_| services.len() == limit).cloned();
    Ok(Answer(Services { services, next }))
}

/// Look a service up, as the store has it now. Clients that look often should watch instead.
#[utoipa::path(
    get, path = "/v1/{namespace}/services/{service}", operation_id = "directory_list", tag = "directory",
    params(ServicePath, InRealm),
    responses(
        (status = 200, description = "Its instances; none for a service that nobody registered", body = ServiceView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<ServicePath>,
    Query(query): Query<InRealm>,
) -> Result<Answer<ServiceView>, Problem> {
    let store = service(&api, caller, &path, &query, Verb::Read)?;
    let listing = api.directory(&store)?.list(&path.service).await?;
    Ok(Answer(ServiceView {
        service: path.service,
        revision: listing.revision.0,
        state: "fresh",
        why: None,
        instances: listing.instances.iter().map(view).collect(),
    }))
}

/// Watch a service as server-sent events: each `snapshot` has the whole list as data.
#[utoipa::path(
    get, path = "/v1/{namespace}/services/{service}/watch", operation_id = "directory_watch", tag = "directory",
    params(ServicePath, InRealm),
    responses(
        (status = 200, description = "Snapshots", body = ServiceView, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn watch(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<ServicePath>,
    Query(query): Query<InRealm>,
) -> Result<Response, Problem> {
    let store = service(&api, caller, &path, &query, Verb::Read)?;
    let watch = api.directory(&store)?.watch(&path.service).await?;
    let first = watch.snapshot();
    let snapshots = stream::unfold((Some(first), watch), async |(first, mut watch)| {
        let snapshot = match first {
            Some(first) => first,
            None => watch.changed().await.ok()?,
        };
        let event = Event::default().id(snapshot.revision.to_string()).event("snapshot");
        Some((event.json_data(snapshot_view(&snapshot)), (None, watch)))
    });
    let events = futures::StreamExt::take_until(snapshots, api.until_cut(store.caller));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Register an instance, or replace it.
#[utoipa::path(
    put, path = "/v1/{namespace}/services/{service}/instances/{id}", operation_id = "directory_register",
    tag = "directory", params(InstancePath, InRealm), request_body = NewInstance,
    responses(
        (status = 200, description = "It is there until its session ends or it is removed", body = Registered),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn register(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<InstancePath>,
    Query(query): Query<InRealm>,
    Json(body): Json<NewInstance>,
) -> Result<Answer<Registered>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Directory, Verb::Write, &path.service)?;
    let lease = match &body.session {
        Some(id) => Some(session::lease_of(&store, id).await?),
        None => None,
    };
    let instance = instance(path, body)?;
    let revision = api.directory(&store)?.put_instance(lease, &instance).await?;
    Ok(Answer(Registered { revision: revision.0 }))
}

/// Remove an instance; no effect if there is none.
#[utoipa::path(
    delete, path = "/v1/{namespace}/services/{service}/instances/{id}", operation_id = "directory_deregister",
    tag = "directory", params(InstancePath, InRealm),
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn deregister(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<InstancePath>,
    Query(query): Query<InRealm>,
) -> Result<StatusCode, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Directory, Verb::Write, &path.service)?;
    api.directory(&store)?.remove_instance(&path.service, &path.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take an instance out of traffic, until it is put back or removed.
#[utoipa::path(
    put, path = "/v1/{namespace}/services/{service}/instances/{id}/drain", operation_id = "directory_drain",
    tag = "directory", params(InstancePath, InRealm),
    responses(
        (status = 204, description = "It gets no new traffic"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn drain(
    api: Shared<Api>,
    caller: Caller,
    path: Path<InstancePath>,
    query: Query<InRealm>,
) -> Result<StatusCode, Problem> {
    set_drain(api, caller, path, query, true).await
}

/// Put a drained instance back into traffic.
#[utoipa::path(
    delete, path = "/v1/{namespace}/services/{service}/instances/{id}/drain", operation_id = "directory_undrain",
    tag = "directory", params(InstancePath, InRealm),
    responses(
        (status = 204, description = "It gets traffic again"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn undrain(
    api: Shared<Api>,
    caller: Caller,
    path: Path<InstancePath>,
    query: Query<InRealm>,
) -> Result<StatusCode, Problem> {
    set_drain(api, caller, path, query, false).await
}

async fn set_drain(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<InstancePath>,
    Query(query): Query<InRealm>,
    draining: bool,
) -> Result<StatusCode, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Directory, Verb::Write, &path.service)?;
    api.directory(&store)?.set_drain(&path.service, &path.id, draining).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Say whether an instance works: for instances that check themselves, and for checkers of your own.
#[utoipa::path(
    put, path = "/v1/{namespace}/services/{service}/instances/{id}/health", operation_id = "directory_report",
    tag = "directory", params(InstancePath, InRealm), request_body = NewHealth,
    responses(
        (status = 204, description = "Watchers see it"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn report(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<InstancePath>,
    Query(query): Query<InRealm>,
    Json(body): Json<NewHealth>,
) -> Result<StatusCode, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Directory, Verb::Write, &path.service)?;
    let health = match (body.health, body.why) {
        (Verdict::Passing, None) => Health::Passing,
        (Verdict::Unchecked, None) => Health::Unchecked,
        (Verdict::Failing, why) => Health::Failing { why: why.unwrap_or_else(|| "reported as failing".to_owned()) },
        (_, Some(_)) => return Err(invalid("why is for health failing only")),
    };
    let lease = match &body.session {
        Some(id) => Some(session::lease_of(&store, id).await?),
        None => None,
    };
    api.directory(&store)?.report_health(&path.service, &path.id, health, lease).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Targets in the format of Prometheus' HTTP service discovery: every instance that is there, drained and failing ones
/// too, since those are worth watching most. `[]` when there is none.
#[utoipa::path(
    get, path = "/v1/{namespace}/prometheus/targets", operation_id = "directory_targets", tag = "directory",
    params(NamespacePath, TargetsQuery),
    responses(
        (status = 200, description = "Groups of one target each", body = [TargetGroup]),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn targets(
    Shared(api): Shared<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<TargetsQuery>,
) -> Result<Answer<Vec<TargetGroup>>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let directory = api.directory(&store)?;
    let services = match (query.service, query.prefix) {
        (Some(_), Some(_)) => return Err(invalid("service and prefix exclude each other")),
        (Some(service), None) => {
            store.allow(Block::Directory, Verb::Read, &service)?;
            vec![service]
        }
        (None, prefix) => {
            let prefix = prefix.unwrap_or_default();
            store.caller.allow_prefix(Block::Directory, Verb::Read, store.namespace.as_str(), &prefix)?;
            all_services(&directory, &prefix).await?
        }
    };
    let mut groups = Vec::new();
    for service in services {
        groups.extend(directory.list(&service).await?.instances.iter().map(target));
    }
    Ok(Answer(groups))
}

async fn all_services(directory: &Directory, prefix: &str) -> Result<Vec<String>> {
    const PAGE: usize = 1_000;
    let mut services: Vec<String> = Vec::new();
    loop {
        let after = services.last().cloned().unwrap_or_default();
        let page = directory.services(prefix, &after, PAGE).await?;
        let last = page.len() < PAGE;
        services.extend(page);
        if last {
            return Ok(services);
        }
    }
}

impl Api {
    fn directory(&self, store: &Store) -> Result<Directory> {
        let mut open = self.0.directories.0.lock();
        let place = (store.namespace.clone(), store.realm.clone());
        if let Some(known) = open.get(&place) {
            return Ok(known.clone());
        }
        if open.len() >= REALMS_MAX {
            // Whoever watches keeps what it needs.
            open.clear();
        }
        let options = DirectoryOptions { realm: store.realm.clone(), ..DirectoryOptions::default() };
        let directory = Directory::open(&store.kv, options)?;
        open.insert(place, directory.clone());
        Ok(directory)
    }
}

fn service(api: &Api, caller: Caller, path: &ServicePath, query: &InRealm, verb: Verb) -> Result<Store> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Directory, verb, &path.service)?;
    Ok(store)
}

fn instance(path: InstancePath, body: NewInstance) -> Result<Instance, Problem> {
    let mut instance = Instance::new(path.service, body.address, body.port);
    instance.id = path.id;
    instance.zone = body.zone;
    instance.weight = body.weight.unwrap_or(instance.weight);
    instance.tags = body.tags;
    instance.metadata = body.metadata;
    if let Some(check) = body.check {
        let check = serde_json::from_value(check);
        instance.check = Some(check.map_err(|error| invalid(format!("the check is not what is expected: {error}")))?);
    }
    Ok(instance)
}

fn snapshot_view(snapshot: &Snapshot) -> ServiceView {
    let (state, why) = match &snapshot.state {
        State::Fresh => ("fresh", None),
        State::Stale { .. } => ("stale", None),
        State::Degraded { why, .. } => ("degraded", Some(why.clone())),
    };
    let instances = snapshot.instances.iter().map(|seen| view(seen)).collect();
    ServiceView { service: snapshot.service.clone(), revision: snapshot.revision.0, state, why, instances }
}

fn view(seen: &Seen) -> InstanceView {
    let instance = &seen.instance;
    let (health, why) = words(&seen.health);
    InstanceView {
        id: instance.id.clone(),
        zone: instance.zone.clone(),
        address: instance.address.clone(),
        port: instance.port,
        weight: instance.weight,
        tags: instance.tags.clone(),
        metadata: instance.metadata.clone(),
        check: instance.check.as_ref().and_then(|check| serde_json::to_value(check).ok()),
        created: seen.created.0,
        health,
        why,
        draining: seen.draining,
        held: seen.held,
        eligible: seen.is_healthy(),
    }
}

fn words(health: &Health) -> (&'static str, Option<String>) {
    match health {
        Health::Unchecked => ("unchecked", None),
        Health::Passing => ("passing", None),
        Health::Failing { why } => ("failing", Some(why.clone())),
    }
}

fn target(seen: &Seen) -> TargetGroup {
    let instance = &seen.instance;
    let address = match instance.address.parse() {
        Ok(std::net::IpAddr::V6(address)) => format!("[{address}]:{}", instance.port),
        _ => format!("{}:{}", instance.address, instance.port),
    };
    let mut labels: BTreeMap<String, String> = [
        ("service", instance.service.clone()),
        ("id", instance.id.clone()),
        ("zone", instance.zone.clone()),
        // Between commas on both sides, so that a pattern can tell a whole tag.
        ("tags", if instance.tags.is_empty() { String::new() } else { format!(",{},", instance.tags.join(",")) }),
        ("health", words(&seen.health).0.to_owned()),
        ("draining", seen.draining.to_string()),
    ]
    .map(|(name, value)| (format!("__meta_coact_{name}"), value))
    .into();
    for (name, value) in &instance.metadata {
        let name: String = name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '_' }).collect();
        labels.insert(format!("__meta_coact_metadata_{name}"), value.clone());
    }
    TargetGroup { targets: vec![address], labels }
}
