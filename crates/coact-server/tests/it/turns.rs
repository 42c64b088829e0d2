//! The lock and election services: order, one wake-up for each release, and callers that go away.

use coact_engine_etcd::wire::{
    etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest},
    v3electionpb::{CampaignRequest, LeaderRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use coact_server::Server;
use futures::{StreamExt, stream::FuturesUnordered};
use tonic::Code;

use crate::{
    bed::{self, eventually, within},
    client::{Clients, bytes, get_range},
};

async fn start() -> (Server, Clients) {
    let node = bed::node().await;
    let clients = Clients::connect(node.address()).await.expect("the node answers");
    (node, clients)
}

async fn lease(clients: &mut Clients, id: i64) -> i64 {
    clients.lease.lease_grant(LeaseGrantRequest { ttl: 600, id }).await.expect("granted").into_inner().id
}

async fn in_line(clients: &mut Clients) -> usize {
    clients.kv.range(get_range("lock/", "lock0")).await.expect("a range").into_inner().kvs.len()
}

fn request(lease: i64) -> LockRequest {
    LockRequest { name: bytes("lock"), lease }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_granted_in_order_and_wake_one_waiter_each() {
    let (node, mut clients) = start().await;
    let waiters = 50;
    let held = lease(&mut clients, 1_000).await;
    clients.lock.lock(request(held)).await.expect("free");
    let mut waiting = FuturesUnordered::new();
    for number in 1..=waiters {
        let id = lease(&mut clients, 1_000 + number).await;
        let mut lock = clients.lock.clone();
        waiting.push(async move { lock.lock(request(id)).await });
        // The next one comes when this one stands in line, so that the order is known.
        eventually("a place in line", async || {
            assert!(futures::poll!(waiting.next()).is_pending(), "the lock is held");
            in_line(&mut clients).await > number as usize
        })
        .await;
    }
    eventually("everybody waits", async || {
        assert!(futures::poll!(waiting.next()).is_pending(), "the lock is held");
        node.engine().stats().waiters >= waiters as u64
    })
    .await;
    let woken_before = node.engine().stats().wakes;
    let mut key = bytes("lock/3e8");
    for number in 1..=waiters {
        clients.lock.unlock(UnlockRequest { key }).await.expect("unlocked");
        let next = within("the next holder", waiting.next()).await.expect("somebody waits").expect("the lock");
        key = next.into_inner().key;
        assert_eq!(key, bytes(&format!("lock/{:x}", 1_000 + number)), "first come, first served");
    }
    let woken = node.engine().stats().wakes - woken_before;
    assert!(woken <= waiters as u64, "{woken} wake-ups for {waiters} releases");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_the_line() {
    let (node, mut clients) = start().await;
    let (first, second) = (lease(&mut clients, 1).await, lease(&mut clients, 2).await);
    clients.lock.lock(request(first)).await.expect("free");
    let mut lock = clients.lock.clone();
    let mut call = Box::pin(lock.lock(request(second)));
    eventually("the second waits", async || {
        assert!(futures::poll!(&mut call).is_pending(), "the lock is held");
        node.engine().stats().waiters > 0
    })
    .await;
    drop(call);
    eventually("only the holder is left", async || in_line(&mut clients).await == 1).await;

    // One that asks again for what its lease has, and goes away, takes nothing from it.
    let again = clients.lock.clone().lock(request(first)).await.expect("held by the same lease");
    assert_eq!(again.into_inner().key, bytes("lock/1"));
    assert_eq!(in_line(&mut clients).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_whose_lease_ends_is_told_at_once() {
    let (node, mut clients) = start().await;
    let (first, second) = (lease(&mut clients, 1).await, lease(&mut clients, 2).await);
    clients.lock.lock(request(first)).await.expect("free");
    let mut lock = clients.lock.clone();
    let mut call = Box::pin(lock.lock(request(second)));
    eventually("the second waits", async || {
        assert!(futures::poll!(&mut call).is_pending(), "the lock is held");
        node.engine().stats().waiters > 0
    })
    .await;
    clients.lease.lease_revoke(LeaseRevokeRequest { id: second }).await.expect("revoked");
    let status = within("the refusal", call).await.expect_err("it has no lease any more");
    assert_eq!((status.code(), status.message()), (Code::Unknown, "mutex: session is expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_lease_gets_one_that_ends() {
    let (node, mut clients) = start().await;
    let key = clients.lock.lock(request(0)).await.expect("free").into_inner().key;
    let leases = node.engine().leases();
    assert_eq!(leases.len(), 1);
    assert_eq!(key, bytes(&format!("lock/{:x}", leases[0])));
    let granted = node.engine().lease_status(leases[0]).expect("alive").granted;
    assert_eq!(granted.as_secs(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_candidate_leads_when_the_leaders_lease_ends() {
    let (_node, mut clients) = start().await;
    let (first, second) = (lease(&mut clients, 1).await, lease(&mut clients, 2).await);
    let campaign = |lease, value: &str| CampaignRequest { name: bytes("post"), lease, value: bytes(value) };
    clients.election.campaign(campaign(first, "one")).await.expect("vacant");
    let mut observed =
        clients.election.observe(LeaderRequest { name: bytes("post") }).await.expect("a stream").into_inner();
    let mut leader = async || {
        let response = within("a leader", observed.next()).await.expect("open").expect("a leader");
        response.kv.expect("its key").value
    };
    assert_eq!(leader().await, "one");
    let mut election = clients.election.clone();
    let waiting = election.campaign(campaign(second, "two"));
    let ending = clients.lease.lease_revoke(LeaseRevokeRequest { id: first });
    let (won, ended) = within("the second leader", async { tokio::join!(waiting, ending) }).await;
    ended.expect("revoked");
    assert_eq!(won.expect("elected").into_inner().leader.expect("a key").key, bytes("post/2"));
    assert_eq!(leader().await, "two");
}
