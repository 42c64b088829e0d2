//! At most so many at once. A permit hangs on its session: a process that dies gives it back.
//!
//! `cargo run -p coact --example semaphore`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use coact::{Session, SessionOptions, lock::Semaphore};
use futures::future::try_join_all;

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let session = Session::open(&kv, SessionOptions::default()).await?;
    // How many there are is agreed in the store: another number is a conflict.
    let semaphore = Semaphore::new(&session, "import", 3)?;

    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let jobs = (0..10).map(|_| async {
        let permit = semaphore.acquire().await?;
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        running.fetch_sub(1, Ordering::SeqCst);
        permit.release().await
    });
    try_join_all(jobs).await?;
    println!("10 jobs, at most {} at once", most.load(Ordering::SeqCst));
    assert!(most.load(Ordering::SeqCst) <= 3);

    session.close().await?;
    kv.close().await
}
