//! How much one session may ask for at once, and how it ends with the node.

use coact_core::{ErrorKind, Retry, error::Effect};
use coact_server::Limits;
use futures::{StreamExt as _, stream::FuturesUnordered};

use super::{append, read, refused, streams};
use crate::bed::{self, PATIENCE, within};

#[tokio::test]
async fn a_session_with_too_many_requests_refuses_the_next_and_goes_on() {
    let most = 8;
    let node = bed::node_with(Limits { calls_per_connection: most, ..Limits::default() }).await;
    let streams = streams(&node, 1).await;
    let mut waiting: FuturesUnordered<_> = (0..=most).map(|_| streams.read(read(0, PATIENCE))).collect();
    // All wait but one.
    let first = within("a refusal", waiting.next()).await.expect("an answer");
    let error = refused("one too many", first, ErrorKind::Exhausted);
    assert!(matches!(error.retry(), Retry::After(_)) && error.effect() == Effect::NotApplied, "{error:?}");
    // The place of one that nobody waits for any more is free again.
    drop(waiting);
    streams.append(append(&["a"])).await.expect("there is place again");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_those_who_wait() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let mut waiting = Box::pin(streams.read(read(0, PATIENCE * 10)));
    tokio::select! {
        answer = &mut waiting => panic!("{answer:?}"),
        // The same session, so the read has arrived.
        _ = streams.commit(coact_core::contract::commit::Commit::default()) => {}
    }
    let (answer, shut_down) = within("both", async { tokio::join!(waiting, node.shutdown()) }).await;
    shut_down.expect("it ends well");
    let error = refused("the node went", answer, ErrorKind::Unavailable);
    assert_eq!(error.effect(), Effect::NotApplied);
}
