//! `coact queue work`: a command for each job.

use std::{ffi::OsString, sync::Arc, time::Duration};

use clap::Args;
use coact::{
    Result,
    contract::queue::QueueSpec,
    queue::{Context, Control, Outcome, Queue, RateLimit, Stats, Worker, WorkerOptions},
};

use super::open;
use crate::{
    Target,
    cmd::{
        child::default_label,
        duration,
        filter::{Ended, Filter, header_variables},
        serve::Signals,
    },
    exit::Exit,
    output,
};

/// Arguments of `coact queue work`.
#[derive(Debug, Args)]
pub(crate) struct Work {
    /// The queue; it is made if there is none.
    queue: String,
    /// How many jobs at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// How long a job stays ours if we can no longer say that we live.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    lease: Duration,
    /// At most so many jobs begin per second.
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How long a job rests after its first failure; it doubles with each, less up to a half.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    retry: Duration,
    /// The longest rest after a failure.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    retry_max: Duration,
    /// How long commands may go on after SIGINT or SIGTERM, before SIGKILL; their jobs are given back.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    grace: Duration,
    /// End after one job.
    #[arg(long)]
    once: bool,
    /// End when no job is ready.
    #[arg(long)]
    drain: bool,
    /// Who this is, as shown by `coact queue jobs`.
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    target: Target,
    /// The command. It finds COACT_JOB_ID, COACT_JOB_ATTEMPT, COACT_JOB_TOKEN, COACT_QUEUE, and each header as
    /// COACT_HEADER_NAME.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Work {
    pub(crate) async fn run(self) -> Result<Exit> {
        let (store, queues) = open(&self.target).await?;
        let queue = Queue::open(&queues, &self.queue, QueueSpec::default()).await?;
        let worker = Worker::new(&queue, self.options())?;
        let control = worker.control();
        let mut signals = Signals::new()?;
        let filter = Filter::new(self.command, self.grace);
        let run = worker.run({
            let (filter, queue) = (filter.clone(), self.queue);
            move |context| work(filter.clone(), queue.clone(), context)
        });
        tokio::pin!(run);
        let stats = loop {
            tokio::select! {
                stats = &mut run => break stats?,
                () = signals.first() => interrupt(&filter, &control),
                _ = filter.unusable(), if !control.is_stopped() => control.stop(),
            }
        };
        store.close().await?;
        output::say(&summary(&stats));
        Ok(filter.found_unusable().unwrap_or(Exit::SUCCESS))
    }

    fn options(&self) -> WorkerOptions {
        WorkerOptions {
            concurrency: self.concurrency,
            lease: self.lease,
            rate: self.rate.map(RateLimit::per_second),
            retry_first: self.retry.min(self.retry_max),
            retry_longest: self.retry_max,
            grace: self.grace,
            drain: self.drain,
            jobs: self.once.then_some(1),
            name: Some(self.label.clone().unwrap_or_else(default_label)),
        }
    }
}

/// The first time, lets commands end; after that asks them to.
fn interrupt(filter: &Filter, control: &Control) {
    if control.is_stopped() {
        filter.terminate();
    } else if filter.count() > 0 {
        output::complain(&format!("waiting for {} jobs; once more ends them", filter.count()));
    }
    control.stop();
}

async fn work(filter: Arc<Filter>, queue: String, context: Context) -> Result<Outcome> {
    let what = format!("job {}", context.id());
    let variables = variables(&queue, &context);
    let ended = filter.run(&what, context.job().body.clone(), variables, context.lost()).await?;
    Ok(match ended {
        Ended::Done => Outcome::Done,
        Ended::Failed { error, hopeless: true } => Outcome::Kill { error },
        Ended::Failed { error, hopeless: false } => Outcome::Retry { after: None, error },
        Ended::GivenBack => Outcome::Release,
    })
}

/// What a command finds in its environment.
fn variables(queue: &str, context: &Context) -> Vec<(String, OsString)> {
    let numbers = [
        ("COACT_JOB_ID", context.id().0),
        ("COACT_JOB_ATTEMPT", context.attempt().into()),
        ("COACT_JOB_TOKEN", context.token().0),
    ];
    let mut variables: Vec<_> =
        numbers.into_iter().map(|(name, number)| (name.to_owned(), number.to_string().into())).collect();
    variables.push(("COACT_QUEUE".to_owned(), queue.into()));
    variables.extend(header_variables(&context.job().headers));
    variables
}

fn summary(stats: &Stats) -> String {
    let Stats { done, retried, dead, released, fenced, unanswered, .. } = stats;
    let mut text = format!("{done} done, {retried} to try again, {dead} dead, {released} given back");
    if fenced + unanswered > 0 {
        text.push_str(&format!(", {fenced} lost, {unanswered} without an answer"));
    }
    text
}
