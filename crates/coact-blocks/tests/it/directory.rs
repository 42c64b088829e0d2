//! The directory: what is registered is seen, what dies is missed in time, and nothing comes back from the dead.

use std::{sync::Arc, time::Duration};

use coact_blocks::directory::{
    Directory, DirectoryOptions, Health, Instance, Mode, Registration, RegistrationState, Snapshot, State, Watch,
};
use coact_core::{ErrorKind, contract::kv::Write, name::Realm};

use crate::{
    lock::key,
    model::{Fate, FateOf, Model, Request, VOLATILE},
    world::{Process, cancel_after, pass, start},
};

pub(crate) fn directory(process: &Process) -> Directory {
    Directory::open(&process.kv, DirectoryOptions::default()).expect("meets the needs")
}

pub(crate) fn instance(service: &str, id: &str) -> Instance {
    Instance { id: id.to_owned(), ..Instance::new(service, "10.0.0.1", 80) }
}

pub(crate) async fn register(directory: &Directory, service: &str, id: &str) -> Registration {
    directory.register(instance(service, id), Mode::Ephemeral).await.expect("registers")
}

pub(crate) fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.instances.iter().map(|seen| seen.instance.id.as_str()).collect()
}

/// Waits for a condition, in simulated time.
pub(crate) async fn until(watch: &mut Watch, wish: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
    let env = coact_core::env::Env::real();
    let waited = env.timeout(Duration::from_secs(300), watch.wait_for(wish)).await;
    match waited {
        Some(snapshot) => snapshot.expect("the watch lives"),
        None => panic!("never came: {watch:?}"),
    }
}

/// The fate of requests that create this entry.
fn creations(of: &'static str, fate: Fate) -> Option<FateOf> {
    Some(Box::new(move |request| match request {
        Request::Txn(txn) => {
            let is_it = |write: &Write| matches!(write, Write::Put { key, .. } if key.name() == of);
            if txn.writes.iter().any(is_it) { fate } else { Fate::Arrives }
        }
        _ => Fate::Arrives,
    }))
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_updated_and_deregistered_is_seen() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let (here, there) = (directory(&owner), directory(&user));
    let mut watch = there.watch("web/api").await.expect("loads");
    assert_eq!((watch.snapshot().instances.len(), &watch.snapshot().state), (0, &State::Fresh));

    let registration = register(&here, "web/api", "a").await;
    let seen = until(&mut watch, |snapshot| ids(snapshot) == ["a"]).await.instances[0].clone();
    assert_eq!((&seen.health, seen.draining, seen.held), (&Health::Unchecked, false, false));
    assert!(seen.created.0 > 0 && seen.is_healthy());

    registration.update(Instance { port: 81, ..instance("web/api", "a") }).await.expect("updates");
    until(&mut watch, |snapshot| snapshot.instances[0].instance.port == 81).await;
    registration.drain(true).await.expect("drains");
    until(&mut watch, |snapshot| snapshot.instances[0].draining).await;
    assert!(watch.healthy().is_empty());
    registration.drain(false).await.expect("drains no more");
    there.set_drain("web/api", "a", true).await.expect("exists");
    until(&mut watch, |snapshot| snapshot.instances[0].draining).await;
    there.report_health("web/api", "a", Health::Passing, None).await.expect("exists");
    until(&mut watch, |snapshot| snapshot.instances[0].health == Health::Passing).await;
    assert_eq!(there.services("", "", 10).await.expect("answers"), ["web/api"]);

    registration.deregister().await.expect("deregisters");
    let empty = until(&mut watch, |snapshot| snapshot.instances.is_empty()).await;
    assert_eq!(empty.state, State::Fresh, "who deregisters is not missed");
    assert!(model.entries("directory/").is_empty(), "health and drain marker go with it");
}

#[tokio::test(start_paused = true)]
async fn a_death_is_seen_within_its_ttl_and_a_second() {
    for seed in 0..20 {
        let model = Model::new();
        let (alive, dies, user) = (
            Process::start(&model, 3 * seed),
            Process::start(&model, 3 * seed + 1),
            Process::start(&model, 3 * seed + 2),
        );
        let mut watch = directory(&user).watch("web").await.expect("loads");
        let (here, there) = (directory(&alive), directory(&dies));
        let _kept = [register(&here, "web", "a").await, register(&here, "web", "b").await];
        let _lost = register(&there, "web", "c").await;
        until(&mut watch, |snapshot| ids(snapshot) == ["a", "b", "c"]).await;
        pass(seed as f64).await;
        dies.crash();
        let died = user.env().now();
        let after = until(&mut watch, |snapshot| ids(snapshot) == ["a", "b"]).await;
        assert_eq!(after.state, State::Fresh);
        let took = user.env().now() - died;
        assert!(took <= Duration::from_secs(11), "{took:?} of simulated time");
    }
}

#[tokio::test(start_paused = true)]
async fn registers_again_after_a_partition_with_what_it_says_by_then() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let here = directory(&owner);
    let registration = register(&here, "web", "a").await;
    let mut watch = directory(&user).watch("web").await.expect("loads");
    let first = watch.snapshot().instances[0].created;

    owner.cut_off(&model);
    until(&mut watch, |snapshot| snapshot.instances.iter().all(|seen| seen.held)).await;
    assert!(matches!(registration.state(), RegistrationState::Retrying { .. }));
    let newer = Instance { port: 81, ..instance("web", "a") };
    let why = registration.update(newer.clone()).await.expect_err("cut off");
    assert_eq!(why.kind(), ErrorKind::Unavailable);
    assert_eq!(registration.instance(), newer);

    owner.reconnect();
    let again = until(&mut watch, |snapshot| snapshot.healthy().next().is_some()).await;
    assert_eq!(again.instances[0].instance, newer, "not what it said before");
    assert!(again.instances[0].created > first);
    for _ in 0..100 {
        pass(0.1).await;
        assert_eq!(watch.snapshot().instances[0].instance, newer);
    }
    assert!(matches!(registration.state(), RegistrationState::Registered));
    assert_eq!(model.lease_count(), 1, "the lost session is gone");
}

#[tokio::test(start_paused = true)]
async fn registers_again_when_the_store_forgets_it() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = directory(&process);
    let registration = register(&here, "web", "a").await;
    let mut watch = here.watch("web").await.expect("loads");
    let created = watch.snapshot().instances[0].created;
    model.delete(&key("directory/web/i:a"));
    until(&mut watch, |snapshot| snapshot.instances.first().is_some_and(|seen| seen.created > created)).await;
    drop(registration);
    until(&mut watch, |snapshot| snapshot.instances.is_empty()).await;
}

/// The trap of Curator #702: a reconnect brings back what was deleted meanwhile.
#[tokio::test(start_paused = true)]
async fn what_deregisters_while_cut_off_does_not_come_back() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = directory(&process);
    let (one, two) = (register(&here, "web", "a").await, register(&here, "web", "b").await);
    process.cut_off(&model);
    pass(30.0).await;
    assert_eq!(one.deregister().await.expect_err("cut off").kind(), ErrorKind::Unavailable);
    process.reconnect();
    pass(120.0).await;
    let left: Vec<_> = model.entries("directory/").iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(left, ["directory/web/i:b"]);
    assert!(matches!(two.state(), RegistrationState::Registered));
}

/// A request to register is late and arrives after the deregistration, while the session lives on.
#[tokio::test(start_paused = true)]
async fn a_late_request_does_not_bring_it_back() {
    for late in [0.5, 2.0, 6.0, 9.0] {
        let model = Model::new();
        let process = Process::start(&model, 1);
        let here = directory(&process);
        let other = register(&here, "web", "b").await;
        process.faults.lock().fate = creations("i:a", Fate::Late(Duration::from_secs_f64(late)));
        let error = here.register(instance("web", "a"), Mode::Ephemeral).await.expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        process.reconnect();
        pass(60.0).await;
        let written = model.history(&key("directory/web/i:a"));
        assert_eq!(written.len(), 2, "the late request did arrive, and left with a farewell: {written:?}");
        assert!(model.entries("directory/web/i:a").is_empty(), "after {late} s");
        assert!(matches!(other.state(), RegistrationState::Registered));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_registration_and_a_cancelled_one_leave_nothing() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    process.faults.lock().latency = Duration::from_millis(5);
    let here = directory(&process);
    let keeps = register(&here, "web", "b").await;
    for polls in 1..10 {
        let registering = here.register(instance("web", "a"), Mode::Ephemeral);
        drop(cancel_after(polls, registering).await);
        pass(1.0).await;
        assert_eq!(model.entries("directory/").len(), 1, "cancelled after {polls} polls");
    }
    drop((keeps, here));
    pass(1.0).await;
    assert_eq!((model.entries("").len(), model.lease_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_id_in_use_is_refused_by_the_name_of_its_holder() {
    let model = Model::new();
    let (one, two) = (Process::start(&model, 1), Process::start(&model, 2));
    let options = DirectoryOptions { label: Some("first".to_owned()), ..DirectoryOptions::default() };
    let first = Directory::open(&one.kv, options).expect("valid");
    let _held = register(&first, "web", "a").await;
    let second = directory(&two);
    let error = second.register(instance("web", "a"), Mode::Ephemeral).await.expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("registered by first"), "{error}");
    pass(60.0).await;
    assert_eq!(model.entries("directory/").len(), 1, "the refused one deletes nothing of the holder's");
    let error = second.put_instance(None, &instance("web", "a")).await.expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    one.crash();
    pass(11.0).await;
    register(&second, "web", "a").await;
}

#[tokio::test(start_paused = true)]
async fn persistent_ones_outlive_their_process_but_need_a_store_that_does_too() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let here = directory(&owner);
    here.register(instance("web", "a"), Mode::Persistent).await.expect("registers").keep();
    let dropped = here.register(instance("web", "b"), Mode::Persistent).await.expect("registers");
    drop(dropped);
    pass(1.0).await;
    owner.crash();
    pass(100.0).await;
    let there = directory(&user);
    let listing = there.list("web").await.expect("answers");
    let found: Vec<_> = listing.instances.iter().map(|seen| seen.instance.id.as_str()).collect();
    assert_eq!(found, ["a"]);
    there.remove_instance("web", "a").await.expect("answers");
    assert!(there.list("web").await.expect("answers").instances.is_empty());

    let volatile = Process::start(&model, 3);
    volatile.faults.lock().guarantees = Some(&VOLATILE);
    let forgetful = directory(&volatile);
    register(&forgetful, "web", "c").await;
    let error = forgetful.register(instance("web", "d"), Mode::Persistent).await.expect_err("forgets");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// As a client of a node sees it: the feed will go on without a gap one day, and says nothing until then.
#[tokio::test(start_paused = true)]
async fn a_store_that_falls_silent_is_noticed_although_its_feed_does_not_end() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let _a = register(&directory(&owner), "web", "a").await;
    let mut watch = directory(&user).watch("web").await.expect("loads");
    user.faults.lock().fate =
        Some(Box::new(|request| if matches!(request, Request::Read) { Fate::Lost } else { Fate::Arrives }));
    until(&mut watch, |snapshot| matches!(snapshot.state, State::Stale { .. })).await;
    assert_eq!(ids(&watch.snapshot()), ["a"], "a stale list stays");
    user.faults.lock().fate = None;
    until(&mut watch, |snapshot| snapshot.state == State::Fresh).await;
    assert_eq!(ids(&watch.snapshot()), ["a"]);
    // The control: a quiet store that answers does not make it stale.
    pass(600.0).await;
    assert_eq!(watch.snapshot().state, State::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_cut_feed_leaves_a_stale_list_and_is_followed_anew() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let here = directory(&owner);
    let mut watch = directory(&user).watch("web").await.expect("loads");
    let mut kept = vec![register(&here, "web", "a").await, register(&here, "web", "b").await];
    until(&mut watch, |snapshot| snapshot.instances.len() == 2).await;
    // What happens between the cut and the next reading must be found.
    user.cut_off(&model);
    until(&mut watch, |snapshot| matches!(snapshot.state, State::Stale { .. })).await;
    assert_eq!(ids(&watch.snapshot()), ["a", "b"], "a stale list stays");
    kept.push(register(&here, "web", "c").await);
    user.reconnect();
    until(&mut watch, |snapshot| ids(snapshot) == ["a", "b", "c"] && snapshot.state == State::Fresh).await;

    drop(kept);
    until(&mut watch, |snapshot| snapshot.instances.is_empty()).await;
}

/// No request and no wait between the changes and the gap: the feed has delivered none of them.
#[tokio::test(start_paused = true)]
async fn what_a_feed_skips_is_read() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let put = |number| model.put(&key(&format!("directory/web/i:{number:05}")), &plain_record(number));
    put(1);
    put(2);
    let mut watch = directory(&process).watch("web").await.expect("loads");
    model.delete(&key("directory/web/i:00001"));
    put(3);
    process.lose_changes(&model);
    until(&mut watch, |snapshot| ids(snapshot) == ["00002", "00003"]).await;
    assert_eq!(watch.wakeups(), 1, "one word about the gap, and nothing else");
    put(4);
    until(&mut watch, |snapshot| ids(snapshot) == ["00002", "00003", "00004"]).await;
}

#[tokio::test(start_paused = true)]
async fn watchers_share_one_feed_and_others_do_not_wake_them() {
    let model = Model::new();
    let (owner, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let (here, there) = (directory(&owner), directory(&user));
    let watch = there.watch("web").await.expect("loads");
    let before = user.faults.lock().requests;
    let mut second = there.watch("web").await.expect("loads");
    assert_eq!(user.faults.lock().requests, before, "the second watcher costs no request");

    for count in 0..50 {
        register(&here, "other", &count.to_string()).await.keep();
        register(&here, "web/inner", &count.to_string()).await.keep();
    }
    pass(1.0).await;
    assert_eq!(watch.wakeups(), 0, "what happens elsewhere wakes nobody");
    let _registration = register(&here, "web", "a").await;
    until(&mut second, |snapshot| snapshot.instances.len() == 1).await;
    assert_eq!((watch.wakeups(), watch.snapshot().instances.len()), (1, 1));

    drop((watch, second));
    pass(1.0).await;
    let before = user.faults.lock().requests;
    let watch = there.watch("web").await.expect("loads");
    assert!(user.faults.lock().requests > before, "it was dropped with its last watcher");
    assert_eq!(watch.snapshot().instances.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn foreign_entries_are_skipped_and_counted() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = directory(&process);
    let _registration = register(&here, "web", "a").await;
    let right = String::from_utf8_lossy(&model.entries("directory/web/i:a")[0].value).into_owned();
    for (name, value) in
        [("x", "1"), ("i:b", "not json"), ("i:c", &*right), ("h:a", "{}"), ("i:d", "{\"instance\":{}}")]
    {
        model.put(&key(&format!("directory/web/{name}")), value);
    }
    let mut watch = here.watch("web").await.expect("loads");
    assert_eq!((ids(&watch.snapshot()), watch.snapshot().skipped), (vec!["a"], 5));
    model.delete(&key("directory/web/x"));
    model.put(&key("directory/web/i:c"), &right.replace("\"a\"", "\"c\""));
    let snapshot = until(&mut watch, |snapshot| snapshot.skipped == 3).await;
    assert_eq!(ids(&snapshot), ["a", "c"]);
    assert_eq!(here.list("web").await.expect("answers").skipped, 3);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_load_says_so_and_names_are_checked() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = directory(&process);
    process.cut_off(&model);
    assert_eq!(here.watch("web").await.expect_err("cut off").kind(), ErrorKind::Unavailable);
    process.reconnect();
    here.watch("web").await.expect("loads");
    assert_eq!(here.watch("a//b").await.expect_err("bad name").kind(), ErrorKind::Invalid);
    let error = here.set_drain("web", "nobody", true).await.expect_err("no such instance");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let options = DirectoryOptions { protect: 2.0, realm: Realm::default(), ..DirectoryOptions::default() };
    assert_eq!(Directory::open(&process.kv, options).expect_err("bad share").kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_instances_come_in_few_pictures() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = directory(&process);
    for number in 0..10_000 {
        let json = plain_record(number);
        model.put(&key(&format!("directory/web/i:{number:05}")), &json);
    }
    let mut watch = here.watch("web").await.expect("loads");
    assert_eq!(watch.snapshot().instances.len(), 10_000);
    let reporter = Process::start(&model, 2);
    reporter.faults.lock().latency = Duration::from_micros(100);
    let there = directory(&reporter);
    start(async move {
        for number in 0..1_000 {
            there.report_health("web", &format!("{number:05}"), Health::Passing, None).await.expect("exists");
        }
    });
    let mut pictures = 0;
    while watch.snapshot().instances.iter().filter(|seen| seen.health == Health::Passing).count() < 1_000 {
        watch.changed().await.expect("lives");
        pictures += 1;
    }
    assert_eq!(watch.wakeups(), 1_000);
    assert!(pictures <= 500, "{pictures} pictures of 1,000 changes");
}

fn plain_record(number: usize) -> String {
    format!(r#"{{"instance":{{"id":"{number:05}","service":"web","address":"10.0.0.1","port":80}}}}"#)
}
