//! Disks that fail: a failed sync, a full disk, a read-only one, a directory in use.

use coact_core::{ErrorKind, env::Env, guarantees::Durability};
use coact_engine_embedded::{
    Config, Engine,
    flat::{FlatError, KeyRange, Op, PutRequest, RangeRequest, TxnRequest},
};
use coact_testkit::sim;

fn put(index: u32) -> TxnRequest {
    let put = PutRequest { key: format!("k{index}").into(), value: "v".into(), ..PutRequest::default() };
    TxnRequest { success: vec![Op::Put(put)], ..TxnRequest::default() }
}

async fn keys(engine: &Engine) -> usize {
    let all = RangeRequest { keys: KeyRange::prefix("k"), ..RangeRequest::default() };
    engine.range(all).await.expect("an engine that stopped still reads").0.records.len()
}

fn config() -> Config {
    Config { segment_bytes: 64 * 1024, ..Config::in_dir("/data") }
}

#[test]
fn a_failed_sync_stops_acknowledgements_and_reopening_recovers() {
    sim::run(1, |world| async move {
        let env = world.env("node");
        let engine = Engine::open(config(), env.clone()).await.expect("it opens");
        for index in 0..5 {
            engine.txn(put(index)).await.expect("acknowledged");
        }
        world.disk("node").fail_next_sync();
        let failed = engine.txn(put(5)).await.expect_err("the sync failed");
        assert!(matches!(failed, FlatError::Poisoned(_)), "{failed:?}");
        let later = engine.txn(put(6)).await.expect_err("nothing is acknowledged any more");
        assert!(matches!(later, FlatError::Poisoned(_)), "{later:?}");
        assert!(engine.health().is_err());
        assert_eq!(keys(&engine).await, 5, "readers see what was acknowledged, and no more");
        engine.close().await.expect("it closes");
        let engine = Engine::open(config(), env).await.expect("it opens again");
        assert!(keys(&engine).await >= 5);
        engine.txn(put(7)).await.expect("it acknowledges again");
    });
}

#[test]
fn a_full_disk_loses_nothing() {
    sim::run(2, |world| async move {
        let env = world.env("node");
        let engine = Engine::open(config(), env.clone()).await.expect("it opens");
        engine.txn(put(0)).await.expect("acknowledged");
        world.disk("node").set_full(true);
        let mut acknowledged = 1;
        // A preallocated segment has room; the next does not.
        loop {
            match engine.txn(put(acknowledged)).await {
                Ok(_) => acknowledged += 1,
                Err(error) => {
                    assert!(matches!(error, FlatError::Poisoned(_)), "{error:?}");
                    break;
                }
            }
        }
        assert_eq!(keys(&engine).await, acknowledged as usize);
        engine.close().await.expect("it closes");
        world.disk("node").set_full(false);
        let engine = Engine::open(config(), env).await.expect("it opens again");
        assert!(keys(&engine).await >= acknowledged as usize);
    });
}

#[test]
fn a_read_only_disk_is_named() {
    sim::run(3, |world| async move {
        world.disk("node").set_read_only(true);
        let error = Engine::open(config(), world.env("node")).await.expect_err("it cannot be created");
        assert!(error.to_string().contains("/data"), "{error}");
    });
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let place = tempfile::tempdir().expect("a directory");
    let config = Config { segment_bytes: 64 * 1024, ..Config::in_dir(place.path()) };
    let first = Engine::open(config.clone(), Env::real()).await.expect("it opens");
    let error = Engine::open(config.clone(), Env::real()).await.expect_err("it is in use");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("is open in another process"), "{error}");
    first.close().await.expect("it closes");
    Engine::open(config, Env::real()).await.expect("closing gives it free");
}

#[tokio::test]
async fn weaker_durability_is_what_it_says() {
    let place = tempfile::tempdir().expect("a directory");
    for durability in [Durability::Os, Durability::Interval(std::time::Duration::from_secs(3600))] {
        let config = Config { segment_bytes: 64 * 1024, durability, ..Config::in_dir(place.path()) };
        let engine = Engine::open(config, Env::real()).await.expect("it opens");
        for index in 0..20 {
            engine.txn(put(index)).await.expect("acknowledged");
        }
        assert_eq!(engine.stats().syncs, 0, "{durability}: it does not wait for the disk");
        engine.close().await.expect("a polite end syncs");
    }
}
