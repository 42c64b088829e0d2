//! kill -9: of who holds, leads or is registered, and of the node in the middle.

use std::{sync::Arc, time::Duration};

use coact_blocks::directory::{Directory, DirectoryOptions, Snapshot, State, Watch};
use coact_testkit::{
    bed::PATIENCE,
    check::tokens::{Report, Resource},
};
use futures::future::join_all;
use parking_lot::Mutex;

use super::worker::{Block, Task, Work, Worker, journal};
use crate::node::Node;

/// The dead are missed soon.
const SHORT: Duration = Duration::from_secs(1);
/// Longer than a node takes to come back.
const LONG: Duration = Duration::from_secs(30);

fn task(node: &Node, work: Work, who: &str, ttl: Duration) -> Task {
    let namespace = match work {
        Work::Hold(block) => format!("{block:?}"),
        _ => "main".to_owned(),
    };
    let place = node.path().join(&namespace);
    std::fs::create_dir_all(&place).expect("a directory");
    Task { who: who.to_owned(), url: node.url(&namespace), place, ttl, work }
}

/// That nobody held at the same time as another, and every write was taken.
fn assert_one_at_a_time(report: &Report, block: Block) {
    assert_eq!((report.refused, &report.violations, &report.overlaps), (0, &vec![], &vec![]), "{block:?}");
}

#[tokio::test]
async fn a_killed_holder_or_leader_is_succeeded_with_a_higher_token() {
    let node = Node::start().await;
    let succession = async |block| {
        let first = task(&node, Work::Hold(block), "first", SHORT);
        let journal = journal(&first.place);
        let mut first = Worker::start(first);
        journal.until("first", "guarded-done").await;
        let mut second = Worker::start(task(&node, Work::Hold(block), "second", SHORT));
        journal.until("second", "asks").await;
        first.kill();
        journal.until("second", "guarded-done").await;
        second.go_on();
        second.ended().await;
        assert!(journal.find("second", "released").is_some(), "{block:?}");
        assert!(journal.tokens().is_sorted_by(|a, b| a < b), "{block:?}: {:?}", journal.tokens());
        assert_one_at_a_time(&journal.replay(&Resource::new()), block);
    };
    join_all(Block::ALL.map(succession)).await;
}

#[tokio::test]
async fn sessions_outlive_a_killed_node_and_nobody_holds_twice() {
    let mut node = Node::start().await;
    let mut pairs = Vec::new();
    for block in Block::ALL {
        let first = task(&node, Work::Hold(block), "first", LONG);
        let journal = journal(&first.place);
        let first = Worker::start(first);
        journal.until("first", "guarded-done").await;
        let second = Worker::start(task(&node, Work::Hold(block), "second", LONG));
        journal.until("second", "asks").await;
        pairs.push((block, journal, first, second));
    }
    for _ in 0..2 {
        node.crash_and_restart().await;
    }
    for (block, journal, first, second) in &mut pairs {
        assert_eq!(journal.find("second", "granted"), None, "{block:?}: the first still holds");
        first.go_on();
        first.ended().await;
        assert!(journal.find("first", "released").is_some(), "{block:?}: the node still knew its lease");
        journal.until("second", "guarded-done").await;
        second.go_on();
        second.ended().await;
        assert!(journal.tokens().is_sorted_by(|a, b| a < b), "{block:?}: {:?}", journal.tokens());
        assert_one_at_a_time(&journal.replay(&Resource::new()), *block);
    }
}

/// Every picture that a watch shows, from now on.
fn pictures(mut watch: Watch) -> Arc<Mutex<Vec<Arc<Snapshot>>>> {
    let seen = Arc::new(Mutex::new(vec![watch.snapshot()]));
    let pictures = seen.clone();
    coact::Env::real().spawn(async move {
        while let Ok(snapshot) = watch.changed().await {
            pictures.lock().push(snapshot);
        }
    });
    seen
}

async fn until(watch: &mut Watch, what: &str, wish: impl FnMut(&Snapshot) -> bool) {
    let shown = coact::Env::real().timeout(PATIENCE, watch.wait_for(wish)).await;
    assert!(shown.is_some(), "in vain until {what}: {watch:?}");
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.instances.iter().map(|seen| seen.instance.id.as_str()).collect()
}

#[tokio::test]
async fn a_killed_registrant_goes_and_a_killed_node_takes_nobody_with_it() {
    let mut node = Node::start().await;
    let mut workers: Vec<_> = ["a", "b", "c"].map(|who| Worker::start(task(&node, Work::Register, who, SHORT))).into();
    let kv = coact::open(&node.url("main")).await.expect("the node answers");
    let directory = Directory::open(&kv, DirectoryOptions::default()).expect("valid");
    let mut watch = directory.watch("web").await.expect("it loads");
    until(&mut watch, "all are there", |snapshot| ids(snapshot) == ["a", "b", "c"]).await;
    let seen = pictures(watch.clone());

    workers[0].kill();
    until(&mut watch, "the dead one has gone", |snapshot| ids(snapshot) == ["b", "c"]).await;
    let before = watch.snapshot().revision;
    node.crash_and_restart().await;
    workers[1].go_on();
    until(&mut watch, "the watch goes on", |snapshot| ids(snapshot) == ["c"] && snapshot.revision > before).await;
    until(&mut watch, "it is fresh", |snapshot| snapshot.state == State::Fresh).await;

    let seen = seen.lock();
    assert!(seen.iter().all(|snapshot| ids(snapshot).contains(&"c")), "never without the one that lived: {seen:?}");
}
