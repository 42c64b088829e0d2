//! One service: a checker for every instance that wishes one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use coact_blocks::directory::{Check, Directory, Health, Instance, Seen, Snapshot, Watch};
use coact_core::contract::kv::{LeaseId, Revision};
use futures::{
    future::{AbortHandle, Abortable, BoxFuture, FutureExt as _},
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::sync::watch;
use tracing::debug;

use super::{Common, instance};

/// How long it takes until a verdict that could not be withdrawn is tried again.
const CLEAR_AGAIN: Duration = Duration::from_secs(1);

/// What a task checks.
pub(super) struct Job {
    pub(super) common: Arc<Common>,
    pub(super) directory: Directory,
    pub(super) service: String,
    pub(super) lease: LeaseId,
}

/// What a verdict is about: it says nothing about another registration, address or check.
#[derive(Clone, PartialEq, Eq)]
struct Definition {
    created: Revision,
    address: String,
    port: u16,
    check: Check,
}

struct Running {
    definition: Definition,
    stop: AbortHandle,
}

impl Job {
    /// Checks the instances that there are, until `stop` is dropped.
    pub(super) async fn run(self, mut stop: watch::Receiver<()>) {
        let job = Arc::new(self);
        tokio::select! {
            () = follow(&job) => {}
            _ = stop.changed() => {}
        }
    }

    /// Says what was found, or withdraws it.
    pub(super) async fn report(&self, id: &str, health: Health) -> coact_core::Result<()> {
        self.directory.report_health(&self.service, id, health, Some(self.lease)).await
    }
}

async fn follow(job: &Arc<Job>) {
    let mut watch = match job.directory.watch(&job.service).await {
        Ok(watch) => watch,
        Err(error) => {
            debug!(service = job.service, %error, "a service is not checked for a moment");
            return;
        }
    };
    let mut checkers =
        Checkers { job, running: HashMap::new(), tasks: FuturesUnordered::new(), stale: BTreeSet::new() };
    loop {
        checkers.follow(&watch).await;
        let again = job.common.env.sleep(CLEAR_AGAIN);
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return },
            // Tasks end only when they were stopped.
            _ = checkers.tasks.next(), if !checkers.tasks.is_empty() => {}
            () = again, if !checkers.stale.is_empty() => {}
        }
    }
}

struct Checkers<'a> {
    job: &'a Arc<Job>,
    running: HashMap<String, Running>,
    tasks: FuturesUnordered<Abortable<BoxFuture<'static, ()>>>,
    /// Whose verdicts are still to be withdrawn.
    stale: BTreeSet<String>,
}

impl Checkers<'_> {
    /// Stops what no longer fits, withdraws its verdicts, and starts what is new.
    async fn follow(&mut self, watch: &Watch) {
        let snapshot = watch.snapshot();
        let stale = &mut self.stale;
        self.running.retain(|id, running| {
            let fits = definition_in(&snapshot, id).is_some_and(|definition| definition == running.definition);
            if !fits {
                running.stop.abort();
                stale.insert(id.clone());
            }
            fits
        });
        self.withdraw().await;
        for seen in snapshot.instances.iter() {
            let id = &seen.instance.id;
            if !self.running.contains_key(id)
                && !self.stale.contains(id)
                && let Some(definition) = definition_of(seen)
            {
                self.start(watch, &seen.instance, definition);
            }
        }
    }

    async fn withdraw(&mut self) {
        for id in std::mem::take(&mut self.stale) {
            if let Err(error) = self.job.report(&id, Health::Unchecked).await {
                debug!(service = self.job.service, id, %error, "a verdict stays for a moment");
                self.stale.insert(id);
            }
        }
    }

    fn start(&mut self, watch: &Watch, instance: &Instance, definition: Definition) {
        let checker = instance::check(self.job.clone(), watch.clone(), instance.clone(), definition.check.clone());
        let (stop, registration) = AbortHandle::new_pair();
        self.tasks.push(Abortable::new(checker.boxed(), registration));
        self.running.insert(instance.id.clone(), Running { definition, stop });
    }
}

fn definition_in(snapshot: &Snapshot, id: &str) -> Option<Definition> {
    snapshot.get(id).and_then(|seen| definition_of(seen))
}

fn definition_of(seen: &Seen) -> Option<Definition> {
    let Instance { address, port, check, .. } = &seen.instance;
    let check = check.clone().filter(|_| !seen.held)?;
    Some(Definition { created: seen.created, address: address.clone(), port: *port, check })
}
