//! The directory: registrations, and how long until a watcher sees one.

use std::time::{Duration, Instant};

use coact::{
    KvHandle,
    directory::{Directory, DirectoryOptions, Instance, Mode},
};

use crate::{
    load::{Measured, closed_loop, measured, print},
    peer::Peer,
};

const EMBEDDED: &str = "coact embedded, in process";
const NODE: &str = "coact node, through coact://";
const ETCD: &str = "etcd, through etcd://";

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let embedded = coact::open(&format!("embedded://{}/embedded", dir.path().display())).await.expect("it opens");
    let peers = [Peer::node(dir.path()).await, Peer::etcd(dir.path()).await];
    let stores = [(EMBEDDED, embedded), (NODE, peers[0].open().await), (ETCD, peers[1].open().await)];
    let mut rows = Vec::new();
    for (name, kv) in &stores {
        rows.push(registrations(name, kv, time).await);
    }
    print("register + deregister, 64 clients, durable", ETCD, &rows);
    let mut rows = Vec::new();
    for (name, kv) in &stores {
        rows.push(until_seen(name, kv, time).await);
    }
    print("from the call to register until a watcher elsewhere sees it, one after the other", ETCD, &rows);
}

async fn registrations(name: &str, kv: &KvHandle, time: Duration) -> Measured {
    let directory = Directory::open(kv, DirectoryOptions::default()).expect("a directory");
    closed_loop(name, 64, time, |index| {
        let directory = directory.clone();
        move || {
            let directory = directory.clone();
            async move {
                let instance = Instance::new(format!("bench/{index}"), "10.0.0.1", 80);
                let registered = directory.register(instance, Mode::Ephemeral).await.expect("registered");
                registered.deregister().await.expect("deregistered");
            }
        }
    })
    .await
}

/// Another directory handle watches, as another process would.
async fn until_seen(name: &str, kv: &KvHandle, time: Duration) -> Measured {
    let here = Directory::open(kv, DirectoryOptions::default()).expect("a directory");
    let there = Directory::open(kv, DirectoryOptions::default()).expect("a directory");
    let mut watch = there.watch("seen").await.expect("a watch");
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let instance = Instance::new("seen", "10.0.0.1", 80);
        let sent = Instant::now();
        let registered = here.register(instance, Mode::Ephemeral).await.expect("registered");
        let id = registered.id().to_owned();
        watch.wait_for(|snapshot| snapshot.get(&id).is_some()).await.expect("it is seen");
        took.push(sent.elapsed());
        registered.deregister().await.expect("deregistered");
        watch.wait_for(|snapshot| snapshot.get(&id).is_none()).await.expect("it is seen to go");
    }
    measured(name, took, began.elapsed())
}
