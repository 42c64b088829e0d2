//! What a node knows about its topics, groups and queues: gathered when the metrics are read, and every few seconds for
//! the history of each group's lag. Nothing waits for it: who reads the metrics gets what was gathered last if a look
//! takes too long.
//!
//! Names of topics, groups and queues are labels, so there is a limit to each; what is beyond it is left out, and a gauge
//! says how much.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use coact_blocks::mq::{History, Monitor, Sample};
use coact_core::{
    Result,
    contract::{
        queue::QueueStats,
        stream::{LATENESS_BUCKETS, TopicInfo},
    },
    guarantees::Accepted,
    name::{Group, Namespace, Realm},
    registry::Store,
};
use coact_engine_embedded::Engine;
use parking_lot::Mutex;

pub(crate) use super::traffic::Traffic;

use super::Page;
use crate::{auth::RESERVED_NAMESPACE, lifecycle::Signal};

/// How many topics, groups and queues have metrics, each.
const NAMES_MAX: usize = 200;
/// How many groups have a history: each takes up to half a megabyte.
const HISTORIES_MAX: usize = 64;
/// How often the node looks by itself.
const EVERY: Duration = Duration::from_secs(5);
/// How old what was gathered may be for whoever reads the metrics.
const FRESH: Duration = Duration::from_millis(500);
/// How long whoever reads the metrics waits for a new look.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How many names are listed at once.
const PAGE: usize = 1_000;

/// What a node knows about its topics, groups and queues.
pub(crate) struct Overview {
    engine: Engine,
    traffic: Traffic,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    gathered: Arc<Gathered>,
    at: Option<Instant>,
    histories: BTreeMap<(Namespace, Group), Histories>,
}

/// How many records a group was behind, and how old the oldest of them was.
#[derive(Default)]
struct Histories {
    messages: History,
    age_ms: History,
}

/// One look at everything.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    topics: Vec<TopicRow>,
    groups: Vec<GroupRow>,
    queues: Vec<QueueRow>,
    /// How many topics, groups and queues are not among them.
    left_out: [u64; 3],
    now_ms: u64,
}

#[derive(Debug)]
struct TopicRow {
    labels: String,
    records: Option<u64>,
    bytes: u64,
    end: u64,
    oldest_ms: Option<u64>,
    delayed: u64,
    lateness: Vec<u64>,
}

#[derive(Debug)]
struct GroupRow {
    namespace: Namespace,
    group: Group,
    members: u64,
    parked: u64,
    messages: Option<u64>,
    age_ms: u64,
    /// By topic: records behind, and the age of the oldest.
    topics: BTreeMap<String, (Option<u64>, u64)>,
}

#[derive(Debug)]
struct QueueRow {
    labels: String,
    stats: QueueStats,
}

impl Overview {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, traffic: Traffic::default(), looking: tokio::sync::Mutex::default(), seen: Mutex::default() }
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Looks every few seconds until the shutdown begins.
    pub(crate) async fn run(self: Arc<Self>, mut signal: Signal) {
        let env = self.engine.env().clone();
        loop {
            tokio::select! {
                () = signal.draining() => return,
                () = env.sleep(EVERY) => {}
            }
            tokio::select! {
                () = signal.draining() => return,
                looked = self.look() => {
                    if let Err(error) = looked {
                        tracing::debug!(%error, "the node could not look at its topics and queues");
                    }
                }
            }
        }
    }

    /// A new look, or the last one if that takes too long or fails.
    pub(crate) async fn latest(&self) -> Arc<Gathered> {
        let env = self.engine.env();
        let is_fresh = self.seen.lock().at.is_some_and(|at| env.now().saturating_duration_since(at) < FRESH);
        if !is_fresh {
            // Whatever went wrong, what was seen last is shown.
            let _ = env.timeout(LOOK_LIMIT, self.look()).await;
        }
        self.seen.lock().gathered.clone()
    }

    /// The history of a group's lag, in records and in milliseconds; `None` if there is none.
    pub(crate) fn history<T>(
        &self,
        namespace: &Namespace,
        group: &Group,
        show: impl FnOnce(&History, &History) -> T,
    ) -> Option<T> {
        let seen = self.seen.lock();
        let histories = seen.histories.get(&(namespace.clone(), group.clone()))?;
        Some(show(&histories.messages, &histories.age_ms))
    }

    async fn look(&self) -> Result<()> {
        let _one_at_a_time = self.looking.lock().await;
        let gathered = self.gather().await?;
        let mut seen = self.seen.lock();
        seen.remember(&gathered);
        seen.gathered = Arc::new(gathered);
        seen.at = Some(self.engine.env().now());
        Ok(())
    }

    async fn gather(&self) -> Result<Gathered> {
        let mut gathered = Gathered { now_ms: self.engine.env().wall_ms(), ..Gathered::default() };
        let mut known = BTreeSet::new();
        for namespace in self.engine.messaging_namespaces().await? {
            if namespace.as_str() == RESERVED_NAMESPACE {
                continue;
            }
            let store = self.engine.store(namespace.clone(), Accepted::default());
            gathered.take_topics(&namespace, &store, &mut known).await?;
            gathered.take_groups(&namespace, &store).await?;
            gathered.take_queues(&namespace, &store).await?;
        }
        self.traffic.keep(&known);
        Ok(gathered)
    }
}

impl fmt::Debug for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overview").finish_non_exhaustive()
    }
}

impl Seen {
    fn remember(&mut self, gathered: &Gathered) {
        self.histories.retain(|(namespace, group), _| {
            gathered.groups.iter().any(|row| row.namespace == *namespace && row.group == *group)
        });
        for row in &gathered.groups {
            let name = (row.namespace.clone(), row.group.clone());
            if self.histories.len() >= HISTORIES_MAX && !self.histories.contains_key(&name) {
                continue;
            }
            let histories = self.histories.entry(name).or_default();
            let sample = |value| Sample { at_ms: gathered.now_ms, value };
            if let Some(messages) = row.messages {
                histories.messages.push(sample(messages));
            }
            histories.age_ms.push(sample(row.age_ms));
        }
    }
}

impl Gathered {
    async fn take_topics(
        &mut self,
        namespace: &Namespace,
        store: &Store,
        known: &mut BTreeSet<(String, String)>,
    ) -> Result<()> {
        let streams = store.streams()?;
        let monitor = Monitor::new(store.kv(), streams, &Realm::default());
        let mut after = String::new();
        loop {
            let page = streams.topics(&after, PAGE).await?;
            for TopicInfo { name, .. } in &page {
                known.insert((namespace.to_string(), name.to_string()));
                if self.topics.len() >= NAMES_MAX {
                    self.left_out[0] += 1;
                    continue;
                }
                // One that was deleted meanwhile is none.
                let Ok(stats) = monitor.topic(name).await else { continue };
                let oldest = stats.partitions.iter().map(|bounds| bounds.oldest_ms).filter(|at_ms| *at_ms > 0).min();
                self.topics.push(TopicRow {
                    labels: format!("namespace=\"{namespace}\",topic=\"{name}\""),
                    records: stats.records(),
                    bytes: stats.bytes(),
                    end: stats.end(),
                    oldest_ms: oldest,
                    delayed: stats.delays.pending,
                    lateness: stats.delays.by_lateness,
                });
            }
            match page.last().filter(|_| page.len() == PAGE) {
                Some(last) => last.name.as_str().clone_into(&mut after),
                None => return Ok(()),
            }
        }
    }

    async fn take_groups(&mut self, namespace: &Namespace, store: &Store) -> Result<()> {
        let monitor = Monitor::new(store.kv(), store.streams()?, &Realm::default());
        for group in monitor.groups().await? {
            if self.groups.len() >= NAMES_MAX {
                self.left_out[1] += 1;
                continue;
            }
            let Ok(lag) = monitor.group(&group).await else { continue };
            let mut topics: BTreeMap<String, (Option<u64>, u64)> = BTreeMap::new();
            for partition in &lag.partitions {
                let (messages, age_ms) = topics.entry(partition.place.topic.to_string()).or_insert((Some(0), 0));
                *messages = messages.zip(partition.messages).map(|(sum, more)| sum + more);
                *age_ms = partition.age_ms.unwrap_or(0).max(*age_ms);
            }
            self.groups.push(GroupRow {
                namespace: namespace.clone(),
                members: lag.members.len() as u64,
                parked: lag.parked.iter().map(|parked| parked.waiting).sum(),
                messages: lag.messages(),
                age_ms: lag.age_ms().unwrap_or(0),
                group,
                topics,
            });
        }
        Ok(())
    }

    async fn take_queues(&mut self, namespace: &Namespace, store: &Store) -> Result<()> {
        let queues = store.queues()?;
        let mut after = String::new();
        loop {
            let page = queues.queues(&after, PAGE).await?;
            for info in &page {
                if self.queues.len() >= NAMES_MAX {
                    self.left_out[2] += 1;
                    continue;
                }
                let Ok(stats) = queues.stats(&info.name).await else { continue };
                let labels = format!("namespace=\"{namespace}\",queue=\"{}\"", info.name);
                self.queues.push(QueueRow { labels, stats });
            }
            match page.last().filter(|_| page.len() == PAGE) {
                Some(last) => last.name.as_str().clone_into(&mut after),
                None => return Ok(()),
            }
        }
    }

    pub(super) fn render(&self, page: &mut Page) {
        self.render_topics(page);
        self.render_groups(page);
        self.render_queues(page);
        page.head(
            "coact_names_left_out",
            "gauge",
            "Topics, groups and queues beyond the limit, which have no metrics.",
        );
        for (kind, count) in ["topic", "group", "queue"].into_iter().zip(self.left_out) {
            page.line("coact_names_left_out", &format!("kind=\"{kind}\""), count);
        }
    }

    fn render_topics(&self, page: &mut Page) {
        let topics = |page: &mut Page, name: &str, kind: &str, help: &str, value: &dyn Fn(&TopicRow) -> Option<f64>| {
            rows(page, (name, kind, help), self.topics.iter().map(|row| (row.labels.clone(), value(row))));
        };
        topics(page, "coact_topic_records", "gauge", "Records that are kept, by topic.", &|row| {
            row.records.map(|records| records as f64)
        });
        topics(page, "coact_topic_bytes", "gauge", "Bytes that are kept, by topic.", &|row| Some(row.bytes as f64));
        topics(
            page,
            "coact_topic_end_offsets_total",
            "counter",
            "The sum of the partitions' ends, by topic.",
            &|row| Some(row.end as f64),
        );
        topics(page, "coact_topic_oldest_age_seconds", "gauge", "How old the oldest record is that is kept.", &|row| {
            row.oldest_ms.map(|at_ms| seconds(self.now_ms.saturating_sub(at_ms)))
        });
        topics(page, "coact_delays_pending", "gauge", "Delayed records that wait, by topic.", &|row| {
            Some(row.delayed as f64)
        });
        let name = "coact_delay_lateness_seconds";
        page.head(name, "histogram", "How late delayed records were handed over, by topic; the sum is not kept.");
        for row in &self.topics {
            let mut cumulative = 0;
            for (edge, count) in LATENESS_BUCKETS.iter().zip(&row.lateness) {
                cumulative += count;
                page.line(&format!("{name}_bucket"), &format!("{},le=\"{}\"", row.labels, seconds(*edge)), cumulative);
            }
            let all: u64 = row.lateness.iter().sum();
            page.line(&format!("{name}_bucket"), &format!("{},le=\"+Inf\"", row.labels), all);
            page.line(&format!("{name}_count"), &row.labels, all);
        }
    }

    fn render_groups(&self, page: &mut Page) {
        let of_group = |row: &GroupRow| format!("namespace=\"{}\",group=\"{}\"", row.namespace, row.group);
        let of_topics = |value: fn(&(Option<u64>, u64)) -> Option<f64>| {
            self.groups.iter().flat_map(move |row| {
                let labels = of_group(row);
                row.topics.iter().map(move |(topic, lag)| (format!("{labels},topic=\"{topic}\""), value(lag)))
            })
        };
        let help = "Records that a group has not done, by group and topic.";
        let lag = of_topics(|(messages, _)| messages.map(|messages| messages as f64));
        rows(page, ("coact_group_lag_records", "gauge", help), lag);
        let help = "How old the oldest record is that a group has not done, by group and topic.";
        rows(page, ("coact_group_lag_seconds", "gauge", help), of_topics(|(_, age_ms)| Some(seconds(*age_ms))));
        let members = self.groups.iter().map(|row| (of_group(row), Some(row.members as f64)));
        rows(page, ("coact_group_members", "gauge", "Members of a group."), members);
        let parked = self.groups.iter().map(|row| (of_group(row), Some(row.parked as f64)));
        rows(page, ("coact_group_parked_records", "gauge", "Records that a group has put aside."), parked);
    }

    fn render_queues(&self, page: &mut Page) {
        page.head("coact_queue_jobs", "gauge", "Jobs, by queue and state.");
        for QueueRow { labels, stats } in &self.queues {
            let QueueStats { ready, delayed, blocked, claimed, dead, .. } = *stats;
            let states =
                [("ready", ready), ("delayed", delayed), ("blocked", blocked), ("claimed", claimed), ("dead", dead)];
            for (state, count) in states {
                page.line("coact_queue_jobs", &format!("{labels},state=\"{state}\""), count);
            }
        }
        let queues = |page: &mut Page, name: &str, kind: &str, help: &str, value: &dyn Fn(&QueueStats) -> f64| {
            rows(page, (name, kind, help), self.queues.iter().map(|row| (row.labels.clone(), Some(value(&row.stats)))));
        };
        let help = "For how long the job that waits longest could be claimed, by queue.";
        queues(page, "coact_queue_oldest_ready_seconds", "gauge", help, &|stats| {
            stats.oldest_ready_ms.map_or(0.0, |at_ms| seconds(self.now_ms.saturating_sub(at_ms)))
        });
        queues(page, "coact_queue_enqueued_total", "counter", "Jobs ever enqueued, by queue.", &|stats| {
            stats.enqueued as f64
        });
        queues(page, "coact_queue_done_total", "counter", "Jobs ever done, by queue.", &|stats| stats.done as f64);
        queues(page, "coact_queue_claims_total", "counter", "Claims ever made, by queue.", &|stats| {
            stats.claims as f64
        });
    }
}

/// A family, without those that have no value.
fn rows(page: &mut Page, (name, kind, help): (&str, &str, &str), rows: impl Iterator<Item = (String, Option<f64>)>) {
    page.head(name, kind, help);
    for (labels, value) in rows {
        if let Some(value) = value {
            page.line(name, &labels, value);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}
