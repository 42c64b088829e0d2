//! What a restart and a failover do to writes, and what they must not do to tokens.

use coact_core::{
    contract::kv::{Change, KvHandle, Scope},
    guarantees::{Failover, Fence, OnPartition},
};
use coact_testkit::bed::{Bed, RedisBed, RedisMode};
use futures::StreamExt as _;

use crate::{dir, key, put_at_last, server::open, within};

/// How far revisions leap when writes may have been lost.
const LEAP: u64 = 1 << 32;

async fn bed(mode: RedisMode) -> (RedisBed, KvHandle) {
    let bed = RedisBed::new(mode, |url| Box::pin(async move { Ok(open(&url).await?.into()) }));
    bed.start().await.expect("Redis starts");
    let kv = bed.open(&Default::default()).await.expect("it opens").kv().clone();
    (bed, kv)
}

#[tokio::test]
async fn a_failover_loses_writes_and_takes_back_no_token() {
    let (bed, kv) = bed(RedisMode::Sentinel).await;
    let guarantees = kv.guarantees();
    assert_eq!((guarantees.failover, guarantees.fence), (Failover::MayLoseWrites, Fence::Epoch));
    assert_eq!(guarantees.on_partition, OnPartition::MayDiverge);

    let before = kv.put(&key("a/before"), "1", None).await.expect("commits");
    within("replication", async { while !bed.replica_has("coact:{main}:v:main/a", "before").await {} }).await;
    bed.kill_replica().await.expect("there is one");
    let mut feed = kv.watch(Scope::Dir(dir("a")), Some(before)).await.expect("a watch");
    let lost = kv.put(&key("a/lost"), "1", None).await.expect("the primary acknowledges alone");
    let change = within("a change", feed.next()).await.expect("goes on").expect("no error");
    assert!(matches!(&change, Change::Put(entry) if entry.created == lost), "{change:?}");
    bed.fail_over().await.expect("the replica is promoted");

    let after = put_at_last(&kv, "a/after").await;
    assert!(after.0 > lost.0 && after.0 > LEAP, "{after} follows {lost}");
    assert!(kv.get(&key("a/before")).await.expect("answers").is_some());
    assert_eq!(kv.get(&key("a/lost")).await.expect("answers"), None, "it was acknowledged, and it is lost");
    // Who has seen what is lost is told.
    let told = within("a change", async {
        loop {
            match feed.next().await.expect("goes on").expect("no error") {
                Change::Resync { why, .. } => return why,
                Change::Put(entry) => panic!("{entry:?} without a word about what was lost"),
                _ => {}
            }
        }
    })
    .await;
    assert!(told.contains("lost writes"), "{told}");
}

#[tokio::test]
async fn revisions_leap_over_a_restart() {
    let (bed, kv) = bed(RedisMode::Single).await;
    let before = kv.put(&key("a/x"), "1", None).await.expect("commits");
    bed.restart().expect("it can").await.expect("starts again");
    let after = put_at_last(&kv, "a/y").await;
    assert!(after.0 > before.0 + LEAP, "{after} follows {before}");
    // Only once.
    assert_eq!(put_at_last(&kv, "a/z").await.0, after.0 + 1);
}
