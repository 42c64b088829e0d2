//! Many readers or one writer, in the order of arrival, so that neither side starves.
//!
//! `cargo run -p coact --example rwlock`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::{Session, SessionOptions, lock::RwLock};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let session = Session::open(&kv, SessionOptions::default()).await?;
    let lock = RwLock::new(&session, "catalogue")?;

    let (one, two) = (lock.read().await?, lock.read().await?);
    println!("two readers at once");
    assert!(lock.try_write().await?.is_none());
    one.release().await?;
    // The last reader may become the writer, if it is the only one: waiting for that could be for ever.
    let writer = match two.try_upgrade().await? {
        Ok(writer) => writer,
        Err(reader) => {
            reader.release().await?;
            lock.write().await?
        }
    };
    println!("one writer, token {}", writer.token());
    // And a writer can go on as a reader, without letting another writer in between.
    let reader = writer.downgrade().await?;
    reader.release().await?;

    session.close().await?;
    kv.close().await
}
