//! Listings of entries and dirs, and what keeps realms and namespaces apart.

use std::collections::BTreeSet;

use coact_core::{
    contract::kv::{Order, ReadAt, Revision, Scope},
    name::{Dir, Key, Realm},
};

use super::{
    Context,
    context::{by_name, names},
};

cases! {
    async fn a_listing_by_name_goes_page_by_page(cx: &Context) {
        // Created in another order than that of the names.
        for index in (0..25).rev() {
            cx.put(&format!("a/{index:02}"), "x").await;
        }
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = cx.kv.list(&cx.dir("a"), by_name(&after), 10).await.expect("answers");
            seen.extend(names(&page).into_iter().map(str::to_owned));
            assert_eq!(page.more, seen.len() < 25);
            if !page.more {
                break;
            }
            after = seen.last().expect("a page with more is not empty").clone();
        }
        assert_eq!(seen, (0..25).map(|index| format!("{index:02}")).collect::<Vec<_>>());
    }

    async fn a_listing_by_creation_goes_page_by_page(cx: &Context) {
        for index in (0..25).rev() {
            cx.put(&format!("a/{index:02}"), "x").await;
        }
        // A change does not make it younger; a re-creation does.
        cx.put("a/24", "changed").await;
        cx.delete("a/23").await;
        cx.put("a/23", "again").await;
        let (mut seen, mut after) = (Vec::new(), Revision(0));
        loop {
            let page = cx.kv.list(&cx.dir("a"), Order::Created { after }, 10).await.expect("answers");
            seen.extend(names(&page).into_iter().map(str::to_owned));
            assert_eq!(page.more, seen.len() < 25);
            if !page.more {
                break;
            }
            after = page.entries.last().expect("a page with more is not empty").created;
        }
        let mut expected: Vec<_> = (0..25).rev().filter(|index| *index != 23).collect();
        expected.push(23);
        assert_eq!(seen, expected.into_iter().map(|index| format!("{index:02}")).collect::<Vec<_>>());
    }

    async fn a_full_page_without_more_says_so(cx: &Context) {
        for name in ["a/1", "a/2", "a/3"] {
            cx.put(name, "x").await;
        }
        for order in [by_name(""), Order::Created { after: Revision(0) }] {
            let page = cx.kv.list(&cx.dir("a"), order.clone(), 3).await.expect("answers");
            assert_eq!((page.entries.len(), page.more), (3, false));
            let page = cx.kv.list(&cx.dir("a"), order, 2).await.expect("answers");
            assert_eq!((page.entries.len(), page.more), (2, true));
        }
        let page = cx.kv.list(&cx.dir("a"), by_name("3"), 3).await.expect("answers");
        assert!(page.entries.is_empty() && !page.more);
        // It need not be there to list after it.
        let page = cx.kv.list(&cx.dir("a"), by_name("15"), 3).await.expect("answers");
        assert_eq!(names(&page), ["2", "3"]);
    }

    async fn a_page_holds_whole_entries_and_a_revision(cx: &Context) {
        let lease = cx.long_lease().await.id;
        cx.put_leased("a/x", "1", lease).await;
        let last = cx.put("b/x", "1").await;
        let page = cx.list("a").await;
        assert_eq!(page.entries, [cx.entry("a/x").await]);
        assert!(page.revision >= last);
    }

    async fn an_empty_dir_is_an_empty_page(cx: &Context) {
        let last = cx.put("b/x", "1").await;
        let page = cx.list("a").await;
        assert!(page.entries.is_empty() && !page.more && page.revision >= last);
    }

    async fn nested_dirs_do_not_leak(cx: &Context) {
        for key in ["a/x", "a/b/x", "ab/x", "a/b/c/x", "a0/x", "a-/x", "a /x"] {
            cx.put(key, key).await;
        }
        for dir in ["a", "a/b", "ab", "a/b/c", "a0", "a-", "a "] {
            let page = cx.list(dir).await;
            assert_eq!(page.entries.len(), 1, "{dir}: {page:?}");
            assert_eq!(page.entries[0].value, format!("{dir}/x"));
        }
        assert!(cx.list("a/b/c/x").await.entries.is_empty());
    }

    async fn dirs_with_entries_are_listed_by_prefix(cx: &Context) {
        for key in ["lock/a/1", "lock/a/2", "lock/b/1", "lock/b/c/1", "lock/1", "locks/1", "other/1"] {
            cx.put(key, "x").await;
        }
        cx.put("lock/gone/1", "x").await;
        cx.delete("lock/gone/1").await;
        let all = ["lock", "lock/a", "lock/b", "lock/b/c", "locks", "other"];
        for (prefix, expected) in
            [("", &all[..]), ("lock", &all[..5]), ("lock/", &all[1..4]), ("lock/a", &all[1..2]), ("x", &[])]
        {
            for limit in [1, 2, 100] {
                let found = all_dirs(cx, prefix, limit).await;
                let paths: BTreeSet<_> = found.iter().map(Dir::path).collect();
                assert_eq!(paths.len(), found.len(), "{prefix:?} by {limit} has repetitions: {found:?}");
                assert_eq!(paths, expected.iter().copied().collect(), "{prefix:?} by {limit}");
            }
        }
    }

    async fn realms_are_independent(cx: &Context) {
        let other = Realm::new(&format!("{}x", cx.realm)).expect("valid");
        let key = Key::new(&other, "a", "x").expect("valid");
        let mut watch = cx.watch_dir("a", None).await;
        cx.kv.put(&key, "theirs", None).await.expect("commits");
        assert_eq!(cx.get("a/x").await, None);
        assert!(cx.list("a").await.entries.is_empty());
        assert!(all_dirs(cx, "", 100).await.is_empty());
        cx.put("a/x", "ours").await;
        assert_eq!(watch.next_brief().await, "+x=ours");
        cx.delete("a/x").await;
        assert_eq!(cx.kv.get(&key).await.expect("answers").expect("is there").value, "theirs");
    }

    async fn namespaces_are_independent(cx: &Context) {
        let [ours, theirs] = cx.two_namespaces().await.map(|store| store.kv().clone());
        let (key, dir) = (cx.key("a/x"), cx.dir("a"));
        let mut watch = cx.watch_with(&ours, Scope::Dir(dir.clone()), None).await;
        theirs.put(&key, "theirs", None).await.expect("commits");
        assert_eq!(ours.get(&key).await.expect("answers"), None);
        assert!(ours.list(&dir, by_name(""), 10).await.expect("answers").entries.is_empty());
        assert!(ours.dirs(&cx.realm, "", "", 10).await.expect("answers").is_empty());
        ours.put(&key, "ours", None).await.expect("commits");
        assert_eq!(watch.next_brief().await, "+x=ours");
        ours.delete(&key).await.expect("commits");
        assert_eq!(theirs.get(&key).await.expect("answers").expect("is there").value, "theirs");
    }

    async fn a_read_of_any_freshness_comes_to_see_the_write(cx: &Context) {
        let revision = cx.put("a/x", "1").await;
        cx.until("the write is seen", async || {
            let entry = cx.kv.get_at(&cx.key("a/x"), ReadAt::Any).await.expect("answers");
            entry.is_some_and(|entry| entry.modified == revision)
        })
        .await;
    }
}

async fn all_dirs(cx: &Context, prefix: &str, limit: usize) -> Vec<Dir> {
    let mut all: Vec<Dir> = Vec::new();
    loop {
        let after = all.last().map_or("", Dir::path);
        let page = cx.kv.dirs(&cx.realm, prefix, after, limit).await.expect("answers");
        assert!(page.len() <= limit);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}
