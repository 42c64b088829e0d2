//! The engine as a whole: opening, the requests of the flat key space, the ticker, closing.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{kv::KvHandle, queue::QueueHandle, stream::StreamHandle},
    env::{Disk, Env, PlantedBug},
    guarantees::{Accepted, Durability},
    name::Namespace,
    registry::Store,
    url::{Url, parse_duration},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::{
    body::Bodies,
    claims::Unclaimed,
    compaction,
    flat::{FlatError, FlatResult, KeyRange, LeaseStatus, RangeRequest, RangeResponse, TxnRequest, TxnResponse},
    frame::{BatchEncoder, decode_batch},
    handover,
    kv::{EmbeddedKv, error},
    log::{Log, LogOptions},
    message::{Messages, Shown},
    queue::EmbeddedQueues,
    snapshot,
    state::State,
    stream::EmbeddedStreams,
    watch::Watcher,
    work::{Task, Work},
    writer::{Counters, LogHandle, Proposal, Shared, Writer},
};

/// How many requests wait for the writer before the next caller waits outside.
const QUEUE_REQUESTS: usize = 16 * 1024;
/// How many bytes of records and jobs may be on their way to the writer, in KiB.
const ON_THEIR_WAY_KIB: usize = 64 * 1024;
/// The longest sleep while something is due by the wall clock, which may be set ahead.
const NAP: Duration = Duration::from_millis(500);

/// How an engine is opened. URL, configuration file and code all make one of these.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory, created if absent; `None` keeps everything in memory.
    pub dir: Option<PathBuf>,
    /// What an acknowledged write survives: `Sync`, `Interval`, `Os`; `Memory` goes with `dir: None`.
    pub durability: Durability,
    /// How much history is kept for watches and reads of the past.
    pub history: History,
    /// The size of a log segment, preallocated; in bytes.
    pub segment_bytes: u64,
    /// How much log, in bytes, makes a snapshot due: it bounds the time of a recovery.
    pub snapshot_bytes: u64,
}

/// How much of the past is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// At most about this many revisions.
    pub revisions: u64,
    /// At most about this old.
    pub age: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            durability: Durability::Memory,
            history: History { revisions: 100_000, age: None },
            segment_bytes: 64 * 1024 * 1024,
            snapshot_bytes: 128 * 1024 * 1024,
        }
    }
}

impl Config {
    /// A durable engine in this directory.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), durability: Durability::Sync, ..Self::default() }
    }

    /// Reads `embedded:///path?durability=…&history=…&history_age=…&segment=…` or `memory:?history=…`.
    ///
    /// # Errors
    /// `Invalid`, naming the option and what is allowed.
    pub fn from_url(url: &Url) -> Result<Self> {
        let mut config = if url.scheme() == "memory" {
            url.check_options(&["namespace", "history", "history_age"])?;
            if !url.path().is_empty() || !url.hosts().is_empty() {
                return Err(Error::invalid("memory: takes no host and no path; for files use embedded:///path"));
            }
            Self::default()
        } else {
            url.check_options(&["namespace", "durability", "history", "history_age", "segment", "snapshot"])?;
            Self::in_dir(directory(url)?)
        };
        if let Some(durability) = url.parsed("durability", DURABILITY_EXPECTED, read_durability)? {
            config.durability = durability;
        }
        let positive = |text: &str| text.parse().ok().filter(|count| *count > 0);
        if let Some(revisions) = url.parsed("history", "a number of revisions from 1", positive)? {
            config.history.revisions = revisions;
        }
        config.history.age = url.parsed("history_age", "a duration such as 10m", parse_duration)?;
        if let Some(bytes) = url.parsed("segment", "a size from 64KiB to 1GiB, such as 64MiB", |text| {
            parse_size(text).filter(|size| (64 << 10..=1 << 30).contains(size))
        })? {
            config.segment_bytes = bytes;
        }
        if let Some(bytes) = url.parsed("snapshot", "a size from 1MiB, such as 128MiB", |text| {
            parse_size(text).filter(|size| *size >= 1 << 20)
        })? {
            config.snapshot_bytes = bytes;
        }
        Ok(config)
    }
}

const DURABILITY_EXPECTED: &str = "sync, os, or interval:10ms (with a duration of your choice)";

/// Reads a durability as it is written in a URL or on the command line: `sync`, `os`, `interval:10ms`.
///
/// # Errors
/// `Invalid`, naming what is allowed.
pub fn parse_durability(text: &str) -> Result<Durability> {
    read_durability(text)
        .ok_or_else(|| Error::invalid(format!("durability {text:?} is not known: use {DURABILITY_EXPECTED}")))
}

fn read_durability(text: &str) -> Option<Durability> {
    match text {
        "sync" => Some(Durability::Sync),
        "os" => Some(Durability::Os),
        _ => parse_duration(text.strip_prefix("interval:")?).filter(|every| !every.is_zero()).map(Durability::Interval),
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let cut = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..cut].parse().ok()?;
    let shift = match &text[cut..] {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

fn directory(url: &Url) -> Result<PathBuf> {
    let path = match url.hosts() {
        [] => url.path().to_owned(),
        [host] if host.name == "." && host.port.is_none() => format!(".{}", url.path()),
        _ => {
            return Err(Error::invalid(format!(
                "{url} names a host, but an embedded engine is a directory: write embedded:///absolute/path or embedded://./relative/path"
            )));
        }
    };
    if path.trim_matches('/').is_empty() {
        return Err(Error::invalid(
            "embedded: needs a directory: write embedded:///absolute/path or embedded://./relative/path",
        ));
    }
    Ok(path.into())
}

/// Numbers about a running engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it; `coact_server` gives each its metric's help text")]
pub struct Stats {
    pub keys: u64,
    pub revision: u64,
    pub compacted: u64,
    pub commits: u64,
    pub batches: u64,
    pub syncs: u64,
    pub log_bytes: u64,
    pub leases: u64,
    pub lease_expirations: u64,
    pub watchers: u64,
    pub waiters: u64,
    pub wakes: u64,
    pub snapshots: u64,
}

/// An open embedded engine: cheap to clone; the last clone dropped ends the writer.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Proposal>,
    room: Arc<Semaphore>,
}

impl Engine {
    /// Opens the engine: reads the newest snapshot and the log after it, verifying every checksum.
    ///
    /// # Errors
    /// `Unavailable` if another process has the directory open or it cannot be read; `Corrupt` with file and offset;
    /// `Invalid` for a directory of another format version.
    ///
    /// # Cancel safety
    /// Safe: what was opened is closed again.
    pub async fn open(config: Config, env: Env) -> Result<Self> {
        if config.dir.is_none() && config.durability != Durability::Memory {
            return Err(Error::invalid("an engine without a directory can only have durability memory"));
        }
        let recovered = match config.dir.clone() {
            None => {
                let mut state = State::new(env.planted(PlantedBug::IgnoreCreatedCheck));
                state.store_id = env.random();
                Recovered { state, messages: Messages::new(Arc::new(Bodies::new(None))), log: None }
            }
            Some(dir) => {
                let (work_env, work_config) = (env.clone(), config.clone());
                off_runtime(&env, move || recover(&work_env, &work_config, dir)).await?
            }
        };
        Self::start(config, env, recovered)
    }

    fn start(config: Config, env: Env, recovered: Recovered) -> Result<Self> {
        let Recovered { state, messages, log } = recovered;
        let shared = Arc::new(Shared {
            env: env.clone(),
            config,
            state: Arc::new(RwLock::new(state)),
            hub: Arc::default(),
            stopped: Mutex::new(None),
            snapshot_outcome: Mutex::new(None),
            lease_added: Notify::new(),
            next_due: Mutex::default(),
            next_delay: Mutex::default(),
            delay_added: Notify::new(),
            compaction_due: Notify::new(),
            bodies: messages.bodies.clone(),
            shown: messages.shown.clone(),
            unclaimed: Arc::default(),
            counters: Counters::default(),
        });
        let (requests, receiver) = mpsc::channel(QUEUE_REQUESTS);
        let writer = Arc::new(Mutex::new(Some(Writer::new(shared.clone(), receiver, messages, log))));
        let on_thread = writer.clone();
        let work = move || {
            let writer = on_thread.lock().take();
            if let Some(writer) = writer {
                writer.run_blocking();
            }
        };
        if env.spawn_thread("coact-writer", work)?.is_some()
            && let Some(writer) = writer.lock().take()
        {
            env.spawn(writer.run_as_task());
        }
        env.spawn(tick(shared.clone(), requests.downgrade()));
        env.spawn(handover::run(env.clone(), Arc::downgrade(&shared), requests.downgrade()));
        env.spawn(compaction::run(env.clone(), Arc::downgrade(&shared), requests.downgrade()));
        Ok(Self { shared, requests, room: Arc::new(Semaphore::new(ON_THEIR_WAY_KIB)) })
    }

    /// Every contract on this engine.
    pub fn store(&self, namespace: Namespace, accepted: Accepted) -> Store {
        let env = self.shared.env.clone();
        let streams = EmbeddedStreams::new(self.clone(), namespace.clone());
        let queues = EmbeddedQueues::new(self.clone(), namespace.clone());
        Store::from(self.kv(namespace, accepted.clone()))
            .with_streams(StreamHandle::new(streams, env.clone(), accepted.clone()))
            .with_queues(QueueHandle::new(queues, env, accepted))
    }

    /// The namespaces that have a topic, a group or a queue, by name.
    ///
    /// # Errors
    /// `Closed` after a close.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn messaging_namespaces(&self) -> Result<Vec<Namespace>> {
        self.ask(0, |work| Ok(work.messages.namespaces())).await
    }

    /// The Kv contract on this engine.
    pub fn kv(&self, namespace: Namespace, accepted: Accepted) -> KvHandle {
        KvHandle::new(EmbeddedKv::new(self.clone(), namespace), self.shared.env.clone(), accepted)
    }

    /// How it was opened.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Where it runs.
    pub fn env(&self) -> &Env {
        &self.shared.env
    }

    /// The newest revision that readers see.
    pub fn revision(&self) -> u64 {
        self.shared.state.read().visible()
    }

    /// The oldest revision that can be read.
    pub fn compacted(&self) -> u64 {
        self.shared.state.read().compacted()
    }

    /// A random number that names this store for its life.
    pub fn store_id(&self) -> u64 {
        self.shared.state.read().store_id
    }

    /// Reads a range, linearizably: it sees every acknowledged write. Also returns the newest revision.
    ///
    /// # Errors
    /// `Compacted` or `Future` for a revision outside the history; `Closed` after a close.
    ///
    /// # Cancel safety
    /// Safe: it never waits.
    pub async fn range(&self, request: RangeRequest) -> FlatResult<(RangeResponse, u64)> {
        self.ensure_open()?;
        self.shared.state.read().range(&request)
    }

    /// Runs a transaction and waits until it is as durable as configured.
    ///
    /// # Errors
    /// As [`FlatError`] says.
    ///
    /// # Cancel safety
    /// Once polled, it may commit though the future is dropped.
    pub async fn txn(&self, request: TxnRequest) -> FlatResult<TxnResponse> {
        self.propose(|to| Proposal::Txn(request, to)).await
    }

    /// Forgets everything that only reads before this revision can see.
    ///
    /// # Errors
    /// `Compacted` if it is behind, `Future` if it is ahead.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped.
    pub async fn compact(&self, revision: u64) -> FlatResult<()> {
        self.propose(|to| Proposal::Compact(revision, to)).await
    }

    /// Grants a lease; an id of zero lets the engine choose one.
    ///
    /// # Errors
    /// `LeaseExists` for an id in use.
    ///
    /// # Cancel safety
    /// Once polled, it may be granted; it then ends by itself.
    pub async fn lease_grant(&self, id: i64, ttl: Duration) -> FlatResult<(i64, Duration)> {
        let id = if id == 0 { (self.shared.env.random() >> 1).max(1) as i64 } else { id };
        self.propose(|to| Proposal::Grant(id, ttl, to)).await?;
        Ok((id, ttl))
    }

    /// Ends a lease and deletes its keys in one revision.
    ///
    /// # Errors
    /// `LeaseNotFound` if it has ended.
    ///
    /// # Cancel safety
    /// Once polled, it may happen though the future is dropped.
    pub async fn lease_revoke(&self, id: i64) -> FlatResult<()> {
        self.propose(|to| Proposal::Revoke(id, to)).await
    }

    /// Renews a lease to its full length. Nothing is written: after a restart every lease has its full length again.
    ///
    /// # Errors
    /// `LeaseNotFound` if it has ended.
    pub fn lease_renew(&self, id: i64) -> FlatResult<Duration> {
        if let Some(error) = &*self.shared.stopped.lock() {
            return Err(error.clone());
        }
        let now = self.shared.env.now();
        self.shared.state.write().leases.renew(id, now).ok_or(FlatError::LeaseNotFound)
    }

    /// What is left of a lease, and its keys.
    ///
    /// # Errors
    /// `LeaseNotFound` if it has ended.
    pub fn lease_status(&self, id: i64) -> FlatResult<LeaseStatus> {
        self.ensure_open()?;
        let state = self.shared.state.read();
        let lease = state.leases.get(id).ok_or(FlatError::LeaseNotFound)?;
        let left = lease.deadline.saturating_duration_since(self.shared.env.now());
        Ok(LeaseStatus { granted: lease.ttl, left, keys: lease.keys.iter().cloned().collect() })
    }

    /// The ids of all leases, sorted.
    pub fn leases(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.shared.state.read().leases.iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Watches a range from a revision on; zero is from now.
    pub fn watch(&self, keys: KeyRange, start: u64) -> Watcher {
        self.shared.hub.watch(&self.shared.state, keys, start)
    }

    /// Returns when the key that was created at this revision is gone, and at once if it is gone already.
    ///
    /// # Errors
    /// None today; a closed engine wakes everybody.
    ///
    /// # Cancel safety
    /// Safe: dropping it stops the waiting.
    pub async fn await_gone(&self, key: &[u8], created: u64) -> FlatResult<()> {
        let wait = self.shared.hub.wait(key, created);
        let request = RangeRequest { keys: KeyRange::one(key.to_vec()), keys_only: true, ..RangeRequest::default() };
        let (found, _) = self.range(request).await?;
        if found.records.first().is_some_and(|record| record.created == created) {
            wait.woken().await;
        }
        Ok(())
    }

    /// Dirs of the flat key space: parents (keys up to their last slash) that start with `prefix`, after `after`.
    pub(crate) fn parents(&self, prefix: &[u8], after: &[u8], limit: usize) -> Vec<bytes::Bytes> {
        self.shared.state.read().parents_from(prefix, after, limit)
    }

    /// Numbers about this engine.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let (watchers, waiters, wakes) = self.shared.hub.counts();
        let state = self.shared.state.read();
        Stats {
            keys: state.live(),
            revision: state.visible(),
            compacted: state.compacted(),
            commits: counters.commits.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            syncs: counters.syncs.load(Relaxed),
            log_bytes: counters.log_bytes.load(Relaxed),
            leases: state.leases.len() as u64,
            lease_expirations: counters.lease_expirations.load(Relaxed),
            watchers,
            waiters,
            wakes,
            snapshots: counters.snapshots.load(Relaxed),
        }
    }

    /// Whether the engine acknowledges writes; otherwise the first failure.
    ///
    /// # Errors
    /// The reason why it stopped.
    pub fn health(&self) -> Result<(), String> {
        match &*self.shared.stopped.lock() {
            None => Ok(()),
            Some(FlatError::Poisoned(why)) => Err(why.clone()),
            Some(_) => Err("the engine is closed".to_owned()),
        }
    }

    /// Finishes what was asked before, makes it durable, and releases the directory.
    ///
    /// # Errors
    /// What the last sync answers.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        let (to, answer) = oneshot::channel();
        if self.requests.send(Proposal::Close(to)).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// A stopped engine still knows what it acknowledged; a closed one answers nothing.
    pub(crate) fn ensure_open(&self) -> FlatResult<()> {
        match &*self.shared.stopped.lock() {
            Some(FlatError::Closed) => Err(FlatError::Closed),
            _ => Ok(()),
        }
    }

    /// The engine's URL.
    pub(crate) fn describe(&self) -> String {
        match &self.config().dir {
            None => "memory:".to_owned(),
            Some(dir) => format!("embedded://{}", dir.display()),
        }
    }

    pub(crate) fn bodies(&self) -> &Arc<Bodies> {
        &self.shared.bodies
    }

    pub(crate) fn shown(&self) -> &Shown {
        &self.shared.shown
    }

    pub(crate) fn unclaimed(&self) -> Arc<Unclaimed> {
        self.shared.unclaimed.clone()
    }

    /// Has the writer do a piece of work that carries about so many bytes, and waits until it is as durable as
    /// configured.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        bytes: usize,
        ask: impl FnOnce(&mut Work<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let kib = (bytes / 1024).min(ON_THEIR_WAY_KIB) as u32;
        // Never closed.
        let _share = self.room.acquire_many(kib).await;
        let (task, answer) = Task::question(ask);
        self.submit(task).await?;
        answer.await.unwrap_or_else(|_| Err(error(self.why_stopped())))
    }

    /// Has the writer do a piece of work, which answers for itself.
    pub(crate) async fn submit(&self, task: Task) -> Result<()> {
        self.requests.send(Proposal::Work(task)).await.map_err(|_| error(self.why_stopped()))
    }

    async fn propose<T>(&self, make: impl FnOnce(oneshot::Sender<FlatResult<T>>) -> Proposal) -> FlatResult<T> {
        let (to, answer) = oneshot::channel();
        if self.requests.send(make(to)).await.is_err() {
            return Err(self.why_stopped());
        }
        answer.await.unwrap_or_else(|_| Err(FlatError::Poisoned("the writer ended without an answer".to_owned())))
    }

    pub(crate) fn why_stopped(&self) -> FlatError {
        self.shared.stopped.lock().clone().unwrap_or(FlatError::Closed)
    }
}

/// As [`Engine::ask`], for tasks that must not keep the engine open.
pub(crate) async fn ask_through<T: Send + 'static>(
    requests: &mpsc::WeakSender<Proposal>,
    ask: impl FnOnce(&mut Work<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let closed = || error(FlatError::Closed);
    let (task, answer) = Task::question(ask);
    let sender = requests.upgrade().ok_or_else(closed)?;
    sender.send(Proposal::Work(task)).await.map_err(|_| closed())?;
    drop(sender);
    answer.await.unwrap_or_else(|_| Err(closed()))
}

/// Tells the writer when a lease may have ended, or an interval's sync is due.
async fn tick(shared: Arc<Shared>, requests: mpsc::WeakSender<Proposal>) {
    let interval = match shared.config.durability {
        Durability::Interval(interval) => Some(interval),
        _ => None,
    };
    loop {
        let now = shared.env.now();
        let due = shared.state.read().leases.next_due();
        let (wall, deadline) = *shared.next_due.lock();
        let by_wall = wall.map(|at_ms| {
            let left = Duration::from_millis(at_ms.saturating_sub(shared.env.wall_ms()));
            // What should have been done already is not asked for again and again.
            now + if left.is_zero() { Duration::from_millis(if at_ms == 0 { 500 } else { 1 }) } else { left.min(NAP) }
        });
        let lost = (!shared.unclaimed.is_empty()).then_some(now);
        let wake = [due, interval.map(|interval| now + interval), by_wall, deadline, lost].into_iter().flatten().min();
        let sleep = shared.env.sleep_until(wake.unwrap_or(now + Duration::from_secs(3600)));
        tokio::select! {
            biased;
            () = sleep => {}
            () = shared.lease_added.notified() => {
                if shared.stopped.lock().is_some() {
                    return;
                }
                continue;
            }
        }
        let Some(requests) = requests.upgrade() else { return };
        let (to, done) = oneshot::channel();
        if requests.send(Proposal::Tick(to)).await.is_err() {
            return;
        }
        drop(requests);
        if let Ok(Err(_)) | Err(_) = done.await {
            return;
        }
    }
}

/// Runs work that blocks on the disk beside the runtime.
async fn off_runtime<T: Send + 'static>(env: &Env, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (to, answer) = oneshot::channel();
    if let Some(work) = env.spawn_thread("coact-open", move || drop(to.send(work())))? {
        work();
    }
    answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "opening the engine ended without an answer")))
}

/// What an engine begins with.
struct Recovered {
    state: State,
    messages: Messages,
    /// None for `memory:`.
    log: Option<LogHandle>,
}

fn recover(env: &Env, config: &Config, dir: PathBuf) -> Result<Recovered> {
    let disk = env.disk();
    create_dir(&*disk, &dir).map_err(|error| cannot_open(&dir, error))?;
    let lock = disk.lock(&dir.join("LOCK")).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the data directory {} is open in another process: only one can have it; talk to its node (coact://127.0.0.1:7070) instead",
                    dir.display()
                ),
            );
        }
        cannot_open(&dir, error)
    })?;
    let now = env.now();
    let mut state = State::new(env.planted(PlantedBug::IgnoreCreatedCheck));
    // Bodies cannot be read before the log is open, and need not be.
    let mut messages = Messages::new(Arc::new(Bodies::new(None)));
    let snapshot = snapshot::load(env, &dir, &mut state, &mut messages, now)?;
    let options = LogOptions { segment_bytes: config.segment_bytes };
    let mut log =
        Log::open(env, &dir, options, snapshot.sequence, &snapshot.named, &mut |sequence, address, batch| {
            for frame in decode_batch(sequence, address, batch)? {
                state.replay(frame, &mut messages, now).map_err(|why| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!("batch {sequence} of the log has a valid checksum but {why}"),
                    )
                })?;
            }
            Ok(())
        })?;
    messages.publish();
    messages.bodies = Arc::new(Bodies::new(Some(log.reader())));
    state.leases.renew_all(now);
    if log.last_sequence() == 0 {
        create_store(env, &mut state, &mut log)?;
    }
    let bytes_since_snapshot = log.bytes_after(snapshot.sequence);
    let handle = LogHandle {
        log,
        dir,
        last_sync: now,
        unsynced: false,
        snapshot_bytes: config.snapshot_bytes,
        snapshot_due: config.snapshot_bytes,
        bytes_since_snapshot,
        snapshotting: false,
        _lock: lock,
    };
    Ok(Recovered { state, messages, log: Some(handle) })
}

/// Creates the directory and its parents, durably: a power cut must not take the directory along with what was
/// acknowledged in it.
fn create_dir(disk: &dyn Disk, dir: &Path) -> std::io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && disk.list(path).is_err()).collect();
    disk.create_dir_all(dir)?;
    for path in missing {
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => disk.sync_dir(parent)?,
            None => disk.sync_dir(Path::new("."))?,
        }
    }
    Ok(())
}

fn create_store(env: &Env, state: &mut State, log: &mut Log) -> Result<()> {
    state.store_id = env.random();
    let mut encoder = BatchEncoder::default();
    encoder.store_created(state.store_id);
    encoder.finish_frame(env.wall_ms(), 0);
    log.append(encoder.batch())?;
    log.sync()
}

fn cannot_open(dir: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the data directory {} cannot be opened", dir.display()))
        .with_source(error)
}
