//! The engine against real servers: what it declares, refuses and survives.

mod failover;
mod secure;
mod server;

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::kv::{Change, KvHandle, Revision, Scope, Txn, Write},
    env::Env,
    error::Effect,
    guarantees::{Durability, Fence},
    name::{Dir, Key, Realm},
};
use coact_testkit::{
    bed::PATIENCE,
    fault::{Direction, Proxy},
};
use futures::StreamExt as _;
use server::{Server, open, refusal};

fn key(text: &str) -> Key {
    Key::parse(&Realm::default(), text).expect("a key")
}

fn dir(text: &str) -> Dir {
    Dir::new(&Realm::default(), text).expect("a dir")
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
}

/// A put that is repeated until a server takes it.
async fn put_at_last(kv: &KvHandle, text: &str) -> Revision {
    within("a put", async {
        loop {
            match kv.put(&key(text), "x", None).await {
                Ok(revision) => return revision,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            Env::real().sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn it_declares_what_the_settings_give() {
    for (setting, durability, fence) in [
        ("always", Durability::Sync, Fence::Strong),
        ("everysec", Durability::Interval(Duration::from_secs(2)), Fence::Epoch),
        ("no", Durability::Os, Fence::Epoch),
    ] {
        let server = Server::start(&["--appendfsync", setting]).await;
        let guarantees = *open(&server.url()).await.expect("it opens").guarantees();
        assert_eq!((guarantees.writes, guarantees.fence), (durability, fence), "{setting}");
    }
    let forgets = Server::start(&["--appendonly", "no"]).await;
    let guarantees = *open(&forgets.url()).await.expect("it opens").guarantees();
    assert_eq!((guarantees.writes, guarantees.fence), (Durability::Memory, Fence::PerProcess));
}

#[tokio::test]
async fn it_refuses_servers_that_it_cannot_work_on() {
    let evicts = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let error = refusal(&evicts.url()).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("allkeys-lru") && error.to_string().contains("noeviction"), "{error}");

    let primary = Server::start(&[]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]).await;
    let error = refusal(&replica.url()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("is a replica of 127.0.0.1:{}", primary.port)), "{error}");
    // Given both, it finds the one that takes writes.
    let both = format!("redis://127.0.0.1:{},127.0.0.1:{}", replica.port, primary.port);
    open(&both).await.expect("one is the primary").put(&key("a/x"), "1", None).await.expect("commits");

    let error = refusal(&format!("{}?sentinel=main", primary.url())).await;
    assert!(error.to_string().contains("is no Sentinel"), "{error}");
    let error = refusal("redis://127.0.0.1:1").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("no Redis primary answers: 127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_an_unknown_effect() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port).parse().expect("an address")).await.expect("starts");
    let kv = open(&format!("redis://{}?timeout=500ms", proxy.address())).await.expect("it opens");
    // A server that does not know the script yet answers once more before it runs it.
    kv.put(&key("a/y"), "1", None).await.expect("commits");
    proxy.hold(Direction::Down);
    let error = kv.put(&key("a/x"), "1", None).await.expect_err("no answer");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    let error = kv.get(&key("a/x")).await.expect_err("no answer");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::NotApplied), "{error}");
    proxy.mend();
    // It had arrived.
    let found = within("a read", async {
        loop {
            if let Ok(found) = kv.get(&key("a/x")).await {
                return found;
            }
        }
    })
    .await;
    assert!(found.is_some());
}

#[tokio::test]
async fn what_was_certainly_not_sent_is_sent_to_the_next_connection() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port).parse().expect("an address")).await.expect("starts");
    let kv = open(&format!("redis://{}", proxy.address())).await.expect("it opens");
    for round in 0..10 {
        proxy.cut();
        proxy.mend();
        let connections = proxy.traffic().connections;
        within("a new connection", async {
            while proxy.traffic().connections == connections {
                let _ = kv.get(&key("a/x")).await;
            }
        })
        .await;
        kv.put(&key("a/x"), round.to_string(), None).await.expect("nothing is wrong any more");
    }
}

#[tokio::test]
async fn a_watch_goes_on_over_lost_connections_without_a_gap() {
    let server = Server::start(&[]).await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port).parse().expect("an address")).await.expect("starts");
    let kv = open(&server.url()).await.expect("it opens");
    let through = open(&format!("redis://{}", proxy.address())).await.expect("it opens");
    let mut feed = through.watch(Scope::Dir(dir("a")), None).await.expect("a watch");
    for round in 0..200 {
        if round % 20 == 10 {
            proxy.cut();
            proxy.mend();
        }
        kv.put(&key("a/x"), round.to_string(), None).await.expect("commits");
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        match within("a change", feed.next()).await.expect("goes on").expect("no error") {
            Change::Put(entry) => seen.push(entry.value),
            Change::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.iter().enumerate().all(|(round, value)| value == round.to_string().as_bytes()), "{seen:?}");
}

#[tokio::test]
async fn a_trimmed_history_is_a_resync() {
    let server = Server::start(&["--stream-node-max-entries", "10"]).await;
    let kv = open(&format!("{}?history=20", server.url())).await.expect("it opens");
    let first = kv.put(&key("a/x"), "0", None).await.expect("commits");
    let mut last = first;
    for round in 0..100 {
        last = kv.put(&key("a/x"), round.to_string(), None).await.expect("commits");
    }
    let kept: usize = server.cli(&["xlen", "coact:{main}:changes"]).parse().expect("a number");
    assert!((20..=40).contains(&kept), "{kept} changes are kept");
    let mut feed = kv.watch(Scope::Key(key("a/x")), Some(first)).await.expect("a watch");
    let change = within("a change", feed.next()).await.expect("goes on").expect("no error");
    assert!(matches!(change, Change::Resync { at, .. } if at == last), "{change:?}");
    // The control: what is kept is told.
    let mut feed = kv.watch(Scope::Key(key("a/x")), Some(Revision(last.0 - 1))).await.expect("a watch");
    let change = within("a change", feed.next()).await.expect("goes on").expect("no error");
    assert!(matches!(&change, Change::Put(entry) if entry.modified == last), "{change:?}");
}

#[tokio::test]
async fn a_lease_of_ten_thousand_entries_ends_at_once() {
    let server = Server::start(&["--appendfsync", "no"]).await;
    let kv = open(&server.url()).await.expect("it opens");
    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted").id;
    for chunk in 0..625 {
        let put = |index| Write::Put {
            key: key(&format!("many/{chunk:03}-{index:02}")),
            value: "x".into(),
            lease: Some(lease),
        };
        let writes = (0..16).map(put).collect();
        let _ = kv.txn(&Realm::default(), Txn { writes, ..Txn::default() }).await.expect("commits");
    }
    let mut feed = kv.watch(Scope::Dir(dir("many")), None).await.expect("a watch");
    kv.lease_revoke(lease).await.expect("answers");
    let mut at = Vec::new();
    while at.len() < 10_000 {
        match within("a change", feed.next()).await.expect("goes on").expect("no error") {
            Change::Gone { at: revision, .. } => at.push(revision),
            Change::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(at.iter().all(|revision| *revision == at[0]), "at one revision");
    assert_eq!(server.cli(&["keys", "coact:{main}:?:*"]), "", "nothing is left behind");
}

#[tokio::test]
async fn a_server_without_memory_says_so_and_changes_nothing() {
    let server = Server::start(&[]).await;
    let kv = open(&server.url()).await.expect("it opens");
    kv.put(&key("a/x"), "1", None).await.expect("commits");
    server.cli(&["config", "set", "maxmemory", "1"]);
    let error = kv.put(&key("a/x"), "2", None).await.expect_err("no memory");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Exhausted, Effect::NotApplied), "{error}");
    assert_eq!(kv.get(&key("a/x")).await.expect("answers").expect("is there").value, "1");
    server.cli(&["config", "set", "maxmemory", "0"]);
    kv.put(&key("a/x"), "3", None).await.expect("commits again");
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let server = Server::start(&[]).await;
    let kv = open(&server.url()).await.expect("it opens");
    for round in 0..3 {
        server.cli(&["script", "flush"]);
        kv.put(&key("a/x"), round.to_string(), None).await.expect("commits");
    }
}
