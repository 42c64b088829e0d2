//! Watches: one task for each handle, which reads the history for every watch and every waiter.
//!
//! A hint says that a realm has changed; the task then reads the table `change` from the place where the slowest of the
//! realm's watchers stands. What makes this free of gaps and of repetitions is the [`Place`] of each watcher and that
//! revisions are given under the lock of the realm's row: nothing can appear before what was read already. Without hints
//! the task looks now and then, so a lost one costs time only. A consumer that is slower than its queue is passed by and
//! goes on from its place. What cannot be continued (forgotten history, a store that went back in time, another server that
//! took over) starts over from now and says [`Change::Resync`].

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use coact_core::{
    Error, ErrorKind, Result,
    consumer::{self, Order, Sink, Ticket, Waiter, Wake},
    contract::kv::{Change, Entry, Feed, GoneCause, Revision, Scope},
    name::{Dir, Key, Realm},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    connection::Connections,
    errors::{Access, Failure, closed},
    history::{Batch, Place, Row, read},
    txn::unsigned,
};

/// How often a consumer without changes is told that there were none.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

struct Watcher {
    realm: Realm,
    dir: String,
    /// `None`: the whole dir.
    name: Option<String>,
    sink: Sink,
    /// `None`: from now, which is not known yet.
    place: Option<Place>,
    /// The timeline that the place is on, once it was read. Revisions of another one may stand for other changes: the server
    /// that is replaced shows what it never got confirmed, under numbers that are given anew.
    timeline: Option<String>,
    /// Who waits for the watch to be in place.
    ready: Option<oneshot::Sender<Result<()>>>,
    /// When the consumer last learned how far it got.
    told: Instant,
}

enum Command {
    Open(u64, Watcher),
    Consumer(Order),
    /// This realm, or any, has changed.
    Changed(Option<Realm>),
    /// What was read for these watchers of a realm.
    Read(Realm, Vec<u64>, Result<Batch>),
    Shutdown,
}

/// Tells the task that there is something to read. Does not keep it alive.
#[derive(Clone)]
pub(crate) struct Hints(mpsc::WeakUnboundedSender<Command>);

impl Hints {
    pub(crate) fn changed(&self, realm: Option<&Realm>) {
        if let Some(commands) = self.0.upgrade() {
            let _ = commands.send(Command::Changed(realm.cloned()));
        }
    }
}

/// Asks the task.
pub(crate) struct Watches {
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<Connections>,
    next: AtomicU64,
}

impl Watches {
    /// Starts the task; `every` is how often it looks without a hint.
    pub(crate) fn start(connections: Arc<Connections>, every: Duration) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let task = Task {
            connections: connections.clone(),
            me: commands.downgrade(),
            commands: inbox,
            watchers: HashMap::new(),
            realms: HashMap::new(),
            every,
        };
        let env = connections.env.clone();
        env.spawn(task.run());
        Self { commands, connections, next: AtomicU64::new(1) }
    }

    pub(crate) fn hints(&self) -> Hints {
        Hints(self.commands.downgrade())
    }

    /// Watches everything after a revision, or from now on. Returns once that is in place.
    pub(crate) async fn feed(&self, scope: &Scope, after: Option<Revision>) -> Result<Feed> {
        let (sink, inlet) = consumer::feed();
        let (dir, name) = match scope {
            Scope::Key(key) => (key.dir(), Some(key.name())),
            Scope::Dir(dir) => (dir, None),
        };
        let ticket = self.open(dir, name, after.map(Place::after), sink).await?;
        Ok(inlet.into_feed(ticket, closed(&self.connections.config.description)))
    }

    /// Waits for the deletion of one key, from now on. Returns once that is in place.
    pub(crate) async fn waiter(&self, key: &Key) -> Result<Waiter> {
        let (sink, woken) = consumer::waiter();
        let ticket = self.open(key.dir(), Some(key.name()), None, sink).await?;
        Ok(Waiter::new(woken, ticket))
    }

    async fn open(&self, dir: &Dir, name: Option<&str>, place: Option<Place>, sink: Sink) -> Result<Ticket> {
        let config = &self.connections.config;
        let id = self.next.fetch_add(1, Relaxed);
        let (ready, confirmed) = oneshot::channel();
        let watcher = Watcher {
            realm: dir.realm().clone(),
            dir: dir.path().to_owned(),
            name: name.map(str::to_owned),
            sink,
            place,
            timeline: None,
            ready: Some(ready),
            told: self.connections.env.now(),
        };
        self.commands.send(Command::Open(id, watcher)).map_err(|_| closed(&config.description))?;
        // From here on, dropping this future ends the watch.
        let commands = self.commands.clone();
        let ticket = Ticket::new(id, move |order| {
            let _ = commands.send(Command::Consumer(order));
        });
        // The read itself gives up after this time, so it may take twice as long behind another one.
        match self.connections.env.timeout(config.timeout * 2, confirmed).await {
            Some(Ok(result)) => result.map(|()| ticket),
            Some(Err(_)) => Err(closed(&config.description)),
            None => Err(Failure::timeout(config, config.timeout * 2, Access::Read).error),
        }
    }

    pub(crate) fn close(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }
}

/// What the task knows of a realm that somebody watches.
#[derive(Default)]
struct Watched {
    by_dir: HashMap<String, HashSet<u64>>,
    /// A read is under way.
    reading: bool,
    /// It changed, or got a watcher, since that read began.
    again: bool,
}

struct Task {
    connections: Arc<Connections>,
    /// Weak, so that the task ends with the last handle and the last feed.
    me: mpsc::WeakUnboundedSender<Command>,
    commands: mpsc::UnboundedReceiver<Command>,
    watchers: HashMap<u64, Watcher>,
    realms: HashMap<Realm, Watched>,
    every: Duration,
}

impl Task {
    async fn run(mut self) {
        let _ = self.serve().await;
        let error = closed(&self.connections.config.description);
        for id in self.watchers.keys().copied().collect::<Vec<_>>() {
            self.finish(id, &error);
        }
    }

    async fn serve(&mut self) -> ControlFlow<()> {
        let env = self.connections.env.clone();
        let mut look_at = env.now() + self.every;
        loop {
            let idle = self.watchers.is_empty();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command)?,
                    None => return ControlFlow::Break(()),
                },
                () = env.sleep_until(look_at), if !idle => {
                    self.all_changed();
                    // Handles that started together do not stay together.
                    look_at = env.now() + self.every.mul_f64(0.9) + env.random_duration(self.every / 10);
                }
            }
            // All that has come meanwhile is served by one read.
            while let Ok(command) = self.commands.try_recv() {
                self.command(command)?;
            }
            self.read_changed();
        }
    }

    fn command(&mut self, command: Command) -> ControlFlow<()> {
        match command {
            Command::Open(id, watcher) => {
                let watched = self.realms.entry(watcher.realm.clone()).or_default();
                watched.by_dir.entry(watcher.dir.clone()).or_default().insert(id);
                watched.again = true;
                self.watchers.insert(id, watcher);
            }
            Command::Consumer(Order::Close(id)) => drop(self.remove(id)),
            Command::Consumer(Order::Continue(id)) => {
                if let Some(Watcher { sink: Sink::Feed(outlet), realm, .. }) = self.watchers.get(&id)
                    && outlet.resume()
                    && let Some(watched) = self.realms.get_mut(realm)
                {
                    watched.again = true;
                }
            }
            Command::Changed(Some(realm)) => {
                if let Some(watched) = self.realms.get_mut(&realm) {
                    watched.again = true;
                }
            }
            Command::Changed(None) => self.all_changed(),
            Command::Read(realm, watchers, batch) => self.has_read(&realm, &watchers, batch),
            Command::Shutdown => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn all_changed(&mut self) {
        self.realms.values_mut().for_each(|watched| watched.again = true);
    }

    /// Starts a read of every realm that has something to read, one at a time for each.
    fn read_changed(&mut self) {
        for (realm, watched) in &mut self.realms {
            if !watched.again || watched.reading {
                continue;
            }
            watched.again = false;
            let mut ids = Vec::new();
            let mut dirs = Vec::new();
            let mut from = Place::END;
            for (dir, watchers) in &watched.by_dir {
                let before = ids.len();
                ids.extend(watchers.iter().copied().filter(|id| !self.watchers[id].sink.is_suspended()));
                if ids.len() > before {
                    dirs.push(dir.clone());
                }
                for place in ids[before..].iter().filter_map(|id| self.watchers[id].place.as_ref()) {
                    if *place < from {
                        from = place.clone();
                    }
                }
            }
            let Some(me) = self.me.upgrade() else { return };
            if ids.is_empty() {
                continue;
            }
            watched.reading = true;
            let (connections, realm) = (self.connections.clone(), realm.clone());
            self.connections.env.spawn(async move {
                let batch = read(&connections, &realm, &dirs, from).await;
                let _ = me.send(Command::Read(realm, ids, batch));
            });
        }
    }

    /// Passes on what was read to the watchers that the read was for.
    fn has_read(&mut self, realm: &Realm, ids: &[u64], batch: Result<Batch>) {
        if let Some(watched) = self.realms.get_mut(realm) {
            watched.reading = false;
        }
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return self.read_failed(ids, &error),
        };
        for id in ids {
            self.begin(*id, &batch);
        }
        let for_these: HashSet<_> = ids.iter().copied().collect();
        for row in &batch.rows {
            let watchers = self.realms.get(realm).and_then(|watched| watched.by_dir.get(&row.dir));
            let matching = |id: &&u64| for_these.contains(*id) && self.watchers[*id].sees(row);
            for id in watchers.into_iter().flatten().filter(matching).copied().collect::<Vec<_>>() {
                self.deliver(id, realm, row);
            }
        }
        let now = self.connections.env.now();
        for id in ids {
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            if !watcher.sink.is_suspended() && watcher.place.as_ref().is_some_and(|place| *place < batch.reached) {
                watcher.place = Some(batch.reached.clone());
            }
            watcher.progress(&batch, now);
            if let Some(ready) = watcher.ready.take() {
                let _ = ready.send(Ok(()));
            }
        }
        if batch.more
            && let Some(watched) = self.realms.get_mut(realm)
        {
            watched.again = true;
        }
    }

    /// Watches that stand are continued however long it takes; a new one is refused, and so is any that cannot go on.
    fn read_failed(&mut self, ids: &[u64], error: &Error) {
        let passing = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Exhausted | ErrorKind::Conflict);
        tracing::debug!(engine = %self.connections.config.description, %error, watches = ids.len(), "the history could not be read");
        for id in ids {
            if !passing || self.watchers.get(id).is_some_and(|watcher| watcher.ready.is_some()) {
                self.finish(*id, error);
            }
        }
    }

    /// Gives a new watcher its place, and one that cannot go on from its place another.
    fn begin(&mut self, id: u64, batch: &Batch) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let has_forked = watcher.timeline.is_some() && batch.timeline.is_some() && watcher.timeline != batch.timeline;
        let why = match &watcher.place {
            None => None,
            Some(place) if place.is_forgotten(batch.compacted) => {
                Some(format!("the history up to revision {} was forgotten", batch.compacted))
            }
            Some(place) if place.is_ahead_of(batch.head) => {
                Some(format!("the store went back to revision {}", batch.head))
            }
            Some(_) if has_forked => Some("another server has taken over".to_owned()),
            Some(_) => {
                watcher.timeline = watcher.timeline.take().or_else(|| batch.timeline.clone());
                return;
            }
        };
        let at = unsigned(batch.head);
        match &watcher.sink {
            Sink::Waiter(_) if why.is_some() => return self.wake(id, Wake::Lost),
            Sink::Waiter(_) => {}
            Sink::Feed(outlet) => {
                let change = match why {
                    Some(why) => Change::Resync { why, at },
                    None => Change::Progress(at),
                };
                if !outlet.try_send(change) {
                    return self.suspend(id);
                }
            }
        }
        watcher.place = Some(Place::after(at));
        watcher.timeline.clone_from(&batch.timeline);
    }

    fn deliver(&mut self, id: u64, realm: &Realm, row: &Row) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let outlet = match &watcher.sink {
            Sink::Feed(outlet) => outlet,
            Sink::Waiter(_) if row.is_gone() => return self.wake(id, Wake::Gone),
            Sink::Waiter(_) => return,
        };
        let Some(permit) = outlet.try_reserve() else {
            // The place stays before this change, and the watch goes on from there.
            return self.suspend(id);
        };
        // `None`: a name of foreign making, which the contract does not see.
        if let Some(change) = change(realm, row) {
            permit.send(change);
        }
        watcher.place = Some(row.place());
    }

    /// The consumer is slower than its queue: pass it by, to go on from its place when there is room.
    fn suspend(&mut self, id: u64) {
        if let Some(Watcher { sink: Sink::Feed(outlet), realm, .. }) = self.watchers.get(&id)
            && outlet.suspend()
            && let Some(watched) = self.realms.get_mut(realm)
        {
            watched.again = true;
        }
    }

    fn wake(&mut self, id: u64, wake: Wake) {
        let Some(watcher) = self.remove(id) else { return };
        if let Some(ready) = watcher.ready {
            let _ = ready.send(Ok(()));
        }
        if let Sink::Waiter(waiter) = watcher.sink {
            let _ = waiter.send(wake);
        }
    }

    fn finish(&mut self, id: u64, error: &Error) {
        let Some(watcher) = self.remove(id) else { return };
        if let Some(ready) = watcher.ready {
            let _ = ready.send(Err(error.clone()));
        }
        watcher.sink.fail(error.clone());
    }

    fn remove(&mut self, id: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&id)?;
        if let Some(watched) = self.realms.get_mut(&watcher.realm)
            && let Some(watchers) = watched.by_dir.get_mut(&watcher.dir)
        {
            watchers.remove(&id);
            if watchers.is_empty() {
                watched.by_dir.remove(&watcher.dir);
            }
            if watched.by_dir.is_empty() {
                self.realms.remove(&watcher.realm);
            }
        }
        Some(watcher)
    }
}

impl Watcher {
    /// Whether this is for it, and new to it.
    fn sees(&self, row: &Row) -> bool {
        !self.sink.is_suspended()
            && self.name.as_ref().is_none_or(|name| *name == row.name)
            && self.place.as_ref().is_some_and(|place| *place < row.place())
    }

    /// Tells the consumer now and then that nothing is outstanding.
    fn progress(&mut self, batch: &Batch, now: Instant) {
        let complete = self.place.as_ref().is_some_and(|place| *place == batch.reached);
        if batch.more || !complete || now < self.told + PROGRESS_EVERY {
            return;
        }
        if let Sink::Feed(outlet) = &self.sink {
            // It says nothing that a later one would not say too: a full queue may miss it.
            outlet.try_send(Change::Progress(unsigned(batch.head)));
            self.told = now;
        }
    }
}

fn change(realm: &Realm, row: &Row) -> Option<Change> {
    let key = Key::new(realm, &row.dir, &row.name).ok()?;
    let at = unsigned(row.revision);
    Some(match row.cause {
        0 => Change::Put(Entry {
            key,
            value: row.value.clone(),
            created: unsigned(row.created),
            modified: at,
            lease: row.lease,
        }),
        1 => Change::Gone { key, at, cause: GoneCause::Deleted },
        _ => Change::Gone { key, at, cause: GoneCause::Expired },
    })
}
