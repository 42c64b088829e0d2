//! Several mutexes at once, without a deadlock.

use std::time::Duration;

use coact_core::{Error, ErrorKind, Result, Retry};
use futures::future::{BoxFuture, select_all};

use super::mutex::{Guard, Mutex};

/// Waits until all of these mutexes are held. They are acquired one after the other in the order of realm and name, so
/// that two callers whose sets overlap never wait for each other.
///
/// # Errors
/// `Invalid` if none is given, or one twice; otherwise as [`Mutex::acquire`]: then none is held.
///
/// # Cancel safety
/// Safe: what was acquired is released in the background.
///
/// # Examples
/// ```no_run
/// # async fn example(session: &coact_blocks::Session) -> coact_core::Result<()> {
/// use coact_blocks::lock::{Mutex, acquire_all};
///
/// let accounts = [Mutex::new(session, "account/17")?, Mutex::new(session, "account/4")?];
/// let both = acquire_all(&accounts).await?;
/// both.release().await?;
/// # Ok(())
/// # }
/// ```
pub async fn acquire_all(mutexes: &[Mutex]) -> Result<MultiGuard> {
    let mut all = MultiGuard { guards: Vec::with_capacity(mutexes.len()) };
    for mutex in in_order(mutexes)? {
        all.guards.push(mutex.acquire().await?);
    }
    Ok(all)
}

/// Waits until all of these mutexes are held, but not longer than `limit` altogether.
///
/// # Errors
/// `Conflict` if they were not granted in time; otherwise as [`acquire_all`].
///
/// # Cancel safety
/// As [`acquire_all`].
pub async fn acquire_all_within(mutexes: &[Mutex], limit: Duration) -> Result<MultiGuard> {
    let Some(any) = mutexes.first() else {
        return acquire_all(mutexes).await;
    };
    match any.env().timeout(limit, acquire_all(mutexes)).await {
        Some(result) => result,
        None => Err(Error::new(ErrorKind::Conflict, format!("{} locks were not granted together", mutexes.len()))
            .with("waited", format!("{limit:?}"))
            .with_retry(Retry::After(Duration::from_secs(1)))),
    }
}

fn in_order(mutexes: &[Mutex]) -> Result<Vec<&Mutex>> {
    let mut sorted: Vec<&Mutex> = mutexes.iter().collect();
    sorted.sort_by_key(|mutex| mutex.place());
    if sorted.is_empty() {
        return Err(Error::invalid("no lock is named: use one or more"));
    }
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0].place() == pair[1].place()) {
        return Err(Error::invalid(format!("lock {} is named twice: use each only once", twice[0].name())));
    }
    Ok(sorted)
}

/// Several locks are held, as far as this process can know.
///
/// Dropping it releases them in the background, the last acquired first; [`release`](Self::release) does so and reports.
#[derive(Debug)]
#[must_use = "dropping the guard releases the locks"]
pub struct MultiGuard {
    guards: Vec<Guard>,
}

impl MultiGuard {
    /// The guards, in the order in which they were acquired: by realm and name.
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// Whether all of them can be taken for held without asking the store.
    pub fn is_held(&self) -> bool {
        self.guards.iter().all(Guard::is_held)
    }

    /// Returns why one of them is lost, once it is. Asked later, it answers at once.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static {
        let each: Vec<BoxFuture<'static, Error>> =
            self.guards.iter().map(|guard| Box::pin(guard.lost()) as BoxFuture<'static, Error>).collect();
        async move { select_all(each).await.0 }
    }

    /// Releases all of them, the last acquired first.
    ///
    /// # Errors
    /// The first error of [`Guard::release`]; the others are released all the same.
    ///
    /// # Cancel safety
    /// The session's task finishes the release.
    pub async fn release(mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(guard) = self.guards.pop() {
            result = result.and(guard.release().await);
        }
        result
    }
}

impl Drop for MultiGuard {
    fn drop(&mut self) {
        while let Some(guard) = self.guards.pop() {
            drop(guard);
        }
    }
}
