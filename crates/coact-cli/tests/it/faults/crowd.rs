//! Six processes on a semaphore and a read-write lock, killed at random, over a node that is killed too.

use std::{collections::BTreeMap, time::Duration};

use coact::{
    Effect, Env, Error, ErrorKind, KvHandle, Result,
    lock::{RwLock, Semaphore},
};
use coact_testkit::bed::{PATIENCE, wait_until};

use super::{
    journal::Line,
    worker::{Task, Work, Worker, journal, session},
};
use crate::node::Node;

const PERMITS: u32 = 2;
const PROCESSES: usize = 6;
const KILLS: usize = 8;
/// How often each of permit, read and write lock must have been entered after the last kill.
const ENOUGH: usize = 15;
const TTL: Duration = Duration::from_secs(2);

/// The part of a process: takes one or the other, shows that it is inside, and leaves.
pub(super) async fn work(task: &Task, kv: &KvHandle) -> Result<()> {
    while !task.is_to_go_on() {
        match rounds(task, kv).await {
            // The node is away, or forgot a lease that nobody could renew: all that matters is begun anew.
            Err(error) if passing(&error) => Env::real().sleep(Duration::from_millis(20)).await,
            done => done?,
        }
    }
    Ok(())
}

fn passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Fenced | ErrorKind::Closed)
        || error.effect() == Effect::Unknown
}

async fn rounds(task: &Task, kv: &KvHandle) -> Result<()> {
    let session = session(task, kv).await?;
    let semaphore = Semaphore::new(&session, "crowd", PERMITS)?;
    let lock = RwLock::new(&session, "crowd")?;
    while !task.is_to_go_on() {
        match Env::real().random() % 4 {
            0 | 1 => {
                let permit = semaphore.acquire().await?;
                inside(task, "permit", permit.token(), || permit.is_held()).await;
                permit.release().await?;
            }
            2 => {
                let guard = lock.read().await?;
                inside(task, "read", guard.token(), || guard.is_held()).await;
                guard.release().await?;
            }
            _ => {
                let guard = lock.write().await?;
                inside(task, "write", guard.token(), || guard.is_held()).await;
                guard.release().await?;
            }
        }
    }
    session.close().await
}

/// Notes signs of life for as long as it holds. Who does not say that it leaves was inside until its last sign.
async fn inside(task: &Task, kind: &str, token: u64, is_held: impl Fn() -> bool) {
    let (journal, env) = (task.journal(), Env::real());
    journal.note(&task.who, &format!("enter-{kind}"), token);
    for _ in 0..env.random() % 8 {
        env.sleep(Duration::from_millis(3)).await;
        if !is_held() {
            return;
        }
        journal.note(&task.who, &format!("inside-{kind}"), token);
    }
}

/// Somebody inside, from one line of the journal to another.
#[derive(Debug)]
struct Stay {
    who: String,
    kind: String,
    token: u64,
    first: usize,
    last: usize,
}

fn stays(lines: &[Line]) -> Vec<Stay> {
    let mut stays: Vec<Stay> = Vec::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, Line { who, what, number }) in lines.iter().enumerate() {
        if let Some(kind) = what.strip_prefix("enter-") {
            open.insert(who, stays.len());
            stays.push(Stay { who: who.clone(), kind: kind.to_owned(), token: *number, first: at, last: at });
        } else if what.starts_with("inside-") {
            stays[open[who.as_str()]].last = at;
        }
    }
    stays
}

/// What must never be: too many permits at once, a writer beside anybody, tokens of writers that do not grow.
fn violations(stays: &[Stay]) -> Vec<String> {
    let mut found = Vec::new();
    let mut last_writer = 0;
    for stay in stays {
        let beside: Vec<_> =
            stays.iter().filter(|other| other.first < stay.first && stay.first <= other.last).collect();
        let count = |kind: &str| beside.iter().filter(|other| other.kind == kind).count();
        let too_many = match stay.kind.as_str() {
            "permit" => count("permit") >= PERMITS as usize,
            "read" => count("write") > 0,
            _ => count("write") + count("read") > 0,
        };
        if too_many {
            found.push(format!("{} enters: {stay:?} beside {beside:?}", stay.who));
        }
        if stay.kind == "write" {
            if stay.token <= last_writer {
                found.push(format!("{stay:?} after a writer with token {last_writer}"));
            }
            last_writer = stay.token;
        }
    }
    found
}

#[tokio::test]
async fn permits_and_locks_hold_while_processes_and_the_node_are_killed() {
    let mut node = Node::start().await;
    let env = Env::real();
    let (url, place) = (node.url("main"), node.path().to_owned());
    let journal = journal(&place);
    let start = |number: usize| {
        let who = format!("p{number}");
        Worker::start(Task { who, url: url.clone(), place: place.clone(), ttl: TTL, work: Work::Crowd })
    };
    let entered = |kind: &str| {
        let enters = format!("enter-{kind}");
        journal.lines().iter().filter(|line| line.what == enters).count()
    };
    // Waits until each kind was entered so much more often.
    let go_on = async |times: usize| {
        for kind in ["permit", "read", "write"] {
            let enough = entered(kind) + times;
            wait_until(&env, kind, PATIENCE, async || entered(kind) >= enough).await.expect("they go on");
        }
    };
    let mut workers: Vec<_> = (0..PROCESSES).map(start).collect();
    for kill in 0..KILLS {
        go_on(2).await;
        if kill == KILLS / 2 {
            node.crash_and_restart().await;
        }
        let chosen = env.random() as usize % PROCESSES;
        workers[chosen].kill();
        workers[chosen] = start(PROCESSES + kill);
    }
    go_on(ENOUGH).await;
    for worker in &mut workers {
        worker.go_on();
    }
    for worker in &mut workers {
        worker.ended().await;
    }
    let stays = stays(&journal.lines());
    assert_eq!(violations(&stays), Vec::<String>::new());
    let crowded = |stay: &&Stay| {
        stay.kind == "permit"
            && stays.iter().any(|other| other.kind == "permit" && other.first < stay.first && stay.first <= other.last)
    };
    assert!(stays.iter().find(crowded).is_some(), "some did hold permits at the same time");
}

#[test]
fn the_checker_finds_what_must_never_be() {
    let line = |text: &str| {
        let [who, what, number] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("three words") };
        Line { who: who.to_owned(), what: what.to_owned(), number: number.parse().expect("a number") }
    };
    let found = |lines: &[&str]| violations(&stays(&lines.iter().map(|text| line(text)).collect::<Vec<_>>())).len();
    assert_eq!(found(&["a enter-permit 1", "b enter-permit 2", "a inside-permit 1", "b inside-permit 2"]), 0);
    let three = ["a enter-permit 1", "b enter-permit 2", "c enter-permit 3", "a inside-permit 1", "b inside-permit 2"];
    assert_eq!(found(&three), 1, "a permit too many");
    assert_eq!(found(&["a enter-write 1", "b enter-read 2", "a inside-write 1"]), 1, "a reader beside a writer");
    assert_eq!(found(&["a enter-read 1", "b enter-write 2", "a inside-read 1"]), 1, "a writer beside a reader");
    assert_eq!(found(&["a enter-write 5", "b enter-write 4"]), 1, "a token that does not grow");
    assert_eq!(found(&["a enter-write 4", "b enter-write 5", "b inside-write 5"]), 0, "the first was killed");
}
