//! Queues and their jobs.

use std::time::Duration;

use coact_core::{
    Error, Result,
    contract::queue::{
        Claimed, Enqueued, Job, JobId, JobState, Moved, NewJob, QueueInfo, QueueSpec, QueueStats, Receipt, Settle,
        Settled, Token, Verdict,
    },
    name::Queue,
};

use super::{from_headers, part, to_headers, to_ms};
use crate::wire::coact_v1 as wire;

impl From<&QueueSpec> for wire::QueueSpec {
    fn from(spec: &QueueSpec) -> Self {
        Self { max_attempts: spec.max_attempts, keep_dead_ms: to_ms(spec.keep_dead) }
    }
}

impl From<wire::QueueSpec> for QueueSpec {
    fn from(message: wire::QueueSpec) -> Self {
        Self { max_attempts: message.max_attempts, keep_dead: Duration::from_millis(message.keep_dead_ms) }
    }
}

impl From<QueueInfo> for wire::QueueInfo {
    fn from(info: QueueInfo) -> Self {
        Self { name: info.name.to_string(), spec: Some((&info.spec).into()), paused: info.paused }
    }
}

impl TryFrom<wire::QueueInfo> for QueueInfo {
    type Error = Error;

    fn try_from(message: wire::QueueInfo) -> Result<Self> {
        Ok(Self { name: Queue::new(&message.name)?, spec: part(message.spec, "spec")?.into(), paused: message.paused })
    }
}

impl From<NewJob> for wire::NewJob {
    fn from(job: NewJob) -> Self {
        Self {
            body: job.body,
            headers: to_headers(job.headers),
            name: job.name,
            priority: job.priority.into(),
            run_at_ms: job.run_at_ms,
            order_key: job.order_key,
            max_attempts: job.max_attempts,
            expires_ms: job.expires_ms,
        }
    }
}

impl TryFrom<wire::NewJob> for NewJob {
    type Error = Error;

    fn try_from(message: wire::NewJob) -> Result<Self> {
        let priority = u8::try_from(message.priority)
            .map_err(|_| Error::invalid(format!("priority {} is not allowed", message.priority)))?;
        Ok(Self {
            body: message.body,
            headers: from_headers(message.headers),
            name: message.name,
            priority,
            run_at_ms: message.run_at_ms,
            order_key: message.order_key,
            max_attempts: message.max_attempts,
            expires_ms: message.expires_ms,
        })
    }
}

impl From<Enqueued> for wire::Enqueued {
    fn from(enqueued: Enqueued) -> Self {
        Self { id: enqueued.id().0, exists: matches!(enqueued, Enqueued::Exists(_)) }
    }
}

impl From<wire::Enqueued> for Enqueued {
    fn from(message: wire::Enqueued) -> Self {
        let id = JobId(message.id);
        if message.exists { Self::Exists(id) } else { Self::Created(id) }
    }
}

impl From<Claimed> for wire::Claimed {
    fn from(claimed: Claimed) -> Self {
        Self {
            id: claimed.id.0,
            token: claimed.token.0,
            attempt: claimed.attempt,
            max_attempts: claimed.max_attempts,
            // Down: who claims must not believe that it has the job for longer than it does.
            lease_ms: u64::try_from(claimed.lease.as_millis()).unwrap_or(u64::MAX),
            enqueued_ms: claimed.enqueued_ms,
            job: Some(claimed.job.into()),
        }
    }
}

impl TryFrom<wire::Claimed> for Claimed {
    type Error = Error;

    fn try_from(message: wire::Claimed) -> Result<Self> {
        Ok(Self {
            id: JobId(message.id),
            token: Token(message.token),
            attempt: message.attempt,
            max_attempts: message.max_attempts,
            lease: Duration::from_millis(message.lease_ms),
            enqueued_ms: message.enqueued_ms,
            job: part(message.job, "job")?.try_into()?,
        })
    }
}

impl From<Settle> for wire::Settle {
    fn from(settle: Settle) -> Self {
        use wire::settle::{Extend, Kill, Nack, Verdict as Word};
        let verdict = match settle.verdict {
            Verdict::Ack => Word::Ack(wire::Done {}),
            Verdict::Nack { delay, error } => Word::Nack(Nack { delay_ms: to_ms(delay), error }),
            Verdict::Kill { error } => Word::Kill(Kill { error }),
            Verdict::Release => Word::Release(wire::Done {}),
            Verdict::Extend { lease } => Word::Extend(Extend { lease_ms: to_ms(lease) }),
        };
        Self { id: settle.receipt.id.0, token: settle.receipt.token.0, verdict: Some(verdict) }
    }
}

impl TryFrom<wire::Settle> for Settle {
    type Error = Error;

    fn try_from(message: wire::Settle) -> Result<Self> {
        use wire::settle::Verdict as Word;
        let verdict = match part(message.verdict, "verdict")? {
            Word::Ack(_) => Verdict::Ack,
            Word::Nack(nack) => Verdict::Nack { delay: Duration::from_millis(nack.delay_ms), error: nack.error },
            Word::Kill(kill) => Verdict::Kill { error: kill.error },
            Word::Release(_) => Verdict::Release,
            Word::Extend(extend) => Verdict::Extend { lease: Duration::from_millis(extend.lease_ms) },
        };
        Ok(Self { receipt: Receipt { id: JobId(message.id), token: Token(message.token) }, verdict })
    }
}

impl From<Settled> for wire::Settled {
    fn from(settled: Settled) -> Self {
        match settled {
            Settled::Done => Self::Done,
            Settled::Dead => Self::Dead,
            Settled::Fenced => Self::Fenced,
        }
    }
}

impl TryFrom<wire::Settled> for Settled {
    type Error = Error;

    fn try_from(message: wire::Settled) -> Result<Self> {
        match message {
            wire::Settled::Done => Ok(Self::Done),
            wire::Settled::Dead => Ok(Self::Dead),
            wire::Settled::Fenced => Ok(Self::Fenced),
            wire::Settled::Unknown => Err(Error::invalid("the message does not say what became of a claim")),
        }
    }
}

impl From<Moved> for wire::MovedResponse {
    fn from(moved: Moved) -> Self {
        let moved = match moved {
            Moved::Done => wire::Moved::Done,
            Moved::InFlight => wire::Moved::InFlight,
            Moved::NotFound => wire::Moved::NotFound,
        };
        Self { moved: moved.into() }
    }
}

impl TryFrom<wire::MovedResponse> for Moved {
    type Error = Error;

    fn try_from(message: wire::MovedResponse) -> Result<Self> {
        match message.moved() {
            wire::Moved::Done => Ok(Self::Done),
            wire::Moved::InFlight => Ok(Self::InFlight),
            wire::Moved::NotFound => Ok(Self::NotFound),
            wire::Moved::Unknown => Err(Error::invalid("the message does not say what became of a job")),
        }
    }
}

impl From<JobState> for wire::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Ready => Self::Ready,
            JobState::Delayed => Self::Delayed,
            JobState::Blocked => Self::Blocked,
            JobState::Claimed => Self::Claimed,
            JobState::Dead => Self::Dead,
        }
    }
}

impl TryFrom<wire::JobState> for JobState {
    type Error = Error;

    fn try_from(message: wire::JobState) -> Result<Self> {
        match message {
            wire::JobState::Ready => Ok(Self::Ready),
            wire::JobState::Delayed => Ok(Self::Delayed),
            wire::JobState::Blocked => Ok(Self::Blocked),
            wire::JobState::Claimed => Ok(Self::Claimed),
            wire::JobState::Dead => Ok(Self::Dead),
            wire::JobState::Unknown => Err(Error::invalid("the message does not say in which state")),
        }
    }
}

impl From<Job> for wire::Job {
    fn from(job: Job) -> Self {
        Self {
            id: job.id.0,
            job: Some(job.job.into()),
            state: wire::JobState::from(job.state).into(),
            attempts: job.attempts,
            enqueued_ms: job.enqueued_ms,
            worker: job.worker,
            error: job.error,
            died_ms: job.died_ms,
        }
    }
}

impl TryFrom<wire::Job> for Job {
    type Error = Error;

    fn try_from(message: wire::Job) -> Result<Self> {
        Ok(Self {
            id: JobId(message.id),
            state: message.state().try_into()?,
            job: part(message.job, "job")?.try_into()?,
            attempts: message.attempts,
            enqueued_ms: message.enqueued_ms,
            worker: message.worker,
            error: message.error,
            died_ms: message.died_ms,
        })
    }
}

impl From<QueueStats> for wire::QueueStats {
    fn from(stats: QueueStats) -> Self {
        Self {
            ready: stats.ready,
            delayed: stats.delayed,
            blocked: stats.blocked,
            claimed: stats.claimed,
            dead: stats.dead,
            oldest_ready_ms: stats.oldest_ready_ms,
            next_due_ms: stats.next_due_ms,
            enqueued: stats.enqueued,
            done: stats.done,
            claims: stats.claims,
        }
    }
}

impl From<wire::QueueStats> for QueueStats {
    fn from(message: wire::QueueStats) -> Self {
        Self {
            ready: message.ready,
            delayed: message.delayed,
            blocked: message.blocked,
            claimed: message.claimed,
            dead: message.dead,
            oldest_ready_ms: message.oldest_ready_ms,
            next_due_ms: message.next_due_ms,
            enqueued: message.enqueued,
            done: message.done,
            claims: message.claims,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn job() -> NewJob {
        NewJob {
            body: Bytes::from_static(b"body"),
            headers: vec![("one".to_owned(), Bytes::from_static(b"1")), ("two".to_owned(), Bytes::new())],
            name: Some("only-once".to_owned()),
            priority: 9,
            run_at_ms: Some(0),
            order_key: Some(Bytes::new()),
            max_attempts: Some(3),
            expires_ms: Some(9),
        }
    }

    #[test]
    fn jobs_and_claims_read_back() {
        for job in [job(), NewJob::default()] {
            assert_eq!(NewJob::try_from(wire::NewJob::from(job.clone())).expect("the same"), job);
            for state in JobState::ALL {
                let stored = Job {
                    id: JobId(7),
                    job: job.clone(),
                    state,
                    attempts: 2,
                    enqueued_ms: 3,
                    worker: Some(String::new()),
                    error: None,
                    died_ms: Some(4),
                };
                assert_eq!(Job::try_from(wire::Job::from(stored.clone())).expect("the same"), stored);
            }
        }
        let claimed = Claimed {
            id: JobId(1),
            token: Token(2),
            attempt: 3,
            max_attempts: 4,
            lease: Duration::from_millis(1500),
            enqueued_ms: 5,
            job: job(),
        };
        assert_eq!(Claimed::try_from(wire::Claimed::from(claimed.clone())).expect("the same"), claimed);
        let loud = wire::NewJob { priority: 256, ..wire::NewJob::default() };
        assert!(NewJob::try_from(loud).is_err(), "256 is not 0");
    }

    #[test]
    fn verdicts_read_back_and_none_is_guessed() {
        let receipt = Receipt { id: JobId(1), token: Token(2) };
        let (error, second) = ("why".to_owned(), Duration::from_secs(1));
        let verdicts = [
            Verdict::Ack,
            Verdict::Nack { delay: second, error: error.clone() },
            Verdict::Kill { error },
            Verdict::Release,
            Verdict::Extend { lease: second },
        ];
        for verdict in verdicts {
            let settle = Settle { receipt, verdict };
            assert_eq!(Settle::try_from(wire::Settle::from(settle.clone())).expect("the same"), settle);
        }
        assert!(Settle::try_from(wire::Settle::default()).is_err());
        assert!(Moved::try_from(wire::MovedResponse::default()).is_err());
        assert!(Settled::try_from(wire::Settled::Unknown).is_err());
    }
}
