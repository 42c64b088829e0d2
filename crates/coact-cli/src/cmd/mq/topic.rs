//! Topics: create, alter, remove, list, describe.

use std::time::Duration;

use clap::Args;
use coact::{
    Result, StreamHandle, Topic,
    contract::stream::{TopicInfo, TopicSpec},
};
use serde_json::{Value, json};

use super::{age, group, topic_of, topics};
use crate::{Target, cmd::bytes, exit::Exit, output};

/// Arguments of `coact mq create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name.
    topic: String,
    /// How many partitions: the most consumers of one group that read at the same time. It can grow, which moves keys.
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    #[command(flatten)]
    keeps: Keeps,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `coact mq alter`. What is not said stays as it is.
#[derive(Debug, Args)]
pub(crate) struct Alter {
    /// Its name.
    topic: String,
    /// How many partitions: not fewer than there are.
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    #[command(flatten)]
    keeps: Keeps,
    #[command(flatten)]
    target: Target,
}

/// What a topic keeps.
#[derive(Debug, Args)]
struct Keeps {
    /// Records older than this may go; none keeps them.
    #[arg(long, value_parser = bound(age), value_name = "DURATION|none")]
    retention: Option<Bound<Duration>>,
    /// When a partition has more bytes than this (500MB, 1GiB), its oldest records may go; none keeps them.
    #[arg(long, value_parser = bound(bytes), value_name = "BYTES|none")]
    retention_bytes: Option<Bound<u64>>,
    /// Keep the newest record of each key, and let older ones of the same key go.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    compact: Option<bool>,
}

/// Arguments of `coact mq rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Its name.
    topic: String,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `coact mq ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    target: Target,
}

/// Arguments of `coact mq describe`.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// Its name.
    topic: String,
    #[command(flatten)]
    target: Target,
}

/// A bound, or none.
#[derive(Clone, Copy, Debug)]
enum Bound<T> {
    None,
    At(T),
}

impl<T> Bound<T> {
    fn value(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::At(bound) => Some(bound),
        }
    }
}

impl Create {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let spec = self.keeps.over(TopicSpec { partitions: self.partitions, ..TopicSpec::default() });
        let store = self.target.open_store().await?;
        store.streams()?.create_topic(&topic, &spec).await?;
        store.close().await?;
        self.target.output().one(json!({ "topic": topic.as_str(), "created": true }), "created");
        Ok(Exit::SUCCESS)
    }
}

impl Alter {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let store = self.target.open_store().await?;
        let streams = store.streams()?;
        let mut spec = topic_of(streams, &topic).await?.spec;
        spec.partitions = self.partitions.unwrap_or(spec.partitions);
        streams.alter_topic(&topic, &self.keeps.over(spec)).await?;
        store.close().await?;
        self.target.output().one(json!({ "topic": topic.as_str(), "altered": true }), "altered");
        Ok(Exit::SUCCESS)
    }
}

impl Keeps {
    /// The layout with what was said.
    fn over(&self, spec: TopicSpec) -> TopicSpec {
        TopicSpec {
            partitions: spec.partitions,
            retention_age: self.retention.map_or(spec.retention_age, Bound::value),
            retention_bytes: self.retention_bytes.map_or(spec.retention_bytes, Bound::value),
            compact: self.compact.unwrap_or(spec.compact),
        }
    }
}

impl Rm {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let store = self.target.open_store().await?;
        let deleted = store.streams()?.delete_topic(&topic).await?;
        store.close().await?;
        if !deleted {
            output::complain(&format!("there is no topic {topic}"));
            return Ok(Exit::ABSENT);
        }
        self.target.output().one(json!({ "topic": topic.as_str(), "deleted": true }), "deleted");
        Ok(Exit::SUCCESS)
    }
}

impl Ls {
    pub(crate) async fn run(self) -> Result<Exit> {
        let store = self.target.open_store().await?;
        let mut out = self.target.output();
        topics(store.streams()?).await?.iter().for_each(|info| out.row(row(info)));
        out.finish();
        Ok(Exit::SUCCESS)
    }
}

impl Describe {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let store = self.target.open_store().await?;
        let streams = store.streams()?;
        let info = topic_of(streams, &topic).await?;
        let partitions = partitions(streams, &info).await?;
        let mut progress = Vec::new();
        let monitor = group::monitor(&store, &self.target.realm()?)?;
        for name in monitor.groups().await? {
            let Some(lag) = group::found(&monitor, &name).await? else { continue };
            let of_topic = lag.partitions.iter().filter(|one| one.place.topic == topic);
            progress.extend(of_topic.map(|one| group::row(&name, one)));
        }
        let out = self.target.output();
        if out.is_table() {
            let sections = [vec![row(&info)], partitions, progress];
            let sections = sections.iter().map(|rows| output::table(&cells(rows))).filter(|table| !table.is_empty());
            output::write_bytes(sections.collect::<Vec<_>>().join("\n").as_bytes());
        } else {
            let mut document = row(&info);
            document["in_partitions"] = partitions.into();
            document["groups"] = progress.into();
            out.one(document, "");
        }
        Ok(Exit::SUCCESS)
    }
}

/// Rows as a table wants them.
pub(super) fn cells(rows: &[Value]) -> Vec<serde_json::Map<String, Value>> {
    rows.iter().filter_map(|row| row.as_object().cloned()).collect()
}

fn row(info: &TopicInfo) -> Value {
    json!({
        "topic": info.name.as_str(),
        "partitions": info.spec.partitions,
        "retention_s": info.spec.retention_age.map(|age| age.as_secs_f64()),
        "retention_bytes": info.spec.retention_bytes,
        "compact": info.spec.compact,
        "created": output::time(info.created_ms),
    })
}

async fn partitions(streams: &StreamHandle, info: &TopicInfo) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for partition in 0..info.spec.partitions {
        let bounds = streams.bounds(&info.name, partition).await?;
        rows.push(json!({
            "partition": partition,
            "start": bounds.start.0,
            "end": bounds.end.0,
            "records": bounds.records,
            "bytes": bounds.bytes,
            "oldest": (bounds.oldest_ms > 0).then(|| output::time(bounds.oldest_ms)),
        }));
    }
    Ok(rows)
}

/// Reads a bound or `none`.
fn bound<T: Clone + Send + Sync + 'static>(
    read: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Bound<T>, String> + Clone {
    move |text| if text == "none" { Ok(Bound::None) } else { read(text).map(Bound::At) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let spec = TopicSpec {
            partitions: 3,
            retention_age: Some(Duration::from_secs(1)),
            retention_bytes: None,
            compact: true,
        };
        let nothing = Keeps { retention: None, retention_bytes: None, compact: None };
        assert_eq!(nothing.over(spec.clone()), spec);
        let other = Keeps { retention: Some(Bound::None), retention_bytes: Some(Bound::At(7)), compact: Some(false) };
        let wanted = TopicSpec { partitions: 3, retention_age: None, retention_bytes: Some(7), compact: false };
        assert_eq!(other.over(spec), wanted);
    }
}
