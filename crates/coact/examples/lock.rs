//! A lock, and what makes it safe: the fencing token.
//!
//! `cargo run -p coact --example lock`; with `COACT_AT=coact://127.0.0.1:7070` among processes.
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::{
    Key, Realm, Session, SessionOptions,
    kv::{Txn, Write},
    lock::Mutex,
};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    // One session for the process: one lease, one heartbeat, however many locks.
    let session = Session::open(&kv, SessionOptions::default()).await?;
    let mutex = Mutex::new(&session, "deploy")?;

    let guard = mutex.acquire().await?;
    println!("held with token {}", guard.token());
    // What is written through the guard is written only if the lock is still held. Elsewhere, hand the token over:
    // UPDATE … SET fence = $token WHERE fence <= $token.
    let write = Write::Put { key: Key::new(&Realm::default(), "release", "current")?, value: "7".into(), lease: None };
    let outcome = guard.txn(Txn { writes: vec![write], ..Txn::default() }).await?;
    println!("written: {outcome:?}");
    assert!(mutex.try_acquire().await?.is_none(), "nobody else has it meanwhile");
    guard.release().await?;

    session.close().await?;
    kv.close().await
}
