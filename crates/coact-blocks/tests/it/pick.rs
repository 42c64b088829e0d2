//! Picking: shares follow weights, keys stay where they are, and what should get no traffic gets none.

use std::collections::{BTreeMap, HashMap};

use coact_blocks::directory::{Directory, Health, Instance, Mode, PickOptions, Picker, Registration, Strategy, Watch};
use coact_core::ErrorKind;

use crate::{
    directory::{directory, instance, until},
    model::Model,
    world::Process,
};

struct World {
    owner: Process,
    here: Directory,
    watch: Watch,
    registrations: HashMap<String, Registration>,
}

impl World {
    /// Instances by id, weight and zone.
    async fn start(instances: &[(&str, u32, &str)]) -> Self {
        let model = Model::new();
        let owner = Process::start(&model, 1);
        let here = directory(&owner);
        let watch = directory(&Process::start(&model, 2)).watch("web").await.expect("loads");
        let mut world = Self { owner, here, watch, registrations: HashMap::new() };
        for (id, weight, zone) in instances {
            world.register(id, *weight, zone).await;
        }
        world.settle(|_| true).await;
        world
    }

    async fn register(&mut self, id: &str, weight: u32, zone: &str) {
        let instance = Instance { weight, zone: zone.to_owned(), ..instance("web", id) };
        let registration = self.here.register(instance, Mode::Ephemeral).await.expect("registers");
        self.registrations.insert(id.to_owned(), registration);
    }

    async fn deregister(&mut self, id: &str) {
        self.registrations.remove(id).expect("registered").deregister().await.expect("answers");
        self.settle(|_| true).await;
    }

    /// Waits until the watch shows what is registered, and a wish holds.
    async fn settle(&mut self, wish: impl Fn(&coact_blocks::directory::Snapshot) -> bool) {
        let count = self.registrations.len();
        until(&mut self.watch, |snapshot| snapshot.instances.len() == count && wish(snapshot)).await;
    }

    fn picker(&self, strategy: Strategy) -> Picker {
        Picker::new(self.watch.clone(), strategy, PickOptions::default())
    }
}

fn pick(picker: &Picker, key: &str) -> String {
    picker.pick(Some(key)).expect("picks").id.clone()
}

fn shares(picker: &Picker, picks: u32) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for number in 0..picks {
        *shares.entry(pick(picker, &number.to_string())).or_default() += 1;
    }
    shares
}

const WEIGHTED: [(&str, u32, &str); 4] = [("a", 100, ""), ("b", 200, ""), ("c", 100, ""), ("z", 0, "")];

#[tokio::test(start_paused = true)]
async fn round_robin_follows_weights_exactly_and_evenly() {
    let world = World::start(&WEIGHTED).await;
    let picker = world.picker(Strategy::WeightedRoundRobin);
    let order: Vec<_> = (0..8).map(|_| pick(&picker, "")).collect();
    assert_eq!(order, ["b", "a", "c", "b", "b", "a", "c", "b"]);
    let expected = BTreeMap::from([("a".to_owned(), 100), ("b".to_owned(), 200), ("c".to_owned(), 100)]);
    assert_eq!(shares(&picker, 400), expected);
}

#[tokio::test(start_paused = true)]
async fn two_choices_follow_weights_when_idle_and_avoid_the_busy() {
    let world = World::start(&WEIGHTED).await;
    let picker = world.picker(Strategy::P2c);
    let idle = shares(&picker, 20_000);
    for (id, share) in [("a", 5_000), ("b", 10_000), ("c", 5_000)] {
        assert!(idle[id].abs_diff(share) < 500, "{idle:?}");
    }
    // 400 calls that do not end: each gets its share of load, closer than chance alone would.
    let calls: Vec<_> = (0..400).map(|_| picker.pick(None).expect("picks")).collect();
    let count = |id: &str| calls.iter().filter(|picked| picked.id == id).count();
    for (id, share) in [("a", 100_usize), ("b", 200), ("c", 100)] {
        assert!(count(id).abs_diff(share) <= 10, "{id}: {}", count(id));
    }
    drop(calls.into_iter().filter(|picked| picked.id == "a").collect::<Vec<_>>());
    let after = shares(&picker, 1_000);
    assert!(after.values().sum::<u32>() == 1_000);
}

/// The control: by lot alone, loads spread further than the two choices above allow.
#[tokio::test(start_paused = true)]
async fn two_choices_keep_loads_closer_than_one_choice() {
    let ids: Vec<String> = (0..50).map(|number| format!("{number:02}")).collect();
    let instances: Vec<_> = ids.iter().map(|id| (id.as_str(), 100, "")).collect();
    let world = World::start(&instances).await;
    let picker = world.picker(Strategy::P2c);
    let calls: Vec<_> = (0..5_000).map(|_| picker.pick(None).expect("picks")).collect();
    let busiest = |counts: HashMap<String, usize>| counts.values().copied().max().unwrap_or_default();
    let mut by_two = HashMap::new();
    for call in &calls {
        *by_two.entry(call.id.clone()).or_default() += 1;
    }
    let mut by_one = HashMap::new();
    for _ in 0..5_000 {
        *by_one.entry(ids[(world.owner.env().random() % 50) as usize].clone()).or_default() += 1;
    }
    let (two, one) = (busiest(by_two), busiest(by_one));
    assert!(two <= 104 && one > 110, "busiest of 100 on average: {two} by two choices, {one} by one");
}

#[tokio::test(start_paused = true)]
async fn on_the_ring_only_the_keys_of_who_leaves_move() {
    let ids: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
    let instances: Vec<_> = ids.iter().map(|id| (id.as_str(), 100, "")).collect();
    let mut world = World::start(&instances).await;
    let picker = world.picker(Strategy::HashRing);
    let keys: Vec<String> = (0..20_000).map(|number| format!("user-{number}")).collect();
    let before: Vec<_> = keys.iter().map(|key| pick(&picker, key)).collect();
    let other = world.picker(Strategy::HashRing);
    assert!(keys.iter().zip(&before).all(|(key, id)| pick(&other, key) == *id), "every picker agrees");
    for id in &ids {
        let share = before.iter().filter(|owner| *owner == id).count();
        assert!((600..1_500).contains(&share), "{id} has {share} of 20,000 keys, 1,000 on average");
    }

    world.deregister("07").await;
    let without: Vec<_> = keys.iter().map(|key| pick(&picker, key)).collect();
    for (was, is) in before.iter().zip(&without) {
        assert!(is != "07" && (was == is || was == "07"), "a key moved from {was} to {is}");
    }
    world.register("07", 100, "").await;
    world.register("99", 100, "").await;
    world.settle(|_| true).await;
    let with: Vec<_> = keys.iter().map(|key| pick(&picker, key)).collect();
    for (was, is) in before.iter().zip(&with) {
        assert!(was == is || is == "99", "a key moved from {was} to {is}");
    }
    let moved = with.iter().filter(|id| *id == "99").count();
    assert!((400..1_600).contains(&moved), "{moved} keys moved to the new one");
}

#[tokio::test(start_paused = true)]
async fn the_ring_gives_shares_by_weight() {
    let world = World::start(&[("a", 300, ""), ("b", 100, "")]).await;
    let shares = shares(&world.picker(Strategy::HashRing), 10_000);
    assert!((6_500..8_500).contains(&shares["a"]), "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sticky_key_stays_while_its_instance_can_be_picked() {
    let mut world = World::start(&[("a", 100, ""), ("b", 100, ""), ("c", 100, "")]).await;
    let picker = world.picker(Strategy::Sticky);
    let keys: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let before: Vec<_> = keys.iter().map(|key| pick(&picker, key)).collect();
    world.register("d", 1_000, "").await;
    world.settle(|_| true).await;
    assert!(keys.iter().zip(&before).all(|(key, id)| pick(&picker, key) == *id), "a new one takes no key away");
    world.here.set_drain("web", "a", true).await.expect("exists");
    world.settle(|snapshot| snapshot.instances[0].draining).await;
    let after: Vec<_> = keys.iter().map(|key| pick(&picker, key)).collect();
    assert!(before.iter().zip(&after).all(|(was, is)| is != "a" && (was == is || was == "a")));
    assert!(before.iter().any(|id| id == "a"), "else this showed nothing");
}

#[tokio::test(start_paused = true)]
async fn stays_in_its_zone_as_far_as_asked() {
    let mut world = World::start(&[("a", 100, "east"), ("b", 100, "west")]).await;
    let zone = |prefer_zone| PickOptions { zone: Some("east".to_owned()), prefer_zone, ..PickOptions::default() };
    let must = Picker::new(world.watch.clone(), Strategy::P2c, zone(false));
    let prefers = Picker::new(world.watch.clone(), Strategy::P2c, zone(true));
    assert_eq!((shares(&must, 50)["a"], shares(&prefers, 50)["a"]), (50, 50));
    world.deregister("a").await;
    assert_eq!(pick(&prefers, ""), "b");
    let error = must.pick(None).expect_err("nothing near");
    assert_eq!(error.to_string(), "service web has no instance to pick: 1 in other zones");
}

#[tokio::test(start_paused = true)]
async fn says_why_nothing_can_be_picked() {
    let mut world = World::start(&[("a", 100, ""), ("b", 100, ""), ("c", 0, "")]).await;
    let picker = world.picker(Strategy::P2c);
    world.here.set_drain("web", "a", true).await.expect("exists");
    let failing = Health::Failing { why: "refused".to_owned() };
    world.here.report_health("web", "b", failing.clone(), None).await.expect("exists");
    world.settle(|snapshot| snapshot.instances[0].draining && snapshot.instances[1].health == failing).await;
    let error = picker.pick(None).expect_err("nothing");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.to_string(), "service web has no instance to pick: 1 draining, 1 failing, 1 of weight 0");
    for strategy in [Strategy::HashRing, Strategy::Sticky] {
        assert_eq!(world.picker(strategy).pick(None).expect_err("no key").kind(), ErrorKind::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn held_instances_are_picked_only_if_that_is_allowed_and_say_so() {
    let mut world = World::start(&[("a", 100, ""), ("b", 100, "")]).await;
    let careful = world.picker(Strategy::P2c);
    let options = PickOptions { allow_degraded: true, ..PickOptions::default() };
    let bold = Picker::new(world.watch.clone(), Strategy::P2c, options);
    assert!(!bold.pick(None).expect("healthy ones").is_held());
    world.owner.crash();
    world.settle(|snapshot| snapshot.instances.iter().all(|seen| seen.held)).await;
    let error = careful.pick(None).expect_err("only held ones");
    assert_eq!(error.to_string(), "service web has no instance to pick: 2 held");
    assert!(bold.pick(None).expect("held ones").is_held());
    until(&mut world.watch, |snapshot| snapshot.instances.is_empty()).await;
    assert_eq!(bold.pick(None).expect_err("let go").to_string(), "service web has no instances");
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_are_remembered_while_their_instance_is_not_picked() {
    let mut world = World::start(&[("a", 100, ""), ("b", 100, "")]).await;
    let picker = world.picker(Strategy::P2c);
    let calls: Vec<_> = (0..40).map(|_| picker.pick(None).expect("picks")).collect();
    let on_b: Vec<_> = calls.into_iter().filter(|picked| picked.id == "b").collect();
    assert!(on_b.len() >= 15, "{}", on_b.len());
    for draining in [true, false] {
        world.here.set_drain("web", "b", draining).await.expect("exists");
        world.settle(|snapshot| snapshot.instances[1].draining == draining).await;
        assert_eq!(pick(&picker, ""), "a", "b is busy or drains");
    }
}
