//! The life of a store: closing it, and ending it hard and starting it again.

use std::time::Duration;

use coact_core::{
    Error, ErrorKind,
    contract::kv::{Change, Check, KvHandle, Revision, Scope, TxnOutcome},
    name::{Dir, Key},
};
use futures::future::join_all;

use super::{
    ALONE, Context, DURABLE, RESTARTS,
    context::{assert_kind, by_name, guarded, incr, names, put, writes},
};

cases! {
    #[needs(ALONE)]
    async fn a_closed_client_says_so(cx: &Context) {
        let kv = cx.another_client().await;
        let (key, dir) = (cx.key("a/x"), cx.dir("a"));
        let created = kv.put(&key, "1", None).await.expect("commits");
        let lease = kv.lease_grant(Duration::from_secs(600)).await.expect("granted").id;
        let clone = kv.clone();
        kv.close().await.expect("closes");
        let answers = [
            ("put", kv.put(&key, "2", None).await.err()),
            ("get", clone.get(&key).await.err()),
            ("list", kv.list(&dir, by_name(""), 1).await.err()),
            ("dirs", kv.dirs(&cx.realm, "", "", 1).await.err()),
            ("lease_grant", kv.lease_grant(Duration::from_secs(10)).await.err()),
            ("lease_renew", kv.lease_renew(lease).await.err()),
            ("lease_left", kv.lease_left(lease).await.err()),
            ("lease_revoke", kv.lease_revoke(lease).await.err()),
            ("watch", kv.watch(Scope::Dir(dir), None).await.err()),
            ("await_gone", cx.within("a wait on a closed client", kv.await_gone(&key, created)).await.err()),
        ];
        for (call, error) in &answers {
            let kind = error.as_ref().map(Error::kind);
            assert_eq!(kind, Some(ErrorKind::Closed), "{call} on a closed client; all answers: {answers:?}");
        }
        // Once more is no error.
        kv.close().await.expect("is closed");
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn a_restart_keeps_every_acknowledged_write(cx: &Context) {
        const WRITERS: usize = 4;
        const ENOUGH: usize = 50;
        let dir = cx.dir("a");
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| cx.spawn(write_until_it_fails(cx.kv.clone(), dir.clone(), writer))).collect();
        cx.until("there is something to lose", async || cx.list("a").await.entries.len() >= ENOUGH).await;
        let kv = cx.restart().await;
        // Beds may restart so quickly that a client repeats instead of failing.
        cx.kv.close().await.expect("closes");
        let acknowledged = join_all(writers).await.concat();
        assert!(acknowledged.len() >= ENOUGH - WRITERS);
        for (key, revision) in &acknowledged {
            let entry = kv.get(key).await.expect("answers");
            assert_eq!(entry.map(|entry| entry.modified), Some(*revision), "{key} was acknowledged and is lost");
        }
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn revisions_do_not_go_back_over_a_restart(cx: &Context) {
        cx.put("a/x", "1").await;
        // The last change leaves no entry that could tell of it.
        cx.put("a/y", "1").await;
        let last = cx.delete("a/y").await;
        let before = cx.entry("a/x").await;
        let kv = cx.restart().await;
        assert_eq!(kv.get(&cx.key("a/x")).await.expect("answers"), Some(before));
        assert_eq!(kv.get(&cx.key("a/y")).await.expect("answers"), None);
        assert!(kv.put(&cx.key("a/y"), "2", None).await.expect("commits") > last);
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn tokens_and_counters_hold_over_a_restart(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        cx.commit(writes(vec![incr(&cx.key("n/x"), 41)])).await;
        let kv = cx.restart().await;
        let txn = guarded(Check::CreatedAt(cx.key("a/x"), created), incr(&cx.key("n/x"), 1));
        let outcome = kv.txn(&cx.realm, txn).await.expect("answers");
        assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
        assert_eq!(kv.get(&cx.key("n/x")).await.expect("answers").expect("is there").value, "42");
        let txn = guarded(Check::Absent(cx.key("a/x")), put(&cx.key("a/x"), "2"));
        let outcome = kv.txn(&cx.realm, txn).await.expect("answers");
        assert!(matches!(outcome, TxnOutcome::Refused { check: 0, .. }), "{outcome:?}");
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn leases_live_and_end_after_a_restart(cx: &Context) {
        let (long, short, ended) = (cx.long_lease().await.id, cx.short_lease().await.id, cx.long_lease().await.id);
        cx.put_leased("a/long", "1", long).await;
        cx.put_leased("a/short", "1", short).await;
        cx.revoke(ended).await;
        let kv = cx.restart().await;
        assert!(kv.lease_left(long).await.expect("answers").is_some());
        assert_eq!(kv.lease_left(ended).await.expect("answers"), None);
        assert_kind(kv.lease_renew(ended).await, ErrorKind::Fenced);
        kv.lease_renew(long).await.expect("it lives");
        cx.until("the short lease ends", async || kv.lease_left(short).await.expect("answers").is_none()).await;
        let page = kv.list(&cx.dir("a"), by_name(""), 10).await.expect("answers");
        assert_eq!(names(&page), ["long"]);
        kv.lease_revoke(long).await.expect("answers");
        assert_eq!(kv.get(&cx.key("a/long")).await.expect("answers"), None);
    }

    #[needs(RESTARTS)]
    #[needs(DURABLE)]
    async fn a_watch_from_before_a_restart_has_no_silent_gap(cx: &Context) {
        let before = cx.put("a/x", "0").await;
        cx.put("a/x", "1").await;
        cx.delete("a/x").await;
        let kv = cx.restart().await;
        let mut watch = cx.watch_with(&kv, Scope::Dir(cx.dir("a")), Some(before)).await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match watch.next().await {
                Change::Put(entry) => seen.push(format!("+{}", entry.key.name())),
                Change::Gone { key, .. } => seen.push(format!("-{}", key.name())),
                // It says that it does not know: no silent gap.
                Change::Resync { .. } => seen = vec!["+x".to_owned(), "-x".to_owned()],
                Change::Progress(_) => {}
            }
        }
        assert_eq!(seen, ["+x", "-x"]);
        kv.put(&cx.key("a/live"), "1", None).await.expect("commits");
        assert_eq!(watch.next_brief().await, "+live=1");
    }
}

/// Puts one new entry after another, and returns those that were acknowledged.
async fn write_until_it_fails(kv: KvHandle, dir: Dir, writer: usize) -> Vec<(Key, Revision)> {
    let mut acknowledged = Vec::new();
    loop {
        let key = dir.key(&format!("{writer}-{}", acknowledged.len())).expect("valid");
        match kv.put(&key, "x", None).await {
            Ok(revision) => acknowledged.push((key, revision)),
            Err(_) => return acknowledged,
        }
    }
}
