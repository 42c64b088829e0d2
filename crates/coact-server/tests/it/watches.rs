//! Watches under load: notices, progress, slow readers, many on one stream, and large histories.

use std::{collections::HashMap, time::Duration};

use coact_engine_etcd::wire::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchResponse, watch_request::RequestUnion,
};
use coact_server::{Limits, Server};

use crate::{
    bed::{self, eventually},
    client::{Clients, WatchStream, bytes, op, put, txn},
};

fn on(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: bytes(key), range_end: bytes(end), ..WatchCreateRequest::default() }
}

async fn start(limits: Limits) -> (Server, Clients) {
    let node = bed::node_with(limits).await;
    let clients = Clients::connect(node.address()).await.expect("the node answers");
    (node, clients)
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    stream.next().await.expect("the stream is open")
}

fn revision(response: &WatchResponse) -> i64 {
    response.header.expect("a header").revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_that_asked_is_told_how_far_it_is() {
    let (_node, mut clients) = start(Limits { progress_every: Duration::from_millis(20), ..Limits::default() }).await;
    let mut stream = clients.watch(on("silent", "")).await;
    next(&mut stream).await;
    stream.create(WatchCreateRequest { progress_notify: true, ..on("quiet", "") });
    assert_eq!(next(&mut stream).await.watch_id, 1);
    let elsewhere = clients.kv.put(put("elsewhere", "")).await.expect("put").into_inner();
    loop {
        let notice = next(&mut stream).await;
        assert_eq!((notice.watch_id, notice.events.len(), notice.created, notice.canceled), (1, 0, false, false));
        if revision(&notice) == elsewhere.header.expect("a header").revision {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_answered_after_everything_before_it() {
    let (node, mut clients) = start(Limits::default()).await;
    let mut stream = clients.watch(on("\0", "\0")).await;
    next(&mut stream).await;
    for round in 0..50 {
        for at in 0..20 {
            clients.kv.put(put(&format!("{round}/{at}"), "")).await.expect("put");
        }
        let asked_at = node.engine().revision() as i64;
        stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        let mut seen = 0;
        loop {
            let response = next(&mut stream).await;
            if response.watch_id == -1 {
                assert!(response.events.is_empty() && revision(&response) >= asked_at);
                break;
            }
            seen += response.events.len();
        }
        assert_eq!(seen, 20, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_nobody_and_misses_nothing() {
    let (node, mut clients) = start(Limits::default()).await;
    // On a connection of its own: what it does not read fills that one's window only.
    let mut other = Clients::connect(node.address()).await.expect("the node answers");
    let mut slow = other.watch(on("k", "l")).await;
    let mut quick = clients.watch(on("k", "l")).await;
    next(&mut slow).await;
    next(&mut quick).await;
    let (writes, value) = (400, "x".repeat(32 * 1024));
    for at in 0..writes {
        clients.kv.put(put(&format!("k{at}"), &value)).await.expect("put");
    }
    for stream in [&mut quick, &mut slow] {
        let mut expected = 0;
        while expected < writes {
            for event in next(stream).await.events {
                assert_eq!(event.kv.expect("a key").key, format!("k{expected}"));
                expected += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watches_share_a_stream() {
    let (node, mut clients) = start(Limits::default()).await;
    let count = 1_000;
    let key = |at: i64| format!("many/{at}");
    let mut stream = clients.watch(WatchCreateRequest { watch_id: 1, ..on(&key(1), "") }).await;
    for at in 2..=count {
        stream.create(WatchCreateRequest { watch_id: at, ..on(&key(at), "") });
    }
    for at in 1..=count {
        let created = next(&mut stream).await;
        assert_eq!((created.watch_id, created.created), (at, true));
    }
    for at in (1..=count).step_by(2) {
        stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: at }));
        assert!(next(&mut stream).await.canceled);
    }
    eventually("the engine forgets them", async || node.engine().stats().watchers == 500).await;
    for chunk in (1..=count).collect::<Vec<_>>().chunks(100) {
        let puts = chunk.iter().map(|at| op(put(&key(*at), ""))).collect();
        clients.kv.txn(txn(vec![], puts, vec![])).await.expect("put");
    }
    let mut told = HashMap::new();
    for _ in 0..count / 2 {
        let response = next(&mut stream).await;
        assert_eq!(response.events.len(), 1);
        let kv = response.events[0].kv.clone().expect("a key");
        assert!(told.insert(response.watch_id, kv.key).is_none(), "once each");
    }
    assert!(told.iter().all(|(at, told)| at % 2 == 0 && *told == key(*at)));
    drop(stream);
    eventually("nothing is left behind", async || node.engine().stats().watchers == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_past_comes_in_bearable_pieces_that_split_no_revision() {
    let (_node, mut clients) = start(Limits::default()).await;
    let value = "x".repeat(100 * 1024);
    for at in 0..60 {
        let pair = vec![op(put(&format!("a/{at}"), &value)), op(put(&format!("b/{at}"), &value))];
        clients.kv.txn(txn(vec![], pair, vec![])).await.expect("put");
    }
    let mut stream = clients.watch(WatchCreateRequest { start_revision: 1, prev_kv: true, ..on("\0", "\0") }).await;
    next(&mut stream).await;
    let (mut seen, mut last, mut pieces) = (0, 0, 0);
    while seen < 120 {
        let response = next(&mut stream).await;
        let revisions: Vec<_> =
            response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision).collect();
        assert!(revisions.is_sorted() && revisions[0] > last, "a revision is split");
        assert!(revision(&response) >= *revisions.last().expect("events"));
        assert!(revisions.len() <= 14, "{} events of 100 KiB in one response", revisions.len());
        last = *revisions.last().expect("events");
        seen += revisions.len();
        pieces += 1;
    }
    assert!(pieces > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_revision_comes_in_one_response_while_it_happens() {
    let (_node, mut clients) = start(Limits::default()).await;
    let mut stream = clients.watch(on("t/", "t0")).await;
    next(&mut stream).await;
    let keys: Vec<_> = (0..100).map(|at| format!("t/{at:02}")).collect();
    for round in 0..200 {
        let puts = keys.iter().map(|key| op(put(key, "x"))).collect();
        clients.kv.txn(txn(vec![], puts, vec![])).await.expect("put");
        let events = next(&mut stream).await.events;
        assert_eq!(events.len(), keys.len(), "round {round}: a revision is split");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_watch_does_not_stop_the_others() {
    let (_node, mut clients) = start(Limits::default()).await;
    let mut stream = clients.watch(on("stays", "")).await;
    next(&mut stream).await;
    for round in 0..20 {
        stream.create(WatchCreateRequest { watch_id: 7, ..on("goes", "") });
        assert!(next(&mut stream).await.created);
        stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 }));
        assert!(next(&mut stream).await.canceled);
        clients.kv.put(put("stays", "")).await.expect("put");
        assert_eq!(next(&mut stream).await.events.len(), 1, "round {round}");
    }
}
