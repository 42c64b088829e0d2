//! The one connection of a handle: requests go over it, and what the server tells without being asked comes over it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use coact_core::{Result, contract::kv::Revision, env::Env, name::Key};
use parking_lot::Mutex as SyncMutex;
use redis::{FromRedisValue, PushInfo, PushKind, RedisError, Script, Value, aio::MultiplexedConnection};
use tokio::sync::{Mutex, Notify, oneshot, watch};

use crate::{
    config::Config,
    errors::{Access, Verdict, closed, judge, malformed, too_late, unanswered},
    probe::Info,
    reply::place,
    scripts::Scripts,
    topology::{NotFound, OnPush, Primary, locate},
};

/// The first pause before a primary is looked for again.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What requests go through: finds the primary, and finds it again.
pub(crate) struct Link {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pub(crate) scripts: Scripts,
    root: String,
    live: SyncMutex<Option<Arc<Live>>>,
    connecting: Mutex<()>,
    pub(crate) wakes: Arc<Wakes>,
    closed: watch::Sender<bool>,
}

/// A connection as it was found.
struct Live {
    connection: MultiplexedConnection,
    /// The server as it names itself, for the scripts.
    server: String,
    info: Info,
    up: Arc<AtomicBool>,
}

impl Link {
    pub(crate) fn new(config: Config, env: Env) -> Self {
        let root = config.root();
        Self {
            wakes: Arc::new(Wakes::new(format!("{root}:p:{:016x}", env.random()), format!("{root}:changes"))),
            root,
            config,
            env,
            scripts: Scripts::new(),
            live: SyncMutex::default(),
            connecting: Mutex::default(),
            closed: watch::Sender::new(false),
        }
    }

    /// Finds the primary for the first time: asks every server once.
    pub(crate) async fn open(&self) -> Result<Info> {
        match self.connect().await {
            Ok(live) => Ok(live.info.clone()),
            Err(NotFound::Final(error) | NotFound::Yet(error)) => Err(error),
        }
    }

    /// Runs one of our scripts.
    pub(crate) async fn call<T: FromRedisValue>(
        &self,
        access: Access,
        script: &Script,
        arguments: &[&[u8]],
    ) -> Result<T> {
        if *self.closed.borrow() {
            return Err(closed());
        }
        tokio::select! {
            biased;
            answer = self.attempts(access, script, arguments) => answer,
            () = self.until_closed() => {
                Err(if access == Access::Once { closed().effect_unknown() } else { closed() })
            }
        }
    }

    async fn attempts<T: FromRedisValue>(&self, access: Access, script: &Script, arguments: &[&[u8]]) -> Result<T> {
        let end = self.env.now() + self.config.timeout;
        let mut pause = PAUSE;
        loop {
            let live = self.live_by(end).await?;
            let Some(answer) = self.attempt(&live, end, script, arguments).await else {
                self.give_up(&live);
                let why = format!("Redis did not answer within {:?}", self.config.timeout);
                return Err(unanswered(access, &why, None));
            };
            let source = match answer.map_err(judge) {
                Ok(value) => return T::from_redis_value(value).map_err(|error| malformed(&error.to_string())),
                Err(Verdict::Final(error)) => return Err(error),
                Err(Verdict::Lost(error)) if access == Access::Once => {
                    self.give_up(&live);
                    return Err(unanswered(access, "the connection to Redis was lost", Some(error)));
                }
                Err(Verdict::Refused(error) | Verdict::Lost(error)) => error,
            };
            self.give_up(&live);
            if self.env.now() + pause >= end {
                return Err(too_late(self.config.timeout, Some(source)));
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One attempt; `None` if there was no answer in time.
    async fn attempt(
        &self,
        live: &Live,
        end: Instant,
        script: &Script,
        arguments: &[&[u8]],
    ) -> Option<Result<Value, RedisError>> {
        let mut invocation = script.key(&self.root);
        invocation.arg(&live.server).arg(self.config.history);
        for argument in arguments {
            invocation.arg(*argument);
        }
        let mut connection = live.connection.clone();
        self.env.timeout(end.saturating_duration_since(self.env.now()), invocation.invoke_async(&mut connection)).await
    }

    /// The connection, made anew if need be.
    async fn live_by(&self, end: Instant) -> Result<Arc<Live>> {
        let mut pause = PAUSE;
        loop {
            if let Some(live) = self.live() {
                return Ok(live);
            }
            let left = end.saturating_duration_since(self.env.now());
            let error = match self.env.timeout(left, self.connect()).await {
                Some(Ok(live)) => return Ok(live),
                Some(Err(NotFound::Final(error))) => return Err(error),
                Some(Err(NotFound::Yet(error))) => error,
                None => too_late(self.config.timeout, None),
            };
            if self.env.now() + pause >= end {
                return Err(error);
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn live(&self) -> Option<Arc<Live>> {
        self.live.lock().as_ref().filter(|live| live.up.load(SeqCst)).cloned()
    }

    async fn connect(&self) -> Result<Arc<Live>, NotFound> {
        let _turn = self.connecting.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let up = Arc::new(AtomicBool::new(true));
        let (wakes, is_up) = (self.wakes.clone(), up.clone());
        let on_push: OnPush = Arc::new(move |push| match push.kind {
            PushKind::Disconnection => {
                is_up.store(false, SeqCst);
                wakes.everybody();
            }
            _ => wakes.take(&push),
        });
        let Primary { mut connection, info } = locate(&self.config, &self.env, on_push).await?;
        info.check()?;
        for channel in self.wakes.channels() {
            let subscribed = self.env.timeout(self.config.connect_timeout, connection.subscribe(channel)).await;
            if let Some(Err(error)) = subscribed {
                return Err(match judge(error) {
                    Verdict::Final(error) => NotFound::Final(error),
                    Verdict::Lost(error) | Verdict::Refused(error) => {
                        NotFound::Yet(too_late(self.config.timeout, Some(error)))
                    }
                });
            }
        }
        let live = Arc::new(Live { connection, server: info.server(), info, up });
        *self.live.lock() = Some(live.clone());
        // What was told meanwhile was told to nobody.
        self.wakes.everybody();
        Ok(live)
    }

    /// Makes the next request look for the primary anew.
    fn give_up(&self, lost: &Arc<Live>) {
        lost.up.store(false, SeqCst);
        let mut live = self.live.lock();
        if live.as_ref().is_some_and(|live| Arc::ptr_eq(live, lost)) {
            *live = None;
        }
        drop(live);
        self.wakes.everybody();
    }

    /// Asks the server to tell of changes, or to stop; a new connection asks by itself.
    pub(crate) async fn hear_changes(&self, wanted: bool) {
        self.wakes.wants_changes.store(wanted, SeqCst);
        let Some(live) = self.live() else { return };
        let (mut connection, channel) = (live.connection.clone(), self.wakes.changes.clone());
        let asked =
            async { if wanted { connection.subscribe(channel).await } else { connection.unsubscribe(channel).await } };
        let asked = self.env.timeout(self.config.timeout, asked).await;
        if wanted && !matches!(asked, Some(Ok(()))) {
            self.give_up(&live);
        }
    }

    /// What the server says of one of its settings; `None` if we may not ask.
    pub(crate) async fn setting(&self, name: &str) -> Option<String> {
        let mut connection = self.live()?.connection.clone();
        let mut question = redis::cmd("CONFIG");
        question.arg("GET").arg(name);
        let answer = self.env.timeout(self.config.timeout, question.query_async(&mut connection)).await;
        let settings: HashMap<String, String> = answer?.ok()?;
        settings.get(name).cloned()
    }

    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        *self.live.lock() = None;
        self.wakes.everybody();
    }

    pub(crate) async fn until_closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as we do.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }
}

/// Who waits in this process, and for what.
pub(crate) struct Wakes {
    /// Where the server tells this process what has gone.
    pub(crate) own: String,
    /// Where it tells everybody that something has changed.
    changes: String,
    wants_changes: AtomicBool,
    waiters: SyncMutex<Waiters>,
    /// Something has changed, or may have.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Waiters {
    number: u64,
    by_entry: HashMap<(String, String), HashMap<u64, oneshot::Sender<()>>>,
}

impl Wakes {
    fn new(own: String, changes: String) -> Self {
        Self {
            own,
            changes,
            wants_changes: AtomicBool::new(false),
            waiters: SyncMutex::default(),
            changed: Notify::new(),
        }
    }

    fn channels(&self) -> Vec<String> {
        let changes = self.wants_changes.load(SeqCst).then(|| self.changes.clone());
        [self.own.clone()].into_iter().chain(changes).collect()
    }

    /// Waits for this entry from now on.
    pub(crate) fn wait(self: &Arc<Self>, key: &Key, created: Revision) -> Waiting {
        let (told, hears) = oneshot::channel();
        let entry = (created.to_string(), place(key));
        let mut waiters = self.waiters.lock();
        waiters.number += 1;
        let number = waiters.number;
        waiters.by_entry.entry(entry.clone()).or_default().insert(number, told);
        Waiting { wakes: self.clone(), entry, number, hears }
    }

    /// A message of the server: `created place` on our own channel, a revision on the other.
    fn take(&self, push: &PushInfo) {
        let [Value::BulkString(channel), Value::BulkString(message)] = push.data.as_slice() else { return };
        if push.kind != PushKind::Message {
            return;
        }
        if channel == self.changes.as_bytes() {
            self.changed.notify_one();
        } else if let Some((created, place)) = std::str::from_utf8(message).ok().and_then(|text| text.split_once(' ')) {
            self.waiters.lock().by_entry.remove(&(created.to_owned(), place.to_owned()));
        }
    }

    /// Wakes all: nobody knows what was told meanwhile.
    fn everybody(&self) {
        self.waiters.lock().by_entry.clear();
        self.changed.notify_one();
    }
}

/// One who waits; dropping it ends the waiting.
pub(crate) struct Waiting {
    wakes: Arc<Wakes>,
    entry: (String, String),
    number: u64,
    hears: oneshot::Receiver<()>,
}

impl Waiting {
    /// Returns when the entry has gone, or may have.
    pub(crate) async fn told(&mut self) {
        // An error is the usual way: the table drops whom it wakes.
        let _ = (&mut self.hears).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = self.wakes.waiters.lock();
        if let Some(same) = waiters.by_entry.get_mut(&self.entry) {
            same.remove(&self.number);
            if same.is_empty() {
                waiters.by_entry.remove(&self.entry);
            }
        }
    }
}
