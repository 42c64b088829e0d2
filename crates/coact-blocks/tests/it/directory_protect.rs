//! The protection: too many losses at once are doubted, never believed to be healthy, and not doubted for ever.

use std::time::Duration;

use coact_blocks::directory::{Directory, DirectoryOptions, Health, Registration, Snapshot, State};

use crate::{
    directory::{directory, ids, instance, register, until},
    model::Model,
    world::{Process, pass},
};

/// Ten processes with an instance each, and one that watches them.
struct Fleet {
    model: Model,
    owners: Vec<(Process, Registration)>,
    user: Process,
}

impl Fleet {
    async fn start(seed: u64) -> Self {
        let model = Model::new();
        let mut owners = Vec::new();
        for number in 0..10 {
            let process = Process::start(&model, seed * 100 + number);
            let registration = register(&directory(&process), "web", &number.to_string()).await;
            owners.push((process, registration));
        }
        let user = Process::start(&model, seed * 100 + 99);
        Self { model, owners, user }
    }

    fn watcher(&self, protect: f64) -> Directory {
        let options = DirectoryOptions { protect, ..DirectoryOptions::default() };
        Directory::open(&self.user.kv, options).expect("valid")
    }

    fn kill(&self, count: usize) {
        for (process, _) in &self.owners[..count] {
            process.crash();
        }
    }
}

fn held(snapshot: &Snapshot) -> usize {
    snapshot.instances.iter().filter(|seen| seen.held).count()
}

#[tokio::test(start_paused = true)]
async fn a_mass_expiry_is_held_marked_and_dropped_in_the_end() {
    for seed in 0..10 {
        let fleet = Fleet::start(seed).await;
        let mut watch = fleet.watcher(0.5).watch("web").await.expect("loads");
        fleet.kill(8);
        let snapshot = until(&mut watch, |snapshot| held(snapshot) == 8).await;
        assert!(matches!(&snapshot.state, State::Degraded { missing: 8, .. }), "{:?}", snapshot.state);
        assert_eq!(snapshot.instances.len(), 10);
        assert_eq!(snapshot.healthy().count(), 2, "held is never healthy");
        assert!(snapshot.instances.iter().all(|seen| !seen.held || seen.health != Health::Passing));
        let held_since = fleet.user.env().now();
        let after = until(&mut watch, |snapshot| held(snapshot) == 0).await;
        assert_eq!((after.instances.len(), &after.state), (2, &State::Fresh));
        let took = fleet.user.env().now() - held_since;
        assert!(took <= Duration::from_secs(31), "{took:?} of simulated time");
    }
}

#[tokio::test(start_paused = true)]
async fn without_protection_a_mass_expiry_empties_the_list() {
    let fleet = Fleet::start(1).await;
    let mut watch = fleet.watcher(0.0).watch("web").await.expect("loads");
    fleet.kill(10);
    let mut most_held = 0;
    let snapshot = until(&mut watch, |snapshot| {
        most_held = most_held.max(held(snapshot));
        snapshot.instances.is_empty()
    })
    .await;
    assert_eq!((most_held, &snapshot.state), (0, &State::Fresh));
}

#[tokio::test(start_paused = true)]
async fn few_deaths_are_believed_at_once() {
    let fleet = Fleet::start(2).await;
    let mut watch = fleet.watcher(0.5).watch("web").await.expect("loads");
    fleet.kill(5);
    let snapshot = until(&mut watch, |snapshot| snapshot.instances.len() == 5).await;
    assert_eq!((held(&snapshot), &snapshot.state), (0, &State::Fresh));
}

#[tokio::test(start_paused = true)]
async fn who_deregisters_is_never_held() {
    for hides_causes in [false, true] {
        let Fleet { model: _model, owners, user } = Fleet::start(3).await;
        user.faults.lock().hides_causes = hides_causes;
        let mut watch = directory(&user).watch("web").await.expect("loads");
        let mut processes = Vec::new();
        for (process, registration) in owners {
            registration.deregister().await.expect("answers");
            processes.push(process);
        }
        let mut most_held = 0;
        let snapshot = until(&mut watch, |snapshot| {
            most_held = most_held.max(held(snapshot));
            snapshot.instances.is_empty()
        })
        .await;
        assert_eq!((most_held, &snapshot.state), (0, &State::Fresh), "causes hidden: {hides_causes}");
    }
}

/// The store comes back with nothing, as after a lost disk: the trap of Nacos #4470.
#[tokio::test(start_paused = true)]
async fn an_empty_list_after_a_gap_is_held_until_the_owners_are_back() {
    let fleet = Fleet::start(4).await;
    let mut watch = fleet.watcher(0.5).watch("web").await.expect("loads");
    for (process, _) in &fleet.owners {
        process.cut_off(&fleet.model);
    }
    fleet.user.cut_off(&fleet.model);
    for entry in fleet.model.entries("directory/") {
        fleet.model.delete(&entry.key);
    }
    fleet.user.reconnect();
    let snapshot = until(&mut watch, |snapshot| held(snapshot) == 10).await;
    assert!(matches!(snapshot.state, State::Degraded { missing: 10, .. }));
    for (process, _) in &fleet.owners {
        process.reconnect();
    }
    let snapshot = until(&mut watch, |snapshot| snapshot.healthy().count() == 10).await;
    assert_eq!((held(&snapshot), &snapshot.state), (0, &State::Fresh));
    let owners = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    assert_eq!(ids(&snapshot), owners);
}

/// Nacos shows all as healthy when all are not. Here the failing ones stay failing, and the state says so.
#[tokio::test(start_paused = true)]
async fn mostly_failing_is_degraded_and_failing_stays_failing() {
    let fleet = Fleet::start(5).await;
    let here = fleet.watcher(0.5);
    let mut watch = here.watch("web").await.expect("loads");
    let failing = || Health::Failing { why: "connection refused".to_owned() };
    for number in 0..10 {
        let health = if number < 5 { failing() } else { Health::Passing };
        here.report_health("web", &number.to_string(), health, None).await.expect("exists");
    }
    let checked = |snapshot: &Snapshot| snapshot.instances.iter().all(|seen| seen.health != Health::Unchecked);
    let half = until(&mut watch, checked).await;
    assert_eq!((&half.state, half.healthy().count()), (&State::Fresh, 5));
    for number in 5..10 {
        here.report_health("web", &number.to_string(), failing(), None).await.expect("exists");
    }
    let all = until(&mut watch, |snapshot| snapshot.healthy().count() == 0).await;
    assert!(matches!(&all.state, State::Degraded { missing: 0, why } if why.contains("10 of 10")), "{:?}", all.state);
    assert!(all.instances.iter().all(|seen| seen.health == failing()));
}

#[tokio::test(start_paused = true)]
async fn health_ends_with_the_lease_of_who_reported_it() {
    let model = Model::new();
    let (owner, checker) = (Process::start(&model, 1), Process::start(&model, 2));
    let _registration = register(&directory(&owner), "web", "a").await;
    let here = directory(&checker);
    let mut watch = here.watch("web").await.expect("loads");
    let session = checker.session().await;
    here.report_health("web", "a", Health::Passing, Some(session.lease())).await.expect("exists");
    until(&mut watch, |snapshot| snapshot.instances[0].health == Health::Passing).await;
    session.close().await.expect("closes");
    until(&mut watch, |snapshot| snapshot.instances[0].health == Health::Unchecked).await;
    pass(1.0).await;
    assert_eq!(watch.snapshot().get("a").expect("there").instance, instance("web", "a"));
}
