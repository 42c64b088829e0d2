//! Queues: what many workers claimed and settled. Tokens order the claims of a queue, so no clock is needed for that;
//! leases need one.
//!
//! A worker says what it is about to do, and later what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bytes::Bytes;
use coact_core::contract::queue::{Claimed, JobId, NewJob, Receipt, Settled, Token, Verdict};
use parking_lot::Mutex;

/// Everything that happened to the jobs of one queue, as far as anybody was told.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<JobId, Known>,
    claims: BTreeMap<Token, JobId>,
    violations: Vec<String>,
}

/// What is known of a job.
#[derive(Debug, Default)]
struct Known {
    key: Option<Bytes>,
    /// Whether its enqueueing was acknowledged.
    is_enqueued: bool,
    /// The newest claim that anybody was told of.
    claim: Option<Out>,
    acked: Option<Token>,
    end: End,
}

/// A claim.
#[derive(Clone, Copy, Debug)]
struct Out {
    token: Token,
    /// It does not end before, unless it is settled.
    until: Instant,
    /// Whether somebody is settling it, or has.
    is_settling: bool,
    /// Whether the job is dead if this claim ends.
    is_last: bool,
}

/// Whether a job is still in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Lives,
    /// Somebody is about to end it, or was not told.
    Perhaps,
    Ended,
}

/// What a worker knew when it asked for jobs.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    highest: Option<Token>,
    at: Instant,
}

/// What a worker knew when it settled a claim.
#[derive(Clone, Copy, Debug)]
pub struct Settling {
    receipt: Receipt,
    newest: Option<Token>,
}

impl Jobs {
    /// Somebody was told that a new job is in the queue.
    pub fn enqueued(&self, id: JobId, job: &NewJob) {
        let mut state = self.0.lock();
        let known = state.jobs.entry(id).or_default();
        let is_twice = known.is_enqueued;
        known.is_enqueued = true;
        known.key.clone_from(&job.order_key);
        if is_twice {
            state.note(format!("id {id} was given twice"));
        }
    }

    /// Somebody is about to claim.
    pub fn claiming(&self, now: Instant) -> Asked {
        Asked { highest: self.0.lock().claims.keys().next_back().copied(), at: now }
    }

    /// It was told that it has this job.
    pub fn claimed(&self, asked: Asked, claimed: &Claimed, now: Instant) {
        self.0.lock().claimed(asked, claimed, now);
    }

    /// Somebody is about to settle a claim.
    pub fn settling(&self, receipt: Receipt, verdict: &Verdict) -> Settling {
        let mut state = self.0.lock();
        let newest = state.jobs.get(&receipt.id).and_then(|job| job.claim).map(|claim| claim.token);
        if let Some(job) = state.jobs.get_mut(&receipt.id)
            && !matches!(verdict, Verdict::Extend { .. })
        {
            if job.end == End::Lives && !matches!(verdict, Verdict::Release) {
                job.end = End::Perhaps;
            }
            if let Some(claim) = job.claim.as_mut().filter(|claim| claim.token == receipt.token) {
                claim.is_settling = true;
            }
        }
        Settling { receipt, newest }
    }

    /// It was told what became of it.
    pub fn settled(&self, settling: Settling, verdict: &Verdict, settled: Settled) {
        self.0.lock().settled(settling, verdict, settled);
    }

    /// What must never be, in words, if these are all jobs that are left, dead ones included.
    pub fn violations(&self, left: &[JobId]) -> Vec<String> {
        let state = self.0.lock();
        let left: BTreeSet<_> = left.iter().collect();
        let mut violations = state.violations.clone();
        for (id, job) in &state.jobs {
            if job.acked.is_some() && left.contains(id) {
                violations.push(format!("job {id} was acknowledged and is still there"));
            }
            if job.is_enqueued && job.acked.is_none() && job.end != End::Perhaps && !left.contains(id) {
                violations.push(format!("job {id} is lost"));
            }
        }
        violations
    }
}

impl State {
    fn claimed(&mut self, asked: Asked, claimed: &Claimed, now: Instant) {
        let (id, token) = (claimed.id, claimed.token);
        if asked.highest.is_some_and(|highest| token <= highest) {
            let highest = asked.highest.map_or(0, |highest| highest.0);
            self.note(format!("job {id} was claimed with token {} after token {highest}", token.0));
        }
        if let Some(other) = self.claims.insert(token, id) {
            self.note(format!("jobs {other} and {id} were claimed with the same token {}", token.0));
        }
        self.is_exclusive(claimed, now);
        let job = self.jobs.entry(id).or_default();
        job.key.clone_from(&claimed.job.order_key);
        if job.claim.is_none_or(|newest| newest.token < token) {
            let is_last = claimed.attempt >= claimed.max_attempts;
            job.claim = Some(Out { token, until: asked.at + claimed.lease, is_settling: false, is_last });
            job.end = End::Lives;
        }
        if let Some(acked) = job.acked.filter(|acked| *acked < token) {
            self.note(format!("job {id} was acknowledged with token {} and delivered with {}", acked.0, token.0));
        }
    }

    /// Nobody else has a job of this order key, and no earlier one waits.
    fn is_exclusive(&mut self, claimed: &Claimed, now: Instant) {
        let Some(key) = &claimed.job.order_key else { return };
        let mut found = Vec::new();
        for (other, job) in
            self.jobs.iter().filter(|(other, job)| **other != claimed.id && job.key.as_ref() == Some(key))
        {
            let is_out = job.claim.is_some_and(|claim| !claim.is_settling && claim.until > now);
            let may_be_dead = job.claim.is_some_and(|claim| claim.is_last && claim.until <= now);
            if is_out {
                found.push(format!("job {} was claimed while job {other} of the same order key was out", claimed.id));
            } else if *other < claimed.id && job.is_enqueued && job.end == End::Lives && !may_be_dead {
                found.push(format!("job {} overtook job {other} of the same order key", claimed.id));
            }
        }
        found.into_iter().for_each(|violation| self.note(violation));
    }

    fn settled(&mut self, settling: Settling, verdict: &Verdict, settled: Settled) {
        let Settling { receipt: Receipt { id, token }, newest } = settling;
        if settled == Settled::Fenced {
            let job = self.jobs.entry(id).or_default();
            // Nothing was changed; what others do to the job is theirs to say.
            if job.end == End::Perhaps && job.claim.is_some_and(|claim| claim.token == token) {
                job.end = End::Lives;
            }
            return;
        }
        if let Some(newest) = newest.filter(|newest| *newest > token) {
            self.note(format!("job {id} was settled with token {} after it was claimed with {}", token.0, newest.0));
        }
        let job = self.jobs.entry(id).or_default();
        let acked_before = job.acked;
        match (settled, verdict) {
            (_, Verdict::Extend { .. }) => {}
            (Settled::Done, Verdict::Ack) => (job.acked, job.end) = (Some(token), End::Ended),
            // The dead are there, and hold up nobody of their order key.
            (Settled::Dead, _) => job.end = End::Ended,
            // Somebody may have claimed it since.
            _ if job.claim.is_some_and(|claim| claim.token == token) => job.end = End::Lives,
            _ => {}
        }
        if *verdict == Verdict::Ack && acked_before.is_some() {
            self.note(format!("job {id} was acknowledged twice"));
        }
    }

    fn note(&mut self, violation: String) {
        self.violations.push(violation);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coact_core::env::Env;

    use super::*;

    /// A lease that no history outlasts.
    const LONG: Duration = Duration::from_secs(600);

    /// A journal, and a clock that stands.
    struct Told {
        jobs: Jobs,
        now: Instant,
    }

    impl Told {
        fn new() -> Self {
            Self { jobs: Jobs::default(), now: Env::real().now() }
        }

        fn enqueued(&self, ids: &[u64], key: Option<&'static str>) {
            for id in ids {
                self.jobs.enqueued(JobId(*id), &job(key));
            }
        }

        fn claimed(&self, id: u64, token: u64, key: Option<&'static str>) -> Receipt {
            self.claimed_since(self.jobs.claiming(self.now), id, token, key)
        }

        fn claimed_since(&self, asked: Asked, id: u64, token: u64, key: Option<&'static str>) -> Receipt {
            let claimed = Claimed {
                id: JobId(id),
                token: Token(token),
                attempt: 1,
                max_attempts: 5,
                lease: LONG,
                enqueued_ms: 0,
                job: job(key),
            };
            self.jobs.claimed(asked, &claimed, self.now);
            claimed.receipt()
        }

        fn settled(&self, receipt: Receipt, verdict: Verdict, settled: Settled) {
            let settling = self.jobs.settling(receipt, &verdict);
            self.jobs.settled(settling, &verdict, settled);
        }
    }

    fn job(key: Option<&'static str>) -> NewJob {
        NewJob { order_key: key.map(Bytes::from), ..NewJob::default() }
    }

    fn nack() -> Verdict {
        Verdict::Nack { delay: Duration::ZERO, error: String::new() }
    }

    #[test]
    fn a_good_history_passes() {
        let told = Told::new();
        told.enqueued(&[1, 2, 3], Some("k"));
        told.settled(told.claimed(1, 1, Some("k")), nack(), Settled::Done);
        let second = told.claimed(1, 2, Some("k"));
        told.settled(Receipt { token: Token(1), ..second }, Verdict::Ack, Settled::Fenced);
        told.settled(second, Verdict::Ack, Settled::Done);
        told.settled(told.claimed(2, 3, Some("k")), Verdict::Kill { error: String::new() }, Settled::Dead);
        let third = told.claimed(3, 4, Some("k"));
        told.settled(third, Verdict::Extend { lease: LONG }, Settled::Done);
        assert_eq!(told.jobs.violations(&[JobId(2), JobId(3)]), [""; 0]);
        // Nobody knows what became of an answer that was lost.
        told.jobs.settling(third, &Verdict::Ack);
        assert_eq!(told.jobs.violations(&[JobId(2)]), [""; 0]);
    }

    #[test]
    fn a_job_that_is_delivered_after_its_acknowledgement_is_found() {
        let told = Told::new();
        told.enqueued(&[1], None);
        told.settled(told.claimed(1, 1, None), Verdict::Ack, Settled::Done);
        told.claimed(1, 2, None);
        assert_eq!(told.jobs.violations(&[]), ["job 1 was acknowledged with token 1 and delivered with 2"]);
    }

    #[test]
    fn a_lost_job_and_one_that_came_back_are_found() {
        let told = Told::new();
        told.enqueued(&[1, 2], None);
        told.settled(told.claimed(1, 1, None), Verdict::Ack, Settled::Done);
        let expected = ["job 1 was acknowledged and is still there", "job 2 is lost"];
        assert_eq!(told.jobs.violations(&[JobId(1)]), expected);
    }

    #[test]
    fn a_late_worker_that_settles_is_found() {
        let told = Told::new();
        told.enqueued(&[1], None);
        let late = told.claimed(1, 1, None);
        told.claimed(1, 2, None);
        told.settled(late, Verdict::Ack, Settled::Done);
        assert_eq!(told.jobs.violations(&[]), ["job 1 was settled with token 1 after it was claimed with 2"]);
    }

    #[test]
    fn a_job_that_is_acknowledged_twice_is_found() {
        let told = Told::new();
        told.enqueued(&[1], None);
        let receipt = told.claimed(1, 1, None);
        told.settled(receipt, Verdict::Ack, Settled::Done);
        told.settled(receipt, Verdict::Ack, Settled::Done);
        assert_eq!(told.jobs.violations(&[]), ["job 1 was acknowledged twice"]);
    }

    #[test]
    fn tokens_that_do_not_grow_are_found() {
        let told = Told::new();
        told.enqueued(&[1, 2, 3], None);
        let asked = told.jobs.claiming(told.now);
        told.claimed_since(asked, 1, 5, None);
        // Two claims at once may be answered in any order.
        told.claimed_since(asked, 2, 4, None);
        assert_eq!(told.jobs.violations(&[1, 2, 3].map(JobId)), [""; 0]);
        told.claimed(3, 3, None);
        told.claimed_since(asked, 1, 5, None);
        assert_eq!(
            told.jobs.violations(&[1, 2, 3].map(JobId)),
            ["job 3 was claimed with token 3 after token 5", "jobs 1 and 1 were claimed with the same token 5",]
        );
    }

    #[test]
    fn two_jobs_of_a_key_at_a_time_are_found() {
        let told = Told::new();
        told.enqueued(&[1, 2], Some("k"));
        told.claimed(1, 1, Some("k"));
        told.claimed(2, 2, Some("k"));
        let expected = ["job 2 was claimed while job 1 of the same order key was out"];
        assert_eq!(told.jobs.violations(&[1, 2].map(JobId)), expected);
    }

    #[test]
    fn a_job_that_overtakes_one_of_its_key_is_found() {
        let told = Told::new();
        told.enqueued(&[1, 2], Some("k"));
        told.settled(told.claimed(1, 1, Some("k")), nack(), Settled::Done);
        told.claimed(2, 2, Some("k"));
        assert_eq!(told.jobs.violations(&[1, 2].map(JobId)), ["job 2 overtook job 1 of the same order key"]);
    }

    #[test]
    fn an_id_that_was_given_twice_is_found() {
        let told = Told::new();
        told.enqueued(&[1, 1], None);
        assert_eq!(told.jobs.violations(&[JobId(1)]), ["id 1 was given twice"]);
    }
}
