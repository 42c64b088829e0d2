//! Work queues: jobs that are done at least once, by one worker at a time, until they are done or dead.
//!
//! A [`Queue`] takes jobs; a [`Worker`] claims them in batches, keeps the claims alive while its handler works, and settles
//! what came of them. Every claim has a token that grows with each claim in the queue: what the job changes elsewhere
//! should check it, as with a [lock](crate::lock), since a paused process may go on for a while after its claim is over.
//! It cannot settle any more: that is [fenced](Stats::fenced).
//!
//! A handler runs again after a crash, after a lease that ended and after a lost answer. Make what it does repeatable, or
//! do it in the same [commit](coact_core::contract::commit::Commit) as the settlement and answer [`Outcome::Settled`].

mod bucket;
mod context;
mod stats;
mod work;
mod worker;

use std::fmt;

use coact_core::{
    Error, ErrorKind, Result,
    contract::queue::{Enqueued, NewJob, QueueHandle, QueueSpec, QueueStats},
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
    name,
};

pub use bucket::RateLimit;
pub use context::{Context, Outcome};
pub use stats::Stats;
pub use worker::{Control, Worker, WorkerOptions};

/// What a queue needs from an engine: that a job that was taken is there, and one that was done does not come back.
pub const NEEDS: Needs = Needs {
    block: "queue",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::PerProcess,
};

/// One queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    queues: QueueHandle,
    name: name::Queue,
}

impl Queue {
    /// The queue of this name, which is created as `spec` says if there is none. One that is there stays as it is.
    ///
    /// # Errors
    /// `Invalid` for a name that is no queue's or no attempts at all; `Unsupported` if the engine promises less than a
    /// queue [needs](NEEDS); `Unavailable` if it does not answer.
    ///
    /// # Cancel safety
    /// The queue may have been created.
    pub async fn open(queues: &QueueHandle, name: &str, spec: QueueSpec) -> Result<Self> {
        queues.require(&NEEDS)?;
        let name = name::Queue::new(name)?;
        if queues.queue(&name).await?.is_none() {
            queues.put_queue(&name, &spec).await?;
        }
        Ok(Self { queues: queues.clone(), name })
    }

    /// Its name.
    pub fn name(&self) -> &name::Queue {
        &self.name
    }

    /// The contract below: for jobs by id, the dead, pauses.
    pub fn handle(&self) -> &QueueHandle {
        &self.queues
    }

    /// Enqueues a job.
    ///
    /// # Errors
    /// `Invalid` past a limit, `NotFound` if the queue was deleted; `Unavailable` with effect `Unknown` if the answer was
    /// lost: a job with a name can be pushed again, and is enqueued once.
    ///
    /// # Cancel safety
    /// Once polled, it may be enqueued though the future is dropped.
    pub async fn push(&self, job: NewJob) -> Result<Enqueued> {
        let enqueued = self.queues.enqueue(&self.name, vec![job]).await?;
        let none =
            || Error::new(ErrorKind::Internal, format!("{} took a job without an answer", self.queues.describe()));
        enqueued.first().copied().ok_or_else(none)
    }

    /// Enqueues jobs, all or none, in one request; the answers come in the same order.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    ///
    /// # Cancel safety
    /// As [`push`](Self::push).
    pub async fn push_all(&self, jobs: Vec<NewJob>) -> Result<Vec<Enqueued>> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.queues.enqueue(&self.name, jobs).await
    }

    /// Numbers about the queue.
    ///
    /// # Errors
    /// `NotFound` if the queue was deleted; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn stats(&self) -> Result<QueueStats> {
        self.queues.stats(&self.name).await
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} at {})", self.name, self.queues.describe())
    }
}
