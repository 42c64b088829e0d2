//! `coact queue`: jobs pushed, done by commands, and looked after.

mod push;
mod work;

use std::time::Duration;

use clap::{Args, Subcommand};
use coact::{
    Error, Queue, QueueHandle, Result, Store,
    contract::queue::{Job, JobId, JobState, Moved, QueueInfo, QueueSpec, QueueStats},
};
use serde_json::{Value, json};

use crate::{Target, cmd::duration, exit::Exit, output};

/// Commands of `coact queue`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Put jobs into a queue and print their ids; the queue is made if there is none.
    Push(push::Push),
    /// Run a command for each job: its body on stdin; exit 0 is done, 65 is dead, all else is tried again.
    Work(work::Work),
    /// Show all queues and how many jobs they have.
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Show numbers about a queue.
    Stats {
        /// The queue.
        queue: Queue,
        #[command(flatten)]
        target: Target,
    },
    /// Show jobs by id.
    Jobs {
        /// The queue.
        queue: Queue,
        /// Only jobs in this state: ready, delayed, blocked, claimed, dead.
        #[arg(long, value_parser = state)]
        state: Option<JobState>,
        #[command(flatten)]
        page: Page,
        #[command(flatten)]
        target: Target,
    },
    /// Show dead jobs by id, with what the last failure said.
    Dead {
        /// The queue.
        queue: Queue,
        #[command(flatten)]
        page: Page,
        #[command(flatten)]
        target: Target,
    },
    /// Make dead jobs ready again, with all their attempts, and print how many.
    Redrive {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        target: Target,
    },
    /// Remove dead jobs and print how many.
    Purge {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        target: Target,
    },
    /// Take a job out that no worker has; exit 4 if one has it, 3 if there is none.
    Cancel {
        /// The queue.
        queue: Queue,
        /// Which job.
        id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Make a delayed job ready now; exit 4 if a worker has it, 3 if there is none.
    Promote {
        /// The queue.
        queue: Queue,
        /// Which job.
        id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Let nobody claim jobs for now. Jobs that run go on.
    Pause {
        /// The queue.
        queue: Queue,
        #[command(flatten)]
        target: Target,
    },
    /// Let jobs be claimed again.
    Resume {
        /// The queue.
        queue: Queue,
        #[command(flatten)]
        target: Target,
    },
    /// Make a queue, or change how it treats jobs.
    Create {
        /// The queue.
        queue: Queue,
        /// How often a job is tried before it is dead.
        #[arg(long, value_name = "N", default_value_t = QueueSpec::default().max_attempts)]
        max_attempts: u32,
        /// How long dead jobs are kept.
        #[arg(long, value_name = "DURATION", default_value = "720h", value_parser = duration)]
        keep_dead: Duration,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a queue with all its jobs.
    Rm {
        /// The queue.
        queue: Queue,
        #[command(flatten)]
        target: Target,
    },
}

/// A part of many jobs.
#[derive(Debug, Args)]
pub(crate) struct Page {
    /// After this job.
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Dead jobs.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The queue.
    queue: Queue,
    /// These jobs.
    #[arg(value_name = "ID", required_unless_present = "oldest")]
    ids: Vec<u64>,
    /// The oldest so many.
    #[arg(long, value_name = "N", conflicts_with = "ids", value_parser = clap::value_parser!(u32).range(1..))]
    oldest: Option<u32>,
}

impl QueueCommand {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Push(push) => push.run().await,
            Self::Work(work) => work.run().await,
            Self::Ls { target } => list(&target).await,
            Self::Stats { queue, target } => stats(&queue, &target).await,
            Self::Jobs { queue, state: Some(state), page, target } => jobs(&queue, &[state], &page, &target).await,
            Self::Jobs { queue, state: None, page, target } => jobs(&queue, &JobState::ALL, &page, &target).await,
            Self::Dead { queue, page, target } => jobs(&queue, &[JobState::Dead], &page, &target).await,
            Self::Redrive { which, target } => {
                let (store, queues) = open(&target).await?;
                let count = queues.redrive(&which.queue, which.ids(), which.limit()).await?;
                target.output().one(json!({ "redriven": count }), &count.to_string());
                closed(&store).await
            }
            Self::Purge { which, target } => {
                let (store, queues) = open(&target).await?;
                let count = queues.purge(&which.queue, which.ids(), which.limit()).await?;
                target.output().one(json!({ "purged": count }), &count.to_string());
                closed(&store).await
            }
            Self::Cancel { queue, id, target } => {
                let (store, queues) = open(&target).await?;
                let moved = queues.cancel(&queue, JobId(id)).await?;
                store.close().await?;
                Ok(exit_of(moved, id))
            }
            Self::Promote { queue, id, target } => {
                let (store, queues) = open(&target).await?;
                let moved = queues.promote(&queue, JobId(id)).await?;
                store.close().await?;
                Ok(exit_of(moved, id))
            }
            Self::Pause { queue, target } => pause(&queue, true, &target).await,
            Self::Resume { queue, target } => pause(&queue, false, &target).await,
            Self::Create { queue, max_attempts, keep_dead, target } => {
                let (store, queues) = open(&target).await?;
                let is_new = queues.put_queue(&queue, &QueueSpec { max_attempts, keep_dead }).await?;
                let text = if is_new { "created" } else { "changed" };
                target.output().one(json!({ "queue": queue.as_str(), "created": is_new }), text);
                closed(&store).await
            }
            Self::Rm { queue, target } => {
                let (store, queues) = open(&target).await?;
                let was_there = queues.delete_queue(&queue).await?;
                store.close().await?;
                if !was_there {
                    output::complain(&format!("there is no queue {queue}"));
                    return Ok(Exit::ABSENT);
                }
                Ok(Exit::SUCCESS)
            }
        }
    }
}

impl Which {
    fn ids(&self) -> Vec<JobId> {
        self.ids.iter().copied().map(JobId).collect()
    }

    fn limit(&self) -> usize {
        self.oldest.map_or(self.ids.len(), |oldest| oldest as usize)
    }
}

/// The store and its queues.
async fn open(target: &Target) -> Result<(Store, QueueHandle)> {
    let store = coact::open_store(&target.url()?).await?;
    let queues = store.queues()?.clone();
    Ok((store, queues))
}

async fn closed(store: &Store) -> Result<Exit> {
    store.close().await?;
    Ok(Exit::SUCCESS)
}

async fn list(target: &Target) -> Result<Exit> {
    const PAGE: usize = 1_000;
    let (store, queues) = open(target).await?;
    let mut out = target.output();
    let mut after = String::new();
    loop {
        let page = queues.queues(&after, PAGE).await?;
        for info in &page {
            out.row(queue_row(info, &queues.stats(&info.name).await?));
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = last.name.to_string(),
            _ => break,
        }
    }
    out.finish();
    closed(&store).await
}

async fn stats(queue: &Queue, target: &Target) -> Result<Exit> {
    let (store, queues) = open(target).await?;
    let stats = queues.stats(queue).await?;
    let mut out = target.output();
    out.row(json!({
        "ready": stats.ready,
        "delayed": stats.delayed,
        "blocked": stats.blocked,
        "claimed": stats.claimed,
        "dead": stats.dead,
        "oldest_ready": stats.oldest_ready_ms.map(output::time),
        "next_due": stats.next_due_ms.map(output::time),
        "enqueued": stats.enqueued,
        "done": stats.done,
        "claims": stats.claims,
    }));
    out.finish();
    closed(&store).await
}

async fn jobs(queue: &Queue, states: &[JobState], page: &Page, target: &Target) -> Result<Exit> {
    let (store, queues) = open(target).await?;
    let mut found = Vec::new();
    for state in states {
        found.extend(queues.jobs(queue, *state, page.after.map(JobId), page.limit).await?);
    }
    found.sort_by_key(|job| job.id);
    // One that moved meanwhile was seen twice.
    found.dedup_by_key(|job| job.id);
    let mut out = target.output();
    found.iter().take(page.limit).for_each(|job| out.row(job_row(job)));
    out.finish();
    closed(&store).await
}

async fn pause(queue: &Queue, paused: bool, target: &Target) -> Result<Exit> {
    let (store, queues) = open(target).await?;
    queues.pause(queue, paused).await?;
    closed(&store).await
}

fn exit_of(moved: Moved, id: u64) -> Exit {
    match moved {
        Moved::Done => Exit::SUCCESS,
        Moved::InFlight => {
            output::complain(&format!("a worker has job {id}"));
            Exit::CONFLICT
        }
        Moved::NotFound => {
            output::complain(&format!("there is no job {id}, or it is dead"));
            Exit::ABSENT
        }
    }
}

fn queue_row(info: &QueueInfo, stats: &QueueStats) -> Value {
    json!({
        "queue": info.name.as_str(),
        "paused": info.paused,
        "ready": stats.ready,
        "delayed": stats.delayed,
        "blocked": stats.blocked,
        "claimed": stats.claimed,
        "dead": stats.dead,
        "max_attempts": info.spec.max_attempts,
        "keep_dead_s": info.spec.keep_dead.as_secs(),
    })
}

fn job_row(job: &Job) -> Value {
    json!({
        "id": job.id.0,
        "state": job.state.name(),
        "priority": job.job.priority,
        "attempts": job.attempts,
        "name": job.job.name,
        "key": job.job.order_key.as_deref().map(text),
        "enqueued": output::time(job.enqueued_ms),
        "run_at": job.job.run_at_ms.map(output::time),
        "worker": job.worker,
        "error": job.error,
        "body": text(&job.job.body),
    })
}

/// Bytes as people read them.
fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| format!("<{} bytes>", bytes.len()), str::to_owned)
}

fn state(text: &str) -> Result<JobState> {
    JobState::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
        let names = JobState::ALL.map(JobState::name).join(", ");
        Error::invalid(format!("state {text:?} is not known: choose from {names}"))
    })
}
