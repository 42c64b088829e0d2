//! Writes: revisions, leases of entries, increments, contention.

use std::collections::BTreeSet;

use coact_core::{
    ErrorKind,
    contract::kv::{Check, KvHandle, TxnOutcome},
    name::Key,
};

use super::{
    Context,
    context::{assert_kind, guarded, incr, names, put, put_leased, writes},
};

cases! {
    async fn created_survives_an_overwrite_and_changes_on_re_creation(cx: &Context) {
        let first = cx.put("a/x", "1").await;
        let second = cx.put("a/x", "2").await;
        let entry = cx.entry("a/x").await;
        assert_eq!((entry.created, entry.modified, &entry.value[..]), (first, second, &b"2"[..]));
        cx.delete("a/x").await;
        let third = cx.put("a/x", "3").await;
        let entry = cx.entry("a/x").await;
        assert_eq!((entry.created, entry.modified), (third, third));
        assert!(first < second && second < third);
    }

    async fn revisions_are_unique_and_grow_over_concurrent_commits(cx: &Context) {
        let dir = cx.dir("many");
        let revisions = cx
            .parallel(8, |task| {
                let (kv, dir) = (cx.kv.clone(), dir.clone());
                async move {
                    let mut revisions = Vec::new();
                    for round in 0..25 {
                        let key = dir.key(&format!("{task}-{round}")).expect("valid");
                        let revision = kv.put(&key, "x", None).await.expect("commits");
                        assert_eq!(kv.get(&key).await.expect("answers").expect("is there").created, revision);
                        revisions.push(revision);
                    }
                    revisions
                }
            })
            .await;
        for of_task in &revisions {
            assert!(of_task.is_sorted(), "a commit got a revision before an earlier one: {of_task:?}");
        }
        let unique: BTreeSet<_> = revisions.iter().flatten().collect();
        assert_eq!(unique.len(), 200);
    }

    async fn a_put_attaches_replaces_and_detaches_a_lease(cx: &Context) {
        let (first, second) = (cx.long_lease().await.id, cx.long_lease().await.id);
        for key in ["a/kept", "a/moved", "a/freed"] {
            cx.put_leased(key, "1", first).await;
            assert_eq!(cx.entry(key).await.lease, Some(first));
        }
        cx.put_leased("a/kept", "2", first).await;
        cx.put_leased("a/moved", "2", second).await;
        cx.put("a/freed", "2").await;
        assert_eq!((cx.entry("a/moved").await.lease, cx.entry("a/freed").await.lease), (Some(second), None));
        cx.revoke(first).await;
        assert_eq!(cx.get("a/kept").await, None);
        assert!(cx.get("a/moved").await.is_some() && cx.get("a/freed").await.is_some());
        cx.revoke(second).await;
        assert_eq!(cx.get("a/moved").await, None);
        assert!(cx.get("a/freed").await.is_some());
    }

    async fn the_lease_of_a_deleted_entry_does_not_take_its_successor(cx: &Context) {
        let lease = cx.long_lease().await.id;
        cx.put_leased("a/x", "1", lease).await;
        cx.delete("a/x").await;
        cx.put("a/x", "2").await;
        cx.revoke(lease).await;
        assert_eq!(cx.value("a/x").await.as_deref(), Some("2"));
    }

    async fn incr_counts_from_absent_and_below_zero(cx: &Context) {
        let key = cx.key("n/x");
        for (by, expected) in [(5, "5"), (-7, "-2"), (0, "-2"), (2, "0")] {
            cx.commit(writes(vec![incr(&key, by)])).await;
            assert_eq!(cx.value("n/x").await.as_deref(), Some(expected));
        }
        let entry = cx.entry("n/x").await;
        assert!(entry.created < entry.modified);
    }

    async fn incr_of_what_is_no_number_is_invalid_and_applies_nothing(cx: &Context) {
        for text in ["three", "", "1.5"] {
            cx.put("n/x", text).await;
            let txn = writes(vec![put(&cx.key("n/other"), "1"), incr(&cx.key("n/x"), 1)]);
            assert_kind(cx.txn(txn).await, ErrorKind::Invalid);
            assert_eq!(cx.value("n/x").await.as_deref(), Some(text));
            assert_eq!(cx.get("n/other").await, None);
        }
    }

    async fn incr_past_the_ends_is_invalid_and_applies_nothing(cx: &Context) {
        for (start, by) in [(i64::MAX, 1), (i64::MIN, -1)] {
            cx.put("n/x", &start.to_string()).await;
            let txn = writes(vec![put(&cx.key("n/other"), "1"), incr(&cx.key("n/x"), by)]);
            assert_kind(cx.txn(txn).await, ErrorKind::Invalid);
            assert_eq!(cx.value("n/x").await, Some(start.to_string()));
            assert_eq!(cx.get("n/other").await, None);
        }
    }

    async fn incr_keeps_the_lease(cx: &Context) {
        let lease = cx.long_lease().await.id;
        cx.put_leased("n/x", "1", lease).await;
        cx.commit(writes(vec![incr(&cx.key("n/x"), 1)])).await;
        assert_eq!(cx.entry("n/x").await.lease, Some(lease));
        cx.revoke(lease).await;
        assert_eq!(cx.get("n/x").await, None);
    }

    async fn concurrent_increments_all_count(cx: &Context) {
        let key = cx.key("n/x");
        cx.parallel(4, |_| {
            let (kv, key) = (cx.kv.clone(), key.clone());
            async move {
                for _ in 0..25 {
                    let outcome = kv.txn(key.realm(), writes(vec![incr(&key, 1)])).await;
                    assert!(matches!(outcome, Ok(TxnOutcome::Committed { .. })), "{outcome:?}");
                }
            }
        })
        .await;
        assert_eq!(cx.value("n/x").await.as_deref(), Some("100"));
    }

    async fn two_clients_lose_no_update_of_a_guarded_counter(cx: &Context) {
        cx.put("n/x", "0").await;
        let clients = [cx.kv.clone(), cx.another_client().await];
        let key = cx.key("n/x");
        cx.parallel(4, |task| {
            let (kv, key) = (clients[task % 2].clone(), key.clone());
            async move {
                for _ in 0..25 {
                    add_one(&kv, &key).await;
                }
            }
        })
        .await;
        assert_eq!(cx.value("n/x").await.as_deref(), Some("100"));
    }

    async fn one_of_many_creators_wins(cx: &Context) {
        let key = cx.key("a/x");
        let won = cx
            .parallel(16, |task| {
                let (kv, key) = (cx.kv.clone(), key.clone());
                async move {
                    let txn = guarded(Check::Absent(key.clone()), put(&key, task.to_string()));
                    match kv.txn(key.realm(), txn).await.expect("answered") {
                        TxnOutcome::Committed { .. } => Some(task),
                        TxnOutcome::Refused { found, .. } => {
                            assert!(found.is_some(), "refused by an entry that is not told");
                            None
                        }
                    }
                }
            })
            .await;
        let winners: Vec<_> = won.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(cx.value("a/x").await, Some(winners[0].to_string()));
    }

    async fn what_one_client_wrote_every_client_reads(cx: &Context) {
        let other = cx.another_client().await;
        let key = cx.key("a/x");
        for round in 0..50 {
            let (writer, reader) = if round % 2 == 0 { (&cx.kv, &other) } else { (&other, &cx.kv) };
            let revision = writer.put(&key, round.to_string(), None).await.expect("commits");
            assert_eq!(reader.get(&key).await.expect("answers").map(|entry| entry.modified), Some(revision));
        }
    }

    async fn a_txn_puts_with_several_leases(cx: &Context) {
        let (first, second) = (cx.long_lease().await.id, cx.long_lease().await.id);
        let txn = writes(vec![
            put_leased(&cx.key("a/1"), "x", first),
            put_leased(&cx.key("a/2"), "x", second),
            put(&cx.key("a/3"), "x"),
        ]);
        cx.commit(txn).await;
        cx.revoke(first).await;
        assert_eq!(names(&cx.list("a").await), ["2", "3"]);
    }
}

/// Reads, adds one, and writes if nobody wrote meanwhile; again until it succeeds.
async fn add_one(kv: &KvHandle, key: &Key) {
    loop {
        let entry = kv.get(key).await.expect("answers").expect("is there");
        let count: u64 = std::str::from_utf8(&entry.value).expect("text").parse().expect("a number");
        let txn = guarded(Check::ModifiedAt(key.clone(), entry.modified), put(key, (count + 1).to_string()));
        if let TxnOutcome::Committed { .. } = kv.txn(key.realm(), txn).await.expect("answered") {
            return;
        }
    }
}
