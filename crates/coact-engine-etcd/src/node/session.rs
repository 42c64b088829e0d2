//! One stream for many requests: sent as they come, answered in any order.
//!
//! A session ends with its connection. Requests that were sent over it then may have taken effect; the ones that do no
//! more when they happen twice are sent again over the next session, which the first request that needs it opens.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use coact_core::{Result, error::Effect};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use super::streams_client;
use crate::{
    connection::{Connections, Line},
    credentials::Wire,
    errors::{Access, Failure, closed},
    messages::to_ms,
    wire::coact_v1::{
        Done, SessionRequest, SessionResponse,
        session_request::{self, Request},
        session_response::Response,
    },
};

/// The way to the node of one handle: a session for what is asked often, and unary calls.
#[derive(Debug)]
pub(super) struct Sessions {
    connections: Arc<Connections>,
    /// Which of the connections carries the session.
    slot: usize,
    current: tokio::sync::Mutex<Option<Arc<Session>>>,
    is_closed: AtomicBool,
}

impl Sessions {
    pub(super) fn new(connections: Arc<Connections>) -> Self {
        let slot = connections.slot();
        Self { connections, slot, current: tokio::sync::Mutex::default(), is_closed: AtomicBool::new(false) }
    }

    pub(super) fn namespace(&self) -> String {
        self.connections.config.namespace.to_string()
    }

    pub(super) fn description(&self) -> &str {
        &self.connections.config.description
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Sends one unary request.
    pub(super) async fn unary<Q, A, F>(&self, access: Access, request: Q, send: impl Fn(Wire, Q) -> F) -> Result<A>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.check_open()?;
        Ok(self.connections.call(access, request, send).await?.into_inner())
    }

    /// Sends one request over the session, and again if that is safe: because it was not sent, or because it does no
    /// more when it happens twice. `wait` is how long the node may wait before it answers; `request` is told how many
    /// milliseconds of that are left.
    pub(super) async fn ask(
        &self,
        access: Access,
        wait: Duration,
        request: impl Fn(u64) -> Request,
    ) -> Result<Response> {
        self.check_open()?;
        let env = &self.connections.env;
        let limit = self.connections.config.timeout;
        let patient = env.now() + wait;
        let deadline = patient + limit;
        let mut tries = 0;
        loop {
            let left = deadline.saturating_duration_since(env.now());
            let opened = env.timeout(left.min(limit), self.session()).await;
            let failure = match opened {
                None => return Err(Failure::timeout(&self.connections.peers(), limit, Access::Read).error),
                Some(Err(failure)) => failure,
                Some(Ok(session)) => {
                    let waits = patient.saturating_duration_since(env.now());
                    let left = deadline.saturating_duration_since(env.now());
                    match env.timeout(left, session.ask(request(to_ms(waits)))).await {
                        Some(Ok(Response::Failure(failure))) => {
                            let failure = Failure::told(failure.into());
                            if failure.elsewhere {
                                self.retire(&session).await;
                            }
                            failure
                        }
                        Some(Ok(response)) => return Ok(response),
                        Some(Err(lost)) => {
                            self.retire(&session).await;
                            let peer = self.connections.peer(&session.line);
                            Failure::of(&lost.status, &peer, if lost.was_sent { access } else { Access::Read })
                        }
                        None => {
                            self.retire(&session).await;
                            let peer = self.connections.peer(&session.line);
                            return Err(Failure::timeout(&peer, wait + limit, access).error);
                        }
                    }
                }
            };
            tries += 1;
            let harmless = access != Access::Write || failure.error.effect() == Effect::NotApplied;
            // As for unary requests: a broken connection to the only server is worth a second one.
            let enough = self.connections.servers() + usize::from(!failure.unreachable);
            if !failure.elsewhere || !harmless || tries >= enough {
                return Err(failure.error);
            }
        }
    }

    /// Requests under way finish; later ones are refused.
    pub(super) async fn close(&self) {
        self.is_closed.store(true, Relaxed);
        self.current.lock().await.take();
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Relaxed) { Err(closed(self.description())) } else { Ok(()) }
    }

    /// The session that is open, or a new one. Nothing was sent when it fails.
    async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut current = self.current.lock().await;
        if let Some(session) = current.as_ref().filter(|session| !session.has_ended()) {
            return Ok(session.clone());
        }
        let line = self.connections.line_in(self.slot).map_err(Failure::told)?;
        let opened = Session::open(&self.connections, line.clone()).await;
        let session = opened.map_err(|status| {
            let failure = Failure::of(&status, &self.connections.peer(&line), Access::Read);
            if failure.elsewhere {
                self.connections.replace(&line);
            }
            failure
        })?;
        Ok(current.insert(Arc::new(session)).clone())
    }

    /// Sends nothing more over a session that failed; what is under way there goes on.
    async fn retire(&self, failed: &Arc<Session>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|session| Arc::ptr_eq(session, failed)) {
            *current = None;
            self.connections.replace(&failed.line);
        }
    }
}

/// One stream, both ways.
#[derive(Debug)]
struct Session {
    line: Line,
    requests: mpsc::UnboundedSender<SessionRequest>,
    waiting: Arc<Mutex<Waiting>>,
    next_id: AtomicU64,
}

/// Who waits for an answer.
#[derive(Debug, Default)]
struct Waiting {
    by_id: HashMap<u64, oneshot::Sender<Result<Response, Status>>>,
    /// Why there will be no more answers.
    ended: Option<Status>,
}

/// No answer will come.
struct Lost {
    status: Status,
    was_sent: bool,
}

impl Session {
    async fn open(connections: &Connections, line: Line) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let outgoing = UnboundedReceiverStream::new(outgoing);
        let responses = streams_client(line.channel.clone()).session(outgoing).await?.into_inner();
        let waiting = Arc::<Mutex<Waiting>>::default();
        connections.env.spawn(deliver(responses, waiting.clone()));
        Ok(Self { line, requests, waiting, next_id: AtomicU64::new(1) })
    }

    fn has_ended(&self) -> bool {
        self.waiting.lock().ended.is_some()
    }

    async fn ask(&self, request: Request) -> Result<Response, Lost> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if let Some(status) = &waiting.ended {
                return Err(Lost { status: status.clone(), was_sent: false });
            }
            waiting.by_id.insert(id, sender);
        }
        let _place = Place { session: self, id };
        if self.requests.send(SessionRequest { id, request: Some(request) }).is_err() {
            return Err(Lost { status: ended(), was_sent: false });
        }
        match answer.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(Lost { status, was_sent: true }),
            Err(_) => Err(Lost { status: ended(), was_sent: true }),
        }
    }
}

/// A place among those who wait. Whoever gives it up before the answer came tells the node, which stops waiting then.
struct Place<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.session.waiting.lock().by_id.remove(&self.id).is_some() {
            let forget = session_request::Request::Forget(Done {});
            // An error says that the session has ended, and the request with it.
            let _ = self.session.requests.send(SessionRequest { id: self.id, request: Some(forget) });
        }
    }
}

/// Hands answers to those who wait, until the stream ends.
async fn deliver(mut responses: Streaming<SessionResponse>, waiting: Arc<Mutex<Waiting>>) {
    let why = loop {
        match responses.message().await {
            Ok(Some(SessionResponse { id, response })) => {
                let Some(sender) = waiting.lock().by_id.remove(&id) else { continue };
                // Whoever went away meanwhile does not care.
                let _ = sender.send(response.ok_or_else(|| Status::internal("an answer says nothing")));
            }
            Ok(None) => break ended(),
            Err(status) => break status,
        }
    };
    let left = {
        let mut waiting = waiting.lock();
        waiting.ended = Some(why.clone());
        std::mem::take(&mut waiting.by_id)
    };
    for sender in left.into_values() {
        let _ = sender.send(Err(why.clone()));
    }
}

fn ended() -> Status {
    Status::unavailable("the session ended")
}
