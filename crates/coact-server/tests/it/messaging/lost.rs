//! Connections that break while a request is under way.

use std::time::Duration;

use coact_core::{ErrorKind, contract::queue::QueueSpec, error::Effect};
use coact_server::Server;
use coact_testkit::fault::{Direction, Proxy};

use super::{append, claim, job, open, queue, queues, read, refused, stamped, streams, topic, values};
use crate::bed::{self, PATIENCE, eventually, within};

/// A node, a proxy before it, and a store through the proxy whose session is open.
async fn scene() -> (Server, Proxy, coact_core::registry::Store) {
    let node = bed::node().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    // So long that only what is wrong takes it.
    let store = open(proxy.address(), "?timeout=60s").await.expect("the node answers");
    (node, proxy, store)
}

/// The answer is lost after the node has done it. With a stamp it is asked again, and done once; without one, the
/// caller is told that it may have happened.
#[tokio::test]
async fn an_append_whose_answer_is_lost() {
    let (node, proxy, store) = scene().await;
    let direct = streams(&node, 1).await;
    let through = store.streams().expect("it has streams");
    through.append(append(&["opens the session"])).await.expect("an append");
    for (index, stamp) in [true, false].into_iter().enumerate() {
        proxy.hold(Direction::Down);
        let request = if stamp { stamped(&["x"], 0) } else { append(&["y"]) };
        let lost = through.append(request);
        let breaks = async {
            eventually("the node has it", async || {
                direct.bounds(&topic(), 0).await.expect("bounds").end.0 == index as u64 + 2
            })
            .await;
            proxy.cut();
            proxy.mend();
        };
        let (answer, ()) = within("both", async { tokio::join!(lost, breaks) }).await;
        if stamp {
            let appended = answer.expect("asked again");
            assert!(appended.duplicate && appended.first.0 == 1, "{appended:?}");
        } else {
            let error = refused("it is lost", answer, ErrorKind::Unavailable);
            assert_eq!(error.effect(), Effect::Unknown);
        }
    }
    assert_eq!(values(&direct, 0).await, ["opens the session", "x", "y"], "each once");
    through.append(append(&["z"])).await.expect("a new session");
}

/// A read goes on over the next connection, as if nothing had been.
#[tokio::test]
async fn a_read_that_waits_survives_its_connection() {
    let (node, proxy, store) = scene().await;
    let direct = streams(&node, 1).await;
    let through = store.streams().expect("it has streams");
    let waiting = through.read(read(0, PATIENCE));
    let breaks = async {
        let before = proxy.traffic().connections;
        // It waits at the node once nothing more is said; that it was asked is what must be known.
        eventually("it was asked", async || {
            through.bounds(&topic(), 0).await.is_ok() && proxy.traffic().bytes_down > 0
        })
        .await;
        proxy.cut();
        proxy.mend();
        eventually("it came back", async || proxy.traffic().connections > before).await;
        direct.append(append(&["a"])).await.expect("an append");
    };
    let (fetched, ()) = within("both", async { tokio::join!(waiting, breaks) }).await;
    assert_eq!(fetched.expect("a read").batches.len(), 1);
}

/// What takes jobs is not asked twice: the first time may have taken some.
#[tokio::test]
async fn a_claim_whose_answer_is_lost_may_have_happened() {
    let (node, proxy, store) = scene().await;
    let direct = queues(&node).await;
    let through = store.queues().expect("it has queues");
    assert!(!through.put_queue(&queue(), &QueueSpec::default()).await.expect("it is there"));
    assert!(through.claim(claim(Duration::ZERO)).await.expect("opens the session").is_empty());
    direct.enqueue(&queue(), vec![job("a")]).await.expect("a job");
    proxy.hold(Direction::Down);
    let lost = through.claim(claim(Duration::ZERO));
    let breaks = async {
        eventually("the node gave it away", async || direct.stats(&queue()).await.expect("numbers").claimed == 1).await;
        proxy.cut();
        proxy.mend();
    };
    let (answer, ()) = within("both", async { tokio::join!(lost, breaks) }).await;
    assert_eq!(refused("it is lost", answer, ErrorKind::Unavailable).effect(), Effect::Unknown);
    assert_eq!(direct.stats(&queue()).await.expect("numbers").claims, 1, "not asked twice");
    assert!(through.claim(claim(Duration::ZERO)).await.expect("a new session").is_empty());
}

/// No answer within the time of a request: it may have happened, and the next request goes over another session.
#[tokio::test]
async fn an_append_without_an_answer_may_have_happened() {
    let node = bed::node().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let direct = streams(&node, 1).await;
    let store = open(proxy.address(), "?timeout=1s").await.expect("the node answers");
    let through = store.streams().expect("it has streams");
    through.append(append(&["a"])).await.expect("an append");
    proxy.hold(Direction::Up);
    let error = refused("no answer", through.append(append(&["b"])).await, ErrorKind::Unavailable);
    assert_eq!(error.effect(), Effect::Unknown);
    proxy.mend();
    eventually("the node is reached again", async || through.append(append(&["c"])).await.is_ok()).await;
    assert!(values(&direct, 0).await.contains(&"c".to_owned()));
}

/// Nobody is there: nothing was sent, so nothing happened.
#[tokio::test]
async fn an_append_to_nobody_did_not_happen() {
    let node = bed::node().await;
    streams(&node, 1).await;
    let store = open(node.address(), "").await.expect("the node answers");
    let streams = store.streams().expect("it has streams");
    streams.append(append(&["a"])).await.expect("an append");
    node.shutdown().await.expect("it ends well");
    // The first one may still meet the end of the session.
    let _ = streams.append(append(&["b"])).await;
    let error = refused("nobody", streams.append(append(&["c"])).await, ErrorKind::Unavailable);
    assert_eq!(error.effect(), Effect::NotApplied, "{error}");
}
