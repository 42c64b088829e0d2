//! The end of a node: what was begun is finished, what would never end is ended, and nothing acknowledged is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use coact_core::env::Env;
use coact_engine_embedded::Config;
use coact_engine_etcd::wire::{
    etcdserverpb::{LeaseKeepAliveRequest, WatchCreateRequest},
    v3electionpb::LeaderRequest,
    v3lockpb::LockRequest,
};
use coact_server::{Limits, Server, ServerConfig};
use futures::StreamExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    bed::{self, eventually, within},
    client::{Clients, bytes, get, get_range, put},
};

#[tokio::test(flavor = "multi_thread")]
async fn finishes_commits_and_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let config = || {
        let mut config = ServerConfig::new(Config::in_dir(dir.path().join("data")));
        config.listen = ([127, 0, 0, 1], 0).into();
        config
    };
    let node = Server::start(config(), Env::real()).await.expect("a node starts");
    let acknowledged = Arc::new(AtomicU64::new(0));
    let (to, mut writers) = tokio::sync::mpsc::channel::<u64>(8);
    for writer in 0..8 {
        let mut clients = Clients::connect(node.address()).await.expect("the node answers");
        let (acknowledged, to) = (acknowledged.clone(), to.clone());
        Env::real().spawn(async move {
            let mut count = 0;
            while clients.kv.put(put(&format!("{writer}/{count:06}"), "x")).await.is_ok() {
                count += 1;
                acknowledged.fetch_add(1, Relaxed);
            }
            let _ = to.send(count).await;
        });
    }
    drop(to);
    eventually("writes flow", async || acknowledged.load(Relaxed) > 100).await;
    within("the shutdown", node.shutdown()).await.expect("a clean end");
    let mut total = 0;
    while let Some(count) = within("the writers", writers.recv()).await {
        total += count;
    }
    let node = Server::start(config(), Env::real()).await.expect("it starts again");
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    let found = clients.kv.range(get_range("\0", "\0")).await.expect("a range").into_inner().count as u64;
    // Each writer had at most one write under way whose answer it may have missed.
    assert!((total..=total + 8).contains(&found), "{total} acknowledged, {found} found");
    node.shutdown().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_what_would_never_end() {
    let node = bed::node().await;
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    let mut watch = clients.watch(WatchCreateRequest { key: bytes("k"), ..Default::default() }).await;
    watch.next().await.expect("created");
    let (_requests, from) = futures::channel::mpsc::unbounded::<LeaseKeepAliveRequest>();
    let mut renewals = clients.lease.lease_keep_alive(from).await.expect("a stream").into_inner();
    let mut leaders =
        clients.election.observe(LeaderRequest { name: bytes("post") }).await.expect("a stream").into_inner();
    clients.lock.lock(LockRequest { name: bytes("lock"), lease: 0 }).await.expect("free");
    let mut lock = clients.lock.clone();
    let mut waiting = Box::pin(lock.lock(LockRequest { name: bytes("lock"), lease: 0 }));
    eventually("the second waits for the lock", async || {
        assert!(futures::poll!(&mut waiting).is_pending(), "the lock is held");
        node.engine().stats().waiters > 0
    })
    .await;

    let address = node.address();
    let ended = async {
        let stopped = (Code::Unavailable, "etcdserver: server stopped".to_owned());
        let said = |status: tonic::Status| (status.code(), status.message().to_owned());
        assert_eq!(said(watch.next().await.expect_err("the watch ends")), stopped);
        assert_eq!(said(renewals.next().await.expect("a last word").expect_err("renewals end")), stopped);
        assert_eq!(said(leaders.next().await.expect("a last word").expect_err("the observation ends")), stopped);
        assert_eq!(said(waiting.await.expect_err("the waiting ends")), stopped);
    };
    let (closed, ()) = within("the shutdown", async { tokio::join!(node.shutdown(), ended) }).await;
    closed.expect("a clean end");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_off_who_does_not_end() {
    let node = bed::node_with(Limits { shutdown: Duration::from_millis(50), ..Limits::default() }).await;
    // A request whose header never ends keeps its connection busy past the limit.
    let mut stalled = TcpStream::connect(node.address()).await.expect("it accepts");
    tokio::io::AsyncWriteExt::write_all(&mut stalled, b"GET /healthz HTTP/1.1\r\nHost:").await.expect("it reads");
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    clients.kv.range(get("k")).await.expect("it is served");
    within("the shutdown", node.shutdown()).await.expect("a clean end");
    clients.kv.range(get("k")).await.expect_err("the node is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_server_stops_serving() {
    let node = bed::node().await;
    let address = node.address();
    drop(node);
    eventually("nobody listens", async || TcpStream::connect(address).await.is_err()).await;
}
