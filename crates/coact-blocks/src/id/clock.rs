//! The time that goes into ids: follows the wall clock forwards, and the monotonic clock when the wall clock steps back.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use coact_core::env::Env;

use super::EPOCH_MS;

/// Milliseconds since [`EPOCH_MS`] that never go back. Reading costs one monotonic clock read and no lock.
#[derive(Debug)]
pub(super) struct Clock {
    env: Env,
    origin: Instant,
    /// What to add to the nanoseconds since `origin`. It only grows.
    offset_ns: AtomicU64,
}

const NS_PER_MS: u64 = 1_000_000;

impl Clock {
    pub(super) fn new(env: &Env) -> Self {
        let clock = Self { env: env.clone(), origin: env.now(), offset_ns: AtomicU64::new(0) };
        clock.follow_wall();
        clock
    }

    /// Now, in milliseconds since [`EPOCH_MS`].
    #[inline]
    pub(super) fn now(&self) -> u64 {
        (self.elapsed_ns() + self.offset_ns.load(Ordering::Relaxed)) / NS_PER_MS
    }

    /// Catches up with a wall clock that is ahead: it was stepped, or the machine slept. One that is behind is not
    /// followed; ids then run ahead of it, but never back.
    pub(super) fn follow_wall(&self) {
        let wall_ns = self.env.wall_ms().saturating_sub(EPOCH_MS).saturating_mul(NS_PER_MS);
        self.offset_ns.fetch_max(wall_ns.saturating_sub(self.elapsed_ns()), Ordering::Relaxed);
    }

    /// Waits until [`now`](Self::now) has reached a millisecond, and not much longer: a sleep is as coarse as that, so the
    /// last of them is spent letting other tasks run.
    pub(super) async fn wait_until(&self, tick: u64) {
        loop {
            let before = self.env.now();
            let ahead = tick.saturating_sub(self.now());
            match ahead {
                0 => return,
                1 => tokio::task::yield_now().await,
                _ => self.env.sleep(Duration::from_millis(ahead - 1)).await,
            }
            // A clock that stands still while a task yields is a simulator's: it moves when all sleep.
            if self.env.now() == before {
                self.env.sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn elapsed_ns(&self) -> u64 {
        self.env.now().saturating_duration_since(self.origin).as_nanos() as u64
    }
}
