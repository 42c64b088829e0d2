//! The engine against a real ZooKeeper: what it declares, refuses and survives.

use std::time::Duration;

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Check, Feed, KvHandle, Read, Revision, Scope, Txn, TxnOutcome, Write},
    env::Env,
    error::Effect,
    guarantees::{Durability, Fence, OnPartition},
    name::{Dir, Key, Realm},
    registry::{Registry, Store},
};
use coact_testkit::{
    bed::{Bed, PATIENCE, ZookeeperBed, wait_until},
    fault::{Direction, Proxy},
};
use futures::{StreamExt as _, future::join_all};

async fn open(url: &str) -> Result<KvHandle> {
    open_store(url).await.map(|store| store.kv().clone())
}

async fn open_store(url: &str) -> Result<Store> {
    Registry::default().with(coact_engine_zookeeper::driver()).open(url.parse()?, Env::real()).await
}

async fn bed() -> ZookeeperBed {
    let bed = ZookeeperBed::new(|url| Box::pin(async move { open_store(&url).await }));
    bed.start().await.expect("ZooKeeper starts: `cargo xtask test` installs it");
    bed
}

/// A way to the server that can be held.
async fn proxied(url: &str) -> (Proxy, String) {
    let host = coact_core::url::Url::parse(url).expect("a URL").hosts()[0].to_string();
    let proxy = Proxy::start(host.parse().expect("an address")).await.expect("it starts");
    let url = url.replacen(&host, &proxy.address().to_string(), 1);
    (proxy, url)
}

fn key(text: &str) -> Key {
    Key::parse(&Realm::default(), text).expect("a key")
}

fn dir(text: &str) -> Dir {
    Dir::new(&Realm::default(), text).expect("a dir")
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}

async fn next(feed: &mut Feed) -> Change {
    loop {
        match within("a change", feed.next()).await.expect("goes on").expect("no error") {
            Change::Progress(_) => {}
            change => return change,
        }
    }
}

#[tokio::test]
async fn a_single_server_declares_what_it_is() {
    let bed = bed().await;
    let guarantees = *open(&bed.url("main").await).await.expect("it opens").guarantees();
    assert_eq!((guarantees.writes, guarantees.fence), (Durability::Sync, Fence::Strong));
    assert_eq!(guarantees.on_partition, OnPartition::SingleNode);
}

#[tokio::test]
async fn a_lost_answer_is_an_unknown_effect() {
    let bed = bed().await;
    let (proxy, url) = proxied(&bed.url("main").await).await;
    let kv = open(&format!("{url}&timeout=1s")).await.expect("it opens");
    kv.put(&key("a/y"), "1", None).await.expect("commits");
    proxy.hold(Direction::Down);
    let error = kv.put(&key("a/y"), "2", None).await.expect_err("no answer");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    let error = kv.get(&key("a/y")).await.expect_err("no answer");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{error}");
    proxy.mend();
    let value = within("a read", async {
        loop {
            if let Ok(Some(entry)) = kv.get(&key("a/y")).await {
                return entry.value;
            }
        }
    })
    .await;
    assert_eq!(value, "2", "it had arrived");
}

#[tokio::test]
async fn a_session_that_ended_is_made_anew_and_takes_no_lease_with_it() {
    let bed = bed().await;
    let (proxy, url) = proxied(&bed.url("main").await).await;
    let kv = open(&format!("{url}&session=2s&timeout=1s")).await.expect("it opens");
    let other = open(&bed.url("main").await).await.expect("it opens");
    let lease = other.lease_grant(Duration::from_secs(120)).await.expect("granted").id;
    let created = kv.put(&key("a/x"), "1", Some(lease)).await.expect("commits");
    let mut feed = kv.watch(Scope::Dir(dir("a")), Some(created)).await.expect("a watch");
    assert_eq!(bed.sessions().await, 2);
    proxy.cut();
    // With the session goes its ephemeral node, if it was the reaper.
    wait_until(&Env::real(), "the session is over", PATIENCE, async || bed.sessions().await == 1)
        .await
        .expect("it ends");
    other.put(&key("a/y"), "1", None).await.expect("commits");
    proxy.mend();
    let found = within("a read", async {
        loop {
            if let Ok(found) = kv.get(&key("a/x")).await {
                return found;
            }
        }
    })
    .await;
    assert_eq!(found.expect("the lease lives").created, created);
    let Change::Put(entry) = next(&mut feed).await else { panic!("a put") };
    assert_eq!(entry.key, key("a/y"));
    kv.lease_renew(lease).await.expect("anybody may renew it");
}

#[tokio::test]
async fn another_client_ends_leases_when_the_reaper_is_gone() {
    let bed = bed().await;
    let url = format!("{}&session=2s", bed.url("main").await);
    let first = open(&url).await.expect("it opens");
    let lease = first.lease_grant(Duration::from_secs(2)).await.expect("granted").id;
    first.put(&key("a/x"), "1", Some(lease)).await.expect("commits");
    let second = open(&url).await.expect("it opens");
    drop(first);
    wait_until(&Env::real(), "the lease has ended", PATIENCE, async || {
        second.lease_left(lease).await.expect("answers").is_none()
    })
    .await
    .expect("it ends");
    assert_eq!(second.get(&key("a/x")).await.expect("answers"), None);
}

#[tokio::test]
async fn a_trimmed_history_is_a_resync() {
    let bed = bed().await;
    let kv = open(&format!("{}&history=10", bed.url("main").await)).await.expect("it opens");
    let first = kv.put(&key("a/x"), "0", None).await.expect("commits");
    let resync = within("trimming", async {
        loop {
            let last = kv.put(&key("a/x"), "1", None).await.expect("commits");
            let mut feed = kv.watch(Scope::Key(key("a/x")), Some(first)).await.expect("a watch");
            match next(&mut feed).await {
                Change::Resync { at, .. } => return at >= last,
                // The control: what is kept is told, from the first change on.
                Change::Put(entry) => assert!(entry.modified > first && entry.modified <= last),
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(resync.await);
}

#[tokio::test]
async fn clients_that_write_in_one_dir_lose_nothing_and_see_one_order() {
    let bed = bed().await;
    let clients = join_all((0..3).map(async |_| open(&bed.url("main").await).await.expect("it opens"))).await;
    let realm = Realm::default();
    join_all(clients.iter().enumerate().map(async |(client, kv)| {
        for round in 0..20 {
            let writes = vec![
                Write::Incr { key: key("n/sum"), by: 1 },
                Write::Put { key: key(&format!("n/{client}-{round}")), value: "x".into(), lease: None },
            ];
            let reads = vec![Read::Count(dir("n"))];
            let outcome = kv.txn(&realm, Txn { writes, reads, ..Txn::default() }).await.expect("commits");
            assert!(matches!(outcome, TxnOutcome::Committed { .. }));
        }
    }))
    .await;
    assert_eq!(clients[0].get(&key("n/sum")).await.expect("answers").expect("is there").value, "60");
    // What one remembers of the dir is not what it is: the answer is true all the same.
    let stale = Check::ModifiedAt(key("n/sum"), Revision(1));
    let outcome = clients[1].txn(&realm, Txn { checks: vec![stale], ..Txn::default() }).await.expect("answers");
    assert!(matches!(outcome, TxnOutcome::Refused { check: 0, found: Some(entry) } if entry.value == "60"));
}

#[tokio::test]
async fn a_transaction_that_is_too_large_is_refused_and_the_session_lives() {
    let bed = bed().await;
    let url = bed.url("main").await;
    let kv = open(url.split('?').next().expect("a URL")).await.expect("it opens");
    let writes = (0..16).map(|index| Write::Put {
        key: key(&format!("big/{index}")),
        value: vec![b'x'; 64 * 1024].into(),
        lease: None,
    });
    let txn = Txn { writes: writes.collect(), ..Txn::default() };
    let error = kv.txn(&Realm::default(), txn).await.expect_err("too large");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Exhausted, Effect::NotApplied));
    assert!(error.to_string().contains("jute.maxbuffer") && error.to_string().contains("max_request"), "{error}");
    kv.put(&key("big/one"), vec![b'x'; 64 * 1024], None).await.expect("one fits");
}

#[tokio::test]
async fn nodes_of_another_user_are_denied() {
    let bed = bed().await;
    let url = bed.url("private").await;
    let mine = open(&url.replacen("zookeeper://", "zookeeper://me:canary@", 1)).await.expect("it opens");
    mine.put(&key("a/x"), "1", None).await.expect("commits");
    let theirs: Result<(), Error> = async {
        let kv = open(&url.replacen("zookeeper://", "zookeeper://they:canary@", 1)).await?;
        kv.put(&key("a/x"), "2", None).await.map(drop)
    }
    .await;
    let error = theirs.expect_err("the nodes are not theirs");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("user:password@host") && !format!("{error:?}").contains("canary"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let error = open("zookeeper://127.0.0.1:1/main?timeout=1s").await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.effect(), Effect::NotApplied);
    assert!(error.to_string().contains("no ZooKeeper server of 127.0.0.1:1 answers within 1s"), "{error}");
}
