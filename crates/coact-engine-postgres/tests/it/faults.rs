//! Lost connections, servers that end, and requests that nobody waits for any more.

use std::{net::SocketAddr, time::Duration};

use coact_core::{
    ErrorKind,
    contract::kv::{Change, Scope},
    env::Env,
    error::Effect,
    guarantees::WakeUp,
};
use coact_testkit::fault::{Direction, Proxy};

use crate::server::{
    client, dir, key, kv, next, next_name, open, postgres_kv, put, realm, start, until, value, within, writes,
};

#[tokio::test]
async fn a_write_whose_answer_is_lost_may_have_happened_and_a_read_is_repeated() {
    let server = start(&[]).await;
    let direct = kv(&server).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], server.port))).await.expect("a proxy");
    let url = format!("{}?application_name=through", server.url_at(proxy.address().port(), "main"));
    let kv = open(&url).await.expect("it opens");
    kv.put(&key("a/x"), "0", None).await.expect("commits");
    // Mended only when no old connection is left that could still bring an answer.
    let through = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'through'";
    let cut = async || {
        proxy.cut();
        until("the connections are gone", async || server.sql(through).expect("runs") == "0").await;
        proxy.mend();
    };

    proxy.hold(Direction::Down);
    let held = key("a/x");
    let (written, ()) = futures::join!(kv.put(&held, "1", None), async {
        until("the server has done it", async || value(&direct, "a/x").await.as_deref() == Some("1")).await;
        cut().await;
    });
    let error = written.expect_err("the answer is lost");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");

    // The same happens to a read, and nobody notices.
    assert_eq!(value(&kv, "a/x").await.as_deref(), Some("1"));
    proxy.hold(Direction::Down);
    let before = proxy.traffic().bytes_up;
    let (read, ()) = futures::join!(value(&kv, "a/x"), async {
        until("it is sent", async || proxy.traffic().bytes_up > before).await;
        cut().await;
    });
    assert_eq!(read.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_and_nothing_was_applied() {
    let server = start(&[]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], server.port))).await.expect("a proxy");
    let url = format!("{}?timeout=500ms", server.url_at(proxy.address().port(), "main"));
    let kv = open(&url).await.expect("it opens");
    proxy.cut();
    let error = loop {
        // The connections of the pool first have to notice.
        match kv.put(&key("a/x"), "1", None).await.expect_err("nobody is there") {
            error if error.effect() == Effect::Unknown => {}
            error => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("cannot reach PostgreSQL at 127.0.0.1"), "{error}");
    proxy.mend();
    until("it works again", async || kv.put(&key("a/x"), "1", None).await.is_ok()).await;
}

#[tokio::test]
async fn a_silent_host_is_passed_over_for_a_live_one() {
    let (silent, server) = (start(&[]).await, start(&[]).await);
    silent.pause().expect("it runs");
    let both = server.url("main").replace("@127.0.0.1", &format!("@127.0.0.1:{},127.0.0.1", silent.port));
    let kv = open(&format!("{both}?connect_timeout=200ms")).await.expect("one is alive");
    kv.put(&key("a/x"), "1", None).await.expect("commits");
    assert_eq!(kv.guarantees().wake, WakeUp::Told);
    let alone = format!("{}?timeout=300ms", silent.url("main"));
    let error = open(&alone).await.expect_err("nobody answers");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{error}");
}

#[tokio::test]
async fn a_watch_goes_on_without_loss_when_its_connections_break() {
    let server = start(&[]).await;
    let (kv, other) = (kv(&server).await, kv(&server).await);
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
    for round in 0..5 {
        server
            .sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'coact'")
            .expect("runs");
        // A session may end under the request: that is unknown, and twice is as good as once here.
        until("a put commits", async || other.put(&key(&format!("w/{round}")), "1", None).await.is_ok()).await;
        loop {
            if next_name(&mut feed).await == round.to_string() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_went_back_in_time_is_a_resync_and_not_a_silent_gap() {
    let server = start(&[]).await;
    let kv = kv(&server).await;
    for _ in 0..5 {
        kv.put(&key("w/a"), "0", None).await.expect("commits");
    }
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
    // As a copy of yesterday would have it.
    server.sql("UPDATE coact.realm SET revision = 2; DELETE FROM coact.change WHERE revision > 2").expect("runs");
    let Change::Resync { why, .. } = next(&mut feed).await else { panic!("no resync") };
    assert_eq!(why, "the store went back to revision 2");
    kv.put(&key("w/new"), "1", None).await.expect("commits");
    assert_eq!(next_name(&mut feed).await, "new");
}

#[tokio::test]
async fn a_request_that_was_given_up_does_not_wait_on_in_the_server() {
    let server = start(&[]).await;
    let kv = postgres_kv(&server).await;
    let impatient = open(&format!("{}?timeout=500ms", server.url("main"))).await.expect("it opens");
    let mut client = client(&server).await;
    let transaction = client.transaction().await.expect("it begins");
    let outcome = kv.txn_in(&transaction, &realm(), writes(vec![put("a/x", "held")])).await.expect("it runs");
    let error = impatient.put(&key("a/x"), "late", None).await.expect_err("the realm is held");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    // And one whose future was dropped.
    let dropped = Env::real().timeout(Duration::from_millis(100), impatient.put(&key("a/x"), "dropped", None)).await;
    assert!(dropped.is_none());
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("nobody waits", async || server.sql(waiting).expect("runs") == "0").await;
    transaction.commit().await.expect("it commits");
    drop(outcome);
    within("another put", impatient.put(&key("a/y"), "1", None)).await.expect("commits");
    assert_eq!(value(&impatient, "a/x").await.as_deref(), Some("held"));
}

#[tokio::test]
async fn a_slow_consumer_loses_nothing_and_holds_up_nobody() {
    let server = start(&["fsync=off"]).await;
    let kv = kv(&server).await;
    let mut slow = kv.watch(Scope::Dir(dir("s")), None).await.expect("it watches");
    let mut quick = kv.watch(Scope::Key(key("s/last")), None).await.expect("it watches");
    for index in 0..200 {
        let all = (0..16).map(|part| put(&format!("s/{index}-{part:02}"), "v")).collect();
        kv.txn(&realm(), writes(all)).await.map(drop).expect("commits");
    }
    kv.put(&key("s/last"), "v", None).await.expect("commits");
    assert_eq!(next_name(&mut quick).await, "last");
    for index in 0..200 {
        for part in 0..16 {
            assert_eq!(next_name(&mut slow).await, format!("{index}-{part:02}"));
        }
    }
}

#[tokio::test]
async fn a_handle_that_is_closed_or_dropped_leaves_no_connection() {
    let server = start(&[]).await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'coact'";
    for closes in [true, false] {
        let kv = kv(&server).await;
        let feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
        kv.put(&key("w/a"), "1", None).await.expect("commits");
        assert_ne!(server.sql(count).expect("runs"), "0");
        if closes {
            kv.close().await.expect("closes");
        }
        drop((kv, feed));
        until("the connections are gone", async || server.sql(count).expect("runs") == "0").await;
    }
}
