//! Keys whose records a group has put aside, and their way back.

use clap::{ArgGroup, Args};
use coact::{Group, Result, Topic, mq};
use serde_json::json;

use crate::{Target, exit::Exit, output};

/// Arguments of `coact mq parked`.
#[derive(Debug, Args)]
pub(crate) struct Parked {
    /// The group.
    group: String,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `coact mq redrive`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").args(["key", "all"]).required(true)))]
pub(crate) struct Redrive {
    /// The group.
    group: String,
    /// Only this key of --topic.
    #[arg(long, requires = "topic")]
    key: Option<String>,
    /// The topic of the key.
    #[arg(long, requires = "key")]
    topic: Option<String>,
    /// Every key that is parked.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    target: Target,
}

impl Parked {
    pub(crate) async fn run(self) -> Result<Exit> {
        let store = self.target.open_store().await?;
        let parked = mq::Parked::open(store.kv(), &self.target.realm()?, &Group::new(&self.group)?)?;
        let mut out = self.target.output();
        for one in parked.list().await? {
            out.row(json!({
                "topic": one.topic.as_str(),
                "partition": one.partition,
                "key": one.key,
                "waiting": one.waiting,
                "attempts": one.attempts,
                "since": output::time(one.since_ms),
                "redriving": one.redriving,
                "error": one.error,
            }));
        }
        out.finish();
        store.close().await?;
        Ok(Exit::SUCCESS)
    }
}

impl Redrive {
    /// Asks for records to come back: members of the group process them, before anything later of their keys.
    pub(crate) async fn run(self) -> Result<Exit> {
        let store = self.target.open_store().await?;
        let parked = mq::Parked::open(store.kv(), &self.target.realm()?, &Group::new(&self.group)?)?;
        let count = match (&self.topic, &self.key) {
            (Some(topic), Some(key)) => usize::from(parked.redrive(&Topic::new(topic)?, key.as_bytes()).await?),
            _ => parked.redrive_all().await?,
        };
        store.close().await?;
        if let Some(key) = self.key.as_ref().filter(|_| count == 0) {
            output::complain(&format!("key {key} is not parked: coact mq parked {} shows what is", self.group));
            return Ok(Exit::ABSENT);
        }
        let text = format!("{count} keys are on their way back");
        self.target.output().one(json!({ "group": self.group, "keys": count }), &text);
        Ok(Exit::SUCCESS)
    }
}
