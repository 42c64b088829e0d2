//! `coact mq top`: topics and groups with their rates and lags, again and again.

use std::{collections::BTreeMap, time::Instant};

use clap::Args;
use coact::{
    ErrorKind, Result, StreamHandle,
    contract::stream::{LATENESS_BUCKETS, TopicInfo},
    mq::{Committed, GroupLag, Monitor, PartitionLag},
};
use serde_json::{Value, json};

use super::{
    group::{found, monitor},
    topics,
};
use crate::{
    Target,
    cmd::again::{Again, table},
    exit::Exit,
};

/// Arguments of `coact mq top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    again: Again,
    /// How many rows of each kind a table shows; JSON has them all.
    #[arg(long, default_value_t = 20, value_name = "N")]
    rows: usize,
    #[command(flatten)]
    target: Target,
}

impl Top {
    pub(crate) async fn run(self) -> Result<Exit> {
        let store = self.target.open_store().await?;
        let monitor = monitor(&store, &self.target.realm()?)?;
        let mut looker = Looker { streams: store.streams()?.clone(), monitor, before: None };
        let json = |picture: &Picture| json!({ "topics": picture.topics, "groups": picture.groups });
        let page = |picture: &Picture| self.page(picture);
        self.again.show(&self.target, async || looker.look().await, json, page).await?;
        store.close().await?;
        Ok(Exit::SUCCESS)
    }

    fn page(&self, picture: &Picture) -> String {
        if picture.topics.is_empty() {
            return "there are no topics\n\n".to_owned();
        }
        table(&picture.topics, self.rows) + &table(&picture.groups, self.rows)
    }
}

/// What one look found: the busiest topics and the groups that are most behind first.
struct Picture {
    topics: Vec<Value>,
    groups: Vec<Value>,
}

/// Looks, and remembers the ends of the look before, from which rates are.
struct Looker {
    streams: StreamHandle,
    monitor: Monitor,
    before: Option<Ends>,
}

/// How many records were ever appended to each topic, and done by each group of each topic, at one time.
struct Ends {
    at: Instant,
    topics: BTreeMap<String, u64>,
    groups: BTreeMap<(String, String), u64>,
}

impl Looker {
    /// Each thing is read at its own moment: the picture is for people, not for decisions.
    async fn look(&mut self) -> Result<Picture> {
        let mut now = Ends { at: self.streams.env().now(), topics: BTreeMap::new(), groups: BTreeMap::new() };
        let mut topics_seen = Vec::new();
        for info in topics(&self.streams).await? {
            match self.topic(&info, &mut now).await {
                // It went meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                row => topics_seen.push(row?),
            }
        }
        let mut groups_seen = Vec::new();
        for group in self.monitor.groups().await? {
            if let Some(lag) = found(&self.monitor, &group).await? {
                groups_seen.extend(self.group(&lag, &mut now));
            }
        }
        self.before = Some(now);
        topics_seen.sort_by(|a, b| more(a, b, "per_s"));
        groups_seen.sort_by(|a, b| more(a, b, "lag"));
        Ok(Picture { topics: topics_seen, groups: groups_seen })
    }

    async fn topic(&self, info: &TopicInfo, now: &mut Ends) -> Result<Value> {
        let (mut ended, mut bytes, mut records) = (0, 0, Some(0));
        for partition in 0..info.spec.partitions {
            let bounds = self.streams.bounds(&info.name, partition).await?;
            ended += bounds.end.0;
            bytes += bounds.bytes;
            records = records.zip(bounds.records).map(|(all, more)| all + more);
        }
        let delays = self.streams.delay_stats(&info.name).await?;
        let name = info.name.to_string();
        let per_s = self.rate(now, self.before.as_ref().and_then(|before| before.topics.get(&name)), ended);
        now.topics.insert(name.clone(), ended);
        Ok(json!({
            "topic": name,
            "partitions": info.spec.partitions,
            "records": records,
            "bytes": bytes,
            "per_s": per_s,
            "delayed": delays.pending,
            "next_due_s": delays.next_due_ms.map(|due| due.saturating_sub(self.streams.env().wall_ms()) / 1_000),
            "late_p99": late_within(&delays.by_lateness),
        }))
    }

    fn group(&self, group: &GroupLag, now: &mut Ends) -> Vec<Value> {
        let mut by_topic: BTreeMap<String, Vec<&PartitionLag>> = BTreeMap::new();
        for one in &group.partitions {
            by_topic.entry(one.place.topic.to_string()).or_default().push(one);
        }
        let rows = by_topic.into_iter().map(|(topic, partitions)| {
            let done = |one: &&PartitionLag| match one.committed {
                Committed::Never => 0,
                Committed::At(offset) => offset.0,
            };
            let done = partitions.iter().map(done).sum();
            let key = (group.group.to_string(), topic);
            let per_s = self.rate(now, self.before.as_ref().and_then(|before| before.groups.get(&key)), done);
            let row = json!({
                "group": key.0,
                "topic": key.1,
                "lag": partitions.iter().map(|one| one.messages).sum::<Option<u64>>(),
                "per_s": per_s,
                "oldest_s": partitions.iter().filter_map(|one| one.age_ms).max().map(|age| age / 1_000),
            });
            now.groups.insert(key, done);
            row
        });
        rows.collect()
    }

    /// Records in a second since the look before, where offsets are counts.
    fn rate(&self, now: &Ends, before: Option<&u64>, count: u64) -> Option<u64> {
        let before = before.filter(|_| self.streams.guarantees().dense_offsets)?;
        let taken = now.at.saturating_duration_since(self.before.as_ref()?.at).as_secs_f64();
        (taken > 0.0).then(|| (count.saturating_sub(*before) as f64 / taken).round() as u64)
    }
}

/// What 99 of 100 of the delayed records were late by at most.
fn late_within(by_lateness: &[u64]) -> Option<String> {
    let all: u64 = by_lateness.iter().sum();
    if all == 0 {
        return None;
    }
    let mut seen = 0;
    for (place, count) in by_lateness.iter().enumerate() {
        seen += count;
        if seen * 100 >= all * 99 {
            return Some(match LATENESS_BUCKETS.get(place) {
                Some(edge) => format!("<={edge}ms"),
                None => format!(">{}ms", LATENESS_BUCKETS[LATENESS_BUCKETS.len() - 1]),
            });
        }
    }
    None
}

fn more(a: &Value, b: &Value, field: &str) -> std::cmp::Ordering {
    b[field].as_u64().cmp(&a[field].as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_told_by_the_edge_that_holds_nearly_all() {
        assert_eq!(late_within(&[0; 10]), None);
        assert_eq!(late_within(&[99, 0, 0, 0, 0, 0, 0, 0, 0, 1]).as_deref(), Some("<=1ms"));
        assert_eq!(late_within(&[98, 0, 0, 2, 0, 0, 0, 0, 0, 0]).as_deref(), Some("<=10ms"));
        assert_eq!(late_within(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 2]).as_deref(), Some(">10000ms"));
    }
}
