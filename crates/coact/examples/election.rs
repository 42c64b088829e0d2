//! One leader at a time, and everybody sees who.
//!
//! `cargo run -p coact --example election`
#![allow(clippy::print_stdout, reason = "an example tells what it does")]

use coact::{Session, SessionOptions, lock::Election};
use futures::{StreamExt, pin_mut};

#[path = "shared/store.rs"]
mod store;

#[tokio::main]
async fn main() -> coact::Result<()> {
    let (kv, _dir) = store::open().await?;
    let session = Session::open(&kv, SessionOptions::default()).await?;
    let election = Election::new(&session, "shop")?;
    let leaders = election.observe();
    pin_mut!(leaders);

    let leadership = election.campaign("10.0.0.7:8080").await?;
    leadership.proclaim("10.0.0.7:8081").await?;
    // In a service: tokio::select! { work = lead(leadership.token()) => …, why = leadership.lost() => stop(why) }
    while let Some(leader) = leaders.next().await.transpose()?.flatten() {
        println!("{} leads, token {}", leader.value, leader.token);
        if leader.value == leadership.value() {
            break;
        }
    }
    leadership.resign().await?;
    assert_eq!(election.leader().await?, None);

    session.close().await?;
    kv.close().await
}
