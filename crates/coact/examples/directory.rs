//! Services that find each other: register, watch, pick.
//!
//! `cargo run -p coact --example directory`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::directory::{Directory, DirectoryOptions, Instance, Mode, PickOptions, Picker, Strategy};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let directory = Directory::open(&kv, DirectoryOptions::default())?;

    // Registered as long as this process lives; registered again by itself when the store lost it.
    let one = directory.register(Instance::new("web", "10.0.0.1", 8080), Mode::Ephemeral).await?;
    let two = directory.register(Instance::new("web", "10.0.0.2", 8080), Mode::Ephemeral).await?;

    // A watch answers from memory: a request to the service costs no request to the store.
    let mut watch = directory.watch("web").await?;
    watch.wait_for(|snapshot| snapshot.healthy().count() == 2).await?;
    let picker = Picker::new(watch.clone(), Strategy::P2c, PickOptions::default());
    for _ in 0..3 {
        let picked = picker.pick(None)?;
        println!("ask {}:{}", picked.address, picked.port);
    }

    // No new traffic for this one, before it goes.
    two.drain(true).await?;
    watch.wait_for(|snapshot| snapshot.healthy().count() == 1).await?;
    assert_eq!(picker.pick(None)?.address, "10.0.0.1");
    two.deregister().await?;
    one.deregister().await?;
    kv.close().await
}
