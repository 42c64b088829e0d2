//! Records that wait for their time.

use std::time::Duration;

use clap::{Args, Subcommand};
use coact::{
    Result, Topic,
    contract::stream::{DELAY_BUCKETS, DelayId, DelayStats, LATENESS_BUCKETS, Pending},
};
use serde_json::{Value, json};

use super::{PAGE, age, due_in, lines::put_record, moment};
use crate::{Target, exit::Exit, output};

/// Commands of `coact mq delay`.
#[derive(Debug, Subcommand)]
pub(crate) enum Delay {
    /// List the records of a topic that wait, the next one first.
    Ls {
        /// The topic.
        topic: String,
        /// At most this many.
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Cancel one that waits; exit 3 if it does not wait any more.
    Cancel {
        /// The topic.
        topic: String,
        /// Its handle, as `produce` and `ls` print it.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Give one that waits another time, and so another handle, which is printed; exit 3 if it does not wait any more.
    Reschedule(Reschedule),
    /// How many wait and until when, and how late those came that had waited.
    Stats {
        /// The topic.
        topic: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Arguments of `coact mq delay reschedule`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Reschedule {
    /// The topic.
    topic: String,
    /// Its handle, as `produce` and `ls` print it.
    id: String,
    /// How long from now.
    #[arg(long, value_parser = age, value_name = "DURATION", conflicts_with = "at_time", required_unless_present = "at_time")]
    delay: Option<Duration>,
    /// When: RFC 3339, or milliseconds since 1970.
    #[arg(long, value_parser = moment, value_name = "TIME")]
    at_time: Option<u64>,
    #[command(flatten)]
    target: Target,
}

impl Delay {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Ls { topic, limit, target } => list(&topic, limit, &target).await,
            Self::Cancel { topic, id, target } => cancel(&topic, &id, &target).await,
            Self::Reschedule(reschedule) => reschedule.run().await,
            Self::Stats { topic, target } => stats(&topic, &target).await,
        }
    }
}

async fn list(topic: &str, limit: usize, target: &Target) -> Result<Exit> {
    let topic = Topic::new(topic)?;
    let store = target.open_store().await?;
    let mut out = target.output();
    let (mut after, mut left) = (None, limit);
    while left > 0 {
        let asked = left.min(PAGE);
        let page = store.streams()?.pending(&topic, after, asked).await?;
        page.iter().for_each(|pending| out.row(row(pending)));
        left -= page.len();
        match page.last().filter(|_| page.len() == asked) {
            Some(last) => after = Some(last.id),
            None => break,
        }
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

fn row(pending: &Pending) -> Value {
    let mut row = json!({
        "id": pending.id.to_string(),
        "due": output::time(pending.id.due_ms),
        "partition": pending.delayed.partition,
    });
    put_record(&mut row, &pending.delayed.record);
    row
}

async fn cancel(topic: &str, id: &str, target: &Target) -> Result<Exit> {
    let (topic, id): (_, DelayId) = (Topic::new(topic)?, id.parse()?);
    let store = target.open_store().await?;
    let cancelled = store.streams()?.cancel(&topic, id).await?;
    store.close().await?;
    if !cancelled {
        return Ok(gone(id));
    }
    target.output().one(json!({ "id": id.to_string(), "cancelled": true }), "cancelled");
    Ok(Exit::SUCCESS)
}

impl Reschedule {
    async fn run(self) -> Result<Exit> {
        let (topic, id): (_, DelayId) = (Topic::new(&self.topic)?, self.id.parse()?);
        let store = self.target.open_store().await?;
        let streams = store.streams()?;
        let due_ms = self.at_time.or(self.delay.map(|delay| due_in(streams, delay))).unwrap_or_default();
        let rescheduled = streams.reschedule(&topic, id, due_ms).await?;
        store.close().await?;
        let Some(now) = rescheduled else { return Ok(gone(id)) };
        let row = json!({ "was": id.to_string(), "id": now.to_string(), "due": output::time(now.due_ms) });
        self.target.output().one(row, &now.to_string());
        Ok(Exit::SUCCESS)
    }
}

fn gone(id: DelayId) -> Exit {
    output::complain(&format!("no record waits as {id}: it was appended, cancelled or rescheduled"));
    Exit::ABSENT
}

async fn stats(topic: &str, target: &Target) -> Result<Exit> {
    let topic = Topic::new(topic)?;
    let store = target.open_store().await?;
    let stats = store.streams()?.delay_stats(&topic).await?;
    let document = document(&stats);
    let text = document.as_object().into_iter().flatten().filter_map(|(name, value)| match value {
        Value::Object(buckets) => {
            let rows = buckets.iter().map(|(edge, count)| format!("\n  {edge:>8}  {count}")).collect::<String>();
            Some(format!("{name}{rows}"))
        }
        Value::Null => None,
        Value::String(text) => Some(format!("{name}  {text}")),
        other => Some(format!("{name}  {other}")),
    });
    let text = text.collect::<Vec<_>>().join("\n");
    target.output().one(document, &text);
    Ok(Exit::SUCCESS)
}

fn document(stats: &DelayStats) -> Value {
    let edges = |edges: Vec<String>, counts: &[u64]| -> Value {
        let edges = edges.into_iter().map(|edge| format!("<={edge}")).chain(["more".to_owned()]);
        edges.zip(counts).map(|(edge, count)| (edge, json!(count))).collect::<serde_json::Map<_, _>>().into()
    };
    json!({
        "pending": stats.pending,
        "next_due": stats.next_due_ms.map(output::time),
        "due_within": edges(DELAY_BUCKETS.iter().map(|edge| format!("{}s", edge.as_secs())).collect(), &stats.by_due),
        "late_by": edges(LATENESS_BUCKETS.iter().map(|edge| format!("{edge}ms")).collect(), &stats.by_lateness),
    })
}
