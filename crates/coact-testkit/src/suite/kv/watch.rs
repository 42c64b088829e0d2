//! Watches: everything, once, in order, and never a silent gap.

use std::collections::BTreeMap;

use coact_core::contract::kv::{Change, Entry, GoneCause, Page, Revision, Scope, Write};

use super::{
    COMPACTS, Context,
    context::{names, put, writes},
};

cases! {
    async fn a_watch_from_now_sees_what_follows(cx: &Context) {
        cx.put("a/old", "0").await;
        let mut watch = cx.watch_dir("a", None).await;
        let revision = cx.put("a/x", "1").await;
        cx.put("b/x", "in another dir").await;
        cx.put("a/b/x", "in a dir below").await;
        cx.put("a/x", "2").await;
        let Change::Put(entry) = watch.next().await else { panic!("a put") };
        assert_eq!((entry.created, entry.modified, &entry.value[..]), (revision, revision, &b"1"[..]));
        let Change::Put(entry) = watch.next().await else { panic!("a put") };
        assert_eq!(entry, cx.entry("a/x").await);
    }

    async fn a_watch_from_a_revision_replays_all_that_follows_once(cx: &Context) {
        let before = cx.put("a/x", "0").await;
        cx.put("a/x", "1").await;
        cx.put("a/y", "1").await;
        cx.put("b/x", "in another dir").await;
        cx.delete("a/x").await;
        cx.put("a/x", "2").await;
        let mut watch = cx.watch_dir("a", Some(before)).await;
        assert_eq!(watch.brief(4).await, ["+x=1", "+y=1", "-x", "+x=2"]);
        cx.put("a/z", "live").await;
        assert_eq!(watch.next_brief().await, "+z=live");
    }

    async fn a_watch_of_a_key_sees_that_key_alone(cx: &Context) {
        let mut watch = cx.watch(Scope::Key(cx.key("a/x")), None).await;
        for key in ["a/xx", "a/w", "a/x", "a/x/y"] {
            cx.put(key, "1").await;
        }
        cx.delete("a/xx").await;
        cx.delete("a/x").await;
        assert_eq!(watch.brief(2).await, ["+x=1", "-x"]);
    }

    async fn a_deleted_entry_is_gone(cx: &Context) {
        cx.put("a/x", "1").await;
        let mut watch = cx.watch_dir("a", None).await;
        let revision = cx.delete("a/x").await;
        let Change::Gone { key, at, cause } = watch.next().await else { panic!("gone") };
        assert_eq!((key, at), (cx.key("a/x"), revision));
        assert_ne!(cause, GoneCause::Expired);
    }

    async fn an_entry_of_an_expired_lease_is_gone(cx: &Context) {
        let lease = cx.short_lease().await.id;
        let put = cx.put_leased("a/x", "1", lease).await;
        let mut watch = cx.watch_dir("a", Some(put)).await;
        let Change::Gone { key, at, cause } = watch.next().await else { panic!("gone") };
        assert!(key == cx.key("a/x") && at > put);
        assert_ne!(cause, GoneCause::Deleted);
        assert_eq!(cx.get("a/x").await, None);
    }

    async fn a_re_created_entry_is_gone_in_between(cx: &Context) {
        cx.put("a/x", "1").await;
        let mut watch = cx.watch_dir("a", None).await;
        cx.delete("a/x").await;
        cx.put("a/x", "2").await;
        assert_eq!(watch.brief(2).await, ["-x", "+x=2"]);
    }

    async fn the_changes_of_a_txn_share_its_revision(cx: &Context) {
        let before = cx.put("a/old", "1").await;
        let txn = writes(vec![put(&cx.key("a/x"), "1"), Write::Delete(cx.key("a/old")), put(&cx.key("a/y"), "1")]);
        let (revision, _) = cx.commit(txn).await;
        let mut watch = cx.watch_dir("a", Some(before)).await;
        let mut seen = BTreeMap::new();
        for _ in 0..3 {
            let (name, at) = name_and_revision(&watch.next().await);
            seen.insert(name, at);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["old", "x", "y"].map(|name| (name.to_owned(), revision)));
    }

    async fn changes_of_concurrent_writers_arrive_once_and_in_order(cx: &Context) {
        let mut watch = cx.watch_dir("a", None).await;
        let dir = cx.dir("a");
        let committed = cx
            .parallel(8, |task| {
                let (kv, dir) = (cx.kv.clone(), dir.clone());
                async move {
                    let mut revisions = Vec::new();
                    for round in 0..25 {
                        let key = dir.key(&(task % 4).to_string()).expect("valid");
                        revisions.push(kv.put(&key, format!("{task}-{round}"), None).await.expect("commits"));
                    }
                    revisions
                }
            })
            .await;
        let mut committed: Vec<_> = committed.into_iter().flatten().collect();
        committed.sort();
        let mut seen = Vec::new();
        for _ in 0..committed.len() {
            seen.push(name_and_revision(&watch.next().await).1);
        }
        assert_eq!(seen, committed);
    }

    async fn a_listing_and_a_watch_after_it_have_no_gap(cx: &Context) {
        const CHANGES: usize = 300;
        let (kv, dir) = (cx.kv.clone(), cx.dir("a"));
        let writer = cx.spawn(async move {
            let mut last = Revision(0);
            for round in 0..CHANGES {
                let key = dir.key(&(round % 10).to_string()).expect("valid");
                last = match round % 7 {
                    6 => kv.delete(&key).await.expect("commits").max(last),
                    _ => kv.put(&key, round.to_string(), None).await.expect("commits"),
                };
            }
            kv.put(&dir.key("end").expect("valid"), "end", None).await.expect("commits")
        });
        cx.until("the writer is under way", async || cx.list("a").await.entries.len() >= 5).await;
        let page = cx.list("a").await;
        let mut mirror = Mirror::new(&page);
        let mut watch = cx.watch_dir("a", Some(page.revision)).await;
        let last = writer.await;
        while mirror.revision < last {
            mirror.apply(watch.next().await);
        }
        assert_eq!(mirror.entries.into_values().collect::<Vec<_>>(), cx.list("a").await.entries);
    }

    #[needs(COMPACTS)]
    async fn a_forgotten_history_is_a_resync_and_the_watch_goes_on(cx: &Context) {
        let first = cx.put("a/x", "0").await;
        for round in 1..5 {
            cx.put("a/x", &round.to_string()).await;
        }
        let last = cx.put("a/y", "1").await;
        cx.bed.compact(last).expect("the case needs COMPACTS").await.expect("compacts");
        let mut watch = cx.watch_dir("a", Some(first)).await;
        let Change::Resync { why, at } = watch.next().await else { panic!("the watch hides that history is missing") };
        assert!(!why.is_empty() && at >= last);
        assert_eq!(names(&cx.list("a").await), ["x", "y"]);
        cx.put("a/x", "live").await;
        assert_eq!(watch.next_brief().await, "+x=live");
        // The revision up to which history is forgotten is itself enough to go on from.
        let mut watch = cx.watch_dir("a", Some(last)).await;
        assert_eq!(watch.next_brief().await, "+x=live");
    }

    async fn many_watchers_all_see_everything(cx: &Context) {
        let mut watches = Vec::new();
        for _ in 0..100 {
            watches.push(cx.watch_dir("a", None).await);
        }
        for round in 0..10 {
            cx.put("a/x", &round.to_string()).await;
        }
        let expected: Vec<_> = (0..10).map(|round| format!("+x={round}")).collect();
        for watch in &mut watches {
            assert_eq!(watch.brief(10).await, expected);
        }
    }

    async fn a_dropped_feed_ends_no_other(cx: &Context) {
        let mut kept = cx.watch_dir("a", None).await;
        for _ in 0..20 {
            let mut dropped = cx.watch_dir("a", None).await;
            cx.put("a/x", "1").await;
            assert_eq!(dropped.next_brief().await, "+x=1");
            drop(dropped);
            drop(cx.watch_dir("a", None).await);
        }
        assert_eq!(kept.brief(20).await, vec!["+x=1"; 20]);
    }

    async fn a_feed_that_nobody_reads_holds_up_nobody(cx: &Context) {
        let mut slow = cx.watch_dir("a", None).await;
        let mut quick = cx.watch_dir("a", None).await;
        for round in 0..500 {
            cx.put("a/x", &round.to_string()).await;
            assert_eq!(quick.next_brief().await, format!("+x={round}"));
        }
        // It was not read, yet misses nothing or says so.
        let mut expected = 0;
        while expected < 500 {
            match slow.next().await {
                Change::Put(entry) => {
                    assert_eq!(entry.value, expected.to_string());
                    expected += 1;
                }
                Change::Resync { .. } => return,
                other => panic!("expected a put, got {other:?}"),
            }
        }
    }
}

fn name_and_revision(change: &Change) -> (String, Revision) {
    match change {
        Change::Put(entry) => (entry.key.name().to_owned(), entry.modified),
        Change::Gone { key, at, .. } => (key.name().to_owned(), *at),
        other => panic!("expected a change of an entry, got {other:?}"),
    }
}

/// A dir as known from a listing and the changes after it.
struct Mirror {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
}

impl Mirror {
    fn new(page: &Page) -> Self {
        let entries = page.entries.iter().map(|entry| (entry.key.name().to_owned(), entry.clone())).collect();
        Self { entries, revision: page.revision }
    }

    fn apply(&mut self, change: Change) {
        let (name, at) = name_and_revision(&change);
        assert!(at > self.revision, "{name} at {at} was in the listing or came before: {}", self.revision);
        self.revision = at;
        match change {
            Change::Put(entry) => self.entries.insert(name, entry),
            _ => Some(self.entries.remove(&name).expect("what goes was there")),
        };
    }
}
