//! The writer: the one place where state changes. It takes what is waiting as one batch, applies it, writes it, syncs it,
//! shows it to readers, and only then acknowledges. While it syncs, the next batch gathers: no lingering is needed.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use coact_core::{
    Error, Result,
    env::{Env, PlantedBug},
    guarantees::Durability,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    engine::Config,
    flat::{FlatError, FlatResult, TxnRequest, TxnResponse},
    frame::BatchEncoder,
    log::Log,
    snapshot::Capture,
    state::{State, Transaction},
    watch::Hub,
};

/// The most proposals, and about the most bytes, of one batch.
const BATCH_PROPOSALS_MAX: usize = 4096;
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the writer shares with everybody.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) hub: Arc<Hub>,
    /// Set once, at the first failed write: from then on nothing is acknowledged.
    pub(crate) stopped: Mutex<Option<FlatError>>,
    /// How the last snapshot ended, until the writer takes note: its sequence, after which the log goes on.
    pub(crate) snapshot_outcome: Mutex<Option<Result<u64>>>,
    /// Wakes the ticker when a lease may end earlier than it thinks.
    pub(crate) lease_added: Notify,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) lease_expirations: AtomicU64,
    pub(crate) snapshots: AtomicU64,
}

impl Shared {
    pub(crate) fn stop(&self, error: FlatError) {
        let mut stopped = self.stopped.lock();
        if stopped.is_none() {
            self.hub.close(&error);
            *stopped = Some(error);
        }
    }
}

/// A request to the writer, with where to answer.
#[derive(Debug)]
pub(crate) enum Proposal {
    Txn(TxnRequest, oneshot::Sender<FlatResult<TxnResponse>>),
    Compact(u64, oneshot::Sender<FlatResult<()>>),
    Grant(i64, Duration, oneshot::Sender<FlatResult<()>>),
    Revoke(i64, oneshot::Sender<FlatResult<()>>),
    /// Ends leases whose time is over, and syncs what an interval left unsynced.
    Tick(oneshot::Sender<FlatResult<()>>),
    Close(oneshot::Sender<Result<()>>),
}

/// An answer that waits for its batch to be durable.
enum Answer {
    Txn(oneshot::Sender<FlatResult<TxnResponse>>, FlatResult<TxnResponse>),
    Done(oneshot::Sender<FlatResult<()>>, FlatResult<()>),
}

impl Answer {
    fn send(self) {
        // Whoever asked may have gone.
        match self {
            Self::Txn(to, result) => drop(to.send(result)),
            Self::Done(to, result) => drop(to.send(result)),
        }
    }

    fn fail(self, error: &FlatError) {
        match self {
            Self::Txn(to, _) => drop(to.send(Err(error.clone()))),
            Self::Done(to, _) => drop(to.send(Err(error.clone()))),
        }
    }
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Proposal>,
    /// None for `memory:`.
    log: Option<LogHandle>,
    encoder: BatchEncoder,
    answers: Vec<Answer>,
    closing: Option<oneshot::Sender<Result<()>>>,
}

pub(crate) struct LogHandle {
    pub(crate) log: Log,
    pub(crate) dir: PathBuf,
    pub(crate) last_sync: Instant,
    pub(crate) unsynced: bool,
    /// Bytes of log after the last snapshot that make the next one due.
    pub(crate) snapshot_bytes: u64,
    /// About how many bytes a recovery would read after the last snapshot.
    pub(crate) bytes_since_snapshot: u64,
    pub(crate) snapshotting: bool,
    /// Held until the writer ends.
    pub(crate) _lock: Box<dyn coact_core::env::DiskLock>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, requests: mpsc::Receiver<Proposal>, log: Option<LogHandle>) -> Self {
        Self { shared, requests, log, encoder: BatchEncoder::default(), answers: Vec::new(), closing: None }
    }

    /// Works until closed, on a thread of its own.
    pub(crate) fn run_blocking(mut self) {
        while let Some(first) = self.requests.blocking_recv() {
            if !self.step(first) {
                break;
            }
        }
        self.finish();
    }

    /// Works until closed, as a task: for the simulator, where a random pause lets a batch gather.
    pub(crate) async fn run_as_task(mut self) {
        while let Some(first) = self.requests.recv().await {
            let pause = self.shared.env.random_duration(Duration::from_millis(1));
            self.shared.env.sleep(pause).await;
            if !self.step(first) {
                break;
            }
        }
        self.finish();
    }

    /// One batch; false when closed.
    fn step(&mut self, first: Proposal) -> bool {
        let stopped = self.shared.stopped.lock().clone();
        match stopped {
            Some(error) => self.refuse(first, &error),
            None => self.commit_batch(first),
        }
        self.closing.is_none()
    }

    fn commit_batch(&mut self, first: Proposal) {
        self.apply_waiting(first);
        let early = self.shared.env.planted(PlantedBug::AckBeforeSync);
        if early {
            self.publish();
        }
        if let Err(error) = self.write() {
            tracing::error!(%error, "a write to the log failed: the engine stops acknowledging");
            let stopped = FlatError::Poisoned(error.to_string());
            self.shared.stop(stopped.clone());
            self.answers.drain(..).for_each(|answer| answer.fail(&stopped));
            return;
        }
        if !early {
            self.publish();
        }
        self.start_snapshot_if_due();
    }

    /// Applies what is waiting, in order, and encodes it.
    fn apply_waiting(&mut self, first: Proposal) {
        let shared = self.shared.clone();
        let mut state = shared.state.write();
        let (now, time_ms) = (shared.env.now(), shared.env.wall_ms());
        self.trim_history(&mut state, time_ms);
        let mut next = Some(first);
        let mut count = 0;
        while let Some(proposal) = next {
            self.apply(&mut state, proposal, now, time_ms);
            count += 1;
            let full = count == BATCH_PROPOSALS_MAX || self.encoder.batch().len() >= BATCH_BYTES_MAX;
            next = if full || self.closing.is_some() { None } else { self.requests.try_recv().ok() };
        }
    }

    fn apply(&mut self, state: &mut State, proposal: Proposal, now: Instant, time_ms: u64) {
        match proposal {
            Proposal::Txn(request, to) => {
                let result = Transaction::new(state, &mut self.encoder, time_ms).run(&request);
                self.answers.push(Answer::Txn(to, result));
            }
            Proposal::Grant(id, ttl, to) => {
                let result = Transaction::new(state, &mut self.encoder, time_ms).grant(id, ttl, now);
                self.answers.push(Answer::Done(to, result));
                self.shared.lease_added.notify_one();
            }
            Proposal::Revoke(id, to) => {
                let result = Transaction::new(state, &mut self.encoder, time_ms).revoke(id, false, now);
                self.answers.push(Answer::Done(to, result));
            }
            Proposal::Compact(revision, to) => {
                let result = state.check_compact(revision);
                if result.is_ok() {
                    self.compact(state, revision, time_ms);
                }
                self.answers.push(Answer::Done(to, result));
            }
            Proposal::Tick(to) => {
                for id in state.leases.take_due(now) {
                    let ended = Transaction::new(state, &mut self.encoder, time_ms).revoke(id, true, now);
                    self.shared.counters.lease_expirations.fetch_add(ended.is_ok().into(), Relaxed);
                }
                self.answers.push(Answer::Done(to, Ok(())));
            }
            Proposal::Close(to) => self.closing = Some(to),
        }
    }

    fn compact(&mut self, state: &mut State, revision: u64, time_ms: u64) {
        state.compact(revision);
        self.encoder.compact(revision);
        self.encoder.finish_frame(time_ms, 0);
    }

    /// Forgets history beyond what is configured; by number, some revisions at a time.
    fn trim_history(&mut self, state: &mut State, time_ms: u64) {
        let history = &self.shared.config.history;
        let by_number = state.visible().saturating_sub(history.revisions);
        let enough = state.compacted() + history.revisions / 16;
        let by_age = history.age.map_or(0, |age| state.first_since(time_ms.saturating_sub(age.as_millis() as u64)));
        let end = if by_number > enough { by_number.max(by_age) } else { by_age };
        if end > state.compacted() {
            self.compact(state, end, time_ms);
        }
    }

    fn write(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else {
            self.encoder.clear();
            return Ok(());
        };
        if !self.encoder.batch().is_empty() {
            log.log.append(self.encoder.batch())?;
            log.bytes_since_snapshot += self.encoder.batch().len() as u64;
            log.unsynced = true;
            self.shared.counters.batches.fetch_add(1, Relaxed);
            self.shared.counters.log_bytes.fetch_add(self.encoder.batch().len() as u64, Relaxed);
            self.encoder.clear();
        }
        let now = self.shared.env.now();
        let due = match self.shared.config.durability {
            Durability::Memory | Durability::Os => false,
            Durability::Interval(interval) => now.saturating_duration_since(log.last_sync) >= interval,
            Durability::Sync | Durability::Quorum => true,
        };
        if log.unsynced && (due || self.closing.is_some()) {
            log.sync(now)?;
            self.shared.counters.syncs.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Shows readers and watches the batch, then answers.
    fn publish(&mut self) {
        {
            let mut state = self.shared.state.write();
            let first_new = state.publish();
            let newest = state.visible();
            if newest >= first_new {
                self.shared.counters.commits.fetch_add(newest + 1 - first_new, Relaxed);
                self.shared.hub.publish(state.commits_from(first_new));
            }
        }
        self.answers.drain(..).for_each(Answer::send);
    }

    fn start_snapshot_if_due(&mut self) {
        let Some(log) = &mut self.log else { return };
        if let Some(outcome) = self.shared.snapshot_outcome.lock().take() {
            log.snapshot_ended(outcome);
        }
        if log.snapshotting || log.bytes_since_snapshot < log.snapshot_bytes {
            return;
        }
        log.snapshotting = true;
        log.bytes_since_snapshot = 0;
        let capture = Capture::take(&mut self.shared.state.write(), log.log.last_sequence());
        let (shared, dir) = (self.shared.clone(), log.dir.clone());
        let work = move || {
            let result = capture.write(&shared.env, &dir, &shared.state);
            shared.state.write().unpin();
            *shared.snapshot_outcome.lock() = Some(result.map(|()| capture.sequence()));
        };
        match self.shared.env.spawn_thread("coact-snapshot", work) {
            Ok(None) => {}
            Ok(Some(work)) => work(),
            Err(error) => {
                self.shared.state.write().unpin();
                log.snapshot_ended(Err(error));
            }
        }
        self.shared.counters.snapshots.fetch_add(1, Relaxed);
    }

    fn refuse(&mut self, proposal: Proposal, error: &FlatError) {
        match proposal {
            Proposal::Txn(_, to) => drop(to.send(Err(error.clone()))),
            Proposal::Compact(_, to) | Proposal::Grant(_, _, to) | Proposal::Revoke(_, to) | Proposal::Tick(to) => {
                drop(to.send(Err(error.clone())));
            }
            Proposal::Close(to) => self.closing = Some(to),
        }
    }

    /// Syncs the rest, releases the files, and answers who closed.
    fn finish(mut self) {
        let mut result = Ok(());
        if let Some(mut log) = self.log.take() {
            let poisoned = self.shared.stopped.lock().is_some();
            if log.unsynced && !poisoned {
                result = log.sync(self.shared.env.now());
            }
        }
        self.shared.stop(FlatError::Closed);
        self.shared.lease_added.notify_one();
        self.requests.close();
        while let Ok(proposal) = self.requests.try_recv() {
            self.refuse_late(proposal);
        }
        if let Some(to) = self.closing.take() {
            drop(to.send(result));
        }
    }

    fn refuse_late(&mut self, proposal: Proposal) {
        match proposal {
            Proposal::Close(to) => drop(to.send(Ok(()))),
            other => self.refuse(other, &FlatError::Closed),
        }
    }
}

impl LogHandle {
    fn sync(&mut self, now: Instant) -> Result<(), Error> {
        self.log.sync()?;
        self.unsynced = false;
        self.last_sync = now;
        Ok(())
    }

    fn snapshot_ended(&mut self, outcome: Result<u64>) {
        self.snapshotting = false;
        match outcome {
            Ok(sequence) => {
                if let Err(error) = self.log.drop_through(sequence) {
                    tracing::warn!(%error, "old log segments could not be removed");
                }
            }
            Err(error) => {
                // The log still has everything, so nothing is lost. Try again after as much log again.
                tracing::error!(%error, "a snapshot could not be written");
                self.snapshot_bytes = self.snapshot_bytes.saturating_mul(2);
            }
        }
    }
}
