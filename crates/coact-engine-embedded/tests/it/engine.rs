//! Requests, watches, waiters and leases of one engine.

use std::time::Duration;

use coact_core::{env::Env, url::Url};
use coact_engine_embedded::{
    Config, Engine, History,
    flat::{DeleteRequest, FlatError, KeyRange, Op, PutRequest, RangeRequest, TxnRequest},
};
use coact_testkit::sim;

async fn memory() -> Engine {
    Engine::open(Config::default(), Env::real()).await.expect("it opens")
}

async fn put(engine: &Engine, key: &str) -> u64 {
    let put = PutRequest { key: key.to_owned().into(), value: "v".into(), ..PutRequest::default() };
    engine.txn(TxnRequest { success: vec![Op::Put(put)], ..TxnRequest::default() }).await.expect("a put").revision
}

async fn delete(engine: &Engine, key: &str) {
    let delete = DeleteRequest { keys: KeyRange::one(key.to_owned()), previous: false };
    engine.txn(TxnRequest { success: vec![Op::Delete(delete)], ..TxnRequest::default() }).await.expect("a deletion");
}

#[tokio::test]
async fn a_watch_replays_then_follows_and_misses_nothing() {
    let engine = memory().await;
    for index in 0..3000 {
        put(&engine, &format!("a/{index}")).await;
        put(&engine, "b/other").await;
    }
    let mut watcher = engine.watch(KeyRange::prefix("a/"), 2);
    for index in 3000..6000 {
        put(&engine, &format!("a/{index}")).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 6000 {
        let delivery = watcher.next().await.expect("a delivery");
        seen.extend(delivery.events.into_iter().map(|event| event.record.modified));
    }
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert_eq!(watcher.caught_up(), Some(engine.revision()));
}

#[tokio::test]
async fn a_slow_watch_holds_a_bounded_queue_and_is_told_when_it_falls_out_of_the_history() {
    let config = Config { history: History { revisions: 1000, age: None }, ..Config::default() };
    let engine = Engine::open(config, Env::real()).await.expect("it opens");
    let mut watcher = engine.watch(KeyRange::prefix("a/"), 0);
    for index in 0..6000 {
        put(&engine, &format!("a/{}", index % 10)).await;
    }
    let error = loop {
        match watcher.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error, FlatError::Compacted(engine.compacted()));
}

#[tokio::test]
async fn a_watch_is_not_woken_by_others() {
    let engine = memory().await;
    let mut watcher = engine.watch(KeyRange::prefix("a/"), 0);
    for _ in 0..100 {
        put(&engine, "b/other").await;
    }
    let mine = put(&engine, "a/mine").await;
    let delivery = watcher.next().await.expect("a delivery");
    assert_eq!((delivery.revision, delivery.events.len()), (mine, 1));
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "these tasks are the test's own")]
async fn one_release_wakes_one_of_a_thousand_waiters() {
    let engine = memory().await;
    let mut waiting = Vec::new();
    for index in 0..1000 {
        let created = put(&engine, &format!("lock//{index:04}")).await;
        let engine = engine.clone();
        waiting.push(tokio::spawn(async move {
            engine.await_gone(format!("lock//{index:04}").as_bytes(), created).await.expect("a wake-up");
        }));
    }
    while engine.stats().waiters < 1000 {
        tokio::task::yield_now().await;
    }
    for (index, waiter) in waiting.into_iter().enumerate() {
        delete(&engine, &format!("lock//{index:04}")).await;
        waiter.await.expect("a waiter");
        assert_eq!(engine.stats().wakes, index as u64 + 1);
    }
    assert_eq!(engine.stats().waiters, 0);
}

#[tokio::test]
async fn a_waiter_is_not_woken_by_an_overwrite_and_returns_at_once_if_it_is_late() {
    let engine = memory().await;
    let created = put(&engine, "k").await;
    let waiting = engine.await_gone(b"k", created);
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    put(&engine, "k").await;
    assert!(futures::poll!(&mut waiting).is_pending());
    delete(&engine, "k").await;
    waiting.await.expect("a wake-up");
    engine.await_gone(b"k", created).await.expect("it is gone");
    put(&engine, "k").await;
    engine.await_gone(b"k", created).await.expect("another one is there");
}

#[test]
fn a_lease_ends_by_itself_and_takes_its_keys_along() {
    sim::run(1, |world| async move {
        let engine = Engine::open(Config::default(), world.env("node")).await.expect("it opens");
        let (lease, _) = engine.lease_grant(0, Duration::from_secs(10)).await.expect("a lease");
        let mut watcher = engine.watch(KeyRange::prefix("a/"), 0);
        let puts = ["a/1", "a/2"].map(|key| Op::Put(PutRequest { key: key.into(), lease, ..PutRequest::default() }));
        engine.txn(TxnRequest { success: puts.into(), ..TxnRequest::default() }).await.expect("puts");
        assert_eq!(watcher.next().await.expect("the puts").events.len(), 2);
        for _ in 0..5 {
            engine.env().sleep(Duration::from_secs(8)).await;
            engine.lease_renew(lease).expect("it is alive");
        }
        let delivery = watcher.next().await.expect("the end");
        assert_eq!(delivery.events.len(), 2, "in one revision");
        assert!(delivery.events.iter().all(|event| event.expired && event.record.is_tombstone()));
        assert_eq!(engine.lease_renew(lease), Err(FlatError::LeaseNotFound));
        assert_eq!(engine.stats().lease_expirations, 1);
    });
}

#[tokio::test]
async fn history_is_kept_as_configured_and_survives_a_restart() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config {
        segment_bytes: 64 * 1024,
        snapshot_bytes: 16 * 1024,
        history: History { revisions: 100, age: None },
        ..Config::in_dir(place.path())
    };
    let engine = Engine::open(config.clone(), Env::real()).await.expect("it opens");
    for index in 0..2000 {
        put(&engine, &format!("k{}", index % 300)).await;
    }
    let (revision, compacted, id) = (engine.revision(), engine.compacted(), engine.store_id());
    assert!((100..=110).contains(&(revision - compacted)), "{compacted} of {revision}");
    assert!(engine.stats().snapshots > 0);
    engine.close().await.expect("it closes");

    let engine = Engine::open(config, Env::real()).await.expect("it opens again");
    assert_eq!((engine.revision(), engine.compacted(), engine.store_id()), (revision, compacted, id));
    let mut watcher = engine.watch(KeyRange::prefix("k"), compacted);
    let mut events = 0;
    while watcher.caught_up().is_none() {
        events += watcher.next().await.expect("the history").events.len();
    }
    assert_eq!(events as u64, revision - compacted + 1);
    let old = RangeRequest { keys: KeyRange::one("k1"), revision: compacted - 1, ..RangeRequest::default() };
    assert_eq!(engine.range(old).await, Err(FlatError::Compacted(compacted)));
}

#[test]
fn history_is_kept_by_age() {
    sim::run(2, |world| async move {
        let history = History { revisions: 100_000, age: Some(Duration::from_secs(600)) };
        let engine = Engine::open(Config { history, ..Config::default() }, world.env("node")).await.expect("it opens");
        for _ in 0..50 {
            put(&engine, "old").await;
        }
        let old = engine.revision();
        engine.env().sleep(Duration::from_secs(601)).await;
        put(&engine, "new").await;
        assert_eq!((engine.compacted(), engine.revision()), (old, old + 1));
        let still = RangeRequest { keys: KeyRange::one("old"), revision: old, ..RangeRequest::default() };
        assert_eq!(engine.range(still).await.expect("what was current can be read").0.records.len(), 1);
    });
}

#[tokio::test]
async fn dropping_every_handle_ends_the_writer_and_frees_the_directory() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 * 1024, ..Config::in_dir(place.path()) };
    let engine = Engine::open(config.clone(), Env::real()).await.expect("it opens");
    put(&engine, "k").await;
    drop(engine);
    let env = Env::real();
    let reopened = env.timeout(Duration::from_secs(30), async {
        loop {
            if let Ok(engine) = Engine::open(config.clone(), env.clone()).await {
                return engine;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(reopened.await.expect("in time").stats().keys, 1);
}

#[test]
fn bad_urls_are_explained() {
    let message = |url: &str| Config::from_url(&Url::parse(url).expect("a URL")).expect_err(url).to_string();
    for (url, expected) in [
        ("memory:?x=1", "URL option \"x\" is not known to memory: choose from namespace, history, history_age, accept"),
        ("memory://h", "memory: takes no host and no path; for files use embedded:///path"),
        ("embedded://host/data", "names a host, but an embedded engine is a directory"),
        ("embedded:///", "embedded: needs a directory"),
        ("embedded:///d?durability=fast", "durability=fast is not allowed: use sync, os, or interval:10ms"),
        ("embedded:///d?durability=interval:0ms", "use sync, os, or interval:10ms"),
        ("embedded:///d?history=0", "history=0 is not allowed: use a number of revisions from 1"),
        ("embedded:///d?history_age=5", "history_age=5 is not allowed: use a duration such as 10m"),
        ("embedded:///d?segment=1KiB", "segment=1KiB is not allowed: use a size from 64KiB to 1GiB"),
        ("embedded:///d?snapshot=2", "snapshot=2 is not allowed: use a size from 1MiB"),
    ] {
        let message = message(url);
        assert!(message.contains(expected), "{url}: {message}");
    }
    let relative = Config::from_url(&Url::parse("embedded://./coact-data").expect("a URL")).expect("relative");
    assert_eq!(relative.dir.as_deref(), Some(std::path::Path::new("./coact-data")));
}
