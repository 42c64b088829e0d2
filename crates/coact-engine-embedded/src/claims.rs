//! Claims that wait for a job: served in the order in which they came, by the writer, so that a job wakes one worker.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use coact_core::{
    Result,
    contract::queue::{JobId, Receipt, Token},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    body::Place,
    message::{
        MessageChange,
        queue::{Extra, Job},
    },
    queue::end_expired,
    work::{Late, Work},
};

/// A claimed job without its body.
#[derive(Debug)]
pub(crate) struct ClaimedJob {
    pub(crate) receipt: Receipt,
    pub(crate) place: Place,
    pub(crate) priority: u8,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) enqueued_ms: u64,
    pub(crate) extra: Extra,
}

/// What a worker asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) queue: u64,
    pub(crate) worker: String,
    pub(crate) limit: usize,
    pub(crate) lease: Duration,
    pub(crate) to: oneshot::Sender<Result<Vec<ClaimedJob>>>,
    /// Where claims go whose worker has gone.
    pub(crate) unclaimed: Arc<Unclaimed>,
}

/// Claims that nobody heard of: they are released at the next tick.
#[derive(Debug, Default)]
pub(crate) struct Unclaimed(Mutex<Vec<(u64, Receipt)>>);

impl Unclaimed {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(crate) fn take(&self) -> Vec<(u64, Receipt)> {
        std::mem::take(&mut self.0.lock())
    }
}

/// The claims of each queue that wait.
#[derive(Debug, Default)]
pub(crate) struct WaitingClaims(BTreeMap<u64, VecDeque<Asked>>);

/// About the most bytes of the jobs of one claim.
const CLAIM_BYTES_MAX: u64 = 4 * 1024 * 1024;

impl Work<'_> {
    /// Claims now, or waits.
    pub(crate) fn claim(&mut self, asked: Asked, waits: bool) {
        let claimed = self.claim_ready(&asked);
        if claimed.is_empty() && waits {
            self.waiting.0.entry(asked.queue).or_default().push_back(asked);
            // Those before it that nobody waits for any more are let go.
            self.messages.change_times();
        } else {
            self.answer_claim(asked, claimed);
        }
    }

    /// Serves the claims that wait, as far as there are jobs.
    pub(crate) fn serve_waiting(&mut self) {
        let mut waiting = std::mem::take(self.waiting);
        waiting.0.retain(|queue, line| {
            while let Some(asked) = line.pop_front() {
                if asked.to.is_closed() {
                    continue;
                }
                let claimed = self.claim_ready(&asked);
                let is_gone = !self.messages.queues.contains_key(queue);
                if claimed.is_empty() && !is_gone {
                    line.push_front(asked);
                    break;
                }
                self.answer_claim(asked, claimed);
            }
            !line.is_empty()
        });
        *self.waiting = waiting;
        self.finish();
    }

    fn claim_ready(&mut self, asked: &Asked) -> Vec<ClaimedJob> {
        let mut claimed = Vec::new();
        let mut bytes = 0;
        end_expired(self, asked.queue);
        while claimed.len() < asked.limit && bytes < CLAIM_BYTES_MAX {
            let Some(queue) = self.messages.queues.get_mut(&asked.queue) else { break };
            queue.wake_due(self.time_ms);
            let Some(id) = queue.first_ready() else { break };
            let token = queue.next_token;
            let lease_ms = asked.lease.as_millis() as u64;
            self.write(MessageChange::JobClaimed {
                queue: asked.queue,
                job: id,
                token,
                lease_ms,
                worker: asked.worker.clone(),
            });
            let Some(job) = self.messages.queues.get(&asked.queue).and_then(|queue| queue.job(id)) else { break };
            bytes += u64::from(job.place.length);
            claimed.push(ClaimedJob::new(id, job));
        }
        claimed
    }

    fn answer_claim(&mut self, asked: Asked, claimed: Vec<ClaimedJob>) {
        let Asked { queue, to, unclaimed, .. } = asked;
        self.late.push(Late::new(move |durable| {
            let answer = durable.map(|()| claimed).map_err(|stopped| crate::kv::error(stopped.clone()));
            if let Err(Ok(lost)) = to.send(answer) {
                unclaimed.0.lock().extend(lost.into_iter().map(|claimed| (queue, claimed.receipt)));
            }
        }));
    }
}

impl ClaimedJob {
    fn new(id: u64, job: &Job) -> Self {
        Self {
            receipt: Receipt { id: JobId(id), token: Token(job.token) },
            place: job.place,
            priority: job.priority,
            attempt: job.attempts,
            max_attempts: job.max_attempts,
            enqueued_ms: job.enqueued_ms,
            extra: job.extra().clone(),
        }
    }
}
