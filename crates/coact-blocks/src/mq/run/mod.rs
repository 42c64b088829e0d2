//! Processing with a handler: several records at a time, one of each key, and those that fail do not lose their order.

mod lane;
mod letters;
mod markers;
mod parking;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{Atomicity, Record, StoredRecord},
    env::{Env, PlantedBug},
    name::Topic,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Policy,
    consumer::{Consumer, Delivery, state::Shared},
    group::TopicPartition,
    parked,
    retry::{ensure_beside, hash, unsupported},
    retry_topic,
};
use crate::{backoff::Backoff, panic};
use lane::{Lane, LaneId, State, Which};
use markers::{Listing, Markers};
use parking::{Back, Parking, Step};

/// How records are processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// How many records are processed at a time; 16 by default.
    pub concurrency: usize,
    /// How often a record is tried before the policy decides; 5 by default.
    pub max_attempts: u32,
    /// What becomes of a record that failed so often; by default its key is parked.
    pub policy: Policy,
    /// How long a record rests after its first failure; 100 ms by default. The pauses double, with jitter.
    pub first_pause: Duration,
    /// How long a record rests at most; 30 s by default.
    pub longest_pause: Duration,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            concurrency: 16,
            max_attempts: 5,
            policy: Policy::default(),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// A record for a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The topic that it is of.
    pub topic: Topic,
    /// The partition that it is of.
    pub partition: u32,
    /// The record, with its offset and time; those of a record that was parked are what they were at first.
    pub stored: StoredRecord,
    /// Which attempt this is, from 1, as far as this consumer knows.
    pub attempt: u32,
}

impl Message {
    /// What was produced.
    pub fn record(&self) -> &Record {
        &self.stored.record
    }
}

impl Consumer {
    /// Processes records with a handler until the consumer [leaves](Consumer::leave), which some other task asks for.
    ///
    /// Of each key one record is in flight at a time, in order; others go on. A record that fails, by an error or a panic,
    /// stays at the head of its key and is tried again after a pause. After
    /// [`max_attempts`](RunOptions::max_attempts) the [policy](Policy) decides. Handlers run on the task that awaits this:
    /// work that keeps a processor busy belongs on tasks of its own.
    ///
    /// # Errors
    /// `Invalid` for no concurrency or no attempts, or if the names of the policy's topics are too long; `Unsupported` if
    /// keys are to be parked and the engine does not commit everything at once, or is another than the group's store;
    /// `Fenced` when the session or the place in the group is lost. What is in flight then is dropped.
    ///
    /// # Cancel safety
    /// What is in flight is dropped, and done again.
    pub async fn run<H, F, E>(&self, handler: H, options: RunOptions) -> Result<()>
    where
        H: Fn(Message) -> F + Send + Sync,
        F: Future<Output = Result<(), E>> + Send,
        E: fmt::Display + Send,
    {
        self.check(&options)?;
        if let Policy::RetryTopic { .. } = options.policy {
            for topic in &self.topics {
                let retry = retry_topic(topic, self.group())?;
                ensure_beside(&self.shared.streams, topic, &retry).await?;
                self.shared.want([retry]);
            }
        }
        let call = |message: Message| -> BoxFuture<'_, Result<(), String>> { call(&handler, message).boxed() };
        let parking = match options.policy {
            Policy::ParkKey => {
                Some(Parking { shared: self.shared.clone(), dir: parked::dir(&self.realm, self.group())? })
            }
            _ => None,
        };
        Runner::new(self, &call, &options, parking).run().await
    }

    /// Gives a record up: appends it to the [dead letters](super::dead_topic) of its topic, with where it was, why and after
    /// how many attempts, and settles it, in one commit if the engine can. For those who do not [`run`](Self::run).
    ///
    /// # Errors
    /// `Fenced` if the record's partition is not this consumer's any more; `Invalid` if topic and group are too long to
    /// make a name; otherwise what the engine answers. The record is unfinished then.
    ///
    /// # Cancel safety
    /// It may happen though the future is dropped; again is harmless as long as the engine recognizes repeated batches.
    pub async fn bury(&self, delivery: &Delivery, why: &str, attempts: u32) -> Result<()> {
        letters::bury(&self.shared, delivery, why, attempts).await
    }

    fn check(&self, options: &RunOptions) -> Result<()> {
        if options.concurrency == 0 || options.max_attempts == 0 {
            return Err(Error::invalid("concurrency and max_attempts of 0 are not allowed: use at least 1"));
        }
        for topic in &self.topics {
            match options.policy {
                Policy::BlockKey => {}
                Policy::ParkKey => {
                    drop((super::parked_topic(topic, self.group())?, super::dead_topic(topic, self.group())?))
                }
                Policy::DeadLetter => drop(super::dead_topic(topic, self.group())?),
                Policy::RetryTopic { .. } => {
                    drop((retry_topic(topic, self.group())?, super::dead_topic(topic, self.group())?));
                }
            }
        }
        let streams = &self.shared.streams;
        if options.policy == Policy::ParkKey {
            if streams.guarantees().atomicity < Atomicity::Everything {
                let (engine, has) = (streams.describe(), streams.guarantees().atomicity.name());
                return Err(unsupported(format!(
                    "parking a key needs everything in one commit, but {engine} commits {has} at once: use another policy"
                )));
            }
            let (store, engine) = (self.session.kv().describe(), streams.describe());
            if store != engine {
                return Err(unsupported(format!(
                    "parking a key needs the group in the store of its streams, but it meets in {store}, and they are in {engine}"
                )));
            }
        }
        Ok(())
    }
}

/// Calls a handler; a panic is a failure as any other.
async fn call<H, F, E>(handler: &H, message: Message) -> Result<(), String>
where
    H: Fn(Message) -> F + Send + Sync,
    F: Future<Output = Result<(), E>> + Send,
    E: fmt::Display + Send,
{
    // What the handler leaves behind after a panic is its own; nothing of ours is shared with it.
    match AssertUnwindSafe(async { handler(message).await }).catch_unwind().await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic::describe(&*panic)),
    }
}

type Call<'a> = dyn Fn(Message) -> BoxFuture<'a, Result<(), String>> + Sync + 'a;

/// Work on a lane, which is of an era.
type Work<'a> = BoxFuture<'a, (LaneId, u64, Done)>;

/// What came of the work on a lane.
enum Done {
    /// The handler was called.
    Handled(Delivery, Result<(), String>),
    /// A record that failed too often was moved elsewhere, or not.
    Moved(Vec<Delivery>, Result<()>),
    /// The head of a key, and what follows it, was parked, or not.
    Parked(Vec<Delivery>, Result<Step>),
    /// A parked record came back, or not.
    Back(Box<Back>, Result<Step>),
}

struct Runner<'a> {
    shared: &'a Arc<Shared>,
    env: Env,
    consumer: &'a Consumer,
    call: &'a Call<'a>,
    options: &'a RunOptions,
    parking: Option<Parking>,
    markers: Markers,
    lanes: HashMap<LaneId, Lane>,
    ready: VecDeque<LaneId>,
    running: FuturesUnordered<Work<'a>>,
    resting: BTreeMap<(Instant, u64), LaneId>,
    rests: u64,
}

impl<'a> Runner<'a> {
    fn new(consumer: &'a Consumer, call: &'a Call<'a>, options: &'a RunOptions, parking: Option<Parking>) -> Self {
        Self {
            shared: &consumer.shared,
            env: consumer.shared.streams.env().clone(),
            consumer,
            call,
            options,
            parking,
            markers: Markers::default(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            running: FuturesUnordered::new(),
            resting: BTreeMap::new(),
            rests: 0,
        }
    }

    async fn run(mut self) -> Result<()> {
        let mut records = self.shared.ready.subscribe();
        let mut attention = self.shared.attention.subscribe();
        let mut listings = match &self.parking {
            Some(parking) => {
                markers::follow(self.consumer.session.kv(), parking.dir.clone(), self.shared.clone()).boxed()
            }
            None => futures::stream::pending().boxed(),
        };
        loop {
            records.mark_unchanged();
            if attention.has_changed().unwrap_or(false) {
                attention.mark_unchanged();
                self.purge();
            }
            if let Some(why) = self.shared.over() {
                return if why.kind() == ErrorKind::Closed { Ok(()) } else { Err(why) };
            }
            if let Some(failure) = self.shared.failure() {
                tracing::error!(group = %self.shared.group, error = %failure, "a partition cannot be read");
            }
            while let Some(delivery) = self.shared.take() {
                self.accept(delivery);
            }
            while self.running.len() < self.options.concurrency {
                let Some(lane) = self.ready.pop_front() else { break };
                self.start(lane);
            }
            let wake = self.resting.keys().next().map(|(at, _)| *at);
            let env = self.env.clone();
            let rested = async {
                match wake {
                    Some(at) => env.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((lane, era, done)) = self.running.next() => self.land(lane, era, done),
                // These three live as long as the consumer does.
                _ = attention.changed() => self.purge(),
                _ = records.changed() => {}
                Some(listing) = listings.next() => self.take_listing(listing),
                () = rested => self.wake(),
            }
        }
    }

    /// Takes a record into the lane of its key.
    fn accept(&mut self, delivery: Delivery) {
        let which = match &delivery.message().key {
            Some(key) => Which::Key(hash(key)),
            None => Which::One(delivery.record().offset),
        };
        let id = LaneId { place: delivery.place().clone(), which };
        let lane = self.lane(&id, delivery.era());
        if lane.era != delivery.era() {
            lane.restart(delivery.era());
        }
        lane.queue.push_back(delivery);
        if lane.state == State::Idle {
            self.make_ready(id);
        }
    }

    fn lane(&mut self, id: &LaneId, era: u64) -> &mut Lane {
        let (env, options) = (&self.env, self.options);
        self.lanes
            .entry(id.clone())
            .or_insert_with(|| Lane::new(era, Backoff::new(env, options.first_pause, options.longest_pause)))
    }

    fn make_ready(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.state = State::Ready;
            self.ready.push_back(id);
        }
    }

    /// Begins with what is next in a lane.
    fn start(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.state == State::Ready) else { return };
        lane.state = State::Idle;
        if self.parking.is_some() && !self.markers.is_loaded(&id.place, lane.era) {
            // It goes on when it is known which keys are parked.
            return;
        }
        let marker = match id.which {
            Which::Key(hash) => self.markers.get(&id.place, &hash),
            Which::One(_) => None,
        };
        let work = match (marker, &self.parking) {
            (Some(marker), Some(parking)) => {
                if marker.0.redrive && (lane.queue.is_empty() || lane.parked_last) {
                    lane.parked_last = false;
                    let back = lane.back.take().unwrap_or_default();
                    parking.bring_back(id.clone(), lane.era, marker, back, self.call, self.options.max_attempts)
                } else if lane.queue.is_empty() {
                    None
                } else {
                    lane.parked_last = true;
                    parking.park(id.clone(), lane, Some(marker))
                }
            }
            (None, Some(parking)) if lane.verdict.is_some() && matches!(id.which, Which::Key(_)) => {
                parking.park(id.clone(), lane, None)
            }
            _ => match lane.queue.pop_front() {
                None => None,
                Some(delivery) => Some(match lane.verdict.clone() {
                    Some(why) => letters::post(self.shared, self.options, id.clone(), delivery, why, lane.attempts),
                    None => handle(self.call, id.clone(), delivery, lane.attempts + 1),
                }),
            },
        };
        match work {
            Some(work) => {
                lane.state = State::Running;
                self.running.push(work);
            }
            None if lane.queue.is_empty() => drop(self.lanes.remove(&id)),
            None => {}
        }
    }

    /// Takes what came of the work on a lane.
    fn land(&mut self, id: LaneId, era: u64, done: Done) {
        let planted = self.env.planted(PlantedBug::RetryOutOfOrder);
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.state = State::Idle;
        if lane.era != era {
            // The partition was given up and came back meanwhile.
            return self.make_ready(id);
        }
        let mut rest = false;
        match done {
            Done::Handled(delivery, Ok(())) => {
                delivery.ack();
                lane.succeeded();
            }
            Done::Handled(delivery, Err(why)) => {
                lane.attempts += 1;
                if lane.attempts >= self.options.max_attempts && self.options.policy != Policy::BlockKey {
                    lane.verdict = Some(why);
                } else {
                    tracing::debug!(topic = %id.place.topic, partition = id.place.partition, why, "a record failed");
                    rest = true;
                }
                match planted {
                    true => lane.queue.push_back(delivery),
                    false => lane.queue.push_front(delivery),
                }
            }
            Done::Moved(_, Ok(())) => lane.succeeded(),
            Done::Moved(deliveries, Err(error)) | Done::Parked(deliveries, Err(error)) => {
                tracing::debug!(topic = %id.place.topic, %error, "a failed record could not be moved yet");
                lane.put_back(deliveries);
                rest = true;
            }
            Done::Parked(deliveries, Ok(step)) => match self.markers.step(&id, step) {
                true => lane.succeeded(),
                false => lane.put_back(deliveries),
            },
            Done::Back(back, Ok(step)) => {
                let failed = back.failed();
                rest = failed;
                if !failed {
                    lane.backoff.reset();
                }
                let gone = matches!(step, Step::Gone);
                if self.markers.step(&id, step) && back.goes_on() && !gone {
                    lane.back = Some(*back);
                }
            }
            Done::Back(_, Err(error)) => {
                tracing::debug!(topic = %id.place.topic, %error, "a parked record could not come back yet");
                rest = true;
            }
        }
        if lane.is_stale(self.shared, &id.place) {
            self.lanes.remove(&id);
        } else if rest {
            lane.state = State::Resting;
            self.rests += 1;
            let until = self.env.now() + lane.backoff.next_pause();
            self.resting.insert((until, self.rests), id);
        } else {
            self.make_ready(id);
        }
    }

    /// Wakes the lanes that have rested enough.
    fn wake(&mut self) {
        let now = self.env.now();
        while let Some(entry) = self.resting.first_entry().filter(|entry| entry.key().0 <= now) {
            let id = entry.remove();
            if self.lanes.get(&id).is_some_and(|lane| lane.state == State::Resting) {
                self.make_ready(id);
            }
        }
    }

    /// Drops what is of partitions that were given up; what runs may end.
    fn purge(&mut self) {
        let active: HashSet<(TopicPartition, u64)> = self.shared.eras().into_iter().collect();
        self.lanes.retain(|id, lane| {
            let keep = active.contains(&(id.place.clone(), lane.era));
            if !keep {
                lane.queue.clear();
            }
            keep || lane.state == State::Running
        });
    }

    fn take_listing(&mut self, listing: Listing) {
        let back = self.markers.merge(listing);
        for (id, era) in back {
            self.lane(&id, era);
        }
        let idle = self.lanes.iter().filter(|(_, lane)| lane.state == State::Idle);
        let idle: Vec<_> = idle.map(|(id, _)| id.clone()).collect();
        idle.into_iter().for_each(|id| self.make_ready(id));
    }
}

fn handle<'a>(call: &'a Call<'a>, id: LaneId, delivery: Delivery, attempt: u32) -> Work<'a> {
    let message = Message {
        topic: delivery.topic().clone(),
        partition: delivery.partition(),
        stored: delivery.record().clone(),
        attempt,
    };
    async move {
        let result = call(message).await;
        (id, delivery.era(), Done::Handled(delivery, result))
    }
    .boxed()
}
