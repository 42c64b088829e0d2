//! Ids that nobody else gets: Snowflakes, dense numbers, ULIDs and UUIDs.
//!
//! `cargo run -p coact --example id`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::{
    Session, SessionOptions,
    id::{Generator, IdOptions, Segment, SegmentOptions, UlidGenerator, Uuid7Generator},
};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let session = Session::open(&kv, SessionOptions::default()).await?;

    // 64 bits, roughly ordered by time; unique whatever clocks and pauses do.
    let ids = Generator::open(&session, IdOptions::default()).await?;
    let id = ids.next().await?;
    println!("snowflake {id}, made by worker {}", ids.layout().decode(id).worker);
    ids.close().await?;

    // 1, 2, 3: for the keys of a table.
    let invoices = Segment::open(&kv, SegmentOptions::new("invoice")).await?;
    println!("dense {:?}", invoices.next_n(3).await?);
    invoices.close().await?;

    // Without any store.
    println!("ulid {}", UlidGenerator::new(kv.env()).next());
    println!("uuid {}", Uuid7Generator::new(kv.env()).next());

    session.close().await?;
    kv.close().await
}
