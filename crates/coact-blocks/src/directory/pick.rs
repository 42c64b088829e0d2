//! Picking an instance for each call, from memory.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use coact_core::{Error, ErrorKind, Result, env::Env};
use parking_lot::Mutex;

use super::{Health, Instance, Seen, Snapshot, Watch, ring::Ring};

/// Picks instances of one service. It asks nobody: it reads the snapshot of a [`Watch`].
///
/// Instances that fail, drain, weigh nothing or are held are not picked.
pub struct Picker {
    watch: Watch,
    env: Env,
    strategy: Strategy,
    options: PickOptions,
    prepared: Mutex<Prepared>,
}

/// How an instance is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Two by lot, by weight, and of them the one with fewer calls in flight for its weight: the power of two choices
    /// (Mitzenmacher, 2001).
    #[default]
    P2c,
    /// One after another, each as often as its weight says, evenly spread: the smooth weighted round-robin of nginx
    /// (its commit 52327e0627f4, 2012). A pick costs time in proportion to the number of instances.
    WeightedRoundRobin,
    /// By the key, the same in every process. When an instance goes, only its keys move. One virtual node for each unit of
    /// weight: leave weights around 100, since shares get uneven below.
    HashRing,
    /// By the key: the first pick is by [`P2c`](Self::P2c), and then the key stays with its instance while that can be
    /// picked. Remembered in this picker only, for the 65,536 keys that came last.
    Sticky,
}

/// What a picker may pick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PickOptions {
    /// The zone to stay in; any by default.
    pub zone: Option<String>,
    /// Whether to go to other zones when the own one has nothing to pick. Without it, [`zone`](Self::zone) is a must.
    pub prefer_zone: bool,
    /// Whether to pick held instances when nothing else is left: [`Picked::is_held`] tells.
    pub allow_degraded: bool,
}

/// A picked instance. While it lives it counts as a call in flight.
pub struct Picked {
    seen: Arc<Seen>,
    in_flight: Arc<AtomicU32>,
}

impl Picker {
    /// A picker on a watch.
    pub fn new(watch: Watch, strategy: Strategy, options: PickOptions) -> Self {
        let env = watch.kv().env().clone();
        Self { watch, env, strategy, options, prepared: Mutex::default() }
    }

    /// Picks an instance. The key chooses it with [`HashRing`](Strategy::HashRing) and [`Sticky`](Strategy::Sticky), and is
    /// not looked at otherwise.
    ///
    /// # Errors
    /// `Unavailable` if nothing can be picked, counting the reasons; `Invalid` if the strategy needs a key.
    pub fn pick(&self, key: Option<&str>) -> Result<Picked> {
        if key.is_none() && matches!(self.strategy, Strategy::HashRing | Strategy::Sticky) {
            let message = format!("a pick by {:?} needs a key, for example a user's name", self.strategy);
            return Err(Error::invalid(message));
        }
        let key = key.unwrap_or_default();
        let snapshot = self.watch.snapshot();
        let mut prepared = self.prepared.lock();
        if !prepared.snapshot.as_ref().is_some_and(|known| Arc::ptr_eq(known, &snapshot)) {
            prepared.prepare(snapshot, self.strategy, &self.options);
        }
        if prepared.candidates.is_empty() {
            return Err(self.none_error(&prepared));
        }
        let index = match self.strategy {
            Strategy::P2c => prepared.by_two_choices(&self.env),
            Strategy::WeightedRoundRobin => prepared.in_turn(),
            Strategy::HashRing => prepared.ring.owner(key).unwrap_or_default(),
            Strategy::Sticky => prepared.as_before(key, &self.env),
        };
        Ok(prepared.candidates[index].pick())
    }

    /// The watch it picks from.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    fn none_error(&self, prepared: &Prepared) -> Error {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let instances = prepared.snapshot.iter().flat_map(|snapshot| snapshot.instances.iter());
        for seen in instances {
            *reasons.entry(reason_against(seen)).or_default() += 1;
        }
        let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let service = self.watch.service();
        let message = match reasons.is_empty() {
            true => format!("service {service} has no instances"),
            false => format!("service {service} has no instance to pick: {}", reasons.join(", ")),
        };
        Error::new(ErrorKind::Unavailable, message)
    }
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picker({}, {:?})", self.watch.service(), self.strategy)
    }
}

impl Picked {
    /// Whether it was picked though the store no longer has it, for want of others.
    pub fn is_held(&self) -> bool {
        self.seen.held
    }

    /// All that the watch knows about it.
    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }
}

impl Deref for Picked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.seen.instance
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picked({} at {}:{})", self.id, self.address, self.port)
    }
}

/// What was worked out from one snapshot, and what is remembered over all.
#[derive(Default)]
struct Prepared {
    snapshot: Option<Arc<Snapshot>>,
    candidates: Vec<Candidate>,
    /// Of instances that are no candidates now.
    in_flight: HashMap<String, Arc<AtomicU32>>,
    /// The sum of weights up to and with each candidate.
    weights: Vec<u64>,
    ring: Ring,
    sticky: Sticky,
}

struct Candidate {
    seen: Arc<Seen>,
    in_flight: Arc<AtomicU32>,
    /// How far it is behind its share, for the round-robin.
    due: i64,
}

impl Prepared {
    fn prepare(&mut self, snapshot: Arc<Snapshot>, strategy: Strategy, options: &PickOptions) {
        let mut dues = HashMap::new();
        for candidate in self.candidates.drain(..) {
            dues.insert(candidate.seen.instance.id.clone(), candidate.due);
            self.in_flight.insert(candidate.seen.instance.id.clone(), candidate.in_flight);
        }
        for seen in eligible(&snapshot, options) {
            let due = dues.remove(&seen.instance.id).unwrap_or_default();
            let in_flight = self.in_flight.remove(&seen.instance.id).unwrap_or_default();
            self.candidates.push(Candidate { seen, in_flight, due });
        }
        // Who is not picked for a while may still have calls to finish.
        self.in_flight.retain(|_, in_flight| Arc::strong_count(in_flight) > 1);
        let mut sum = 0;
        self.weights = self.candidates.iter().map(|candidate| (sum += candidate.weight(), sum).1).collect();
        if strategy == Strategy::HashRing {
            let by_weight = |candidate: &Candidate| candidate.seen.instance.weight;
            self.ring = Ring::new(self.candidates.iter().map(|c| (c.seen.instance.id.as_str(), by_weight(c))));
        }
        self.snapshot = Some(snapshot);
    }

    fn by_two_choices(&self, env: &Env) -> usize {
        let total = self.weights.last().copied().unwrap_or_default();
        let first = self.at_weight(env.random() % total);
        let weight = self.candidates[first].weight();
        if weight == total {
            return first;
        }
        // The second lot is drawn among the others: what lies beyond the first is shifted over it.
        let mut place = env.random() % (total - weight);
        if place >= self.weights[first] - weight {
            place += weight;
        }
        let second = self.at_weight(place);
        if self.candidates[second].is_less_busy_than(&self.candidates[first]) { second } else { first }
    }

    fn at_weight(&self, place: u64) -> usize {
        self.weights.partition_point(|sum| *sum <= place)
    }

    fn in_turn(&mut self) -> usize {
        let total = self.weights.last().copied().unwrap_or_default() as i64;
        let mut next = 0;
        for index in 0..self.candidates.len() {
            self.candidates[index].due += self.candidates[index].weight() as i64;
            if self.candidates[index].due > self.candidates[next].due {
                next = index;
            }
        }
        self.candidates[next].due -= total;
        next
    }

    fn as_before(&mut self, key: &str, env: &Env) -> usize {
        if let Some(id) = self.sticky.get(key)
            && let Ok(index) = self.candidates.binary_search_by(|candidate| candidate.seen.instance.id.as_str().cmp(id))
        {
            return index;
        }
        let index = self.by_two_choices(env);
        self.sticky.remember(key, self.candidates[index].seen.instance.id.clone());
        index
    }
}

impl Candidate {
    fn weight(&self) -> u64 {
        u64::from(self.seen.instance.weight)
    }

    fn is_less_busy_than(&self, other: &Self) -> bool {
        let load = |candidate: &Self| u64::from(candidate.in_flight.load(Ordering::Relaxed));
        load(self) * other.weight() < load(other) * self.weight()
    }

    fn pick(&self) -> Picked {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Picked { seen: self.seen.clone(), in_flight: self.in_flight.clone() }
    }
}

/// Which key went where; the oldest are forgotten.
#[derive(Default)]
struct Sticky {
    ids: HashMap<String, String>,
    order: VecDeque<String>,
}

const STICKY_MAX: usize = 65_536;

impl Sticky {
    fn get(&self, key: &str) -> Option<&str> {
        self.ids.get(key).map(String::as_str)
    }

    fn remember(&mut self, key: &str, id: String) {
        if self.ids.insert(key.to_owned(), id).is_some() {
            return;
        }
        self.order.push_back(key.to_owned());
        if self.order.len() > STICKY_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// What may be picked: healthy ones of the zone, else of any if the zone is a preference, else held ones if allowed.
fn eligible(snapshot: &Snapshot, options: &PickOptions) -> Vec<Arc<Seen>> {
    let in_zone = |seen: &Arc<Seen>| options.zone.as_ref().is_none_or(|zone| *zone == seen.instance.zone);
    let can_be_held = |seen: &&Arc<Seen>| seen.held && !seen.draining && seen.instance.weight > 0;
    let healthy: Vec<_> = snapshot.healthy().cloned().collect();
    let held = || snapshot.instances.iter().filter(can_be_held).cloned().collect();
    let mut groups = vec![healthy];
    if options.allow_degraded {
        groups.push(held());
    }
    for group in groups {
        let near: Vec<_> = group.iter().filter(|seen| in_zone(seen)).cloned().collect();
        if !near.is_empty() {
            return near;
        }
        if options.prefer_zone && !group.is_empty() {
            return group;
        }
    }
    Vec::new()
}

fn reason_against(seen: &Seen) -> &'static str {
    match seen {
        Seen { held: true, .. } => "held",
        Seen { draining: true, .. } => "draining",
        Seen { health: Health::Failing { .. }, .. } => "failing",
        Seen { instance: Instance { weight: 0, .. }, .. } => "of weight 0",
        _ => "in other zones",
    }
}
