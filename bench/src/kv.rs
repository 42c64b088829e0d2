//! Puts and reads of 100 bytes; and a million keys: how long opening takes, and how much memory a key takes.

use std::time::{Duration, Instant};

use coact::{
    Key, KvHandle, Realm,
    kv::{Txn, TxnOutcome, Write},
};

use crate::{
    floor::{GroupCommit, fdatasync},
    load::{Measured, closed_loop, print},
    peer::{Peer, resident},
};

const VALUE_BYTES: usize = 100;
const FLOOR: &str = "bare group commit of the same bytes";
const MILLION: usize = 1_000_000;

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let embedded = coact::open(&format!("embedded://{}/embedded", dir.path().display())).await.expect("it opens");
    let (node, etcd) = (Peer::node(dir.path()).await, Peer::etcd(dir.path()).await);
    let (node_kv, etcd_kv) = (node.open().await, etcd.open().await);
    let floor = GroupCommit::new(dir.path());
    for clients in [1, 64] {
        let rows = vec![
            fdatasync(dir.path(), time / 2, VALUE_BYTES + 50),
            closed_loop(FLOOR, clients, time, |_| {
                let floor = floor.clone();
                move || {
                    let floor = floor.clone();
                    async move { floor.commit(VALUE_BYTES + 50).await }
                }
            })
            .await,
            puts("coact embedded, in process", &embedded, clients, time).await,
            puts("coact node, through coact://", &node_kv, clients, time).await,
            puts("etcd, through etcd://", &etcd_kv, clients, time).await,
        ];
        print(&format!("puts of {VALUE_BYTES} B, {clients} clients, durable"), FLOOR, &rows);
    }
    let rows = vec![
        gets("coact embedded, in process", &embedded, time).await,
        gets("coact node, through coact://", &node_kv, time).await,
        gets("etcd, through etcd://", &etcd_kv, time).await,
    ];
    print("linearizable reads of one key, 64 clients", "etcd, through etcd://", &rows);
    embedded.close().await.expect("it closes");
    drop((node, etcd));
    million(dir.path()).await;
}

fn key(client: usize, index: usize) -> Key {
    Key::new(&Realm::default(), &format!("bench/{client}"), &format!("{index:08}")).expect("a key")
}

async fn puts(name: &str, kv: &KvHandle, clients: usize, time: Duration) -> Measured {
    closed_loop(name, clients, time, |client| {
        let kv = kv.clone();
        let mut index = 0;
        move || {
            index = (index + 1) % 100;
            let (kv, key) = (kv.clone(), key(client, index));
            async move {
                kv.put(&key, vec![7; VALUE_BYTES], None).await.expect("a put");
            }
        }
    })
    .await
}

async fn gets(name: &str, kv: &KvHandle, time: Duration) -> Measured {
    closed_loop(name, 64, time, |_| {
        let (kv, key) = (kv.clone(), key(0, 1));
        move || {
            let (kv, key) = (kv.clone(), key.clone());
            async move { assert!(kv.get(&key).await.expect("a read").is_some(), "it was put before") }
        }
    })
    .await
}

/// Fills a store with a million keys, then opens it in processes of its own, as after a clean end and as after a crash.
async fn million(dir: &std::path::Path) {
    println!("\na million keys of {VALUE_BYTES} B, embedded");
    let url = format!("embedded://{}/million", dir.display());
    let payload = fill(&url).await;
    // In a process of its own, where no memory was used and given back before.
    let program = std::env::current_exe().expect("this program");
    let arguments = ["open", &url, &payload.to_string()];
    let status = tokio::process::Command::new(program).args(arguments).status().await.expect("it runs");
    assert!(status.success(), "{status}");
}

/// Opens a store of a million keys and prints what that took.
pub(crate) async fn open(url: &str, payload: usize) {
    let before = resident();
    let began = Instant::now();
    let kv = coact::open(url).await.expect("it opens");
    let took = began.elapsed();
    let grown = resident().saturating_sub(before);
    let over = (grown as f64 - payload as f64) / MILLION as f64;
    println!(
        "  open: {:.2} s   memory: {:.0} MB resident, {over:.0} B a key over the payload",
        took.as_secs_f64(),
        grown as f64 / 1e6
    );
    kv.close().await.expect("it closes");
}

/// Returns the bytes of all keys and values.
async fn fill(url: &str) -> usize {
    let kv = coact::open(url).await.expect("it opens");
    let realm = Realm::default();
    let mut payload = 0;
    let mut running = Vec::new();
    for first in (0..MILLION).step_by(16) {
        let writes: Vec<_> = (first..(first + 16).min(MILLION))
            .map(|index| Write::Put { key: key(index / 1000, index), value: vec![7; VALUE_BYTES].into(), lease: None })
            .collect();
        payload += writes
            .iter()
            .map(|write| write.key().to_flat(&coact::Namespace::default()).len() + VALUE_BYTES)
            .sum::<usize>();
        let (kv, realm) = (kv.clone(), realm.clone());
        running.push(tokio::spawn(async move { kv.txn(&realm, Txn { writes, ..Txn::default() }).await }));
        if running.len() == 1000 {
            for done in running.drain(..) {
                let outcome = done.await.expect("a task").expect("a txn");
                assert!(matches!(outcome, TxnOutcome::Committed { .. }), "nothing is checked");
            }
        }
    }
    for done in running {
        let _ = done.await.expect("a task").expect("a txn");
    }
    kv.close().await.expect("it closes");
    payload
}
