//! `coact queue push`: jobs from arguments, or one from each line of stdin.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use clap::Args;
use coact::{
    Error, ErrorKind, Result,
    contract::queue::{Enqueued, NewJob, QueueSpec},
    queue::Queue,
};
use serde_json::json;

use super::{closed, open};
use crate::{Target, cmd::duration, exit::Exit, output::Output};

/// Arguments of `coact queue push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The queue.
    queue: String,
    /// The body of a job; several are enqueued together. Without any, each line of stdin is a job.
    body: Vec<String>,
    /// From 0 to 9, which comes first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u8,
    /// Not before so long from now.
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "run_at")]
    delay: Option<Duration>,
    /// Not before this time (2030-01-31T12:00:00Z).
    #[arg(long, value_name = "TIME")]
    run_at: Option<String>,
    /// Jobs of one key are done one after the other, in the order of arrival.
    #[arg(long)]
    key: Option<String>,
    /// As long as a job of this name is in the queue, another is not made.
    #[arg(long)]
    name: Option<String>,
    /// How often it is tried before it is dead, instead of what the queue says.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Dead if it was not begun after so long.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
    /// A name and a value beside the body; may be given again.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    target: Target,
}

/// How much of stdin goes into one request, while more is there.
const BATCH_JOBS: usize = 1_000;
const BATCH_BYTES: usize = 1024 * 1024;

impl Push {
    pub(crate) async fn run(self) -> Result<Exit> {
        let run_at_ms = self.run_at.as_deref().map(read_time).transpose()?;
        if self.name.is_some() && self.body.len() != 1 {
            return Err(Error::invalid("--name is for one job: give one body"));
        }
        let (store, queues) = open(&self.target).await?;
        let now_ms = queues.env().wall_ms();
        let later = |by: Duration| now_ms.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        let headers = self.headers.into_iter().map(|(name, value)| (name, value.into()));
        let template = NewJob {
            headers: headers.collect(),
            name: self.name,
            priority: self.priority,
            run_at_ms: self.delay.map(later).or(run_at_ms),
            order_key: self.key.map(Into::into),
            max_attempts: self.max_attempts,
            expires_ms: self.expires.map(later),
            ..NewJob::default()
        };
        let queue = Queue::open(&queues, &self.queue, QueueSpec::default()).await?;
        let mut out = self.target.output();
        if self.body.is_empty() {
            push_lines(&queue, &template, &mut out).await?;
        } else {
            let jobs = self.body.into_iter().map(|body| NewJob { body: body.into(), ..template.clone() });
            show(&mut out, &queue.push_all(jobs.collect()).await?);
        }
        closed(&store).await
    }
}

/// Enqueues as the lines come: what is there goes together.
async fn push_lines(queue: &Queue, template: &NewJob, out: &mut Output) -> Result<()> {
    let mut lines = BufReader::new(std::io::stdin());
    let (mut jobs, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        let read = lines.read_until(b'\n', &mut line);
        let read = read.map_err(|error| Error::new(ErrorKind::Internal, "stdin cannot be read").with_source(error))?;
        if read > 0 {
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            bytes += line.len();
            jobs.push(NewJob { body: line.into(), ..template.clone() });
        }
        if read == 0 || lines.buffer().is_empty() || jobs.len() >= BATCH_JOBS || bytes >= BATCH_BYTES {
            show(out, &queue.push_all(std::mem::take(&mut jobs)).await?);
            bytes = 0;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

fn show(out: &mut Output, enqueued: &[Enqueued]) {
    for enqueued in enqueued {
        let id = enqueued.id();
        let is_new = matches!(enqueued, Enqueued::Created(_));
        out.stream(json!({ "id": id.0, "created": is_new }), &id.to_string());
    }
}

fn header(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').ok_or_else(|| Error::invalid("write it as NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn read_time(text: &str) -> Result<u64> {
    let time: Option<jiff::Timestamp> = text.parse().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).ok_or_else(|| {
        Error::invalid(format!("time {text:?} is not allowed: write it with its zone, as in 2030-01-31T12:00:00Z"))
    })
}
