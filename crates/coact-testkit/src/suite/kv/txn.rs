//! Transactions: all or nothing, what each check means, what reads see.

use coact_core::{
    ErrorKind,
    contract::kv::{Check, Found, LeaseId, Read, Revision, Txn, TxnOutcome, Write},
    name::{Key, Realm},
};

use super::{
    Context,
    context::{assert_kind, guarded, incr, put, put_leased, writes},
};

cases! {
    async fn txn_is_atomic(cx: &Context) {
        let (a, b) = (cx.key("a/a"), cx.key("a/b"));
        let (revision, _) = cx.commit(writes(vec![put(&a, "1"), put(&b, "1")])).await;
        assert_eq!((cx.entry("a/a").await.modified, cx.entry("a/b").await.modified), (revision, revision));
        let checks = vec![Check::Absent(b.clone())];
        let txn = Txn { checks, writes: vec![put(&a, "2"), Write::Delete(b.clone())], ..Txn::default() };
        assert_eq!(cx.refusal(txn).await.0, 0);
        assert_eq!((cx.value("a/a").await.as_deref(), cx.value("a/b").await.as_deref()), (Some("1"), Some("1")));
    }

    async fn nobody_sees_half_a_txn(cx: &Context) {
        let (kv, realm) = (cx.kv.clone(), cx.realm.clone());
        let (left, right) = (cx.key("pair/left"), cx.key("pair/right"));
        let (a, b) = (left.clone(), right.clone());
        let writer = cx.spawn(async move {
            for round in 0..100 {
                let value = round.to_string();
                let txn = writes(vec![put(&a, value.clone()), put(&b, value)]);
                assert!(matches!(kv.txn(&realm, txn).await, Ok(TxnOutcome::Committed { .. })));
            }
        });
        let look = async {
            loop {
                let reads = vec![Read::Get(left.clone()), Read::Get(right.clone())];
                let (_, found) = cx.commit(Txn { reads, ..Txn::default() }).await;
                let value = |index: usize| found[index].entry().map(|entry| entry.value.clone());
                assert_eq!(value(0), value(1));
            }
        };
        tokio::select! { () = writer => {}, () = look => {} }
    }

    async fn absent_holds_without_an_entry(cx: &Context) {
        let key = cx.key("a/x");
        cx.commit(guarded(Check::Absent(key.clone()), put(&key, "1"))).await;
        let entry = cx.entry("a/x").await;
        let refusal = cx.refusal(guarded(Check::Absent(key.clone()), put(&key, "2"))).await;
        assert_eq!(refusal, (0, Some(entry)));
        cx.delete("a/x").await;
        assert!(cx.holds(vec![Check::Absent(key)]).await);
    }

    async fn created_at_holds_for_one_incarnation(cx: &Context) {
        let key = cx.key("a/x");
        let first = cx.put("a/x", "1").await;
        cx.put("a/x", "2").await;
        assert!(cx.holds(vec![Check::CreatedAt(key.clone(), first)]).await);
        cx.delete("a/x").await;
        let gone = cx.refusal(guarded(Check::CreatedAt(key.clone(), first), put(&key, "3"))).await;
        assert_eq!(gone, (0, None));
        let second = cx.put("a/x", "4").await;
        let entry = cx.entry("a/x").await;
        assert_eq!(entry.created, second);
        let another = cx.refusal(guarded(Check::CreatedAt(key.clone(), first), put(&key, "5"))).await;
        assert_eq!(another, (0, Some(entry)));
    }

    async fn modified_at_holds_for_one_version(cx: &Context) {
        let key = cx.key("a/x");
        let first = cx.put("a/x", "1").await;
        assert!(cx.holds(vec![Check::ModifiedAt(key.clone(), first)]).await);
        let (second, _) = cx.commit(guarded(Check::ModifiedAt(key.clone(), first), put(&key, "2"))).await;
        let entry = cx.entry("a/x").await;
        assert_eq!((entry.created, entry.modified), (first, second));
        let refusal = cx.refusal(guarded(Check::ModifiedAt(key.clone(), first), put(&key, "3"))).await;
        assert_eq!(refusal, (0, Some(entry)));
        cx.delete("a/x").await;
        assert_eq!(cx.refusal(guarded(Check::ModifiedAt(key.clone(), second), put(&key, "4"))).await, (0, None));
    }

    async fn no_absent_entry_was_created_at_revision_zero(cx: &Context) {
        let key = cx.key("a/x");
        for check in [Check::CreatedAt(key.clone(), Revision(0)), Check::ModifiedAt(key.clone(), Revision(0))] {
            let outcome = cx.txn(guarded(check.clone(), put(&key, "1"))).await;
            assert!(!matches!(outcome, Ok(TxnOutcome::Committed { .. })), "{check:?} held for an absent entry");
        }
    }

    async fn lease_alive_holds_until_the_lease_ends(cx: &Context) {
        let (key, lease) = (cx.key("a/x"), cx.long_lease().await.id);
        cx.commit(guarded(Check::LeaseAlive(lease), put(&key, "1"))).await;
        cx.revoke(lease).await;
        assert_eq!(cx.refusal(guarded(Check::LeaseAlive(lease), put(&key, "2"))).await, (0, None));
        let never_granted = LeaseId((cx.env.random() >> 1) as i64);
        assert_eq!(cx.refusal(guarded(Check::LeaseAlive(never_granted), put(&key, "3"))).await, (0, None));
        assert_eq!(cx.value("a/x").await.as_deref(), Some("1"));
    }

    async fn the_first_failed_check_is_named(cx: &Context) {
        cx.put("a/x", "1").await;
        let entry = cx.entry("a/x").await;
        let lease = cx.long_lease().await.id;
        let checks = vec![
            Check::Absent(cx.key("a/y")),
            Check::LeaseAlive(lease),
            Check::CreatedAt(entry.key.clone(), entry.created),
            Check::Absent(entry.key.clone()),
            Check::ModifiedAt(cx.key("a/z"), entry.modified),
        ];
        let txn = Txn { checks, writes: vec![put(&cx.key("a/y"), "2")], ..Txn::default() };
        assert_eq!(cx.refusal(txn).await, (3, Some(entry)));
        assert_eq!(cx.get("a/y").await, None);
    }

    async fn checks_see_the_state_before_the_writes(cx: &Context) {
        let key = cx.key("a/x");
        let checks = vec![Check::Absent(key.clone()), Check::Absent(key.clone())];
        cx.commit(Txn { checks, writes: vec![put(&key, "1")], ..Txn::default() }).await;
    }

    async fn reads_see_the_state_before_the_writes(cx: &Context) {
        let old = cx.put("q/old", "1").await;
        let (key, dir) = (cx.key("q/old"), cx.dir("q"));
        let reads = vec![
            Read::Get(key.clone()),
            Read::Get(cx.key("q/new")),
            Read::First(dir.clone()),
            Read::Last(dir.clone()),
            Read::Count(dir.clone()),
        ];
        let txn = Txn {
            reads: reads.clone(),
            writes: vec![Write::Delete(key), put(&cx.key("q/new"), "2")],
            ..Txn::default()
        };
        let (revision, found) = cx.commit(txn).await;
        let created = |found: &Found| found.entry().map(|entry| entry.created);
        assert_eq!(found[..4].iter().map(created).collect::<Vec<_>>(), [Some(old), None, Some(old), Some(old)]);
        assert_eq!(found[4], Found::Count(1));
        let (_, found) = cx.commit(Txn { reads, ..Txn::default() }).await;
        let now = Some(revision);
        assert_eq!(found[..4].iter().map(created).collect::<Vec<_>>(), [None, now, now, now]);
        assert_eq!(found[4], Found::Count(1));
    }

    async fn first_and_last_are_by_creation(cx: &Context) {
        // Neither the order of the names nor that of the changes.
        for name in ["q/m", "q/z", "q/a"] {
            cx.put(name, "1").await;
        }
        cx.put("q/m", "changed").await;
        cx.put("q/deeper/x", "in another dir").await;
        let ends = || Txn { reads: vec![Read::First(cx.dir("q")), Read::Last(cx.dir("q"))], ..Txn::default() };
        let name = |found: &Found| found.entry().map(|entry| entry.key.name().to_owned());
        let (_, found) = cx.commit(ends()).await;
        assert_eq!(found.iter().map(name).collect::<Vec<_>>(), [Some("m".to_owned()), Some("a".to_owned())]);
        // What is created again is the youngest.
        cx.delete("q/m").await;
        cx.put("q/m", "2").await;
        let (_, found) = cx.commit(ends()).await;
        assert_eq!(found.iter().map(name).collect::<Vec<_>>(), [Some("z".to_owned()), Some("m".to_owned())]);
    }

    async fn an_empty_dir_has_no_ends(cx: &Context) {
        let dir = cx.dir("q");
        let reads = vec![Read::First(dir.clone()), Read::Last(dir.clone()), Read::Count(dir)];
        let (_, found) = cx.commit(Txn { reads, ..Txn::default() }).await;
        assert_eq!(found, [Found::Entry(None), Found::Entry(None), Found::Count(0)]);
    }

    async fn a_txn_without_writes_reads_a_revision(cx: &Context) {
        let before = cx.put("a/x", "1").await;
        let (revision, found) = cx.commit(Txn { reads: vec![Read::Get(cx.key("a/x"))], ..Txn::default() }).await;
        assert!(revision >= before);
        assert_eq!(found[0].entry(), Some(&cx.entry("a/x").await));
        assert!(cx.put("a/x", "2").await > revision);
    }

    async fn a_put_with_an_ended_lease_is_fenced_and_applies_nothing(cx: &Context) {
        let lease = cx.long_lease().await.id;
        cx.revoke(lease).await;
        let txn = writes(vec![put(&cx.key("a/plain"), "1"), put_leased(&cx.key("a/leased"), "1", lease)]);
        assert_kind(cx.txn(txn).await, ErrorKind::Fenced);
        assert!(cx.list("a").await.entries.is_empty());
    }

    async fn a_failed_check_comes_before_an_ended_lease(cx: &Context) {
        cx.put("a/x", "1").await;
        let lease = cx.long_lease().await.id;
        cx.revoke(lease).await;
        let key = cx.key("a/x");
        let txn = guarded(Check::Absent(key.clone()), put_leased(&key, "2", lease));
        assert_eq!(cx.refusal(txn).await, (0, Some(cx.entry("a/x").await)));
    }

    async fn deleting_what_is_absent_commits(cx: &Context) {
        let mut watch = cx.watch_dir("a", None).await;
        cx.delete("a/x").await;
        let txn = writes(vec![Write::Delete(cx.key("a/y")), put(&cx.key("a/z"), "1")]);
        cx.commit(txn).await;
        assert_eq!(watch.next_brief().await, "+z=1");
    }

    async fn the_same_key_twice_is_invalid(cx: &Context) {
        let key = cx.key("a/x");
        for other in [put(&key, "2"), Write::Delete(key.clone()), incr(&key, 1)] {
            assert_kind(cx.txn(writes(vec![put(&key, "1"), other])).await, ErrorKind::Invalid);
        }
        assert_eq!(cx.get("a/x").await, None);
    }

    async fn another_realm_is_invalid(cx: &Context) {
        let other = Realm::new("other").expect("valid");
        let key = Key::new(&other, "a", "x").expect("valid");
        let txns = [
            writes(vec![put(&key, "1")]),
            Txn { checks: vec![Check::Absent(key.clone())], ..Txn::default() },
            Txn { reads: vec![Read::Get(key.clone())], ..Txn::default() },
            Txn { reads: vec![Read::Count(key.dir().clone())], ..Txn::default() },
        ];
        for txn in txns {
            assert_kind(cx.txn(txn).await, ErrorKind::Invalid);
        }
    }
}
