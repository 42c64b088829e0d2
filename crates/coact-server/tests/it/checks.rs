//! Health checks that a node runs, against real listeners, servers and commands.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::State, http::StatusCode, response::Redirect, routing::get};
use coact_blocks::directory::{
    Check, CheckKind, Directory, DirectoryOptions, Health, Instance, Mode, Seen, Snapshot, Watch,
};
use coact_core::{ErrorKind, env::Env, guarantees::Weakness, name::Namespace};
use coact_engine_embedded::Config;
use coact_server::{ChecksConfig, Server, ServerConfig};
use tokio::net::TcpListener;

use crate::bed::{eventually, get as page, within};

fn config() -> ServerConfig {
    let mut config = ServerConfig::new(Config::default());
    config.listen = ([127, 0, 0, 1], 0).into();
    config.accepted = [Weakness::Volatile].into_iter().collect();
    config
}

async fn node_with(config: ServerConfig) -> (Server, Directory) {
    let server = Server::start(config, Env::real()).await.expect("a node starts");
    let kv = server.engine().kv(Namespace::default(), [Weakness::Volatile].into_iter().collect());
    let directory = Directory::open(&kv, DirectoryOptions::default()).expect("opens");
    (server, directory)
}

/// A check that needs little patience.
fn quick(kind: CheckKind) -> Check {
    Check {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(100),
        failures_to_unhealthy: 2,
        successes_to_healthy: 1,
        ..Check::new(kind)
    }
}

/// As [`quick`], for what takes longer on a slow machine.
fn patient(kind: CheckKind) -> Check {
    Check { interval: Duration::from_secs(2), timeout: Duration::from_secs(2), failures_to_unhealthy: 1, ..quick(kind) }
}

fn instance(id: &str, at: SocketAddr, check: Check) -> Instance {
    let mut instance = Instance::new("web", at.ip().to_string(), at.port());
    (instance.id, instance.check) = (id.to_owned(), Some(check));
    instance
}

async fn put(directory: &Directory, instance: &Instance) -> Watch {
    directory.put_instance(None, instance).await.expect("put");
    directory.watch(&instance.service).await.expect("watched")
}

fn health<'a>(snapshot: &'a Snapshot, id: &str) -> Option<&'a Health> {
    snapshot.get(id).map(|seen| &seen.health)
}

async fn passes(watch: &mut Watch, id: &str) {
    let passing = watch.wait_for(|snapshot| health(snapshot, id) == Some(&Health::Passing));
    within("it passes", passing).await.expect("watched");
}

/// Waits until it fails, and says why.
async fn fails(watch: &mut Watch, id: &str) -> String {
    let failing = watch.wait_for(|snapshot| matches!(health(snapshot, id), Some(Health::Failing { .. })));
    let snapshot = within("it fails", failing).await.expect("watched");
    match health(&snapshot, id) {
        Some(Health::Failing { why }) => why.clone(),
        other => panic!("{other:?}"),
    }
}

async fn listen(at: SocketAddr) -> TcpListener {
    within("a free port", async {
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => return listener,
                Err(_) => Env::real().sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[tokio::test]
async fn a_port_that_closes_and_opens_is_seen() {
    let (node, directory) = node_with(config()).await;
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    let mut watch = put(&directory, &instance("a", at, quick(CheckKind::Tcp))).await;
    passes(&mut watch, "a").await;
    assert_eq!(watch.healthy().len(), 1);
    drop(listener);
    let why = fails(&mut watch, "a").await;
    assert!(why.starts_with(&format!("connecting to {at}: ")), "{why}");
    assert!(watch.healthy().is_empty());
    let _listener = listen(at).await;
    passes(&mut watch, "a").await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    for outcome in ["passed", "failed"] {
        let line = format!("coact_checks_total{{kind=\"tcp\",outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn thresholds_are_kept() {
    let (node, directory) = node_with(config()).await;
    let at = { listen(anywhere()).await.local_addr().expect("bound") };
    let check = Check { failures_to_unhealthy: 5, ..quick(CheckKind::Tcp) };
    let mut watch = put(&directory, &instance("a", at, check)).await;
    fails(&mut watch, "a").await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    let failed =
        metrics.lines().find_map(|line| line.strip_prefix("coact_checks_total{kind=\"tcp\",outcome=\"failed\"} "));
    let failed: u32 = failed.expect("counted").parse().expect("a number");
    assert!(failed >= 5, "after {failed} tries");
}

/// An HTTP server whose `/health` answers with the status that is set.
async fn http_server() -> (SocketAddr, Arc<AtomicU16>, Arc<AtomicUsize>) {
    let (status, followed) = (Arc::new(AtomicU16::new(204)), Arc::new(AtomicUsize::new(0)));
    let endless = || Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 8_192])));
    let seen = followed.clone();
    let router = Router::new()
        .route(
            "/health",
            get(|State(status): State<Arc<AtomicU16>>| async move {
                StatusCode::from_u16(status.load(SeqCst)).expect("a status")
            }),
        )
        .route("/endless", get(move || async move { endless() }))
        .route("/elsewhere", get(|| async { Redirect::temporary("/followed") }))
        .route(
            "/followed",
            get(move || async move {
                seen.fetch_add(1, SeqCst);
            }),
        )
        .with_state(status.clone());
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    Env::real().spawn(async move { axum::serve(listener, router).await.expect("serves") });
    (at, status, followed)
}

fn http(path: &str, expect_status: Option<std::ops::RangeInclusive<u16>>) -> CheckKind {
    CheckKind::Http { path: path.to_owned(), expect_status }
}

#[tokio::test]
async fn an_http_status_is_judged() {
    let (_node, directory) = node_with(config()).await;
    let (at, status, followed) = http_server().await;
    let quickly = |kind| Check { interval: Duration::from_millis(300), ..patient(kind) };
    let quickly = |kind| Check { timeout: Duration::from_millis(300), failures_to_unhealthy: 3, ..quickly(kind) };
    let mut watch = put(&directory, &instance("a", at, quickly(http("/health", None)))).await;
    passes(&mut watch, "a").await;
    status.store(503, SeqCst);
    let why = fails(&mut watch, "a").await;
    assert_eq!(why, format!("GET http://{at}/health: status 503, expected 200 to 299"));
    put(&directory, &instance("b", at, quickly(http("/health", Some(500..=503))))).await;
    passes(&mut watch, "b").await;
    status.store(200, SeqCst);
    passes(&mut watch, "a").await;
    fails(&mut watch, "b").await;

    // A body without end is cut, and a redirect is an answer like another.
    put(&directory, &instance("endless", at, quickly(http("/endless", None)))).await;
    passes(&mut watch, "endless").await;
    put(&directory, &instance("elsewhere", at, quickly(http("/elsewhere", None)))).await;
    assert!(fails(&mut watch, "elsewhere").await.contains("status 307"));
    assert_eq!(followed.load(SeqCst), 0, "it is not followed");
}

#[tokio::test]
async fn what_accepts_and_says_nothing_fails_in_time() {
    let (node, directory) = node_with(config()).await;
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    let mut watch = put(&directory, &instance("http", at, quick(http("/", None)))).await;
    put(&directory, &instance("grpc", at, quick(CheckKind::Grpc { service: String::new() }))).await;
    for id in ["http", "grpc"] {
        assert_eq!(fails(&mut watch, id).await, "no answer within 100ms", "{id}");
    }
    put(&directory, &instance("tcp", at, quick(CheckKind::Tcp))).await;
    passes(&mut watch, "tcp").await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    assert!(metrics.contains("coact_checks_total{kind=\"grpc\",outcome=\"timed-out\"}"), "{metrics}");
}

#[tokio::test]
async fn grpc_health_is_asked_for() {
    let (_node, directory) = node_with(config()).await;
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    let router = Router::new().route_service("/grpc.health.v1.Health/{*method}", service);
    Env::real().spawn(async move { axum::serve(listener, router).await.expect("serves") });

    let grpc = |service: &str| {
        let check = patient(CheckKind::Grpc { service: service.to_owned() });
        Check { interval: Duration::from_millis(500), timeout: Duration::from_millis(500), ..check }
    };
    let mut watch = put(&directory, &instance("a", at, grpc("shop"))).await;
    passes(&mut watch, "a").await;
    put(&directory, &instance("whole", at, grpc(""))).await;
    passes(&mut watch, "whole").await;
    reporter.set_service_status("shop", tonic_health::ServingStatus::NotServing).await;
    let why = fails(&mut watch, "a").await;
    assert_eq!(why, format!("grpc.health.v1.Health/Check at {at}: NOT_SERVING"));
    reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
    passes(&mut watch, "a").await;
    put(&directory, &instance("b", at, grpc("nobody"))).await;
    assert!(fails(&mut watch, "b").await.contains("NotFound"));
}

#[tokio::test]
async fn commands_come_from_the_configuration_alone() {
    let dir = tempfile::tempdir().expect("a dir");
    let (told, left) = (dir.path().join("told"), dir.path().join("left"));
    let mut config = config();
    let told_script = format!("echo $COACT_SERVICE $COACT_INSTANCE $COACT_ADDRESS $COACT_PORT > {}", told.display());
    // What the command starts must end with it.
    let slow_script = format!("sleep 1000 & echo $! > {}; wait", left.display());
    for (name, argv) in [
        ("good", vec!["true"]),
        ("bad", vec!["false"]),
        ("missing", vec!["/no/such/program"]),
        ("telling", vec!["sh", "-c", &told_script]),
        ("slow", vec!["sh", "-c", &slow_script]),
    ] {
        config.check_commands.insert(name.to_owned(), argv.into_iter().map(str::to_owned).collect());
    }
    let (node, directory) = node_with(config).await;
    let at = SocketAddr::from(([10, 1, 2, 3], 80));
    let command = |name: &str| CheckKind::Command { name: name.to_owned() };
    let mut watch = put(&directory, &instance("good", at, patient(command("good")))).await;
    for name in ["bad", "missing", "telling", "true"] {
        put(&directory, &instance(name, at, patient(command(name)))).await;
    }
    let slow = Check { interval: Duration::from_secs(1), timeout: Duration::from_secs(1), ..patient(command("slow")) };
    put(&directory, &instance("slow", at, slow)).await;
    passes(&mut watch, "good").await;
    passes(&mut watch, "telling").await;
    assert_eq!(std::fs::read_to_string(told).expect("told"), "web telling 10.1.2.3 80\n");
    assert_eq!(fails(&mut watch, "bad").await, "command bad ended with exit status: 1");
    assert!(fails(&mut watch, "missing").await.starts_with("starting command missing: "));
    let unknown = fails(&mut watch, "true").await;
    assert_eq!(unknown, "the checking node has no command \"true\" in its configuration");
    assert_eq!(fails(&mut watch, "slow").await, "no answer within 1s");
    directory.remove_instance("web", "slow").await.expect("removed");
    let pid = std::fs::read_to_string(left).expect("started");
    let status = format!("/proc/{}/stat", pid.trim());
    let is_gone = || std::fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z "));
    eventually("nothing is left running", async || is_gone()).await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    assert!(metrics.contains("coact_checks_total{kind=\"command\",outcome=\"refused\"}"), "{metrics}");
}

#[tokio::test]
async fn an_instance_that_goes_is_not_checked_any_more() {
    let (_node, directory) = node_with(config()).await;
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    Env::real().spawn(async move {
        while listener.accept().await.is_ok() {
            seen.fetch_add(1, SeqCst);
        }
    });
    let other = directory.register(instance("other", at, patient(CheckKind::Tcp)), Mode::Ephemeral).await;
    let registration = directory.register(instance("a", at, quick(CheckKind::Tcp)), Mode::Ephemeral).await;
    let (other, registration) = (other.expect("registered"), registration.expect("registered"));
    let mut watch = directory.watch("web").await.expect("watched");
    passes(&mut watch, "a").await;
    passes(&mut watch, "other").await;
    // Without a check it is not tried either, and the old verdict goes.
    other.update(Instance { check: None, ..other.instance() }).await.expect("updated");
    let unchecked = watch.wait_for(|snapshot| health(snapshot, "other") == Some(&Health::Unchecked));
    within("the verdict is withdrawn", unchecked).await.expect("watched");
    registration.deregister().await.expect("deregistered");
    eventually("nobody connects", async || {
        let before = tries.load(SeqCst);
        // Five intervals, each of which brought a try before.
        Env::real().sleep(Duration::from_millis(500)).await;
        tries.load(SeqCst) == before
    })
    .await;
    eventually("the verdict is gone", async || entries(&directory).await == ["i:other"]).await;

    // One that dies: its verdict is written under another lease and must go all the same.
    let lease = directory.kv().lease_grant(Duration::from_secs(2)).await.expect("a lease");
    directory.put_instance(Some(lease.id), &instance("b", at, quick(CheckKind::Tcp))).await.expect("put");
    eventually("it is dead and forgotten", async || entries(&directory).await == ["i:other"]).await;
    assert_eq!(directory.list("web").await.expect("listed").instances.len(), 1);
}

/// The names of what the store has about the service.
async fn entries(directory: &Directory) -> Vec<String> {
    use coact_core::{contract::kv::Order, name::Dir};
    let dir = Dir::new(directory.realm(), "directory/web").expect("a dir");
    let page = directory.kv().list(&dir, Order::Name { after: String::new() }, 100).await.expect("listed");
    page.entries.iter().map(|entry| entry.key.name().to_owned()).collect()
}

#[tokio::test]
async fn some_addresses_are_never_connected_to() {
    let mut config = config();
    config.checks.allow = vec!["127.0.0.1".parse().expect("a range"), "169.254.0.0/16".parse().expect("a range")];
    let (node, directory) = node_with(config).await;
    let listener = listen(([0, 0, 0, 0], 0).into()).await;
    let port = listener.local_addr().expect("bound").port();
    let at = |address: &str| SocketAddr::new(address.parse().expect("an address"), port);
    let mut watch = put(&directory, &instance("good", at("127.0.0.1"), quick(CheckKind::Tcp))).await;
    passes(&mut watch, "good").await;
    let kinds = [CheckKind::Tcp, http("/latest/meta-data", None), CheckKind::Grpc { service: String::new() }];
    for (number, kind) in kinds.into_iter().enumerate() {
        for address in ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"] {
            let id = format!("{number}-{}", address.replace(':', "."));
            put(&directory, &instance(&id, at(address), quick(kind.clone()))).await;
            let why = fails(&mut watch, &id).await;
            assert_eq!(why, format!("{address} is link-local, where checks are never sent"));
        }
    }
    put(&directory, &instance("narrow", at("127.0.0.2"), quick(CheckKind::Tcp))).await;
    assert_eq!(fails(&mut watch, "narrow").await, "127.0.0.2 is not in what checks.allow names");
    // A name is judged by what it resolves to.
    let named =
        Instance { address: "localhost".to_owned(), ..instance("named", at("127.0.0.1"), quick(CheckKind::Tcp)) };
    put(&directory, &named).await;
    passes(&mut watch, "named").await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    assert!(metrics.contains("coact_checks_total{kind=\"grpc\",outcome=\"refused\"}"), "{metrics}");
}

#[tokio::test]
async fn verdicts_end_with_the_node() {
    let dir = tempfile::tempdir().expect("a dir");
    let in_dir = || ServerConfig { engine: Config::in_dir(dir.path()), ..config() };
    let (node, directory) = node_with(in_dir()).await;
    let at = { listen(anywhere()).await.local_addr().expect("bound") };
    let mut watch = put(&directory, &instance("a", at, quick(CheckKind::Tcp))).await;
    fails(&mut watch, "a").await;
    assert_eq!(node.engine().stats().leases, 1);
    node.shutdown().await.expect("it ends");
    let mut without = in_dir();
    without.checks = ChecksConfig { namespaces: Vec::new(), ..ChecksConfig::default() };
    let (node, directory) = node_with(without).await;
    let listed = directory.list("web").await.expect("listed").instances;
    assert!(matches!(&listed[..], [Seen { health: Health::Unchecked, .. }]), "{listed:?}");
    assert_eq!(node.engine().stats().leases, 0);
}

#[tokio::test]
async fn one_node_checks_a_namespace_at_a_time() {
    let (node, directory) = node_with(config()).await;
    let listener = listen(anywhere()).await;
    let at = listener.local_addr().expect("bound");
    // Somebody else holds the lock: the node waits.
    let session = coact_blocks::Session::open(directory.kv(), Default::default()).await.expect("opened");
    let lock = coact_blocks::lock::Mutex::new(&session, "coact-checks").expect("a lock");
    let guard = lock.acquire().await.expect("acquired");
    let mut watch = put(&directory, &instance("a", at, quick(CheckKind::Tcp))).await;
    eventually("the node waits for the lock", async || node.engine().stats().waiters > 0).await;
    let (_, metrics) = page(node.address(), "/metrics").await;
    assert!(!metrics.contains("coact_checks_total{"), "{metrics}");
    guard.release().await.expect("released");
    passes(&mut watch, "a").await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_at_the_start() {
    let mut empty = config();
    empty.check_commands.insert("probe".to_owned(), Vec::new());
    let error = Server::start(empty, Env::real()).await.expect_err("refused");
    assert_eq!((error.kind(), error.to_string().contains("check command probe is empty")), (ErrorKind::Invalid, true));
    let mut own = config();
    own.checks.namespaces = vec![Namespace::new(coact_server::auth::RESERVED_NAMESPACE).expect("a namespace")];
    assert_eq!(Server::start(own, Env::real()).await.expect_err("refused").kind(), ErrorKind::Denied);
}
