//! What cases of every contract work with.

use std::{fmt, future::Future, sync::Arc};

use coact_core::{Error, ErrorKind, Result, env::Env, name::Namespace, registry::Store};
use futures::future::{BoxFuture, join_all};
use tokio::sync::oneshot;

use crate::bed::{Bed, PATIENCE, wait_until};

/// A store, and a name that nobody else uses there.
pub struct Basis {
    /// Where the store runs.
    pub bed: Arc<dyn Bed>,
    /// A client that other cases use too.
    pub store: Store,
    /// The machine.
    pub env: Env,
    /// What names of the case begin with.
    pub unique: String,
}

impl fmt::Debug for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.unique, self.bed.name())
    }
}

impl Basis {
    /// A new client of the same store.
    pub async fn another_store(&self) -> Store {
        self.bed.open(&Namespace::default()).await.expect("the bed serves")
    }

    /// Two clients of the same store, in namespaces of which one is the beginning of the other.
    pub async fn two_namespaces(&self) -> [Store; 2] {
        let name = format!("n{:x}", self.env.random());
        let open = async |name: &str| self.bed.open(&Namespace::new(name).expect("valid")).await.expect("opens");
        [open(&name).await, open(&format!("{name}x")).await]
    }

    /// Ends the store hard, starts it again, and opens a new client.
    pub async fn restarted(&self) -> Store {
        self.bed.restart().expect("the case needs RESTARTS").await.expect("the store starts again");
        self.another_store().await
    }

    /// Waits for a future that has no reason to take long.
    pub async fn within<F: Future>(&self, what: &str, future: F) -> F::Output {
        self.env.timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}"))
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, holds: impl AsyncFnMut() -> bool) {
        wait_until(&self.env, what, PATIENCE, holds).await.expect("it holds in time");
    }

    /// Starts a task; the future returned waits for its result.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, T> {
        let (to, result) = oneshot::channel();
        self.env.spawn(async move {
            // Nobody waits any more: the case has failed already.
            let _ = to.send(task.await);
        });
        Box::pin(async { result.await.expect("the task did not panic") })
    }

    /// Runs `count` tasks in parallel and returns their results in order.
    pub async fn parallel<T, F>(&self, count: usize, task: impl Fn(usize) -> F) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        join_all((0..count).map(|index| self.spawn(task(index)))).await
    }
}

/// Fails unless the result is an error of this kind.
#[track_caller]
pub(super) fn assert_kind<T: fmt::Debug>(result: Result<T, Error>, kind: ErrorKind) {
    match result {
        Err(error) if error.kind() == kind => {}
        other => panic!("expected an error of kind {kind}, got {other:?}"),
    }
}
