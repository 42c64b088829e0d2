//! The order of commits, how it is told, and when leases end.

use std::{collections::BTreeSet, time::Duration};

use coact_core::{
    ErrorKind,
    contract::kv::{Change, Check, GoneCause, KvHandle, LeaseId, Revision, Scope, TxnOutcome},
    env::Env,
    name::{Key, Realm},
};
use coact_testkit::bed::Postgres;
use futures::{StreamExt as _, future::join_all};

use crate::server::{
    client, dir, key, kv, next, next_name, open, postgres_kv, put, realm, start, until, value, within, writes,
};

async fn write_many(kv: &KvHandle, writers: usize, each: usize) -> BTreeSet<Revision> {
    let all = join_all((0..writers).map(async |writer| {
        let mut revisions = Vec::new();
        for round in 0..each {
            let key = key(&format!("w/{writer}-{round}"));
            revisions.push(kv.put(&key, "x", None).await.expect("commits"));
        }
        revisions
    }));
    all.await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_sixteen_writers_in_the_order_of_their_commits() {
    let server = start(&[]).await;
    let (one, two, watcher) = (kv(&server).await, kv(&server).await, kv(&server).await);
    let mut feed = watcher.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
    let (left, right) = (write_many(&one, 8, 20), async {
        join_all((8..16).map(async |writer| {
            let mut revisions = Vec::new();
            for round in 0..20 {
                let key = key(&format!("w/{writer}-{round}"));
                revisions.push(two.put(&key, "x", None).await.expect("commits"));
            }
            revisions
        }))
        .await
    });
    let (left, right) = futures::join!(left, right);
    let committed: Vec<_> =
        left.into_iter().chain(right.into_iter().flatten()).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(committed.len(), 320);
    let mut seen = Vec::new();
    while seen.len() < committed.len() {
        let Change::Put(entry) = next(&mut feed).await else { panic!("a put") };
        seen.push(entry.modified);
    }
    assert_eq!(seen, committed);
}

#[tokio::test]
async fn a_revision_is_not_told_before_an_earlier_one_that_commits_late() {
    let server = start(&[]).await;
    let kv = postgres_kv(&server).await;
    let handle = kv.handle();
    let mut feed = handle.watch(Scope::Dir(dir("a")), None).await.expect("it watches");
    let mut client = client(&server).await;
    let transaction = client.transaction().await.expect("it begins");
    let outcome = kv.txn_in(&transaction, &realm(), writes(vec![put("a/early", "1")])).await.expect("it runs");
    let TxnOutcome::Committed { revision: early, .. } = outcome else { panic!("{outcome:?}") };
    let (writer, late) = (handle.clone(), key("a/late"));
    let (told, committed) = tokio::sync::oneshot::channel();
    Env::real().spawn(async move {
        let _ = told.send(writer.put(&late, "1", None).await);
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("the second writer waits for the first", async || server.sql(waiting).expect("runs") == "1").await;
    // Another realm is another order, and goes on.
    let other = Key::new(&Realm::new("other").expect("valid"), "a", "x").expect("valid");
    handle.put(&other, "1", None).await.expect("commits");
    transaction.commit().await.expect("it commits");
    let late = within("the second commit", committed).await.expect("the task lives").expect("commits");
    assert!(early < late);
    assert_eq!((next_name(&mut feed).await, next_name(&mut feed).await), ("early".to_owned(), "late".to_owned()));
}

#[tokio::test]
async fn what_is_refused_or_changes_nothing_takes_no_revision_and_no_transaction_id() {
    let server = start(&["autovacuum=off"]).await;
    let kv = kv(&server).await;
    let at = kv.put(&key("a/x"), "1", None).await.expect("commits");
    let transactions = || server.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())").expect("runs");
    // What the first put set off is told to others in a transaction of its own.
    let mut before = String::new();
    until("it is quiet", async || std::mem::replace(&mut before, transactions()) == before).await;
    for _ in 0..10 {
        let mut refused = writes(vec![put("a/y", "1")]);
        refused.checks.push(Check::Absent(key("a/x")));
        let outcome = kv.txn(&realm(), refused).await.expect("it runs");
        assert!(matches!(outcome, TxnOutcome::Refused { .. }), "{outcome:?}");
        kv.get(&key("a/x")).await.expect("it answers");
    }
    assert_eq!(transactions(), before);
    assert_eq!(kv.delete(&key("a/none")).await.expect("commits"), at);
    assert_eq!(server.sql("SELECT revision FROM coact.realm").expect("runs"), at.to_string());
    assert_eq!(server.sql("SELECT count(*) FROM coact.change").expect("runs"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_are_few_and_wait_for_no_sync() {
    let server = start(&["log_statement=all"]).await;
    let kv = open(&format!("{}?pool=1", server.url("main"))).await.expect("it opens");
    let listener = crate::server::kv(&server).await;
    let mut feed = listener.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
    let committed = write_many(&kv, 16, 20).await.len();
    let mut seen = 0;
    while seen < committed {
        next(&mut feed).await;
        seen += 1;
    }
    // Told last of all.
    let end = Key::new(&Realm::new("end").expect("valid"), "a", "x").expect("valid");
    kv.put(&end, "1", None).await.expect("commits");
    let told = |line: &str| line.contains("pg_notify(") && line.contains("'end'");
    until("others are told of everything", async || server.log().lines().any(told)).await;
    let log = server.log();
    let notifications: Vec<_> =
        log.lines().filter(|line| line.contains("pg_notify(") && !line.contains("'?")).collect();
    assert!(
        !notifications.is_empty() && notifications.len() * 2 < committed,
        "{} for {committed}",
        notifications.len()
    );
    for line in notifications {
        assert!(line.contains("statement: SET LOCAL synchronous_commit TO off; SELECT pg_notify("), "{line}");
    }
    let functions =
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'coact'::regnamespace AND prosrc ILIKE '%notify%'";
    assert_eq!(server.sql(functions).expect("runs"), "0");
}

#[tokio::test]
async fn other_handles_are_told_and_need_not_look() {
    // More than could be done in the time, if each had to wait for a look.
    const ROUNDS: usize = 120;
    let server = start(&["fsync=off"]).await;
    let (writer, watcher) = (kv(&server).await, kv(&server).await);
    let mut feed = watcher.watch(Scope::Dir(dir("a")), None).await.expect("it watches");
    within("all the rounds", async {
        for round in 0..ROUNDS {
            writer.put(&key(&format!("a/{round}")), "1", None).await.expect("commits");
            assert_eq!(next_name(&mut feed).await, round.to_string());
        }
    })
    .await;
}

/// Lets the time of a lease be over by the database's clock, whatever the client's says.
fn expire(server: &Postgres, lease: LeaseId) {
    let set = "UPDATE coact.lease SET expires_at = clock_timestamp() WHERE id =";
    server.sql(&format!("{set} {}", lease.0)).expect("runs");
}

#[tokio::test]
async fn a_lease_ends_by_the_clock_of_the_database_whoever_looks_first() {
    let server = start(&[]).await;
    let kv = kv(&server).await;
    let mut feed = kv.watch(Scope::Dir(dir("a")), None).await.expect("it watches");
    for round in 0..12 {
        let lease = kv.lease_grant(Duration::from_secs(600)).await.expect("granted").id;
        let created = kv.put(&key("a/x"), "1", Some(lease)).await.expect("commits");
        expire(&server, lease);
        // At once, before or after the task that ends leases: nobody sees it any more.
        match round % 6 {
            0 => assert_eq!(value(&kv, "a/x").await, None),
            1 => assert_eq!(kv.lease_left(lease).await.expect("answers"), None),
            2 => assert_eq!(kv.lease_renew(lease).await.expect_err("over").kind(), ErrorKind::Fenced),
            3 => {
                let error = kv.put(&key("a/y"), "1", Some(lease)).await.expect_err("over");
                assert_eq!(error.kind(), ErrorKind::Fenced);
            }
            4 => {
                let mut txn = writes(vec![put("a/x", "2")]);
                txn.checks.push(Check::Absent(key("a/x")));
                let outcome = kv.txn(&realm(), txn).await.expect("it runs");
                assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
            }
            _ => {
                let page = kv.list(&dir("a"), coact_core::contract::kv::Order::Name { after: String::new() }, 10).await;
                assert!(page.expect("answers").entries.is_empty());
            }
        }
        assert!(matches!(next(&mut feed).await, Change::Put(entry) if entry.created == created));
        let gone = next(&mut feed).await;
        assert!(matches!(gone, Change::Gone { at, cause: GoneCause::Expired, .. } if at > created), "{gone:?}");
        if round % 6 == 4 {
            assert_eq!(next_name(&mut feed).await, "x");
            kv.delete(&key("a/x")).await.expect("commits");
            assert!(matches!(next(&mut feed).await, Change::Gone { cause: GoneCause::Deleted, .. }));
        }
        assert_eq!(kv.lease_renew(lease).await.expect_err("over").kind(), ErrorKind::Fenced);
    }
    // Nothing is left of them.
    until("they are forgotten", async || server.sql("SELECT count(*) FROM coact.lease").expect("runs") == "0").await;
}

#[tokio::test]
async fn a_lease_takes_its_entries_from_every_realm_each_at_one_revision() {
    let server = start(&[]).await;
    let kv = kv(&server).await;
    let lease = kv.lease_grant(Duration::from_secs(600)).await.expect("granted").id;
    let mut feeds = Vec::new();
    for name in ["one", "two"] {
        let realm = Realm::new(name).expect("valid");
        let keys: Vec<_> = ["x", "y", "z"].map(|name| Key::new(&realm, "a", name).expect("valid")).into();
        for key in &keys {
            kv.put(key, "1", Some(lease)).await.expect("commits");
        }
        feeds.push(kv.watch(Scope::Dir(keys[0].dir().clone()), None).await.expect("it watches"));
    }
    expire(&server, lease);
    for feed in &mut feeds {
        let mut revisions = BTreeSet::new();
        for _ in 0..3 {
            let Change::Gone { at, .. } = next(feed).await else { panic!("gone") };
            revisions.insert(at);
        }
        assert_eq!(revisions.len(), 1);
    }
}

#[tokio::test]
async fn a_transaction_that_relies_on_a_lease_holds_up_its_end_but_not_its_renewal() {
    let server = start(&[]).await;
    let kv = postgres_kv(&server).await;
    let handle = kv.handle();
    let lease = handle.lease_grant(Duration::from_secs(600)).await.expect("granted").id;
    let mut client = client(&server).await;
    let transaction = client.transaction().await.expect("it begins");
    let mut txn = writes(vec![put("a/x", "1")]);
    txn.checks.push(Check::LeaseAlive(lease));
    let outcome = kv.txn_in(&transaction, &realm(), txn).await.expect("it runs");
    assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
    handle.lease_renew(lease).await.expect("a renewal passes");
    let revoker = handle.clone();
    let (told, revoked) = tokio::sync::oneshot::channel();
    Env::real().spawn(async move {
        let _ = told.send(revoker.lease_revoke(lease).await);
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("the end waits", async || server.sql(waiting).expect("runs") == "1").await;
    assert!(handle.lease_left(lease).await.expect("answers").is_some());
    transaction.commit().await.expect("it commits");
    within("the end", revoked).await.expect("the task lives").expect("revoked");
    assert_eq!(handle.lease_left(lease).await.expect("answers"), None);
}

#[tokio::test]
async fn history_is_forgotten_by_age_and_by_number_and_never_in_silence() {
    let server = start(&[]).await;
    let kv = kv(&server).await;
    let mut last = Revision(0);
    for round in 0..10 {
        last = kv.put(&key("a/x"), round.to_string(), None).await.expect("commits");
    }
    let overlong = |age: &str, revisions: u64| {
        let question = format!("SELECT cut FROM coact.overlong('main', interval '{age}', {revisions})");
        server.sql(&question).expect("runs")
    };
    assert_eq!(overlong("10 minutes", 100), "");
    assert_eq!(overlong("10 minutes", 4), (last.0 - 4).to_string());
    assert_eq!(overlong("0 seconds", 100), last.to_string());
    let cut = last.0 - 4;
    server.sql(&format!("SELECT coact.compact('main', 'main', {cut})")).expect("runs");
    server.sql("SELECT coact.delete_compacted('main', 'main')").expect("runs");
    assert_eq!(server.sql("SELECT count(*) FROM coact.change").expect("runs"), "4");
    let mut short = kv.watch(Scope::Dir(dir("a")), Some(Revision(cut - 1))).await.expect("it watches");
    let change = within("a change", short.next()).await.expect("goes on").expect("no error");
    assert!(matches!(&change, Change::Resync { at, .. } if *at == last), "{change:?}");
    let mut whole = kv.watch(Scope::Dir(dir("a")), Some(Revision(cut))).await.expect("it watches");
    for expected in cut + 1..=last.0 {
        assert!(matches!(next(&mut whole).await, Change::Put(entry) if entry.modified.0 == expected));
    }
}
