//! Leases: they live as long as they are renewed, and never come back.

use std::{collections::BTreeSet, time::Duration};

use coact_core::{
    ErrorKind,
    contract::kv::{Change, Check, LeaseId, Revision},
};

use super::{
    Context, Watching,
    context::{SHORT, assert_kind, guarded, names, put, put_leased, writes},
};

/// Leases are counted in whole seconds by some engines.
const ROUNDING: Duration = Duration::from_secs(1);

cases! {
    async fn a_lease_lives_for_what_was_granted(cx: &Context) {
        let asked = Duration::from_secs(600);
        let lease = cx.kv.lease_grant(asked).await.expect("granted");
        assert!(lease.ttl >= asked);
        let left = cx.left(lease.id).await.expect("it lives");
        assert!(left <= lease.ttl + ROUNDING && left > Duration::ZERO, "{left:?} of {:?}", lease.ttl);
        let renewed = cx.kv.lease_renew(lease.id).await.expect("it lives");
        assert!(renewed >= asked, "renewed for {renewed:?}");
    }

    async fn leases_have_names_of_their_own(cx: &Context) {
        let mut ids = BTreeSet::new();
        for _ in 0..20 {
            let lease = cx.long_lease().await.id;
            assert!(ids.insert(lease), "{lease:?} was granted twice");
        }
        for lease in ids {
            cx.revoke(lease).await;
        }
    }

    async fn a_revoked_lease_takes_its_entries_in_one_revision(cx: &Context) {
        let lease = cx.long_lease().await.id;
        let last = put_three(cx, lease).await;
        let mut watch = cx.watch_dir("a", Some(last)).await;
        cx.revoke(lease).await;
        assert!(cx.list("a").await.entries.is_empty() && cx.get("b/x").await.is_some());
        assert_gone_together(&mut watch).await;
    }

    async fn an_expired_lease_takes_its_entries_in_one_revision(cx: &Context) {
        let lease = cx.short_lease().await.id;
        let last = put_three(cx, lease).await;
        let mut watch = cx.watch_dir("a", Some(last)).await;
        assert_gone_together(&mut watch).await;
        assert!(cx.list("a").await.entries.is_empty() && cx.get("b/x").await.is_some());
        cx.until_ended(lease).await;
    }

    async fn a_revoked_lease_never_comes_back(cx: &Context) {
        let lease = cx.long_lease().await.id;
        cx.revoke(lease).await;
        assert_ended(cx, lease).await;
        // No effect, and no error.
        cx.revoke(lease).await;
    }

    async fn an_expired_lease_never_comes_back(cx: &Context) {
        let lease = cx.short_lease().await.id;
        cx.put_leased("a/x", "1", lease).await;
        cx.until_ended(lease).await;
        assert_eq!(cx.get("a/x").await, None);
        assert_ended(cx, lease).await;
        cx.revoke(lease).await;
    }

    async fn a_lease_that_was_never_granted_has_ended(cx: &Context) {
        let lease = LeaseId((cx.env.random() >> 1) as i64);
        assert_ended(cx, lease).await;
        cx.revoke(lease).await;
    }

    async fn renewal_keeps_a_lease_past_its_length(cx: &Context) {
        // On a machine so busy that a renewal comes late the lease may end: then once more.
        for _ in 0..10 {
            if outlives_its_length(cx).await {
                return;
            }
        }
        panic!("no renewal came in time, ten times over");
    }

    async fn one_lease_does_not_end_with_another(cx: &Context) {
        let (short, long) = (cx.short_lease().await.id, cx.long_lease().await.id);
        cx.commit(writes(vec![put_leased(&cx.key("a/s"), "1", short), put_leased(&cx.key("a/l"), "1", long)])).await;
        cx.until_ended(short).await;
        assert!(cx.left(long).await.is_some());
        assert_eq!(names(&cx.list("a").await), ["l"]);
    }

    async fn many_leases_expire(cx: &Context) {
        let kv = cx.kv.clone();
        let ttl = SHORT.max(kv.guarantees().limits.ttl_min);
        let dir = cx.dir("a");
        cx.parallel(100, |index| {
            let (kv, key) = (kv.clone(), dir.key(&index.to_string()).expect("valid"));
            async move {
                let lease = kv.lease_grant(ttl).await.expect("granted");
                // A busy machine may let it end before.
                match kv.put(&key, "1", Some(lease.id)).await {
                    Err(error) if error.kind() == ErrorKind::Fenced => {}
                    result => drop(result.expect("commits")),
                }
            }
        })
        .await;
        cx.until("all are gone", async || cx.list("a").await.entries.is_empty()).await;
    }
}

/// Puts three leased entries in one dir and one without lease in another.
async fn put_three(cx: &Context, lease: LeaseId) -> Revision {
    let leased = |name: &str| put_leased(&cx.key(name), "1", lease);
    cx.commit(writes(vec![leased("a/x"), leased("a/y"), leased("a/z"), put(&cx.key("b/x"), "1")])).await.0
}

async fn assert_gone_together(watch: &mut Watching) {
    let mut gone = BTreeSet::new();
    let mut revisions = BTreeSet::new();
    for _ in 0..3 {
        let Change::Gone { key, at, .. } = watch.next().await else { panic!("gone") };
        gone.insert(key.name().to_owned());
        revisions.insert(at);
    }
    assert_eq!(gone.into_iter().collect::<Vec<_>>(), ["x", "y", "z"]);
    assert_eq!(revisions.len(), 1, "they went away at several revisions: {revisions:?}");
}

/// Whichever way one asks.
async fn assert_ended(cx: &Context, lease: LeaseId) {
    let key = cx.key("ended/x");
    assert_eq!(cx.left(lease).await, None);
    assert_kind(cx.kv.lease_renew(lease).await, ErrorKind::Fenced);
    assert_kind(cx.kv.put(&key, "1", Some(lease)).await, ErrorKind::Fenced);
    assert_eq!(cx.refusal(guarded(Check::LeaseAlive(lease), put(&key, "1"))).await, (0, None));
    assert_eq!(cx.left(lease).await, None);
}

/// Renews a short lease for twice its length; `false` if a renewal came too late to say anything.
async fn outlives_its_length(cx: &Context) -> bool {
    let lease = cx.short_lease().await;
    let begun = cx.env.now();
    let mut renewed = begun;
    while cx.env.now() - begun < lease.ttl * 2 {
        let result = cx.kv.lease_renew(lease.id).await;
        let now = cx.env.now();
        if result.is_err() && now - renewed >= lease.ttl {
            return false;
        }
        result.expect("a lease that was renewed in time lives");
        renewed = now;
        cx.env.sleep(lease.ttl / 20).await;
    }
    true
}
