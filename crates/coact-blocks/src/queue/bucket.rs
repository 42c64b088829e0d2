//! How fast one worker begins jobs: a token bucket on the monotonic clock of its environment.

use std::time::{Duration, Instant};

use coact_core::{Error, Result};

/// How fast a worker begins jobs. It counts for one worker; for all together, take from a
/// [`RateLimiter`](crate::lock::RateLimiter) in the handler.
///
/// In any window of length `per`, at most `jobs + burst` begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many may begin per `per`, evenly spread.
    pub jobs: u32,
    /// The length that `jobs` is counted over.
    pub per: Duration,
    /// How many may begin at once after a rest, from 1.
    pub burst: u32,
}

impl RateLimit {
    /// So many jobs per second, one at a time.
    pub fn per_second(jobs: u32) -> Self {
        Self { jobs, per: Duration::from_secs(1), burst: 1 }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.jobs == 0 || self.per.is_zero() || self.burst == 0 {
            return Err(Error::invalid(format!(
                "{} jobs per {:?} in bursts of {} are not allowed: each must be more than zero",
                self.jobs, self.per, self.burst
            )));
        }
        Ok(())
    }
}

/// Permits to begin jobs, which come back with time.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    /// When the last permit that was taken has come back: as of then the bucket is full.
    full_at: Instant,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, full_at: now }
    }

    /// How many permits there are.
    pub(super) fn available(&self, now: Instant) -> usize {
        let missing = self.full_at.saturating_duration_since(now);
        let out = missing.as_nanos().div_ceil(self.each().as_nanos().max(1));
        (self.limit.burst as usize).saturating_sub(out as usize)
    }

    /// Takes permits, though there may be fewer.
    pub(super) fn take(&mut self, permits: usize, now: Instant) {
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        self.full_at = self.full_at.max(now) + self.each().saturating_mul(permits);
    }

    /// When there is the next permit.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let full = self.each().saturating_mul(self.limit.burst.saturating_sub(1));
        self.full_at.checked_sub(full).unwrap_or(now).max(now)
    }

    /// How long one permit takes to come back.
    fn each(&self) -> Duration {
        self.limit.per / self.limit.jobs
    }
}

#[cfg(test)]
mod tests {
    use coact_core::env::Env;

    use super::*;

    #[test]
    fn permits_come_back_evenly_and_no_more_than_a_burst_gathers() {
        let start = Env::real().now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut bucket = Bucket::new(RateLimit { jobs: 10, per: Duration::from_secs(1), burst: 3 }, start);
        assert_eq!(bucket.available(start), 3);
        bucket.take(3, start);
        assert_eq!((bucket.available(start), bucket.next(start)), (0, at(100)));
        assert_eq!((bucket.available(at(99)), bucket.available(at(100)), bucket.available(at(250))), (0, 1, 2));
        assert_eq!(bucket.available(at(60_000)), 3);
        bucket.take(1, at(60_000));
        assert_eq!(bucket.next(at(60_000)), at(60_000));
    }
}
