//! Attempts, and the pauses between them: they double up to a bound, and jitter keeps many clients from marching in step.

use std::time::Duration;

use coact_core::{Error, ErrorKind, Result, Retry, env::Env};

/// The pauses of one series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    env: Env,
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(env: &Env, first: Duration, longest: Duration) -> Self {
        Self { env: env.clone(), first, next: first, longest }
    }

    /// The pause after so many failures of something that is not kept here: from half to the whole of a length that
    /// doubles with each, up to `longest`.
    pub(crate) fn after(env: &Env, first: Duration, longest: Duration, failures: u32) -> Duration {
        let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        Self::new(env, doubled.min(longest), longest).next_pause()
    }

    /// Waits, longer each time.
    pub(crate) async fn pause(&mut self) {
        let pause = self.next_pause();
        self.env.sleep(pause).await;
    }

    /// From half to the whole of a length that doubles each time.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let half = self.next / 2;
        self.next = (self.next * 2).min(self.longest);
        half + self.env.random_duration(half)
    }

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The answer of a request, or that none came in time.
pub(crate) async fn within<T>(
    env: &Env,
    limit: Duration,
    what: &str,
    request: impl Future<Output = Result<T>>,
) -> Result<T> {
    env.timeout(limit, request).await.unwrap_or_else(|| {
        let message = format!("{what} was not answered within {limit:?}");
        Err(Error::new(ErrorKind::Unavailable, message).effect_unknown())
    })
}

/// Whether the error says that the same request may succeed later.
pub(crate) fn is_retryable(error: &Error) -> bool {
    matches!(error.retry(), Retry::After(_))
}
