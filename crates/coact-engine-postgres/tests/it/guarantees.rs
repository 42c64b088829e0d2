//! What is declared follows what the server is.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::kv::{Change, Scope},
    guarantees::{Durability, Failover, Fence, Increment, OnPartition, WakeUp, WatchFrom},
};

use crate::server::{dir, key, kv, next, open, start, until};

#[tokio::test]
async fn a_server_with_its_defaults_declares_what_it_is() {
    let server = start(&[]).await;
    let declared = *kv(&server).await.guarantees();
    assert_eq!((declared.writes, declared.failover), (Durability::Sync, Failover::KeepsWrites));
    assert_eq!((declared.fence, declared.on_partition), (Fence::Strong, OnPartition::SingleNode));
    assert_eq!((declared.wake, declared.watch), (WakeUp::Told, WatchFrom::Revision));
    assert_eq!(declared.increment, Increment::Native);
}

#[tokio::test]
async fn weaker_settings_are_declared_and_harmful_ones_refused() {
    let server = start(&["wal_writer_delay=50ms"]).await;
    server.sql("ALTER ROLE coact SET synchronous_commit = off").expect("runs");
    let declared = *kv(&server).await.guarantees();
    assert_eq!(
        (declared.writes, declared.fence),
        (Durability::Interval(Duration::from_millis(150)), Fence::PerProcess)
    );
    server.sql("ALTER ROLE coact SET synchronous_commit = local").expect("runs");
    assert_eq!(kv(&server).await.guarantees().writes, Durability::Sync);

    server.sql("ALTER ROLE coact SET default_transaction_isolation = 'serializable'").expect("runs");
    let error = open(&server.url("main")).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let (_, remedy) = error.message().split_once("as an administrator run: ").expect("a remedy");
    server.sql(remedy).expect("the remedy runs");
    open(&server.url("main")).await.expect("the remedy helps");

    server.sql("ALTER ROLE coact SET default_transaction_read_only = on").expect("runs");
    let error = open(&format!("{}?timeout=300ms", server.url("main"))).await.expect_err("refused");
    assert!(error.to_string().contains("takes no writes"), "{error}");
}

#[tokio::test]
async fn without_fsync_a_power_cut_is_declared_to_lose() {
    let server = start(&["fsync=off"]).await;
    let declared = *kv(&server).await.guarantees();
    assert_eq!((declared.writes, declared.fence), (Durability::Os, Fence::PerProcess));
}

#[tokio::test]
async fn a_replica_is_refused_or_passed_over_and_declared() {
    let server = start(&[]).await;
    kv(&server).await.put(&key("a/x"), "1", None).await.expect("commits");
    let replica = server.replica(&[]).await.expect("a replica");
    let error = open(&format!("{}?timeout=300ms", server.url_at(replica.port, "main"))).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("takes no writes: it is a replica"), "{error}");

    let followers = || server.sql("SELECT count(*) FROM pg_stat_replication").expect("runs");
    until("the replica follows", async || followers() == "1").await;
    let both = server.url("main").replace("@127.0.0.1", &format!("@127.0.0.1:{},127.0.0.1", replica.port));
    let kv = open(&both).await.expect("the primary is found");
    kv.put(&key("a/x"), "2", None).await.expect("commits");
    let declared = *kv.guarantees();
    assert_eq!((declared.failover, declared.fence), (Failover::MayLoseWrites, Fence::PerProcess));

    server.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").expect("runs");
    server.sql("SELECT pg_reload_conf()").expect("runs");
    until("it waits for the replica", async || server.sql("SHOW synchronous_standby_names").expect("runs") == "*")
        .await;
    let declared = *open(&both).await.expect("it opens").guarantees();
    assert_eq!((declared.failover, declared.fence), (Failover::KeepsWrites, Fence::Strong));
}

#[tokio::test]
async fn a_watch_says_that_another_server_took_over_though_the_revisions_go_on() {
    let server = start(&[]).await;
    let replica = server.replica(&[]).await.expect("a replica");
    let both = server.url("main").replace("@127.0.0.1", &format!("@127.0.0.1:{},127.0.0.1", replica.port));
    let kv = open(&both).await.expect("the primary is found");
    let mut feed = kv.watch(Scope::Dir(dir("a")), None).await.expect("it watches");
    kv.put(&key("a/kept"), "1", None).await.expect("commits");
    let Change::Put(kept) = next(&mut feed).await else { panic!("a put") };
    let copied = || replica.sql("SELECT max(revision) FROM coact.realm").unwrap_or_default();
    until("the replica has it", async || copied() == kept.modified.to_string()).await;

    // The replica hears nothing more; what the watch is shown from here on is lost.
    replica.sql("ALTER SYSTEM SET primary_conninfo = ''").expect("runs");
    replica.sql("SELECT pg_reload_conf()").expect("runs");
    let hears = || replica.sql("SELECT count(*) FROM pg_stat_wal_receiver").expect("runs");
    until("the replica is alone", async || hears() == "0").await;
    let lost = kv.put(&key("a/lost"), "1", None).await.expect("commits");
    assert!(matches!(next(&mut feed).await, Change::Put(entry) if entry.modified == lost));
    // The replica takes over and goes on before the watch can know.
    replica.sql("SELECT pg_promote()").expect("runs");
    let new = open(&server.url_at(replica.port, "main")).await.expect("it takes writes");
    let other = new.put(&key("a/other"), "1", None).await.expect("commits");
    assert_eq!(other, lost, "another change has the number of the one that is lost");
    new.put(&key("a/later"), "1", None).await.expect("commits");
    drop(server);
    let said = next(&mut feed).await;
    assert!(matches!(&said, Change::Resync { why, .. } if why == "another server has taken over"), "{said:?}");
}
