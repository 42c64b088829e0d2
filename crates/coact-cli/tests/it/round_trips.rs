//! What an uncontended lock costs in round trips, counted by a proxy between the client and the store: one to acquire,
//! one to release, on every engine.

use coact::{Session, SessionOptions, Url, lock::Mutex};
use coact_testkit::{
    bed::Postgres,
    fault::{Proxy, Traffic},
};

use crate::stores;

const ROUNDS: usize = 21;

/// HTTP/2 has frames of its own between the answers: there a call is what begins with headers.
fn calls(traffic: Traffic) -> u64 {
    traffic.frames_up.headers
}

fn turns(traffic: Traffic) -> u64 {
    traffic.turns
}

/// Acquires and releases through a proxy. A heartbeat may come between, so it is the usual count that counts.
async fn costs(url: &str, count: fn(Traffic) -> u64) -> (u64, u64) {
    let host = Url::parse(url).expect("a URL").hosts()[0].to_string();
    let proxy = Proxy::start(host.parse().expect("an address")).await.expect("a proxy");
    let kv = coact::open(&url.replacen(&host, &proxy.address().to_string(), 1)).await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    let mutex = Mutex::new(&session, "x").expect("valid");
    let (mut acquiring, mut releasing) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = count(proxy.traffic());
        let guard = mutex.acquire().await.expect("granted");
        let held = count(proxy.traffic());
        guard.release().await.expect("held");
        acquiring.push(held - before);
        releasing.push(count(proxy.traffic()) - held);
    }
    acquiring.sort_unstable();
    releasing.sort_unstable();
    (acquiring[ROUNDS / 2], releasing[ROUNDS / 2])
}

#[tokio::test]
async fn etcd() {
    assert_eq!(costs(&stores::etcd().await.url, calls).await, (1, 1));
}

#[tokio::test]
async fn node() {
    assert_eq!(costs(&stores::node().await.url, calls).await, (1, 1));
}

#[tokio::test]
async fn redis() {
    assert_eq!(costs(&stores::redis().await.url, turns).await, (1, 1));
}

#[tokio::test]
async fn zookeeper() {
    assert_eq!(costs(&stores::zookeeper().await.url, turns).await, (1, 1));
}

/// There is a notification after each change, on a connection of its own, for which nobody waits: the server's log tells
/// which statements there were besides.
#[tokio::test]
async fn postgres() {
    const PAIRS: usize = 10;
    let server = Postgres::start(&["log_statement=all"]).await.expect("PostgreSQL starts");
    let (acquire, release) = costs(&server.url("main"), turns).await;
    assert!(acquire <= 2 && release <= 2, "{acquire} and {release}, of which one each is the notification");
    let kv = coact::open(&server.url("other")).await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    let mutex = Mutex::new(&session, "x").expect("valid");
    let before = server.log().len();
    for _ in 0..PAIRS {
        mutex.acquire().await.expect("granted").release().await.expect("held");
    }
    let log = server.log().split_off(before);
    let statements: Vec<_> = log.lines().filter(|line| line.contains("LOG:")).collect();
    let of = |word: &str| statements.iter().filter(|line| line.to_lowercase().contains(word)).count();
    assert_eq!(of(".txn("), 2 * PAIRS, "{statements:#?}");
    assert_eq!(of("commit"), of("notify"), "no transaction is around them: {statements:#?}");
}
