//! kill -9 at every failpoint: a child process works and says what was acknowledged; whatever it got to, reopening its
//! directory finds every acknowledged write, and nothing that was never asked for.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use coact_core::env::Env;
use coact_engine_embedded::{
    Config, Engine, FAILPOINTS, History,
    flat::{KeyRange, Op, PutRequest, RangeRequest, TxnRequest},
};

const DIR: &str = "COACT_CRASH_DIR";
const FAILPOINT: &str = "COACT_CRASH_FAILPOINT";
const HIT: &str = "COACT_CRASH_HIT";
const OPERATIONS: u64 = 3000;
const KEYS: u64 = 40;

fn config(dir: &Path) -> Config {
    Config {
        segment_bytes: 64 * 1024,
        snapshot_bytes: 128 * 1024,
        history: History { revisions: 200, age: None },
        ..Config::in_dir(dir)
    }
}

fn value(operation: u64) -> Vec<u8> {
    let mut value = format!("{operation}:").into_bytes();
    value.resize(100 + (operation % 7) as usize * 150, b'x');
    value
}

/// The child's part; does nothing when the test run calls it by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let failpoint = std::env::var(FAILPOINT).expect("set by the parent");
    let hit: u64 = std::env::var(HIT).expect("set by the parent").parse().expect("a number");
    let hits = AtomicU64::new(0);
    fail::cfg_callback(failpoint, move || {
        if hits.fetch_add(1, Relaxed) + 1 == hit {
            kill_me();
        }
    })
    .expect("a failpoint");
    let engine = Engine::open(config(Path::new(&dir)), Env::real()).await.expect("it opens");
    let start = engine.revision();
    // Several at once, so that batches have more than one frame.
    for first in (start..start + OPERATIONS).step_by(5) {
        let five = (first..first + 5).map(|operation| put(&engine, operation));
        for done in futures::future::join_all(five).await {
            println!("ack {}", done.expect("acknowledged"));
        }
    }
    engine.close().await.expect("it closes");
    println!("done");
}

async fn put(engine: &Engine, operation: u64) -> Result<u64, coact_engine_embedded::flat::FlatError> {
    let key = format!("k{:02}", operation % KEYS);
    let put = PutRequest { key: key.into(), value: value(operation).into(), ..PutRequest::default() };
    engine.txn(TxnRequest { success: vec![Op::Put(put)], ..TxnRequest::default() }).await?;
    Ok(operation)
}

fn kill_me() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("it can");
    loop {
        std::thread::park();
    }
}

#[derive(Debug)]
struct ChildRun {
    acknowledged: Vec<u64>,
    finished: bool,
}

fn run_child(dir: &Path, failpoint: &str, hit: u64) -> ChildRun {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["crash::child_process", "--exact", "--nocapture", "--test-threads=1"])
        .envs([(DIR, dir.as_os_str()), (FAILPOINT, failpoint.as_ref())])
        .env(HIT, hit.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok).collect();
    let output = child.wait_with_output().expect("the child ends");
    // The harness may print its own words on the first line.
    let acknowledged = lines.iter().filter_map(|line| line.rsplit("ack ").next()?.parse().ok()).collect();
    let finished = lines.iter().any(|line| line == "done");
    let killed = !output.status.success();
    assert!(finished || killed, "the child neither finished nor was killed: {output:?}");
    if killed {
        use std::os::unix::process::ExitStatusExt as _;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(9), "{failpoint}: the child failed by itself: {text} {lines:?}");
    }
    ChildRun { acknowledged, finished }
}

/// The newest operation of each key that was acknowledged must be there, or a newer one of that key.
async fn verify(dir: &Path, acknowledged: &[u64], context: &str) {
    let engine = Engine::open(config(dir), Env::real()).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    let all = RangeRequest { keys: KeyRange::prefix("k"), ..RangeRequest::default() };
    let (found, revision) = engine.range(all).await.expect("a read");
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for operation in acknowledged {
        let entry = newest.entry(format!("k{:02}", operation % KEYS)).or_default();
        *entry = (*entry).max(*operation);
    }
    for (key, operation) in &newest {
        let record = found.records.iter().find(|record| &record.key[..] == key.as_bytes());
        let record = record.unwrap_or_else(|| panic!("{context}: {key} is lost, {operation} was acknowledged"));
        let text = String::from_utf8_lossy(&record.value);
        let stored: u64 = text.split(':').next().and_then(|number| number.parse().ok()).expect("a number");
        assert!(stored >= *operation, "{context}: {key} holds {stored}, {operation} was acknowledged");
        assert_eq!(record.value, value(stored), "{context}: {key} holds a value that nobody wrote");
    }
    let least = acknowledged.iter().max().map_or(0, |newest| newest + 1);
    assert!(revision >= least, "{context}: revision {revision} after operation {least} was acknowledged");
    engine.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_survives_a_kill_at_every_failpoint() {
    let mut never_hit = Vec::new();
    for failpoint in FAILPOINTS {
        let place = tempfile::tempdir().expect("a directory");
        let mut was_hit = false;
        // The same directory again and again, so that recovery itself is killed, too.
        let mut acknowledged = Vec::new();
        for hit in [1, 2, 7] {
            let context = format!("{failpoint} at hit {hit}");
            let run = run_child(place.path(), failpoint, hit);
            was_hit |= !run.finished;
            acknowledged.extend(run.acknowledged);
            verify(place.path(), &acknowledged, &context).await;
        }
        if !was_hit {
            never_hit.push(*failpoint);
        }
    }
    // A tail is only torn by a power cut, which the simulator makes.
    never_hit.retain(|failpoint| !failpoint.contains("torn"));
    assert!(never_hit.is_empty(), "these failpoints were never reached: {never_hit:?}");
}
