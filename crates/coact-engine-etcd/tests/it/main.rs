//! The engine against a real etcd: the mapping, what survives a lost server, and what the errors say.

mod auth;
mod fake;
mod server;

use std::{net::TcpListener, pin::Pin, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{
        Change, Check, Feed, Found, GoneCause, KvHandle, LeaseId, Order, Read, ReadAt, Revision, Scope, Txn,
        TxnOutcome, Write,
    },
    env::Env,
    error::Effect,
    guarantees::{Durability, Fence, OnPartition},
    name::{Dir, Key, Realm},
    registry::Registry,
};
use coact_engine_etcd::wire::etcdserverpb::{CompactionRequest, PutRequest, RangeRequest, kv_client::KvClient};
use fake::Fake;
use futures::{FutureExt as _, StreamExt as _, future::join_all};
use server::{Etcd, PATIENCE, open};
use tonic::transport::{Channel, Endpoint};

fn realm() -> Realm {
    Realm::default()
}

fn key(text: &str) -> Key {
    Key::parse(&realm(), text).expect("a key")
}

fn dir(text: &str) -> Dir {
    Dir::new(&realm(), text).expect("a dir")
}

fn put(text: &str, value: &str) -> Write {
    Write::Put { key: key(text), value: Bytes::copy_from_slice(value.as_bytes()), lease: None }
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what} did not happen within {PATIENCE:?}"))
}

/// The next change that is not mere progress.
async fn next(feed: &mut Feed) -> Change {
    loop {
        match within("a change", feed.next()).await.expect("goes on").expect("no error") {
            Change::Progress(_) => {}
            change => return change,
        }
    }
}

async fn next_name(feed: &mut Feed) -> String {
    match next(feed).await {
        Change::Put(entry) => entry.key.name().to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn raw(etcd: &Etcd) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", etcd.port)).expect("a URL");
    KvClient::new(endpoint.connect().await.expect("etcd serves"))
}

async fn compact(etcd: &Etcd, revision: Revision) {
    let revision = i64::try_from(revision.0).expect("small");
    raw(etcd).await.compact(CompactionRequest { revision, physical: true }).await.expect("compacted");
}

/// Drives a waiter until its watch stands, which is when it looks at the entry.
async fn until_it_waits(etcd: &Etcd, mut waiting: Pin<&mut impl Future<Output = Result<()>>>) {
    let before = etcd.requests();
    within("a look at the entry", async {
        while etcd.requests() == before {
            let done = Env::real().timeout(Duration::from_millis(20), waiting.as_mut()).await;
            assert!(done.is_none(), "it does not wait: {done:?}");
        }
    })
    .await;
}

/// A write, repeated while the server is away: for tests in which twice is as good as once.
async fn put_at_last(kv: &KvHandle, text: &str) -> Revision {
    let env = Env::real();
    within("a put", async {
        loop {
            match kv.put(&key(text), "x", None).await {
                Ok(revision) => return revision,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            env.sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn keys_have_a_readable_flat_form_and_foreign_keys_are_not_seen() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let created = kv.put(&key("lock/deploy/one"), "v", None).await.expect("put");
    let mut raw = raw(&etcd).await;
    let flat = "main/main/lock/deploy//one";
    let range = raw.range(RangeRequest { key: flat.into(), ..RangeRequest::default() }).await.expect("read");
    assert_eq!(range.get_ref().kvs[0].value, "v");
    let foreign = "main/main/lock/deploy//one/two";
    raw.put(PutRequest { key: foreign.into(), ..PutRequest::default() }).await.expect("put");

    let by_name = Order::Name { after: String::new() };
    let page = kv.list(&dir("lock/deploy"), by_name, 10).await.expect("listed");
    let entry = kv.get(&key("lock/deploy/one")).await.expect("read").expect("there");
    assert_eq!((entry.created, entry.modified, entry.lease), (created, created, None));
    assert_eq!((page.entries, page.more), (vec![entry], false));
    assert!(page.revision > created);
    assert_eq!(kv.get_at(&key("lock/deploy/two"), ReadAt::Any).await.expect("read"), None);
    let other = open(&etcd.url("other")).await.expect("opened");
    assert_eq!(other.get(&key("lock/deploy/one")).await.expect("read"), None);
    assert_eq!(kv.describe(), format!("etcd://127.0.0.1:{}/main", etcd.port));
}

#[tokio::test]
async fn a_single_server_declares_what_it_is() {
    let etcd = Etcd::start().await;
    let guarantees = *etcd.kv().await.guarantees();
    assert_eq!(guarantees.writes, Durability::Sync);
    assert_eq!(guarantees.on_partition, OnPartition::SingleNode);
    assert_eq!(guarantees.fence, Fence::Strong);
}

#[tokio::test]
async fn pages_and_dirs_go_on_where_they_were_cut() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    for text in ["a/3", "a/1", "a/2", "a-b/x", "a/b/y", "b/z", "a/!c/w"] {
        kv.put(&key(text), "v", None).await.expect("put");
    }
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let page = kv.list(&dir("a"), Order::Name { after }, 2).await.expect("listed");
        names.extend(page.entries.iter().map(|entry| entry.key.name().to_owned()));
        after = names.last().cloned().unwrap_or_default();
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["1", "2", "3"]);
    let (mut names, mut after) = (Vec::new(), Revision(0));
    loop {
        let page = kv.list(&dir("a"), Order::Created { after }, 2).await.expect("listed");
        names.extend(page.entries.iter().map(|entry| entry.key.name().to_owned()));
        after = page.entries.last().map_or(after, |entry| entry.created);
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["3", "1", "2"]);

    let all = kv.dirs(&realm(), "", "", 100).await.expect("listed");
    let paths = |dirs: &[Dir]| dirs.iter().map(|dir| dir.path().to_owned()).collect::<Vec<_>>();
    let mut sorted = paths(&all);
    sorted.sort();
    assert_eq!(sorted, ["a", "a-b", "a/!c", "a/b", "b"]);
    let mut one_by_one = Vec::new();
    let mut after = String::new();
    while let [dir] = &kv.dirs(&realm(), "", &after, 1).await.expect("listed")[..] {
        after = dir.path().to_owned();
        one_by_one.push(dir.clone());
    }
    assert_eq!(one_by_one, all);
    assert_eq!(paths(&kv.dirs(&realm(), "a/", "", 100).await.expect("listed")), ["a/!c", "a/b"]);
    assert!(kv.dirs(&realm(), "c", "", 100).await.expect("listed").is_empty());
}

#[tokio::test]
async fn a_transaction_reads_before_it_writes_and_names_the_first_failed_check() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let first = kv.put(&key("q/a"), "1", None).await.expect("put");
    kv.put(&key("q/b"), "2", None).await.expect("put");
    let changed = kv.put(&key("q/a"), "3", None).await.expect("put");

    let reads = vec![
        Read::Get(key("q/a")),
        Read::First(dir("q")),
        Read::Last(dir("q")),
        Read::Count(dir("q")),
        Read::Get(key("q/none")),
    ];
    let checks =
        vec![Check::CreatedAt(key("q/a"), first), Check::ModifiedAt(key("q/a"), changed), Check::Absent(key("q/c"))];
    let writes = vec![put("q/c", "new"), Write::Delete(key("q/b")), put("q/a", "4")];
    let txn = Txn { checks, reads, writes };
    let outcome = kv.txn(&realm(), txn.clone()).await.expect("run");
    let TxnOutcome::Committed { revision, reads } = outcome else { panic!("{outcome:?}") };
    let name = |found: &Found| found.entry().map(|entry| entry.key.name().to_owned());
    assert_eq!(reads[..3].iter().map(name).collect::<Vec<_>>(), [Some("a".into()), Some("a".into()), Some("b".into())]);
    assert_eq!(reads[0].entry().expect("there").value, "3");
    assert_eq!(reads[3..], [Found::Count(2), Found::Entry(None)]);
    let entry = kv.get(&key("q/c")).await.expect("read").expect("there");
    assert_eq!((entry.created, entry.value), (revision, Bytes::from("new")));

    let TxnOutcome::Refused { check, found } = kv.txn(&realm(), txn).await.expect("run") else { panic!("committed") };
    assert_eq!((check, found.expect("there").value), (1, Bytes::from("4")));
    let outcome = kv.txn(&realm(), Txn::default()).await.expect("run");
    assert_eq!(outcome, TxnOutcome::Committed { revision, reads: Vec::new() });
    let only_checks = Txn { checks: vec![Check::Absent(key("q/b"))], ..Txn::default() };
    assert_eq!(kv.txn(&realm(), only_checks).await.expect("run"), outcome);
}

#[tokio::test]
async fn a_contended_fair_lock_is_asked_for_in_one_request() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted");
    let acquire = |name: &str| Txn {
        checks: vec![Check::Absent(key(name)), Check::LeaseAlive(lease.id)],
        reads: vec![Read::Last(dir("lock/x"))],
        writes: vec![Write::Put { key: key(name), value: Bytes::new(), lease: Some(lease.id) }],
    };
    let before = etcd.requests();
    let TxnOutcome::Committed { reads, .. } = kv.txn(&realm(), acquire("lock/x/one")).await.expect("run") else {
        panic!("refused")
    };
    assert_eq!(reads, [Found::Entry(None)], "no predecessor: it is held");
    let TxnOutcome::Committed { reads, .. } = kv.txn(&realm(), acquire("lock/x/two")).await.expect("run") else {
        panic!("refused")
    };
    assert_eq!(reads[0].entry().expect("the predecessor").key.name(), "one");
    assert_eq!(etcd.requests() - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn contended_increments_are_exact() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let incr = || Txn { writes: vec![Write::Incr { key: key("n/x"), by: 1 }, put("n/last", "y")], ..Txn::default() };
    join_all((0..8).map(async |_| {
        for _ in 0..50 {
            let outcome = kv.txn(&realm(), incr()).await.expect("counted");
            assert!(matches!(outcome, TxnOutcome::Committed { .. }));
        }
    }))
    .await;
    assert_eq!(kv.get(&key("n/x")).await.expect("read").expect("there").value, "400");
}

#[tokio::test]
async fn increments_keep_the_lease_respect_checks_and_refuse_what_is_no_number() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted").id;
    let created = kv.put(&key("n/x"), "40", Some(lease)).await.expect("put");
    let incr = |by| Txn { writes: vec![Write::Incr { key: key("n/x"), by }], ..Txn::default() };
    let mut txn = incr(2);
    txn.checks = vec![Check::LeaseAlive(lease), Check::CreatedAt(key("n/x"), created)];
    txn.reads = vec![Read::Get(key("n/x"))];
    let outcome = kv.txn(&realm(), txn.clone()).await.expect("run");
    let TxnOutcome::Committed { reads, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reads[0].entry().expect("there").value, "40", "reads see what was before the writes");
    let entry = kv.get(&key("n/x")).await.expect("read").expect("there");
    assert_eq!((entry.value, entry.lease), (Bytes::from("42"), Some(lease)));

    txn.checks.push(Check::Absent(key("n/x")));
    assert!(matches!(kv.txn(&realm(), txn).await.expect("run"), TxnOutcome::Refused { check: 2, found: Some(_) }));
    let error = kv.txn(&realm(), incr(i64::MAX)).await.expect_err("too much");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Invalid, Effect::NotApplied), "{error}");
    kv.put(&key("n/x"), "many", None).await.expect("put");
    let error = kv.txn(&realm(), incr(1)).await.expect_err("no number");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_watch_sees_what_follows_in_order_and_knows_where_it_began() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let before = kv.put(&key("w/a"), "0", None).await.expect("put");
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("watching");
    let mut one = kv.watch(Scope::Key(key("w/b")), None).await.expect("watching");
    let greeting = within("a greeting", feed.next()).await.expect("goes on").expect("no error");
    assert_eq!(greeting, Change::Progress(before));

    let txn = Txn { writes: vec![put("w/a", "1"), put("w/b", "2"), put("v/c", "3")], ..Txn::default() };
    let TxnOutcome::Committed { revision, .. } = kv.txn(&realm(), txn).await.expect("run") else { panic!("refused") };
    let gone_at = kv.delete(&key("w/b")).await.expect("deleted");
    for (name, created) in [("a", before), ("b", revision)] {
        let Change::Put(entry) = next(&mut feed).await else { panic!("not a put") };
        assert_eq!((entry.key.name(), entry.created, entry.modified), (name, created, revision));
    }
    let gone = Change::Gone { key: key("w/b"), at: gone_at, cause: GoneCause::Unknown };
    assert_eq!(next(&mut feed).await, gone);
    assert_eq!(next_name(&mut one).await, "b");
    assert_eq!(next(&mut one).await, gone);

    let mut past = kv.watch(Scope::Dir(dir("w")), Some(before)).await.expect("watching");
    assert_eq!(next_name(&mut past).await, "a");
    assert_eq!(next_name(&mut past).await, "b");
    assert_eq!(next(&mut past).await, gone);
    let mut caught_up = kv.watch(Scope::Dir(dir("w")), Some(gone_at)).await.expect("watching");
    assert_eq!(caught_up.next().await.expect("goes on").expect("no error"), Change::Progress(gone_at));
}

#[tokio::test]
async fn a_long_history_arrives_in_pieces_without_loss() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let value = "v".repeat(60 * 1024);
    for index in 0..8 {
        let writes = (0..16).map(|part| put(&format!("big/{index}-{part}"), &value)).collect();
        kv.txn(&realm(), Txn { writes, ..Txn::default() }).await.map(drop).expect("written");
    }
    let mut feed = kv.watch(Scope::Dir(dir("big")), Some(Revision(1))).await.expect("watching");
    for index in 0..8 {
        for part in 0..16 {
            assert_eq!(next_name(&mut feed).await, format!("{index}-{part}"));
        }
    }
}

#[tokio::test]
async fn a_slow_consumer_loses_nothing_and_holds_up_nobody() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let mut slow = kv.watch(Scope::Dir(dir("s")), None).await.expect("watching");
    let mut quick = kv.watch(Scope::Key(key("s/last")), None).await.expect("watching");
    for index in 0..200 {
        let writes = (0..16).map(|part| put(&format!("s/{index}-{part}"), "v")).collect();
        kv.txn(&realm(), Txn { writes, ..Txn::default() }).await.map(drop).expect("written");
    }
    kv.put(&key("s/last"), "v", None).await.expect("put");
    assert_eq!(next_name(&mut quick).await, "last");
    for index in 0..200 {
        for part in 0..16 {
            assert_eq!(next_name(&mut slow).await, format!("{index}-{part}"));
        }
    }
    assert_eq!(next_name(&mut slow).await, "last");
}

#[tokio::test]
async fn compacted_history_is_a_resync_and_the_watch_goes_on() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let first = kv.put(&key("w/a"), "0", None).await.expect("put");
    for _ in 0..5 {
        kv.put(&key("w/a"), "1", None).await.expect("put");
    }
    let last = kv.put(&key("w/b"), "1", None).await.expect("put");
    compact(&etcd, last).await;
    let mut feed = kv.watch(Scope::Dir(dir("w")), Some(first)).await.expect("watching");
    let Change::Resync { why, at } = next(&mut feed).await else { panic!("no resync") };
    assert_eq!(why, format!("the history before revision {last} was compacted"));
    assert_eq!(at, last);
    kv.put(&key("w/c"), "2", None).await.expect("put");
    assert_eq!(next_name(&mut feed).await, "c");
}

#[tokio::test]
async fn waits_for_the_end_of_one_incarnation() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let created = kv.put(&key("l/a"), "0", None).await.expect("put");
    let watched = key("l/a");
    let mut waiting = Box::pin(kv.await_gone(&watched, created));
    until_it_waits(&etcd, waiting.as_mut()).await;
    // A change of the entry does not wake it, nor does a compaction.
    let mut seen = kv.watch(Scope::Key(key("l/a")), None).await.expect("watching");
    let last = kv.put(&key("l/a"), "1", None).await.expect("put");
    compact(&etcd, last).await;
    assert_eq!(next_name(&mut seen).await, "a");
    assert!(Env::real().timeout(Duration::from_millis(200), waiting.as_mut()).await.is_none(), "woken by an overwrite");
    kv.delete(&key("l/a")).await.expect("deleted");
    within("a wake-up", waiting).await.expect("woken");

    within("an immediate return", kv.await_gone(&key("l/a"), created)).await.expect("gone already");
    kv.put(&key("l/a"), "2", None).await.expect("put");
    within("an immediate return", kv.await_gone(&key("l/a"), created)).await.expect("created anew");
    // A waiter that is given up leaves the stream intact for the others.
    let created = kv.put(&key("l/b"), "2", None).await.expect("put");
    drop(Box::pin(kv.await_gone(&key("l/b"), created)).now_or_never());
    let b = key("l/b");
    let (woken, deleted) = within("a wake-up", async {
        let waiting = kv.await_gone(&b, created);
        futures::join!(waiting, kv.delete(&b))
    })
    .await;
    woken.expect("woken");
    deleted.expect("deleted");
}

#[tokio::test]
async fn watches_and_waiters_survive_a_crash_of_the_server_without_gap() {
    let mut etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let created = kv.put(&key("l/a"), "0", None).await.expect("put");
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("watching");
    let held = key("l/a");
    let waiting = kv.await_gone(&held, created);
    tokio::pin!(waiting);
    until_it_waits(&etcd, waiting.as_mut()).await;
    for round in 0..3 {
        for index in 0..5 {
            kv.put(&key(&format!("w/{round}-{index}")), "x", None).await.expect("put");
        }
        etcd.kill();
        etcd.restart().await;
        // Another client writes at once, while the watch may still be away.
        let other = etcd.kv().await;
        for index in 5..10 {
            other.put(&key(&format!("w/{round}-{index}")), "x", None).await.expect("put");
        }
        put_at_last(&kv, "v/awake").await;
        other.close().await.expect("closed");
    }
    for round in 0..3 {
        for index in 0..10 {
            assert_eq!(next_name(&mut feed).await, format!("{round}-{index}"));
        }
    }
    assert!(waiting.as_mut().now_or_never().is_none());
    let other = etcd.kv().await;
    other.delete(&held).await.expect("deleted");
    within("a wake-up", waiting).await.expect("woken");
}

#[tokio::test]
async fn what_was_deleted_while_the_watch_was_away_is_told() {
    let mut etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let created = kv.put(&key("l/a"), "0", None).await.expect("put");
    let mut feed = kv.watch(Scope::Dir(dir("l")), None).await.expect("watching");
    etcd.kill();
    let refused = within("a refusal", kv.watch(Scope::Dir(dir("l")), None)).await.err().expect("nobody is there");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert_eq!(refused.to_string(), unreachable_at(etcd.port));
    etcd.restart().await;
    let other = etcd.kv().await;
    let at = other.delete(&key("l/a")).await.expect("deleted");
    assert_eq!(next(&mut feed).await, Change::Gone { key: key("l/a"), at, cause: GoneCause::Unknown });
    within("an immediate return", kv.await_gone(&key("l/a"), created)).await.expect("gone");
}

#[tokio::test]
async fn a_store_that_went_back_in_time_is_a_resync_and_not_a_silent_gap() {
    let mut etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    for _ in 0..20 {
        kv.put(&key("w/a"), "0", None).await.expect("put");
    }
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("watching");
    etcd.kill();
    etcd.wipe();
    etcd.restart().await;
    let Change::Resync { why, at } = next(&mut feed).await else { panic!("no resync") };
    assert_eq!(why, "the store went back to revision 1");
    assert_eq!(at, Revision(1));
    put_at_last(&kv, "w/new").await;
    assert_eq!(next_name(&mut feed).await, "new");
}

#[tokio::test]
async fn a_revision_that_a_broken_stream_divided_is_completed_without_repetition() {
    let fake = Fake::default();
    let port = fake.serve();
    let kv = open_node(port).await;
    assert_eq!((kv.guarantees().writes, kv.guarantees().fence), (Durability::Sync, Fence::Strong));
    let mut feed = kv.watch(Scope::Dir(dir("w")), Some(Revision(4))).await.expect("watching");
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let Change::Put(entry) = next(&mut feed).await else { panic!("not a put") };
        seen.push((entry.modified.0, entry.key.name().to_owned()));
    }
    let expected = [(7, "a"), (7, "b"), (7, "c"), (8, "a"), (8, "d")];
    assert_eq!(seen, expected.map(|(revision, name)| (revision, name.to_owned())));
    assert_eq!(fake.starts(), [5, 7, 8]);
}

#[tokio::test]
async fn a_node_declares_the_durability_of_its_engine() {
    let port = Fake::declaring("memory").serve();
    let kv = open_node(port).await;
    assert_eq!((kv.guarantees().writes, kv.guarantees().fence), (Durability::Memory, Fence::PerProcess));
}

/// A node of an earlier version has no streams and queues, and etcd never has.
#[tokio::test]
async fn what_the_other_side_does_not_have_is_said_when_it_is_asked_for() {
    let (port, etcd) = (Fake::default().serve(), Etcd::start().await);
    for url in [format!("coact://127.0.0.1:{port}/main"), etcd.url("main")] {
        let registry = Registry::default().with(coact_engine_etcd::driver());
        let store = registry.open(url.parse().expect("a URL"), Env::real()).await.expect("Kv is there");
        let errors = [store.streams().map(drop), store.queues().map(drop)].map(|lacks| lacks.expect_err("it has none"));
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }
}

#[tokio::test]
async fn an_ended_lease_is_fenced_everywhere() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let lease = kv.lease_grant(Duration::from_millis(1500)).await.expect("granted");
    assert!(lease.ttl >= Duration::from_secs(2), "{lease:?}");
    assert_eq!(kv.lease_renew(lease.id).await.expect("renewed"), lease.ttl);
    assert!(kv.lease_left(lease.id).await.expect("read").expect("alive") <= lease.ttl);
    let created = kv.put(&key("r/a"), "1", Some(lease.id)).await.expect("put");
    let alive = Txn { checks: vec![Check::LeaseAlive(lease.id)], writes: vec![put("r/b", "1")], ..Txn::default() };
    assert!(matches!(kv.txn(&realm(), alive.clone()).await.expect("run"), TxnOutcome::Committed { .. }));

    // It ends by itself, and takes its entries along.
    within("the expiry", kv.await_gone(&key("r/a"), created)).await.expect("expired");
    assert_eq!(kv.get(&key("r/a")).await.expect("read"), None);
    let refused = kv.txn(&realm(), alive).await.expect("run");
    assert_eq!(refused, TxnOutcome::Refused { check: 0, found: None });
    assert_eq!(kv.lease_left(lease.id).await.expect("read"), None);
    kv.lease_revoke(lease.id).await.expect("no effect");
    for error in [
        kv.lease_renew(lease.id).await.expect_err("ended"),
        kv.put(&key("r/a"), "2", Some(lease.id)).await.expect_err("ended"),
    ] {
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Fenced, Effect::NotApplied), "{error}");
    }
    assert_eq!(kv.get(&key("r/a")).await.expect("read"), None);

    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted").id;
    kv.put(&key("r/c"), "1", Some(lease)).await.expect("put");
    kv.lease_revoke(lease).await.expect("revoked");
    assert_eq!(kv.get(&key("r/c")).await.expect("read"), None);
}

#[tokio::test]
async fn many_leases_are_renewed_over_one_stream_which_survives_a_restart() {
    let mut etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let ttl = Duration::from_secs(60);
    let grants = join_all((0..20).map(|_| kv.lease_grant(ttl))).await;
    let leases =
        grants.into_iter().map(|lease| lease.map(|lease| lease.id)).collect::<Result<Vec<_>>>().expect("granted");
    let renew_all = async |leases: &[LeaseId]| -> Result<Vec<Duration>> {
        join_all(leases.iter().map(|lease| kv.lease_renew(*lease))).await.into_iter().collect()
    };
    assert_eq!(renew_all(&leases).await.expect("renewed"), vec![ttl; 20]);
    etcd.kill();
    let error = kv.lease_renew(leases[0]).await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    etcd.restart().await;
    within("a renewal", async {
        while let Err(error) = renew_all(&leases).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            Env::real().sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn open_node(port: u16) -> KvHandle {
    within("an answer", async {
        loop {
            match open(&format!("coact://127.0.0.1:{port}")).await {
                Ok(kv) => return kv,
                Err(_) => Env::real().sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

fn unreachable_at(port: u16) -> String {
    format!("cannot reach etcd at 127.0.0.1:{port}: connection refused; is it running?")
}

#[tokio::test]
async fn says_who_cannot_be_reached_and_what_to_do() {
    let refusal = async |url: String| -> Error { open(&url).await.expect_err("nobody is there") };
    // Privileged ports, on which nobody listens and which no other test takes.
    let (one, two) = (1, 2);
    let error = refusal(format!("etcd://127.0.0.1:{one}/x")).await;
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
    assert_eq!(error.to_string(), unreachable_at(one));
    assert_eq!(
        refusal(format!("coact://127.0.0.1:{one}")).await.to_string(),
        format!("cannot reach a coact node at 127.0.0.1:{one}: connection refused; start one with `coact serve`")
    );
    assert_eq!(
        refusal(format!("etcd://127.0.0.1:{one},127.0.0.1:{two}/x")).await.to_string(),
        format!("cannot reach etcd at 127.0.0.1:{one}, 127.0.0.1:{two}: connection refused; is it running?")
    );
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("bound").port();
    assert_eq!(
        refusal(format!("etcd://127.0.0.1:{port}/x?timeout=300ms")).await.to_string(),
        format!("no answer from etcd at 127.0.0.1:{port} within 300ms")
    );
    let error = refusal(format!("etcd://me:secret@127.0.0.1:{one}/x")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_dead_server_is_passed_over_for_a_live_one() {
    let etcd = Etcd::start().await;
    let kv = open(&format!("etcd://127.0.0.1:1,127.0.0.1:{}/main", etcd.port)).await.expect("one is alive");
    for index in 0..8 {
        kv.put(&key(&format!("f/{index}")), "x", None).await.expect("put");
    }
    let mut feed = kv.watch(Scope::Dir(dir("f")), None).await.expect("watching");
    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted");
    kv.lease_renew(lease.id).await.expect("renewed");
    kv.put(&key("f/new"), "x", None).await.expect("put");
    assert_eq!(next_name(&mut feed).await, "new");
}

#[tokio::test]
async fn a_write_without_answer_may_have_happened_and_a_read_has_not() {
    let etcd = Etcd::start().await;
    let kv = open(&format!("{}?timeout=500ms", etcd.url("main"))).await.expect("opened");
    kv.put(&key("u/a"), "1", None).await.expect("put");
    etcd.signal("STOP");
    let write = kv.put(&key("u/a"), "2", None).await.expect_err("no answer");
    let read = kv.get(&key("u/a")).await.expect_err("no answer");
    etcd.signal("CONT");
    assert_eq!((write.kind(), write.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert_eq!((read.kind(), read.effect()), (ErrorKind::Unavailable, Effect::NotApplied));
    assert_eq!(
        write.to_string(),
        format!("no answer from etcd at 127.0.0.1:{} within 500ms; it may have taken effect", etcd.port)
    );
    put_at_last(&kv, "u/b").await;
}

#[tokio::test]
async fn a_closed_handle_says_so_and_ends_its_watches() {
    let etcd = Etcd::start().await;
    let kv = etcd.kv().await;
    let created = kv.put(&key("c/a"), "1", None).await.expect("put");
    let mut feed = kv.watch(Scope::Dir(dir("c")), None).await.expect("watching");
    let held = key("c/a");
    let waiting = kv.await_gone(&held, created);
    tokio::pin!(waiting);
    until_it_waits(&etcd, waiting.as_mut()).await;
    kv.close().await.expect("closed");
    kv.close().await.expect("closed already");
    let kind = |error: Error| {
        assert_eq!(error.to_string(), format!("the handle of etcd://127.0.0.1:{}/main is closed", etcd.port));
        error.kind()
    };
    assert_eq!(within("the end", waiting).await.map_err(kind), Err(ErrorKind::Closed));
    let end = loop {
        match within("the end", feed.next()).await.expect("an error first") {
            Ok(_) => {}
            Err(error) => break kind(error),
        }
    };
    assert_eq!(end, ErrorKind::Closed);
    assert!(feed.next().await.is_none());
    assert_eq!(kv.get(&key("c/a")).await.map_err(kind), Err(ErrorKind::Closed));
    assert_eq!(kv.lease_renew(LeaseId(1)).await.map_err(kind), Err(ErrorKind::Closed));
    assert_eq!(kv.watch(Scope::Dir(dir("c")), None).await.err().map(kind), Some(ErrorKind::Closed));
}
