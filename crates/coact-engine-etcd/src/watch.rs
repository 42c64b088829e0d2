//! Watches: one stream for each handle, which every watch and every waiter shares.
//!
//! A task owns the stream and a table of watchers. Handles talk to it by commands and get changes through a bounded
//! queue each. What makes this free of gaps and of repetitions is the [`Place`] of each watcher: from it the task
//! starts the watch again after a lost connection, after the consumer was too slow for its queue, and never otherwise.
//! What cannot be continued (compacted history, a store that went back in time) starts over from now and says
//! [`Change::Resync`].

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use coact_core::{
    Error, Result,
    consumer::{self, Order, Sink, Ticket, Waiter, Wake},
    contract::kv::{Change, Feed, GoneCause, Revision},
    name::{Key, Namespace},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status};

use crate::{
    connection::{ANSWER_BYTES_MAX, Connections, Line},
    errors::{Access, Failure, closed},
    kv::{entry, kv_client},
    wire::{
        etcdserverpb::{
            RangeRequest, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
            watch_client::WatchClient, watch_create_request::FilterType, watch_request::RequestUnion,
        },
        mvccpb::{Event, event::EventType},
    },
};

/// The longest pause between attempts to open the stream.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A request of a stream that must not stay with a server that has lost its cluster: such a server ends the stream, and
/// the client goes elsewhere.
pub(crate) fn on_stream<T>(requests: T) -> Request<T> {
    let mut request = Request::new(requests);
    request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// What to watch.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) key: Bytes,
    /// Empty: only `key`.
    pub(crate) end: Bytes,
}

/// Where a watcher stands in the history.
///
/// A server may spread the events of one revision over several responses, so the last revision seen counts as complete
/// only when a later one was seen. Until then a resumed watch asks for that revision again and `part` says which of its
/// keys were delivered. A revision changes each key at most once, so the key identifies the event; a count would not do,
/// because a compaction in between can take some of the events away.
#[derive(Debug, Default)]
struct Place {
    /// Everything before this revision is delivered. Zero: nothing yet, and the watch is to begin now.
    next: i64,
    /// The keys of revision `next` that are delivered.
    part: HashSet<Bytes>,
}

impl Place {
    fn starting_at(next: i64) -> Self {
        Self { next, part: HashSet::new() }
    }

    fn is_new(&self, revision: i64, key: &[u8]) -> bool {
        revision > self.next || (revision == self.next && !self.part.contains(key))
    }

    fn delivered(&mut self, revision: i64, key: &[u8]) {
        if revision > self.next {
            *self = Self::starting_at(revision);
        }
        // A copy, since the original would keep the whole response in memory.
        self.part.insert(Bytes::copy_from_slice(key));
    }

    /// The server says that nothing up to this revision is outstanding.
    fn complete(&mut self, revision: i64) {
        if revision >= self.next {
            *self = Self::starting_at(revision.saturating_add(1));
        }
    }
}

struct Watcher {
    range: Range,
    sink: Sink,
    place: Place,
    /// Its name on the present stream, if it is there.
    wire: Option<i64>,
    /// Who waits for the server to confirm the watch.
    ready: Option<oneshot::Sender<Result<()>>>,
    /// What the consumer must be told before the next change: its view has a gap.
    resync: Option<String>,
}

enum Command {
    Open(u64, Watcher),
    Consumer(Order),
    /// The revision of the whole store, as read after these watchers claimed to be at these places.
    Head(Vec<(u64, i64)>, Option<i64>),
    Shutdown,
}

/// Asks the task that owns the stream.
pub(crate) struct Watches {
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<Connections>,
    next: AtomicU64,
}

impl Watches {
    /// Starts the task; it opens the stream at the first watch.
    pub(crate) fn start(connections: Arc<Connections>) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let task = Task {
            connections: connections.clone(),
            namespace: connections.config.namespace.clone(),
            me: commands.downgrade(),
            commands: inbox,
            watchers: HashMap::new(),
            wires: HashMap::new(),
            next_wire: 1,
            unconfirmed: VecDeque::new(),
            requests: None,
            suspects: Vec::new(),
            checking: false,
            failures: 0,
        };
        let env = connections.env.clone();
        env.spawn(task.run());
        Self { commands, connections, next: AtomicU64::new(1) }
    }

    /// Watches from a revision on, or from now (0). Returns once the server has confirmed it.
    pub(crate) async fn feed(&self, range: Range, start: i64) -> Result<Feed> {
        let (sink, inlet) = consumer::feed();
        let ticket = self.open(range, start, sink).await?;
        Ok(inlet.into_feed(ticket, closed(&self.connections.config.description)))
    }

    /// Waits for the deletion of one key, from now on. Returns once the server has confirmed it.
    pub(crate) async fn waiter(&self, key: Bytes) -> Result<Waiter> {
        let (sink, woken) = consumer::waiter();
        let ticket = self.open(Range { key, end: Bytes::new() }, 0, sink).await?;
        Ok(Waiter::new(woken, ticket))
    }

    async fn open(&self, range: Range, start: i64, sink: Sink) -> Result<Ticket> {
        let description = &self.connections.config.description;
        let id = self.next.fetch_add(1, Relaxed);
        let (ready, confirmed) = oneshot::channel();
        let place = Place::starting_at(start);
        let watcher = Watcher { range, sink, place, wire: None, ready: Some(ready), resync: None };
        self.commands.send(Command::Open(id, watcher)).map_err(|_| closed(description))?;
        // From here on, dropping this future ends the watch.
        let commands = self.commands.clone();
        let ticket = Ticket::new(id, move |order| {
            let _ = commands.send(Command::Consumer(order));
        });
        let timeout = self.connections.config.timeout;
        match self.connections.env.timeout(timeout, confirmed).await {
            Some(Ok(result)) => result.map(|()| ticket),
            Some(Err(_)) => Err(closed(description)),
            None => Err(Failure::timeout(&self.connections.peers(), timeout, Access::Read).error),
        }
    }

    pub(crate) fn close(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }
}

struct Task {
    connections: Arc<Connections>,
    namespace: Namespace,
    /// Weak, so that the task ends with the last handle and the last feed.
    me: mpsc::WeakUnboundedSender<Command>,
    commands: mpsc::UnboundedReceiver<Command>,
    watchers: HashMap<u64, Watcher>,
    /// Who is meant by a name on the present stream. Names are never used twice: a server may remember old ones.
    wires: HashMap<i64, u64>,
    next_wire: i64,
    /// The names that the server has not confirmed yet; it does so in the order of the requests.
    unconfirmed: VecDeque<i64>,
    /// The sending half of the present stream.
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    /// Watchers that are ahead of the server, with their places; see [`check`](Self::check).
    suspects: Vec<(u64, i64)>,
    checking: bool,
    /// How often the stream could not be opened or broke since the last response.
    failures: u32,
}

impl Task {
    async fn run(mut self) {
        let _ = self.serve().await;
        let error = closed(&self.connections.config.description);
        for id in self.watchers.keys().copied().collect::<Vec<_>>() {
            self.finish(id, error.clone());
        }
    }

    async fn serve(&mut self) -> ControlFlow<()> {
        loop {
            while self.watchers.is_empty() {
                let Some(command) = self.commands.recv().await else { return ControlFlow::Break(()) };
                self.command(command)?;
            }
            let Ok(line) = self.connections.line() else { return ControlFlow::Break(()) };
            let status = self.stream(&line).await?;
            self.broken(&line, &status);
            self.connections.log_in_after(&status).await;
            self.pause().await?;
        }
    }

    /// Serves one stream until it breaks.
    async fn stream(&mut self, line: &Line) -> ControlFlow<(), Status> {
        let (requests, outbox) = mpsc::unbounded_channel();
        self.requests = Some(requests);
        for id in self.watchers.keys().copied().collect::<Vec<_>>() {
            self.create(id);
        }
        let mut client = WatchClient::new(line.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        // A server answers the opening of a stream together with its first response, so the requests are in it already.
        let opening = client.watch(on_stream(UnboundedReceiverStream::new(outbox)));
        tokio::pin!(opening);
        let mut responses = None;
        let env = self.connections.env.clone();
        let limit = env.sleep(self.connections.config.timeout);
        tokio::pin!(limit);
        loop {
            let opened = responses.is_some();
            let response = async {
                match &mut responses {
                    None => opening.as_mut().await.map(|response| {
                        responses = Some(response.into_inner());
                        None
                    }),
                    Some(responses) => match responses.message().await? {
                        Some(response) => Ok(Some(response)),
                        None => Err(Status::unavailable("the server ended the stream")),
                    },
                }
            };
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command)?,
                    None => return ControlFlow::Break(()),
                },
                response = response => match response {
                    Ok(Some(response)) => self.response(response),
                    Ok(None) => {}
                    Err(status) => return ControlFlow::Continue(status),
                },
                () = &mut limit, if !opened && !self.watchers.is_empty() => {
                    return ControlFlow::Continue(Status::unavailable("no answer to a watch"));
                }
            }
        }
    }

    fn broken(&mut self, line: &Line, status: &Status) {
        self.requests = None;
        self.unconfirmed.clear();
        self.wires.clear();
        for watcher in self.watchers.values_mut() {
            watcher.wire = None;
        }
        self.connections.replace(line);
        self.failures += 1;
        let failure = Failure::of(status, &self.connections.peer(line), Access::Read);
        let engine = &self.connections.config.description;
        tracing::debug!(%engine, error = %failure.error, watches = self.watchers.len(), "the watch stream broke; it will be resumed");
        // Watches that stand are resumed however long it takes; a new one is refused once every server was tried.
        let tried = self.connections.servers() + usize::from(!failure.unreachable);
        if self.failures as usize >= tried {
            let pending = |(id, watcher): (&u64, &Watcher)| watcher.ready.is_some().then_some(*id);
            let everywhere = failure.unreachable && self.connections.servers() > 1;
            let peer = if everywhere { self.connections.peers() } else { self.connections.peer(line) };
            let error = Failure::of(status, &peer, Access::Read).error;
            for id in self.watchers.iter().filter_map(pending).collect::<Vec<_>>() {
                self.finish(id, error.clone());
            }
        }
    }

    /// Waits before the next attempt, longer each time, but not while there are servers that were not tried.
    async fn pause(&mut self) -> ControlFlow<()> {
        let rounds = self.failures.saturating_sub(u32::try_from(self.connections.servers()).unwrap_or(u32::MAX));
        let longest = PAUSE_MAX.min(Duration::from_millis(20) * 2_u32.pow(rounds.min(10)));
        let env = self.connections.env.clone();
        let pause = env.sleep(longest / 2 + env.random_duration(longest / 2));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                () = &mut pause => return ControlFlow::Continue(()),
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command)?,
                    None => return ControlFlow::Break(()),
                },
            }
        }
    }

    fn command(&mut self, command: Command) -> ControlFlow<()> {
        match command {
            Command::Open(id, watcher) => {
                self.watchers.insert(id, watcher);
                self.create(id);
            }
            Command::Consumer(Order::Close(id)) => {
                self.cancel(id);
                self.watchers.remove(&id);
            }
            Command::Consumer(Order::Continue(id)) => {
                if let Some(Watcher { sink: Sink::Feed(outlet), .. }) = self.watchers.get(&id)
                    && outlet.resume()
                {
                    self.create(id);
                }
            }
            Command::Head(suspects, head) => {
                self.checking = false;
                if let Some(head) = head {
                    for (id, next) in suspects {
                        if next > head.saturating_add(1) {
                            self.start_over(id, format!("the store went back to revision {head}"));
                        }
                    }
                }
                self.check();
            }
            Command::Shutdown => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Asks the server for a watch from where its watcher stands, if there is a stream.
    fn create(&mut self, id: u64) {
        let Some(requests) = &self.requests else { return };
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if watcher.sink.is_suspended() || watcher.wire.is_some() {
            return;
        }
        let wire = self.next_wire;
        self.next_wire += 1;
        watcher.wire = Some(wire);
        self.wires.insert(wire, id);
        self.unconfirmed.push_back(wire);
        let waits = matches!(watcher.sink, Sink::Waiter(_));
        let request = WatchCreateRequest {
            key: watcher.range.key.clone(),
            range_end: watcher.range.end.clone(),
            start_revision: if watcher.resync.is_some() { 0 } else { watcher.place.next },
            progress_notify: !waits,
            filters: if waits { vec![FilterType::Noput as i32] } else { Vec::new() },
            prev_kv: false,
            watch_id: wire,
            // Otherwise a response may be longer than any limit.
            fragment: true,
        };
        let _ = requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
    }

    /// Ends the watch on the server; its watcher stays.
    fn cancel(&mut self, id: u64) {
        let Some(wire) = self.watchers.get_mut(&id).and_then(|watcher| watcher.wire.take()) else { return };
        self.wires.remove(&wire);
        if let Some(requests) = &self.requests {
            let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: wire });
            let _ = requests.send(WatchRequest { request_union: Some(cancel) });
        }
    }

    fn response(&mut self, response: WatchResponse) {
        self.failures = 0;
        let revision = response.header.map_or(0, |header| header.revision);
        let wire = if response.created { self.confirmed(response.watch_id) } else { response.watch_id };
        // Unknown: ended here meanwhile.
        let Some(&id) = self.wires.get(&wire) else { return };
        if response.canceled {
            if let Some(wire) = self.watchers.get_mut(&id).and_then(|watcher| watcher.wire.take()) {
                self.wires.remove(&wire);
            }
            if response.compact_revision > 0 {
                let oldest = response.compact_revision;
                self.start_over(id, format!("the history before revision {oldest} was compacted"));
            } else {
                let status = Status::unknown(response.cancel_reason);
                self.finish(id, Failure::of(&status, &self.connections.peers(), Access::Read).error);
            }
            return;
        }
        if response.created {
            self.created(id, revision);
        } else if response.events.is_empty() && !response.fragment {
            self.progress(id, revision);
        }
        for event in &response.events {
            if self.event(id, event).is_break() {
                break;
            }
        }
    }

    /// Which name the server answers to. etcd refuses without one, so it must be the one whose turn it is.
    fn confirmed(&mut self, wire: i64) -> i64 {
        if wire <= 0 {
            return self.unconfirmed.pop_front().unwrap_or(wire);
        }
        self.unconfirmed.retain(|name| *name != wire);
        wire
    }

    /// The server has confirmed a watch; `revision` is the newest that it knows.
    fn created(&mut self, id: u64, revision: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let greeting = match (&watcher.resync, watcher.place.next) {
            (Some(why), _) => Some(Change::Resync { why: why.clone(), at: place(revision) }),
            // From now, or from a place that nothing came after yet: the consumer learns where it stands.
            (None, next) if next == 0 || (watcher.ready.is_some() && revision < next) => {
                Some(Change::Progress(place(revision)))
            }
            (None, _) => None,
        };
        let ahead = watcher.place.next > revision.saturating_add(1);
        if let Sink::Feed(outlet) = &watcher.sink
            && let Some(greeting) = greeting
            && !outlet.try_send(greeting)
        {
            self.suspend(id);
            return;
        }
        if watcher.resync.take().is_some() || watcher.place.next == 0 {
            watcher.place = Place::starting_at(revision.saturating_add(1));
        } else if ahead {
            self.suspects.push((id, watcher.place.next));
        }
        if let Some(ready) = watcher.ready.take() {
            let _ = ready.send(Ok(()));
        }
        self.check();
    }

    fn progress(&mut self, id: u64, revision: i64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        watcher.place.complete(revision);
        if let Sink::Feed(outlet) = &watcher.sink {
            // It says nothing that a later one would not say too: a full queue may miss it.
            outlet.try_send(Change::Progress(place(revision)));
        }
    }

    fn event(&mut self, id: u64, event: &Event) -> ControlFlow<()> {
        let (Some(watcher), Some(kv)) = (self.watchers.get_mut(&id), &event.kv) else {
            return ControlFlow::Break(());
        };
        if !watcher.place.is_new(kv.mod_revision, &kv.key) {
            return ControlFlow::Continue(());
        }
        let deleted = event.r#type() == EventType::Delete;
        let outlet = match &watcher.sink {
            Sink::Feed(outlet) => outlet,
            Sink::Waiter(_) if deleted => {
                self.wake(id, Wake::Gone);
                return ControlFlow::Break(());
            }
            Sink::Waiter(_) => return ControlFlow::Continue(()),
        };
        let Some(permit) = outlet.try_reserve() else {
            // The place stays before this event, and the watch goes on from there.
            self.suspend(id);
            return ControlFlow::Break(());
        };
        let change = if deleted {
            let gone = |key| Change::Gone { key, at: place(kv.mod_revision), cause: GoneCause::Unknown };
            Key::from_flat(&self.namespace, &kv.key).map(gone)
        } else {
            entry(&self.namespace, kv).map(Change::Put)
        };
        // `None`: a key of foreign making, which the contract does not see.
        if let Some(change) = change {
            permit.send(change);
        }
        watcher.place.delivered(kv.mod_revision, &kv.key);
        ControlFlow::Continue(())
    }

    /// The consumer is slower than its queue: stop the watch, to go on from its place when there is room.
    fn suspend(&mut self, id: u64) {
        self.cancel(id);
        if let Some(Watcher { sink: Sink::Feed(outlet), .. }) = self.watchers.get(&id)
            && outlet.suspend()
        {
            self.create(id);
        }
    }

    /// The watch cannot go on from its place.
    fn start_over(&mut self, id: u64, why: String) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        if matches!(watcher.sink, Sink::Waiter(_)) {
            self.wake(id, Wake::Lost);
            return;
        }
        tracing::debug!(engine = %self.connections.config.description, why, "a watch starts over");
        watcher.resync = Some(why);
        self.cancel(id);
        self.create(id);
    }

    fn wake(&mut self, id: u64, wake: Wake) {
        self.cancel(id);
        if let Some(Watcher { sink: Sink::Waiter(waiter), ready, .. }) = self.watchers.remove(&id) {
            if let Some(ready) = ready {
                let _ = ready.send(Ok(()));
            }
            let _ = waiter.send(wake);
        }
    }

    fn finish(&mut self, id: u64, error: Error) {
        self.cancel(id);
        let Some(watcher) = self.watchers.remove(&id) else { return };
        if let Some(ready) = watcher.ready {
            let _ = ready.send(Err(error.clone()));
        }
        watcher.sink.fail(error);
    }

    /// A watch that resumes after revisions that its server does not know is on a server that lags behind (it will get
    /// there) or on a store that went back in time, restored from an old copy, whose next revisions would be passed
    /// over in silence. A linearizable read tells them apart.
    fn check(&mut self) {
        if self.checking || self.suspects.is_empty() {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        self.checking = true;
        let suspects = std::mem::take(&mut self.suspects);
        let connections = self.connections.clone();
        let key = Bytes::from(format!("{}/", self.namespace));
        self.connections.env.spawn(async move {
            let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
            let response = connections
                .call(Access::Read, request, |channel, request| async move { kv_client(channel).range(request).await })
                .await;
            let header = response.ok().and_then(|response| response.into_inner().header);
            let _ = me.send(Command::Head(suspects, header.map(|header| header.revision)));
        });
    }
}

fn place(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_watch_delivers_the_rest_of_a_split_revision_and_nothing_twice() {
        let mut place = Place::starting_at(5);
        for key in ["a", "b"] {
            assert!(place.is_new(7, key.as_bytes()));
            place.delivered(7, key.as_bytes());
        }
        // The connection breaks within revision 7: it is asked for again, and only what is missing is new.
        assert_eq!(place.next, 7);
        assert!(!place.is_new(7, b"a") && !place.is_new(7, b"b") && place.is_new(7, b"c"));
        assert!(!place.is_new(6, b"c"));
        place.delivered(7, b"c");
        // A later revision shows that 7 was complete.
        place.delivered(8, b"a");
        assert!(!place.is_new(7, b"d") && place.is_new(8, b"b"));
        assert_eq!(place.next, 8);
    }

    #[test]
    fn progress_completes_revisions() {
        let mut place = Place::starting_at(5);
        place.delivered(7, b"a");
        place.complete(6);
        assert_eq!((place.next, place.part.len()), (7, 1), "an old one says nothing");
        place.complete(7);
        assert_eq!((place.next, place.part.len()), (8, 0));
        place.complete(100);
        assert_eq!(place.next, 101);
    }
}
