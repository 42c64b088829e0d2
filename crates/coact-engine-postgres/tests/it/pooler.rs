//! Behind a pooler that gives every transaction another session.

use std::{fs, net::TcpStream, path::Path, time::Duration};

use coact_core::{
    contract::kv::{Check, Read, Scope, Txn, TxnOutcome, Write},
    env::Env,
    guarantees::WakeUp,
};
use coact_testkit::bed::{Postgres, ServerProcess, free_port};
use futures::future::join_all;

use crate::server::{dir, key, kv, next, next_name, open, realm, start, until, value, within, writes};

const BINARY: &str = "/usr/sbin/pgbouncer";

/// pgbouncer before a server, in transaction mode.
struct Pooler {
    _process: ServerProcess,
    port: u16,
}

impl Pooler {
    async fn start(server: &Postgres) -> Self {
        assert!(Path::new(BINARY).exists(), "{BINARY} is missing: apt-get install pgbouncer");
        let dir = server.dir();
        let users = dir.join("users");
        fs::write(&users, format!("\"coact\" \"{}\"\n", server.password())).expect("a file");
        for _ in 0..5 {
            let port = free_port().expect("a port");
            let settings = format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
                 unix_socket_dir=\nauth_type=scram-sha-256\nauth_file={}\npool_mode=transaction\ndefault_pool_size=4\n",
                server.port,
                users.display()
            );
            let file = dir.join("pgbouncer.ini");
            fs::write(&file, settings).expect("a file");
            for file in [&file, &users] {
                Postgres::own(file).expect("given away");
            }
            let mut command = server.command(Path::new(BINARY));
            let mut process = ServerProcess::start(command.arg(&file), &dir.join("pooler.log")).expect("it runs");
            until("the pooler listens or has ended", async || {
                !process.is_running() || TcpStream::connect(("127.0.0.1", port)).is_ok()
            })
            .await;
            if process.is_running() {
                return Self { _process: process, port };
            }
        }
        panic!("the pooler did not start");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_by_polling_behind_a_pooler_and_that_is_declared() {
    let server = start(&[]).await;
    let direct = kv(&server).await;
    let pooler = Pooler::start(&server).await;
    let url = server.url_at(pooler.port, "main");
    let (kv, other) = (open(&url).await.expect("it opens"), open(&url).await.expect("it opens"));
    assert_eq!(kv.guarantees().wake, WakeUp::Polls(Duration::from_millis(100)));
    assert_eq!(direct.guarantees().wake, WakeUp::Told, "without a pooler it is told");

    // More clients than the pooler has sessions.
    join_all((0..16).map(async |task| {
        let kv = if task % 2 == 0 { &kv } else { &other };
        for _ in 0..10 {
            let mut txn = writes(vec![Write::Incr { key: key("n/x"), by: 1 }]);
            txn.reads.push(Read::Get(key("n/x")));
            let outcome = kv.txn(&realm(), txn).await.expect("it runs");
            assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
        }
    }))
    .await;
    assert_eq!(value(&direct, "n/x").await.as_deref(), Some("160"));

    // Watches and waits, of changes by the same handle, by another, and by one that does not go through the pooler.
    let mut feed = kv.watch(Scope::Dir(dir("w")), None).await.expect("it watches");
    for (index, writer) in [&kv, &other, &direct].into_iter().enumerate() {
        let name = format!("w/{index}");
        let created = writer.put(&key(&name), "1", None).await.expect("commits");
        assert_eq!(next_name(&mut feed).await, index.to_string());
        let (waiter, held) = (kv.clone(), key(&name));
        let (told, gone) = tokio::sync::oneshot::channel();
        Env::real().spawn(async move {
            let _ = told.send(waiter.await_gone(&held, created).await);
        });
        writer.delete(&key(&name)).await.expect("commits");
        within("a wake-up", gone).await.expect("the task lives").expect("it answers");
        next(&mut feed).await;
    }

    // A queue as of a lock: each puts its entry behind the last one, and waits for that to go.
    let lease = kv.lease_grant(Duration::from_secs(60)).await.expect("granted").id;
    let (first, second) = (key("lock/first"), key("lock/second"));
    let enter = |key: &coact_core::name::Key| Txn {
        checks: vec![Check::Absent(key.clone()), Check::LeaseAlive(lease)],
        reads: vec![Read::Last(dir("lock"))],
        writes: vec![Write::Put { key: key.clone(), value: "".into(), lease: Some(lease) }],
    };
    let outcome = kv.txn(&realm(), enter(&first)).await.expect("it runs");
    assert!(matches!(outcome, TxnOutcome::Committed { .. }), "{outcome:?}");
    let outcome = other.txn(&realm(), enter(&second)).await.expect("it runs");
    let TxnOutcome::Committed { reads, .. } = outcome else { panic!("{outcome:?}") };
    let held = reads[0].entry().expect("the one before").clone();
    assert_eq!(held.key, first);
    let (freed, woken) = futures::join!(kv.delete(&first), within("its turn", other.await_gone(&first, held.created)));
    freed.expect("commits");
    woken.expect("it answers");
    kv.lease_revoke(lease).await.expect("revoked");
    assert_eq!(value(&other, "lock/second").await, None);
}
