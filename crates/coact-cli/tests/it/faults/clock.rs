//! Wall clocks that jump by an hour under a running process (libfaketime): leases, tokens and ids do not depend on them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use coact::Env;
use coact_testkit::{
    bed::{PATIENCE, wait_until},
    check::{
        tokens::{Report, Resource},
        unique::Ids,
    },
    fault::{Direction, Proxy},
};

use super::{
    journal::Journal,
    worker::{Block, Task, Work, Worker, journal},
};
use crate::node::Node;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Well past the length of every lease below, as the beats come one in 10 ms at most.
const BEATS: usize = 600;
const TTL: Duration = Duration::from_secs(5);
const HOUR_MS: u64 = 3_600_000;

/// The wall clock of a process.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn new(place: &Path) -> Self {
        assert!(
            Path::new(LIBRARY).exists(),
            "{LIBRARY} is missing: this test moves clocks; run `cargo xtask test`, which installs it"
        );
        let clock = Self { file: place.join("clock") };
        clock.step("+0");
        clock
    }

    /// Sets how far it is from the true one. The file is replaced, so that nobody reads half of it.
    fn step(&self, offset: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset).expect("a file");
        std::fs::rename(new, &self.file).expect("in the same directory");
    }

    /// Starts a process that lives by it.
    fn start(&self, task: Task) -> Worker {
        let file = self.file.to_str().expect("text");
        let variables = [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ];
        Worker::start_with(task, &variables)
    }
}

/// Waits until a process has beaten so often with a wall clock in this range.
async fn beats(journal: &Journal, who: &str, range: std::ops::Range<u64>) {
    let seen = || {
        let lines = journal.lines();
        lines.iter().filter(|line| line.who == who && line.what == "beat" && range.contains(&line.number)).count()
    };
    wait_until(&Env::real(), "enough beats", PATIENCE, async || seen() >= BEATS)
        .await
        .unwrap_or_else(|error| panic!("{who}: {error:#}: {} with a clock in {range:?}", seen()));
}

/// An hour ahead, more or less.
fn ahead() -> std::ops::Range<u64> {
    let now = Env::real().wall_ms();
    now + HOUR_MS / 2..now + 2 * HOUR_MS
}

/// An hour behind, more or less.
fn behind() -> std::ops::Range<u64> {
    let now = Env::real().wall_ms();
    now - 2 * HOUR_MS..now - HOUR_MS / 2
}

fn task(node: &Node, who: &str, work: Work) -> Task {
    Task { who: who.to_owned(), url: node.url("main"), place: node.path().to_owned(), ttl: TTL, work }
}

#[tokio::test]
async fn a_lease_ends_neither_early_nor_late_by_a_wall_clock() {
    let node = Node::start().await;
    let proxy = Proxy::start(node.address()).await.expect("a proxy");
    let (clock, journal) = (Clock::new(node.path()), journal(node.path()));
    let work = Work::Hold(Block::Mutex);
    let mut old = clock.start(Task { url: format!("coact://{}/main", proxy.address()), ..task(&node, "old", work) });
    let old_token = journal.until("old", "guarded-done").await;
    let mut new = Worker::start(task(&node, "new", work));
    journal.until("new", "asks").await;

    clock.step("+1h");
    beats(&journal, "old", ahead()).await;
    clock.step("-1h");
    beats(&journal, "old", behind()).await;
    assert_eq!((journal.find("old", "notices"), journal.find("new", "granted")), (None, None), "it still holds");

    // Now it must end, in time by the true clock: before the node gives the lock away.
    clock.step("-2h");
    proxy.hold(Direction::Up);
    proxy.hold(Direction::Down);
    let new_token = journal.until("new", "guarded-done").await;
    journal.until("old", "notices").await;
    let (trusted, granted) = (journal.find("old", "trusted-until"), journal.find("new", "granted-at"));
    assert!(trusted < granted, "trusted until {trusted:?}, granted to the next at {granted:?}");
    assert!(new_token > old_token, "{new_token} after {old_token}");
    proxy.mend();
    for worker in [&mut old, &mut new] {
        worker.go_on();
        worker.ended().await;
    }
    assert_eq!(journal.find("old", "guarded-fenced"), Some(old_token));
    assert!(journal.find("new", "released").is_some());
    let Report { refused, violations, .. } = journal.replay(&Resource::new());
    assert_eq!((refused, violations), (1, vec![]));
}

#[tokio::test]
async fn no_id_is_made_twice_whatever_the_wall_clock_does() {
    let node = Node::start().await;
    let (clock, journal) = (Clock::new(node.path()), journal(node.path()));
    let mut steady = Worker::start(task(&node, "steady", Work::Ids));
    let mut jumping = clock.start(task(&node, "jumping", Work::Ids));
    journal.until("jumping", "beat").await;
    clock.step("+1h");
    beats(&journal, "jumping", ahead()).await;
    clock.step("-1h");
    beats(&journal, "jumping", behind()).await;
    // Its successor, an hour behind too, may get its worker number: what was reserved is not handed out again.
    jumping.kill();
    let mut successor = clock.start(task(&node, "successor", Work::Ids));
    beats(&journal, "successor", behind()).await;
    for worker in [&mut steady, &mut successor] {
        worker.go_on();
        worker.ended().await;
    }
    let ids = Ids::default();
    for (name, worker) in [("steady", &steady), ("jumping", &jumping), ("successor", &successor)] {
        worker.ids().into_iter().for_each(|id| ids.issued(name, id));
    }
    assert_eq!(ids.violations(), Vec::<String>::new());
    assert!(ids.count() > 3 * BEATS, "{}", ids.count());
}
