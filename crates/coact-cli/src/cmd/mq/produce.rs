//! `coact mq produce`: lines in, records out.

mod input;
mod progress;
mod way;

use std::{path::PathBuf, time::Duration};

use clap::Args;
use coact::{Error, Result, Topic, contract::stream::Record};

use super::{age, due_in, moment, topic_of};
use crate::{Target, exit::Exit, output};
use input::{Input, Line};
use progress::Progress;
use way::{Tally, Way};

/// Arguments of `coact mq produce`.
///
/// A line is a record: its value is the line without its end. Lines of one key stay in order. Exit 0 means that all of
/// them are as safe as the engine declares. After a failure the summary says how many are.
#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// The topic.
    topic: String,
    /// Files of lines; - or none is stdin.
    files: Vec<PathBuf>,
    /// What divides a line into key and value, at its first place. A line without it is refused.
    #[arg(long, value_name = "SEPARATOR", conflicts_with = "key")]
    key_separator: Option<String>,
    /// The key of every record.
    #[arg(long)]
    key: Option<String>,
    /// A header of every record; can be given more than once.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Append to this partition, whatever the keys.
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Keep the records for so long before they are appended; their handles go to stdout.
    #[arg(long, value_parser = age, value_name = "DURATION", conflicts_with = "at_time")]
    delay: Option<Duration>,
    /// Keep the records until then: RFC 3339, or milliseconds since 1970.
    #[arg(long, value_parser = moment, value_name = "TIME")]
    at_time: Option<u64>,
    /// Lines end with a NUL byte instead of a newline.
    #[arg(long)]
    null: bool,
    /// Say on stderr how it goes even if that is no terminal.
    #[arg(long)]
    progress: bool,
    #[command(flatten)]
    target: Target,
}

impl Produce {
    pub(crate) async fn run(self) -> Result<Exit> {
        let topic = Topic::new(&self.topic)?;
        let headers = self.headers.iter().map(|pair| header(pair)).collect::<Result<Vec<_>>>()?;
        if self.key_separator.as_ref().is_some_and(String::is_empty) {
            return Err(Error::invalid("--key-separator is empty: it needs at least one character"));
        }
        let store = self.target.open_store().await?;
        let streams = store.streams()?;
        let info = topic_of(streams, &topic).await?;
        let mut way = match (self.delay, self.at_time) {
            (Some(delay), _) => Way::later(streams, &info, self.partition, due_in(streams, delay)),
            (None, Some(due_ms)) => Way::later(streams, &info, self.partition, due_ms),
            (None, None) => match self.partition {
                Some(partition) => Way::to_partition(streams, &info, partition),
                None => Way::by_key(streams, &topic).await?,
            },
        };
        let mut progress = Progress::new(self.progress);
        let produced = self.produce(&headers, streams.guarantees().limits.record_bytes, &mut way, &mut progress).await;
        let produced = way.finish().await.and(produced);
        progress.clear();
        say(way.tally(), &topic);
        produced?;
        store.close().await?;
        Ok(Exit::SUCCESS)
    }

    async fn produce(
        &self,
        headers: &[(String, bytes::Bytes)],
        bytes_max: usize,
        way: &mut Way,
        progress: &mut Progress,
    ) -> Result<()> {
        let stdin = [PathBuf::from("-")];
        let files = if self.files.is_empty() { &stdin[..] } else { &self.files };
        for file in files {
            let mut input = Input::open(file, if self.null { 0 } else { b'\n' }, bytes_max)?;
            while let Some(line) = input.next()? {
                let mut record = self.record(line, &input)?;
                record.headers = headers.to_vec();
                way.send(record).await?;
                if input.may_wait() {
                    way.flush().await?;
                }
                progress.show(way.tally());
            }
        }
        Ok(())
    }

    fn record(&self, line: Line, input: &Input) -> Result<Record> {
        if let Some(key) = &self.key {
            return Ok(Record::new(line).with_key(key.clone()));
        }
        let Some(separator) = &self.key_separator else { return Ok(Record::new(line)) };
        let separator = separator.as_bytes();
        let Some(at) = line.windows(separator.len()).position(|window| window == separator) else {
            let (place, separator) = (input.place(), self.key_separator.as_deref().unwrap_or_default());
            return Err(Error::invalid(format!("{place} has no {separator:?}, which divides key and value")));
        };
        Ok(Record::new(line.slice(at + separator.len()..)).with_key(line.slice(..at)))
    }
}

fn header(pair: &str) -> Result<(String, bytes::Bytes)> {
    match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned().into())),
        _ => Err(Error::invalid(format!("--header {pair:?} is not understood: write -H NAME=VALUE"))),
    }
}

fn say(tally: &Tally, topic: &Topic) {
    let (records, partitions) = (tally.records, tally.by_partition.len());
    let done = if tally.delayed { "wait for their time in" } else { "in" };
    let what = |count: u64, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    let partitions = what(partitions as u64, "partition");
    output::say(&format!("{} {done} {partitions} of {topic}", what(records, "record")));
}
