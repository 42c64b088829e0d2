//! Watches: many on one stream, each told everything in revision order.
//!
//! The response stream is polled by its connection and does all the work when it is: reading requests, following
//! watches, sending. Nothing is queued here but the answers to the one thing that just happened, so a client that
//! does not read slows down only itself, and one that goes away leaves nothing behind.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use coact_engine_embedded::{
    Delivery, Watcher,
    flat::{Event, FlatError, FlatResult, KeyRange},
};
use coact_engine_etcd::wire::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType, watch_request::RequestUnion,
    watch_server::Watch,
};
use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Node, access, convert,
    errors::{STOPPED, WATCH_DENIED, failed},
};
use crate::auth::{Caller, Keys, Verb};

/// The watch id of a progress answer that is for the whole stream.
const WHOLE_STREAM: i64 = -1;
/// The watch id in the refusal of a watch.
const NO_WATCH: i64 = -1;
/// About how many bytes of events go into one response; one revision is never split.
const RESPONSE_BYTES: usize = 1024 * 1024;

#[tonic::async_trait]
impl Watch for Node {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = access::caller(&request)?;
        let session = Session::new(self.clone(), caller.clone(), request.into_inner());
        let responses = stream::unfold(session, |mut session| async move {
            let response = session.next_response().await?;
            Some((response, session))
        });
        Ok(Response::new(access::while_unchanged(caller, responses)))
    }
}

/// One stream with its watches.
struct Session {
    node: Node,
    caller: Caller,
    /// `None` once the client has nothing more to ask.
    requests: Option<Streaming<WatchRequest>>,
    watches: HashMap<i64, Subscription>,
    /// What each watch does next.
    steps: FuturesUnordered<Abortable<BoxFuture<'static, (i64, Feed, Step)>>>,
    ready: VecDeque<WatchResponse>,
    next_id: i64,
    /// How many of the watches want notices.
    noticing: usize,
    progress: Option<ProgressAnswer>,
    next_notice: Instant,
    ended: bool,
}

/// What the session knows about one watch.
struct Subscription {
    abort: AbortHandle,
    poke: Arc<Notify>,
    with_previous: bool,
    without_puts: bool,
    without_deletes: bool,
    /// Whether the client wants to hear how far it is when nothing happens.
    notices: bool,
    /// Whether nothing was sent since the last notice was due.
    quiet: bool,
    /// Whether a notice is due as soon as the watch has caught up.
    notice_due: bool,
}

/// A progress request on its way: answered when every watch that was there has caught up.
struct ProgressAnswer {
    waiting: HashSet<i64>,
    /// The least revision that one of them has caught up with.
    revision: u64,
}

impl Session {
    fn new(node: Node, caller: Caller, requests: Streaming<WatchRequest>) -> Self {
        let next_notice = node.env().now() + notice_interval(&node);
        Self {
            node,
            caller,
            requests: Some(requests),
            watches: HashMap::new(),
            steps: FuturesUnordered::new(),
            ready: VecDeque::new(),
            next_id: 0,
            noticing: 0,
            progress: None,
            next_notice,
            ended: false,
        }
    }

    async fn next_response(&mut self) -> Option<Result<WatchResponse, Status>> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            let idle = self.requests.is_none() && self.watches.is_empty();
            if self.ended || idle {
                return None;
            }
            if let Err(status) = self.advance().await {
                self.ended = true;
                return Some(Err(status));
            }
        }
    }

    /// Does the next thing that there is to do.
    async fn advance(&mut self) -> Result<(), Status> {
        let env = self.node.engine.env().clone();
        tokio::select! {
            () = self.node.signal.draining() => return Err(STOPPED.into()),
            request = next_request(&mut self.requests), if self.requests.is_some() => match request? {
                Some(request) => self.handle(request),
                None => self.requests = None,
            },
            // No pattern here: the end of a cancelled watch must not stop the polling of the others.
            step = self.steps.next(), if !self.steps.is_empty() => if let Some(Ok((id, feed, step))) = step {
                self.stepped(id, feed, step)?;
            },
            () = env.sleep_until(self.next_notice), if self.noticing > 0 => self.notices_are_due(),
        }
        Ok(())
    }

    fn handle(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.ask_progress(),
            // As etcd: a request of a later protocol is no reason to end the watches.
            None => {}
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let revision = self.node.engine.revision();
        let keys = watched_keys(&request);
        let (watch_id, refusal) = match self.admit(&request, &keys) {
            Ok(id) => (id, None),
            // As etcd: by its name, if the client gave one.
            Err(WATCH_DENIED) if request.watch_id != 0 => (request.watch_id, Some(WATCH_DENIED)),
            Err(reason) => (NO_WATCH, Some(reason)),
        };
        self.ready.push_back(WatchResponse {
            header: self.node.header(revision),
            watch_id,
            created: true,
            canceled: refusal.is_some(),
            cancel_reason: refusal.unwrap_or_default().to_owned(),
            ..WatchResponse::default()
        });
        if refusal.is_none() {
            // "From now on" is after the revision that the client was just told, not after whatever came since.
            let start = match request.start_revision {
                0 => revision + 1,
                start => start.max(1) as u64,
            };
            self.start(watch_id, &request, self.node.engine.watch(keys, start));
        }
    }

    /// Gives the watch its id, or says why it cannot be.
    fn admit(&mut self, request: &WatchCreateRequest, keys: &KeyRange) -> Result<i64, &'static str> {
        if !keys.is_one() && keys.end[..] != [0] && keys.start >= keys.end {
            return Err("mvcc: watcher range is empty");
        }
        if self.caller.allow_keys(Keys::range(&keys.start, &keys.end), Verb::Read).is_err() {
            return Err(WATCH_DENIED);
        }
        if request.watch_id != 0 {
            if self.watches.contains_key(&request.watch_id) {
                return Err("mvcc: duplicate watch ID provided on the WatchStream");
            }
            return Ok(request.watch_id);
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    fn start(&mut self, id: i64, request: &WatchCreateRequest, watcher: Watcher) {
        let poke = Arc::new(Notify::new());
        let filtered = |filter: FilterType| request.filters.contains(&i32::from(filter));
        let abort = self.follow(id, Feed { watcher, poke: poke.clone(), asked: false });
        let subscription = Subscription {
            abort,
            poke,
            with_previous: request.prev_kv,
            without_puts: filtered(FilterType::Noput),
            without_deletes: filtered(FilterType::Nodelete),
            notices: request.progress_notify,
            quiet: true,
            notice_due: false,
        };
        self.noticing += usize::from(subscription.notices);
        self.watches.insert(id, subscription);
    }

    fn follow(&mut self, id: i64, mut feed: Feed) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        let step = async move {
            let step = feed.step().await;
            (id, feed, step)
        };
        self.steps.push(Abortable::new(step.boxed(), registration));
        abort
    }

    fn cancel(&mut self, id: i64) {
        if !self.remove(id) {
            return;
        }
        self.ready.push_back(WatchResponse {
            header: self.node.header(self.node.engine.revision()),
            watch_id: id,
            canceled: true,
            ..WatchResponse::default()
        });
        self.finish_progress();
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(watch) = self.watches.remove(&id) else { return false };
        watch.abort.abort();
        self.noticing -= usize::from(watch.notices);
        if let Some(progress) = &mut self.progress {
            progress.waiting.remove(&id);
        }
        true
    }

    fn stepped(&mut self, id: i64, feed: Feed, step: Step) -> Result<(), Status> {
        match step {
            Step::Delivered(Ok(delivery)) => self.deliver(id, &delivery),
            Step::Delivered(Err(FlatError::Compacted(oldest))) => {
                drop(feed);
                self.compacted(id, oldest);
                return Ok(());
            }
            Step::Delivered(Err(error)) => return Err(failed(error)),
            Step::CaughtUp(revision) => self.caught_up(id, revision),
        }
        if self.watches.contains_key(&id) {
            let abort = self.follow(id, feed);
            if let Some(watch) = self.watches.get_mut(&id) {
                watch.abort = abort;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, id: i64, delivery: &Delivery) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let events: Vec<_> = delivery.events.iter().filter(|event| watch.wants(event)).collect();
        for (part, revision) in parts(&events, delivery.revision) {
            watch.quiet = false;
            self.ready.push_back(WatchResponse {
                header: self.node.header(revision),
                watch_id: id,
                events: part.iter().map(|event| convert::event(event, watch.with_previous)).collect(),
                ..WatchResponse::default()
            });
        }
    }

    fn compacted(&mut self, id: i64, oldest: u64) {
        self.remove(id);
        self.ready.push_back(WatchResponse {
            // As etcd: the revision that the watch got to, which is none.
            header: self.node.header(0),
            watch_id: id,
            canceled: true,
            compact_revision: oldest as i64,
            ..WatchResponse::default()
        });
        self.finish_progress();
    }

    fn ask_progress(&mut self) {
        let waiting: HashSet<i64> = self.watches.keys().copied().collect();
        self.watches.values().for_each(|watch| watch.poke.notify_one());
        // A second request before the answer to the first is answered with it.
        self.progress = Some(ProgressAnswer { waiting, revision: self.node.engine.revision() });
        self.finish_progress();
    }

    fn notices_are_due(&mut self) {
        self.next_notice = self.node.env().now() + notice_interval(&self.node);
        for watch in self.watches.values_mut().filter(|watch| watch.notices) {
            if watch.quiet {
                watch.notice_due = true;
                watch.poke.notify_one();
            }
            watch.quiet = true;
        }
    }

    fn caught_up(&mut self, id: i64, revision: u64) {
        if let Some(watch) = self.watches.get_mut(&id)
            && std::mem::take(&mut watch.notice_due)
        {
            self.ready.push_back(progress_response(&self.node, id, revision));
        }
        if let Some(progress) = &mut self.progress {
            progress.waiting.remove(&id);
        }
        self.finish_progress();
    }

    /// Answers the progress request once nobody is waited for. Each watch has then sent all it had up to the revision
    /// of the request, because its steps are in order.
    fn finish_progress(&mut self) {
        if let Some(progress) = self.progress.take_if(|progress| progress.waiting.is_empty()) {
            self.ready.push_back(progress_response(&self.node, WHOLE_STREAM, progress.revision));
        }
    }
}

impl Subscription {
    fn wants(&self, event: &Event) -> bool {
        if event.record.is_tombstone() { !self.without_deletes } else { !self.without_puts }
    }
}

/// The engine's watch, which can also be asked how far it is.
struct Feed {
    watcher: Watcher,
    poke: Arc<Notify>,
    asked: bool,
}

/// What a watch did.
enum Step {
    Delivered(FlatResult<Delivery>),
    /// It was asked, and everything up to here is delivered.
    CaughtUp(u64),
}

impl Feed {
    async fn step(&mut self) -> Step {
        if !self.asked {
            tokio::select! {
                delivered = self.watcher.next() => return Step::Delivered(delivered),
                () = self.poke.notified() => self.asked = true,
            }
        }
        loop {
            if let Some(delivered) = self.watcher.next().now_or_never() {
                return Step::Delivered(delivered);
            }
            if let Some(revision) = self.watcher.caught_up() {
                self.asked = false;
                return Step::CaughtUp(revision);
            }
            // Something became visible between the two looks; the next one sees it.
            tokio::task::yield_now().await;
        }
    }
}

/// The next request; `None` once the client has no more.
async fn next_request(requests: &mut Option<Streaming<WatchRequest>>) -> Result<Option<WatchRequest>, Status> {
    match requests {
        Some(requests) => requests.message().await,
        None => Ok(None),
    }
}

/// The keys of a watch: an empty key is the least one, as in etcd.
fn watched_keys(request: &WatchCreateRequest) -> KeyRange {
    let start = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key.clone() };
    convert::keys(start, request.range_end.clone())
}

/// Jitter keeps the notices of many streams that began together apart.
fn notice_interval(node: &Node) -> Duration {
    let every = node.limits.progress_every;
    every + node.env().random_duration(every / 10)
}

fn progress_response(node: &Node, watch_id: i64, revision: u64) -> WatchResponse {
    WatchResponse { header: node.header(revision), watch_id, ..WatchResponse::default() }
}

/// Cuts events into responses of bearable size, at revisions, each with the revision that it reaches.
fn parts<'a>(mut events: &'a [&'a Event], delivered: u64) -> Vec<(&'a [&'a Event], u64)> {
    let mut parts = Vec::new();
    while !events.is_empty() {
        let mut bytes = 0;
        let cut = (1..events.len()).find(|&at| {
            bytes += weight(events[at - 1]);
            bytes >= RESPONSE_BYTES && events[at].record.modified != events[at - 1].record.modified
        });
        let (part, rest) = events.split_at(cut.unwrap_or(events.len()));
        let revision = if rest.is_empty() { delivered } else { part[part.len() - 1].record.modified };
        parts.push((part, revision));
        events = rest;
    }
    parts
}

fn weight(event: &Event) -> usize {
    let previous = event.previous.as_ref().map_or(0, |record| record.value.len());
    event.record.key.len() + event.record.value.len() + previous + 64
}
