//! Waiting for an entry to go away.

use std::{future::Future, pin::pin};

use coact_core::contract::kv::Revision;
use futures::future::{Either, join_all, select};

use super::Context;

cases! {
    async fn a_wait_ends_when_the_entry_is_deleted(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        let wait = waiting(cx, "a/x", created);
        cx.delete("a/x").await;
        cx.within("a wait for a deleted entry", wait).await;
    }

    async fn a_wait_outlasts_overwrites_and_other_entries(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        let key = cx.key("a/x");
        let wait = pin!(cx.kv.await_gone(&key, created));
        let others = pin!(async {
            for round in 0..20 {
                cx.put("a/x", &round.to_string()).await;
                cx.put("a/y", "1").await;
                cx.delete("a/y").await;
            }
        });
        let wait = match select(wait, others).await {
            Either::Left((result, _)) => panic!("the wait ended though the entry is there: {result:?}"),
            Either::Right(((), wait)) => wait,
        };
        cx.delete("a/x").await;
        cx.within("a wait for a deleted entry", wait).await.expect("answers");
    }

    async fn a_wait_ends_when_the_lease_expires(cx: &Context) {
        let lease = cx.short_lease().await.id;
        let created = cx.put_leased("a/x", "1", lease).await;
        cx.within("a wait for an expiry", waiting(cx, "a/x", created)).await;
        cx.until("the entry is gone", async || cx.get("a/x").await.is_none()).await;
    }

    async fn a_wait_ends_when_the_lease_is_revoked(cx: &Context) {
        let lease = cx.long_lease().await.id;
        let created = cx.put_leased("a/x", "1", lease).await;
        let wait = waiting(cx, "a/x", created);
        cx.revoke(lease).await;
        cx.within("a wait for a revocation", wait).await;
    }

    async fn a_wait_for_what_is_gone_ends_at_once(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        cx.delete("a/x").await;
        cx.within("a wait for what is gone", waiting(cx, "a/x", created)).await;
        cx.put("a/x", "2").await;
        cx.within("a wait for what was created again", waiting(cx, "a/x", created)).await;
        cx.within("a wait for what never was", waiting(cx, "a/never", created)).await;
    }

    async fn a_wait_ends_when_the_entry_is_created_again(cx: &Context) {
        for _ in 0..20 {
            let created = cx.put("a/x", "1").await;
            let wait = waiting(cx, "a/x", created);
            cx.delete("a/x").await;
            cx.put("a/x", "2").await;
            cx.within("a wait for an earlier entry", wait).await;
            cx.delete("a/x").await;
        }
    }

    async fn a_cancelled_wait_harms_no_other(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        let key = cx.key("a/x");
        let kept = waiting(cx, "a/x", created);
        for _ in 0..20 {
            let cancelled = pin!(cx.kv.await_gone(&key, created));
            let round_trip = pin!(cx.get("a/y"));
            assert!(matches!(select(cancelled, round_trip).await, Either::Right(_)), "the entry is there");
        }
        cx.delete("a/x").await;
        cx.within("the wait that was kept", kept).await;
    }

    async fn two_hundred_waiters_all_wake(cx: &Context) {
        let created = cx.put("a/x", "1").await;
        let waits: Vec<_> = (0..200).map(|_| waiting(cx, "a/x", created)).collect();
        cx.delete("a/x").await;
        cx.within("200 waits for one entry", join_all(waits)).await;
    }

    async fn each_of_two_hundred_waiters_wakes_for_its_own_entry(cx: &Context) {
        let mut waits = Vec::new();
        for index in 0..200 {
            let key = format!("a/{index}");
            let created = cx.put(&key, "1").await;
            waits.push(waiting(cx, &key, created));
        }
        for (index, wait) in waits.into_iter().enumerate() {
            cx.delete(&format!("a/{index}")).await;
            cx.within("a wait among 200", wait).await;
        }
    }
}

/// Begins to wait, in a task of its own.
fn waiting(cx: &Context, key: &str, created: Revision) -> impl Future<Output = ()> + use<> {
    let (kv, key) = (cx.kv.clone(), cx.key(key));
    cx.spawn(async move { kv.await_gone(&key, created).await.expect("answers") })
}
