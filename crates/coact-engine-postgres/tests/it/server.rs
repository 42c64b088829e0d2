//! A server of its own for each test, and short forms of what tests say often.

use std::future::Future;

use bytes::Bytes;
use coact_core::{
    Result,
    contract::kv::{Change, Feed, KvHandle, Txn, Write},
    env::Env,
    name::{Dir, Key, Realm},
    registry::Registry,
};
use coact_engine_postgres::{
    PostgresKv,
    tokio_postgres::{Client, NoTls},
};
use coact_testkit::bed::{PATIENCE, Postgres, wait_until};
use futures::StreamExt as _;

pub(crate) async fn start(settings: &[&str]) -> Postgres {
    Postgres::start(settings).await.expect("PostgreSQL starts")
}

pub(crate) async fn open(url: &str) -> Result<KvHandle> {
    Registry::default()
        .with(coact_engine_postgres::driver())
        .open(url.parse()?, Env::real())
        .await
        .map(|store| store.kv().clone())
}

pub(crate) async fn kv(server: &Postgres) -> KvHandle {
    open(&server.url("main")).await.expect("it opens")
}

pub(crate) async fn postgres_kv(server: &Postgres) -> PostgresKv {
    PostgresKv::open(server.url("main").parse().expect("a URL"), Env::real()).await.expect("it opens")
}

/// Another program's connection to the same database.
pub(crate) async fn client(server: &Postgres) -> Client {
    let mut config = coact_engine_postgres::tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port).user("coact").password(server.password());
    let (client, connection) = config.connect(NoTls).await.expect("it connects");
    Env::real().spawn(async move {
        // Ends with the client.
        let _ = connection.await;
    });
    client
}

pub(crate) fn realm() -> Realm {
    Realm::default()
}

pub(crate) fn key(text: &str) -> Key {
    Key::parse(&realm(), text).expect("a key")
}

pub(crate) fn dir(text: &str) -> Dir {
    Dir::new(&realm(), text).expect("a dir")
}

pub(crate) fn put(text: &str, value: &str) -> Write {
    Write::Put { key: key(text), value: Bytes::copy_from_slice(value.as_bytes()), lease: None }
}

pub(crate) fn writes(writes: Vec<Write>) -> Txn {
    Txn { writes, ..Txn::default() }
}

pub(crate) async fn value(kv: &KvHandle, text: &str) -> Option<String> {
    let entry = kv.get(&key(text)).await.expect("it answers")?;
    Some(String::from_utf8(entry.value.to_vec()).expect("text"))
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what} did not happen within {PATIENCE:?}"))
}

pub(crate) async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    wait_until(&Env::real(), what, PATIENCE, holds).await.expect("it holds in time");
}

/// The next change that is not mere progress.
pub(crate) async fn next(feed: &mut Feed) -> Change {
    loop {
        match within("a change", feed.next()).await.expect("goes on").expect("no error") {
            Change::Progress(_) => {}
            change => return change,
        }
    }
}

/// The name of the next entry that was put.
pub(crate) async fn next_name(feed: &mut Feed) -> String {
    match next(feed).await {
        Change::Put(entry) => entry.key.name().to_owned(),
        other => panic!("expected a put, got {other:?}"),
    }
}
