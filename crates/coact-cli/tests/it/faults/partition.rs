//! A network that parts a client from its node, by a proxy between them.

use std::{sync::Arc, time::Duration};

use coact::{
    Env, ErrorKind, Session, SessionOptions,
    kv::Txn,
    lock::{Election, Mutex},
};
use coact_blocks::directory::{Directory, DirectoryOptions, Instance, Mode, RegistrationState, Snapshot, State, Watch};
use coact_testkit::{
    bed::{PATIENCE, wait_until},
    fault::{Direction, Proxy},
};
use futures::future::join_all;

use crate::node::Node;

/// Its margin is a second: that long before the node may give away what it held, a session knows that it is lost.
const TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Connections are reset, and new ones refused.
    Cut,
    /// Nothing arrives, and nobody is told.
    Silence,
    /// Requests arrive, but no answers: the node hears renewals that the client cannot count on.
    NoAnswers,
    /// No request arrives.
    NoRequests,
}

impl Fault {
    fn begin(self, proxy: &Proxy) {
        match self {
            Self::Cut => proxy.cut(),
            Self::Silence => {
                proxy.hold(Direction::Up);
                proxy.hold(Direction::Down);
            }
            Self::NoAnswers => proxy.hold(Direction::Down),
            Self::NoRequests => proxy.hold(Direction::Up),
        }
    }
}

async fn session(url: &str, name: &str) -> Session {
    let kv = coact::open(url).await.expect("the node answers");
    let options = SessionOptions { ttl: TTL, name: Some(name.to_owned()) };
    Session::open(&kv, options).await.expect("a lease")
}

fn url(proxy: &Proxy, namespace: &str) -> String {
    format!("coact://{}/{namespace}", proxy.address())
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what}: in vain"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parted_holder_knows_that_it_lost_before_the_node_grants_to_another() {
    let node = Node::start().await;
    let faults = [Fault::Cut, Fault::Silence, Fault::NoAnswers, Fault::NoRequests];
    join_all(faults.map(|fault| a_parted_holder(&node, fault))).await;
}

async fn a_parted_holder(node: &Node, fault: Fault) {
    let namespace = format!("{fault:?}");
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let old = session(&url(&proxy, &namespace), "old").await;
    let guard = Mutex::new(&old, "x").expect("valid").acquire().await.expect("free");
    let leadership = Election::new(&old, "x").expect("valid").campaign("old").await.expect("no other candidate");
    let new = session(&node.url(&namespace), "new").await;

    let (mutex, election) = (Mutex::new(&new, "x").expect("valid"), Election::new(&new, "x").expect("valid"));
    let granted = async {
        let guard = mutex.acquire().await.expect("granted");
        (Env::real().now(), guard)
    };
    let elected = async {
        let leadership = election.campaign("new").await.expect("elected");
        (Env::real().now(), leadership)
    };
    let lost = async {
        let why = tokio::join!(guard.lost(), leadership.lost());
        (Env::real().now(), why)
    };
    fault.begin(&proxy);
    let ((granted_at, new_guard), (elected_at, new_leadership), (lost_at, why)) =
        within("the next holder", Box::pin(async { tokio::join!(granted, elected, lost) })).await;
    assert!(lost_at < granted_at && lost_at < elected_at, "{fault:?}");
    assert!(old.deadline() < granted_at && old.deadline() < elected_at, "{fault:?}");
    assert_eq!((why.0.kind(), why.1.kind()), (ErrorKind::Fenced, ErrorKind::Fenced), "{fault:?}: {why:?}");
    assert!(new_guard.token() > guard.token() && new_leadership.token() > leadership.token(), "{fault:?}");

    proxy.mend();
    // A connection that was parted may need a while to find out that it is whole again.
    wait_until(&Env::real(), "both are told", PATIENCE, async || {
        let refused = [guard.txn(Txn::default()).await, leadership.txn(Txn::default()).await];
        let kinds = refused.map(|outcome| outcome.expect_err("the store knows better").kind());
        assert!(kinds.iter().all(|kind| [ErrorKind::Fenced, ErrorKind::Unavailable].contains(kind)), "{fault:?}");
        kinds == [ErrorKind::Fenced; 2]
    })
    .await
    .unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
    assert!(!old.is_alive(), "{fault:?}: once lost, it stays lost");
    new_guard.release().await.expect("the new holder never noticed");
    new_leadership.resign().await.expect("the new leader never noticed");
}

fn instance(id: &str, port: u16) -> Instance {
    Instance { id: id.to_owned(), ..Instance::new("web", "10.0.0.1", port) }
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.instances.iter().map(|seen| seen.instance.id.as_str()).collect()
}

async fn until(watch: &mut Watch, what: &str, wish: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
    within(what, watch.wait_for(wish)).await.expect("the environment lives")
}

#[tokio::test]
async fn a_parted_watcher_keeps_its_list_and_catches_up() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let near = coact::open(&node.url("main")).await.expect("the node answers");
    let near = Directory::open(&near, DirectoryOptions::default()).expect("valid");
    let far = coact::open(&url(&proxy, "main")).await.expect("the node answers");
    let far = Directory::open(&far, DirectoryOptions::default()).expect("valid");
    let a = near.register(instance("a", 1), Mode::Ephemeral).await.expect("a new id");
    let mut watch = far.watch("web").await.expect("it loads");
    a.update(instance("a", 2)).await.expect("the node answers");
    until(&mut watch, "changes arrive", |snapshot| port_of(snapshot, "a") == Some(2)).await;

    for (fault, port) in [(Fault::Cut, 3), (Fault::Silence, 4)] {
        fault.begin(&proxy);
        a.update(instance("a", port)).await.expect("the node answers");
        let b = near.register(instance("b", port), Mode::Ephemeral).await.expect("a new id");
        let stale = until(&mut watch, "it is noticed", |snapshot| matches!(snapshot.state, State::Stale { .. })).await;
        assert_eq!(port_of(&stale, "a"), Some(port - 1), "{fault:?}: it shows what it knew, and says so");
        proxy.mend();
        let mut never_without_a = true;
        until(&mut watch, "it caught up", |snapshot| {
            never_without_a &= ids(snapshot).contains(&"a");
            let caught_up = port_of(snapshot, "a") == Some(port) && port_of(snapshot, "b") == Some(port);
            caught_up && snapshot.state == State::Fresh
        })
        .await;
        b.deregister().await.expect("the node answers");
        assert!(never_without_a, "{fault:?}: silence says nothing about instances");
    }
}

fn port_of(snapshot: &Snapshot, id: &str) -> Option<u16> {
    snapshot.get(id).map(|seen| seen.instance.port)
}

#[tokio::test]
async fn a_parted_registration_comes_back_with_what_it_says_now() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let near = coact::open(&node.url("main")).await.expect("the node answers");
    // The watcher believes every loss, so that it shows what the store says.
    let near = Directory::open(&near, DirectoryOptions { protect: 0.0, ..DirectoryOptions::default() });
    let mut watch = near.expect("valid").watch("web").await.expect("it loads");
    let far = coact::open(&url(&proxy, "main")).await.expect("the node answers");
    let options = DirectoryOptions { ttl: Duration::from_secs(1), ..DirectoryOptions::default() };
    let far = Directory::open(&far, options).expect("valid");
    let registration = far.register(instance("a", 1), Mode::Ephemeral).await.expect("a new id");
    let first = until(&mut watch, "it is there", |snapshot| ids(snapshot) == ["a"]).await;

    proxy.cut();
    until(&mut watch, "its lease ends", |snapshot| snapshot.instances.is_empty()).await;
    within("the owner is told", registration.update(instance("a", 2))).await.expect_err("the node is out of reach");
    assert!(matches!(registration.state(), RegistrationState::Retrying { .. }), "{:?}", registration.state());

    proxy.mend();
    let again = until(&mut watch, "it is back", |snapshot| ids(snapshot) == ["a"]).await;
    assert_eq!(again.instances[0].instance.port, 2, "what it says now, not what it said");
    assert!(again.instances[0].created > first.instances[0].created, "a new entry");
    wait_until(&Env::real(), "the owner knows", PATIENCE, async || {
        matches!(registration.state(), RegistrationState::Registered)
    })
    .await
    .expect("in time");
}
