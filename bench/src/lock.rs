//! Pairs of acquire and release, durable, each client on its own lock; and one lock that all want.

use std::time::Duration;

use coact::{
    KvHandle, Session, SessionOptions,
    lock::{Election, Mutex, RwLock, Semaphore},
};

use crate::{
    floor::{GroupCommit, fdatasync},
    load::{Measured, closed_loop, print},
    peer::Peer,
};

/// Takes something and gives it back.
macro_rules! pair {
    ($lock:ident, $take:ident($($argument:expr)?), $give:ident()) => {{
        let lock = $lock.clone();
        async move {
            let held = lock.$take($($argument)?).await.expect("it is granted");
            held.$give().await.expect("it is given back");
        }
    }};
}

/// About what the log writes for an acquire, and for a release: the same bytes for bare group commit.
const ACQUIRE_BYTES: usize = 170;
const RELEASE_BYTES: usize = 80;

const EMBEDDED: &str = "coact embedded, in process";
const NODE: &str = "coact node, through coact://";
const ETCD: &str = "etcd, through etcd://";
const FLOOR: &str = "bare group commit of the same bytes";

pub(crate) async fn run(time: Duration, only: Option<String>) {
    let dir = tempfile::tempdir().expect("a directory");
    let embedded = format!("embedded://{}/embedded", dir.path().display());
    let mut peers = Vec::new();
    let stores = match &only {
        Some(url) => vec![(url.as_str(), coact::open(url).await.expect("it opens"))],
        None => {
            peers = vec![Peer::node(dir.path()).await, Peer::etcd(dir.path()).await];
            let embedded = coact::open(&embedded).await.expect("it opens");
            vec![(EMBEDDED, embedded), (NODE, peers[0].open().await), (ETCD, peers[1].open().await)]
        }
    };
    let floor = GroupCommit::new(dir.path());
    for clients in [1, 64] {
        let mut rows = vec![fdatasync(dir.path(), time / 2, ACQUIRE_BYTES)];
        // A pair is two commits.
        rows[0].per_second /= 2.0;
        rows[0].name = "raw fdatasync, two a pair".to_owned();
        rows.push(group_commit(&floor, clients, time).await);
        for (name, kv) in &stores {
            rows.push(pairs(name, kv, clients, time).await);
        }
        print(&format!("acquire + release pairs, each client its own lock, {clients} clients, durable"), FLOOR, &rows);
        if !peers.is_empty() {
            ratio(&rows, EMBEDDED, ETCD);
            ratio(&rows, NODE, ETCD);
        }
    }
    let mut rows = Vec::new();
    for (name, kv) in &stores {
        rows.push(contended(name, kv, 64, time).await);
    }
    print("the same lock for 64 clients, fair, durable", stores[stores.len() - 1].0, &rows);
    for (name, kv) in &stores {
        family(name, kv, time).await;
    }
}

/// Every kind of lock on one store, uncontended and contended, beside the mutex.
async fn family(store: &str, kv: &KvHandle, time: Duration) {
    const MUTEX: &str = "mutex";
    for (title, clients, own) in [("each client its own", 16, true), ("one for 16 clients", 16, false)] {
        let session = Session::open(kv, SessionOptions::default()).await.expect("a session");
        let name = |index: usize| if own { format!("family/{index}") } else { "family".to_owned() };
        let mutex = closed_loop(MUTEX, clients, time, |index| {
            let lock = Mutex::new(&session, &name(index)).expect("a lock");
            move || pair!(lock, acquire(), release())
        });
        let mut rows = vec![mutex.await];
        let read = closed_loop("rw-lock, read", clients, time, |index| {
            let lock = RwLock::new(&session, &name(index)).expect("a lock");
            move || pair!(lock, read(), release())
        });
        rows.push(read.await);
        let write = closed_loop("rw-lock, write", clients, time, |index| {
            let lock = RwLock::new(&session, &name(index)).expect("a lock");
            move || pair!(lock, write(), release())
        });
        rows.push(write.await);
        let permit = closed_loop("semaphore of 4", clients, time, |index| {
            let lock = Semaphore::new(&session, &name(index), 4).expect("a semaphore");
            move || pair!(lock, acquire(), release())
        });
        rows.push(permit.await);
        let leadership = closed_loop("election", clients, time, |index| {
            let lock = Election::new(&session, &name(index)).expect("an election");
            move || pair!(lock, campaign("me"), resign())
        });
        rows.push(leadership.await);
        print(&format!("{store}: locks of every kind, {title}"), MUTEX, &rows);
        session.close().await.expect("the session ends");
    }
}

fn ratio(rows: &[Measured], over: &str, under: &str) {
    let of = |name: &str| rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.per_second);
    println!("  {over} / {under}: {:.1}", of(over) / of(under));
}

async fn group_commit(floor: &GroupCommit, clients: usize, time: Duration) -> Measured {
    closed_loop(FLOOR, clients, time, |_| {
        let floor = floor.clone();
        move || {
            let floor = floor.clone();
            async move {
                floor.commit(ACQUIRE_BYTES).await;
                floor.commit(RELEASE_BYTES).await;
            }
        }
    })
    .await
}

async fn pairs(name: &str, kv: &KvHandle, clients: usize, time: Duration) -> Measured {
    with_mutexes(name, kv, clients, time, |index| format!("bench/{index}")).await
}

async fn contended(name: &str, kv: &KvHandle, clients: usize, time: Duration) -> Measured {
    with_mutexes(name, kv, clients, time, |_| "bench-one".to_owned()).await
}

async fn with_mutexes(
    name: &str,
    kv: &KvHandle,
    clients: usize,
    time: Duration,
    lock: impl Fn(usize) -> String,
) -> Measured {
    let session = Session::open(kv, SessionOptions::default()).await.expect("a session");
    let measured = closed_loop(name, clients, time, |index| {
        let mutex = Mutex::new(&session, &lock(index)).expect("a lock");
        move || {
            let mutex = mutex.clone();
            async move {
                let guard = mutex.acquire().await.expect("the lock");
                guard.release().await.expect("the release");
            }
        }
    })
    .await;
    session.close().await.expect("the session ends");
    measured
}
