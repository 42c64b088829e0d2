//! Connections that break while a request is under way.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::{commit::Commit, queue::QueueSpec},
    error::Effect,
    registry::Store,
};
use coact_server::Server;
use coact_testkit::fault::{Direction, Proxy};

use super::{append, claim, job, open, queue, queues, read, refused, stamped, streams, topic, values};
use crate::bed::{self, PATIENCE, eventually, within};

/// A node, and a way to it that can lose what is on it.
struct Scene {
    node: Server,
    /// What the first connections pass.
    inner: Proxy,
    /// Where the client connects.
    outer: Proxy,
    store: Store,
}

impl Scene {
    async fn start() -> Self {
        let node = bed::node().await;
        let inner = Proxy::start(node.address()).await.expect("a proxy");
        let outer = Proxy::start(inner.address()).await.expect("a proxy");
        // So long that only what is wrong takes it.
        let store = open(outer.address(), "?timeout=60s").await.expect("the node answers");
        Self { node, inner, outer, store }
    }

    /// Ends every connection with all that is on it. The next ones reach the node.
    fn lose(&self) {
        self.outer.redirect(self.node.address());
        self.inner.cut();
    }
}

/// The answer is lost after the node has done it. With a stamp it is asked again, and done once; without one, the
/// caller is told that it may have happened.
#[tokio::test]
async fn an_append_whose_answer_is_lost() {
    for has_stamp in [true, false] {
        let scene = Scene::start().await;
        let direct = streams(&scene.node, 1).await;
        let through = scene.store.streams().expect("it has streams");
        through.append(append(&["opens the session"])).await.expect("an append");
        scene.inner.hold(Direction::Down);
        let lost = through.append(if has_stamp { stamped(&["x"], 0) } else { append(&["x"]) });
        let breaks = async {
            eventually("the node has it", async || direct.bounds(&topic(), 0).await.expect("bounds").end.0 == 2).await;
            scene.lose();
        };
        let (answer, ()) = within("both", async { tokio::join!(lost, breaks) }).await;
        if has_stamp {
            let appended = answer.expect("asked again");
            assert!(appended.duplicate && appended.first.0 == 1, "{appended:?}");
        } else {
            let error = refused("it is lost", answer, ErrorKind::Unavailable);
            assert_eq!(error.effect(), Effect::Unknown);
        }
        through.append(append(&["y"])).await.expect("a new session");
        assert_eq!(values(&direct, 0).await, ["opens the session", "x", "y"], "each once");
    }
}

/// A read goes on over the next connection, as if nothing had been.
#[tokio::test]
async fn a_read_that_waits_survives_its_connection() {
    let scene = Scene::start().await;
    let direct = streams(&scene.node, 1).await;
    let through = scene.store.streams().expect("it has streams");
    let breaks = async {
        let before = scene.outer.traffic().connections;
        // Of the same session, so the read has arrived.
        through.commit(Commit::default()).await.map(drop).expect("a commit");
        scene.lose();
        eventually("it came back", async || scene.outer.traffic().connections > before).await;
        direct.append(append(&["a"])).await.expect("an append");
    };
    let (fetched, ()) = within("both", async { tokio::join!(through.read(read(0, PATIENCE)), breaks) }).await;
    assert_eq!(fetched.expect("a read").batches.len(), 1);
}

/// What takes jobs is not asked twice: the first time may have taken some.
#[tokio::test]
async fn a_claim_whose_answer_is_lost_may_have_happened() {
    let scene = Scene::start().await;
    let direct = queues(&scene.node).await;
    let through = scene.store.queues().expect("it has queues");
    assert!(!through.put_queue(&queue(), &QueueSpec::default()).await.expect("it is there"));
    assert!(through.claim(claim(Duration::ZERO)).await.expect("opens the session").is_empty());
    direct.enqueue(&queue(), vec![job("a")]).await.expect("a job");
    scene.inner.hold(Direction::Down);
    let lost = through.claim(claim(Duration::ZERO));
    let breaks = async {
        eventually("the node gave it away", async || direct.stats(&queue()).await.expect("numbers").claimed == 1).await;
        scene.lose();
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
