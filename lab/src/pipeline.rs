//! The whole way from a client to the verdict, on one store in memory: it finds nothing, and each planted defect.

use std::{sync::Arc, time::Duration};

use coact::{Env, kv::KvHandle};
use coact_testkit::bed::{PATIENCE, wait_until};
use futures::future::{AbortHandle, abortable};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    check,
    history::{Event, Recorder, now},
    phase::{Fault, Nemesis, Seen},
    plant::Plant,
    report::judge,
    resource::Protected,
    worker::{self, Job, Stage},
};

#[tokio::test]
async fn finds_nothing_where_nothing_is_wrong() {
    assert_eq!(verdict(None).await, Vec::<String>::new());
}

#[tokio::test]
async fn finds_a_lost_write() {
    assert_found(Plant::LostWrite, "acknowledged writes are lost").await;
}

#[tokio::test]
async fn finds_a_stale_read() {
    assert_found(Plant::StaleRead, "linearizable reads were stale").await;
    assert_found(Plant::StaleRead, "registers: the history of r").await;
}

#[tokio::test]
async fn finds_one_token_in_two_hands() {
    assert_found(Plant::TokenTwice, "both write with token 7").await;
}

#[tokio::test]
async fn finds_an_id_issued_twice() {
    assert_found(Plant::IdTwice, "ids: h").await;
}

#[tokio::test]
async fn finds_a_change_that_a_watch_does_not_tell() {
    // As a change that was not told, or as a listing that differs from what was.
    assert_found(Plant::WatchGap, "watch: h").await;
}

#[tokio::test]
async fn finds_a_ghost() {
    assert_found(Plant::Ghost, "is shown h3 at").await;
}

async fn assert_found(plant: Plant, expected: &str) {
    let wrong = verdict(Some(plant)).await;
    assert!(wrong.iter().any(|wrong| wrong.contains(expected)), "{expected:?} is not in {wrong:#?}");
}

/// How long the dead one is watched: longer than anybody may be shown it.
const WATCHED: Duration = Duration::from_millis(5_000);

/// Three clients of one store, of which the third dies.
async fn verdict(plant: Option<Plant>) -> Vec<String> {
    let env = Env::real();
    let place = tempfile::tempdir().expect("a directory");
    let socket = place.path().join("resource");
    let protected = Protected::new();
    protected.serve(&socket).expect("served");
    let kv = coact::open("memory:?accept=volatile").await.expect("opened");
    let events = Arc::new(Mutex::new(Vec::new()));
    let stages = watch::Sender::new(Stage::Open);
    let mut clients = Vec::new();
    for number in 1..=3 {
        let job = Job { url: String::new(), node: format!("h{number}"), seed: number, resource: socket.clone(), plant };
        clients.push(start(&kv, &events, job, stages.subscribe()));
    }
    wait_for(&env, &events, "ready", 3).await;
    stages.send_replace(Stage::Run);
    env.sleep(Duration::from_secs(1)).await;
    clients[2].abort();
    let from = now();
    env.sleep(WATCHED).await;
    let fault = Fault { from, to: from, stopped: now(), killed: Some("h3".to_owned()), ..Fault::default() };
    stages.send_replace(Stage::Stop);
    env.sleep(Duration::from_millis(200)).await;
    worker::read_all(&kv, &recorder("h1", &events)).await;
    stages.send_replace(Stage::Close);
    wait_for(&env, &events, "closed", 2).await;
    let (fenced, control) = protected.reports();
    let events = events.lock().clone();
    let shown = check::check(&Seen { events, fault, fenced, control, lease_delay: 0 });
    judge(&shown, Nemesis::StepClock)
}

fn start(kv: &KvHandle, events: &Arc<Mutex<Vec<Event>>>, job: Job, stage: watch::Receiver<Stage>) -> AbortHandle {
    let (kv, recorder) = (kv.clone(), recorder(&job.node, events));
    let (client, abort) = abortable(async move { worker::run(kv, recorder, job, stage).await });
    Env::real().spawn(async move { drop(client.await) });
    abort
}

fn recorder(node: &str, events: &Arc<Mutex<Vec<Event>>>) -> Recorder {
    let events = events.clone();
    Recorder::new(node, move |event| events.lock().push(event))
}

async fn wait_for(env: &Env, events: &Mutex<Vec<Event>>, what: &str, count: usize) {
    let have = || events.lock().iter().filter(|event| event.f == what).count();
    wait_until(env, what, PATIENCE, async || have() >= count).await.expect(what);
}
