//! Holders that are stopped past their lease (SIGSTOP): what they write when they go on reaches nobody who looks at
//! tokens.

use std::time::Duration;

use coact_testkit::check::tokens::Resource;
use futures::future::join_all;

use super::worker::{Block, Task, Work, Worker, entry, journal};
use crate::node::Node;

const TTL: Duration = Duration::from_secs(1);

/// A place of its own for each kind, in one node: the kinds have namespaces of their own.
fn task(node: &Node, block: Block, who: &str) -> Task {
    let place = node.path().join(format!("{block:?}"));
    std::fs::create_dir_all(&place).expect("a directory");
    Task { who: who.to_owned(), url: node.url(&format!("{block:?}")), place, ttl: TTL, work: Work::Hold(block) }
}

#[tokio::test]
async fn a_stopped_holder_is_succeeded_and_its_late_writes_are_refused() {
    let node = Node::start().await;
    join_all(Block::ALL.map(|block| a_stopped_holder(&node, block))).await;
}

async fn a_stopped_holder(node: &Node, block: Block) {
    let (old_task, new_task) = (task(node, block, "old"), task(node, block, "new"));
    let journal = journal(&old_task.place);
    let kv = coact::open(&old_task.url).await.expect("the node answers");
    let read = async |name| kv.get(&entry(name).expect("valid")).await.expect("it answers").expect("written").value;

    let mut old = Worker::start(old_task);
    let old_token = journal.until("old", "guarded-done").await;
    old.process.pause().expect("it runs");
    let mut new = Worker::start(new_task);
    let new_token = journal.until("new", "guarded-done").await;
    assert!(new_token > old_token, "{block:?}: {new_token} after {old_token}");
    assert_eq!(read("unguarded").await, "new");

    old.go_on();
    old.process.resume().expect("it is stopped");
    old.ended().await;
    assert_eq!(journal.find("old", "guarded-fenced"), Some(old_token), "{block:?}: the store knows better");
    assert_eq!(journal.find("old", "lost"), Some(old_token), "{block:?}: and then the process does");
    assert_eq!(read("guarded").await, "new", "{block:?}: under the guard the late write did nothing");
    assert_eq!(read("unguarded").await, "old", "{block:?}: control: without the guard it won");

    new.go_on();
    new.ended().await;
    assert!(journal.find("new", "released").is_some(), "{block:?}: the new holder never noticed");
    let report = journal.replay(&Resource::new());
    assert_eq!((report.refused, report.violations), (1, vec![]), "{block:?}");
    let control = journal.replay(&Resource::without_tokens());
    let late = format!("old writes with token {old_token} after {new_token}");
    assert_eq!(control.violations, [late], "{block:?}: control: without tokens the late write gets through");
}
