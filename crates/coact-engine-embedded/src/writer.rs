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
    body::Bodies,
    claims::{Unclaimed, WaitingClaims},
    engine::Config,
    flat::{FlatError, FlatResult, TxnRequest, TxnResponse},
    frame::BatchEncoder,
    log::Log,
    message::{MessageChange, Messages, Shown},
    queue,
    snapshot::{Capture, Written},
    state::{State, Transaction},
    watch::Hub,
    work::{Late, Task, Work},
};

/// The most proposals, and about the most bytes, of one batch.
const BATCH_PROPOSALS_MAX: usize = 4096;
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often retention is looked after.
const RETAIN_EVERY: Duration = Duration::from_millis(500);

/// What the writer shares with everybody.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) hub: Arc<Hub>,
    /// Set once, at the first failed write: from then on nothing is acknowledged.
    pub(crate) stopped: Mutex<Option<FlatError>>,
    /// How the last snapshot ended, until the writer takes note.
    pub(crate) snapshot_outcome: Mutex<Option<Result<Written>>>,
    /// Wakes the ticker when something may be due earlier than it thinks.
    pub(crate) lease_added: Notify,
    /// When something of the queues or topics is due, by the wall clock and by the monotonic one.
    pub(crate) next_due: Mutex<(Option<u64>, Option<Instant>)>,
    /// When the next delayed record is due.
    pub(crate) next_delay: Mutex<Option<u64>>,
    /// Wakes whoever hands over when a delayed record may be due earlier than it thinks.
    pub(crate) delay_added: Notify,
    /// Wakes whoever compacts, now and then while there are topics for it.
    pub(crate) compaction_due: Notify,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) shown: Arc<Shown>,
    pub(crate) unclaimed: Arc<Unclaimed>,
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
            self.shown.wake_all();
            self.delay_added.notify_one();
            self.compaction_due.notify_one();
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
    /// What streams and queues ask for.
    Work(Task),
    /// Ends leases whose time is over, and syncs what an interval left unsynced.
    Tick(oneshot::Sender<FlatResult<()>>),
    Close(oneshot::Sender<Result<()>>),
}

/// An answer that waits for its batch to be durable.
enum Answer {
    Txn(oneshot::Sender<FlatResult<TxnResponse>>, FlatResult<TxnResponse>),
    Done(oneshot::Sender<FlatResult<()>>, FlatResult<()>),
    Late(Late),
}

impl Answer {
    fn send(self) {
        // Whoever asked may have gone.
        match self {
            Self::Txn(to, result) => drop(to.send(result)),
            Self::Done(to, result) => drop(to.send(result)),
            Self::Late(late) => late.send(Ok(())),
        }
    }

    fn fail(self, error: &FlatError) {
        match self {
            Self::Txn(to, _) => drop(to.send(Err(error.clone()))),
            Self::Done(to, _) => drop(to.send(Err(error.clone()))),
            Self::Late(late) => late.send(Err(error)),
        }
    }
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Proposal>,
    /// None for `memory:`.
    log: Option<LogHandle>,
    encoder: BatchEncoder,
    messages: Messages,
    waiting: WaitingClaims,
    /// Of the work of one batch.
    late: Vec<Late>,
    /// When retention was last looked after.
    retained: Instant,
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
    /// The same for the next snapshot.
    pub(crate) snapshot_due: u64,
    /// About how much a recovery would have to do after the last snapshot, in bytes; of bodies, an eighth counts.
    pub(crate) bytes_since_snapshot: u64,
    pub(crate) snapshotting: bool,
    /// Held until the writer ends.
    pub(crate) _lock: Box<dyn coact_core::env::DiskLock>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Proposal>,
        messages: Messages,
        log: Option<LogHandle>,
    ) -> Self {
        let mut encoder = BatchEncoder::default();
        encoder.clear(log.as_ref().map_or(0, |log| log.log.next_address()));
        let retained = shared.env.now();
        let (waiting, late, answers) = (WaitingClaims::default(), Vec::new(), Vec::new());
        let writer = Self { shared, requests, log, encoder, messages, waiting, late, retained, answers, closing: None };
        writer.tell_due();
        writer
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
        if self.messages.times_changed() {
            self.work(&mut state, now, time_ms, |work| work.serve_waiting());
        }
    }

    /// Does a piece of work of streams and queues.
    fn work(&mut self, state: &mut State, now: Instant, time_ms: u64, run: impl FnOnce(&mut Work<'_>)) {
        let mut work = Work {
            env: &self.shared.env,
            now,
            time_ms,
            state,
            messages: &mut self.messages,
            encoder: &mut self.encoder,
            waiting: &mut self.waiting,
            late: &mut self.late,
        };
        run(&mut work);
        self.answers.extend(self.late.drain(..).map(Answer::Late));
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
                // What was due is over, though perhaps nothing came of it.
                self.messages.change_times();
                let unclaimed = self.shared.unclaimed.take();
                self.work(state, now, time_ms, |work| queue::tick(work, unclaimed));
                self.retain(state, now, time_ms);
                self.answers.push(Answer::Done(to, Ok(())));
            }
            Proposal::Work(task) => self.work(state, now, time_ms, |work| task.run(work)),
            Proposal::Close(to) => self.closing = Some(to),
        }
    }

    /// Lets records go that are too old or too many; now and then.
    fn retain(&mut self, state: &mut State, now: Instant, time_ms: u64) {
        if now.saturating_duration_since(self.retained) < RETAIN_EVERY {
            return;
        }
        self.retained = now;
        if self.messages.compacts() {
            self.shared.compaction_due.notify_one();
        }
        let trims = self.messages.expired(time_ms);
        if !trims.is_empty() {
            self.work(state, now, time_ms, |work| {
                trims.into_iter().for_each(|(at, before)| work.write(MessageChange::Trimmed { at, before }));
                work.finish();
            });
        }
    }

    /// Tells when the next tick and the next hand-over are due.
    fn tell_due(&self) {
        let (next_delay, next_due) = (self.messages.next_delay(), self.messages.next_due());
        let delay_is_earlier = {
            let mut known = self.shared.next_delay.lock();
            let is_earlier = next_delay.is_some_and(|next| known.is_none_or(|known| next < known));
            *known = next_delay;
            is_earlier
        };
        if delay_is_earlier {
            self.shared.delay_added.notify_one();
        }
        let due_is_earlier = {
            let mut known = self.shared.next_due.lock();
            let wall = next_due.0.is_some_and(|next| known.0.is_none_or(|known| next < known));
            let instant = next_due.1.is_some_and(|next| known.1.is_none_or(|known| next < known));
            *known = next_due;
            wall || instant
        };
        if due_is_earlier {
            self.shared.lease_added.notify_one();
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
            self.encoder.clear(self.encoder.end());
            return Ok(());
        };
        if !self.encoder.batch().is_empty() {
            log.log.append(self.encoder.batch())?;
            log.bytes_since_snapshot += self.encoder.weight();
            log.unsynced = true;
            self.shared.counters.batches.fetch_add(1, Relaxed);
            self.shared.counters.log_bytes.fetch_add(self.encoder.batch().len() as u64, Relaxed);
            self.encoder.clear(log.log.next_address());
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
        self.messages.publish();
        if self.messages.take_times_changed() {
            self.tell_due();
        }
        self.answers.drain(..).for_each(Answer::send);
    }

    fn start_snapshot_if_due(&mut self) {
        let Some(log) = &mut self.log else { return };
        if let Some(outcome) = self.shared.snapshot_outcome.lock().take() {
            log.snapshot_ended(outcome);
        }
        if log.snapshotting || log.bytes_since_snapshot < log.snapshot_due {
            return;
        }
        // A snapshot names bodies in the log: they must be no less durable.
        if log.unsynced
            && let Err(error) = log.sync(self.shared.env.now())
        {
            self.shared.stop(FlatError::Poisoned(error.to_string()));
            return;
        }
        log.snapshotting = true;
        log.bytes_since_snapshot = 0;
        self.messages.forget_producers(self.shared.env.wall_ms());
        let capture =
            Capture::take(&mut self.shared.state.write(), &self.messages, log.log.segments(), log.log.last_sequence());
        let (shared, dir) = (self.shared.clone(), log.dir.clone());
        let work = move || {
            let result = capture.write(&shared.env, &dir, &shared.state);
            shared.state.write().unpin();
            *shared.snapshot_outcome.lock() = Some(result);
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
            // Whoever waits for it is told by its end.
            Proposal::Work(task) => drop(task),
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

    fn snapshot_ended(&mut self, outcome: Result<Written>) {
        self.snapshotting = false;
        match outcome {
            Ok(Written { sequence, named, bytes }) => {
                // As much log again as a snapshot has, so that writing them stays a part of the work.
                self.snapshot_due = self.snapshot_bytes.max(bytes);
                if let Err(error) = self.log.drop_through(sequence, &named) {
                    tracing::warn!(%error, "old log segments could not be removed");
                }
            }
            Err(error) => {
                // The log still has everything, so nothing is lost. Try again after as much log again.
                tracing::error!(%error, "a snapshot could not be written");
                self.snapshot_due = self.snapshot_due.saturating_mul(2);
            }
        }
    }
}
