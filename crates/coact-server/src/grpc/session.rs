//! Many requests over one stream, answered as they are done.
//!
//! The response stream is polled by its connection and does all the work when it is: reading requests, running them,
//! sending answers. A client that does not read its answers stops only itself, and one that goes away leaves nothing
//! behind but what it had already asked the engine for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use coact_core::{Error, ErrorKind, Result, Retry};
use coact_engine_etcd::{
    messages::part,
    wire::coact_v1::{Failure, SessionRequest, SessionResponse, session_request, session_response},
};
use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::{self, BoxStream, FuturesUnordered},
};
use prost::Message as _;
use tonic::{Status, Streaming};

use super::{
    desk::{Desk, shown},
    errors::STOPPED,
};
use crate::lifecycle::Signal;

/// How many bytes of requests run at once, but for one request that is larger. Then no more are read for a while.
const BYTES_UNDER_WAY: usize = 32 * 1024 * 1024;
/// What a client is told to rest that has too many requests under way.
const CROWDED_PAUSE: Duration = Duration::from_millis(100);

pub(super) fn serve(
    desk: Desk,
    requests: Streaming<SessionRequest>,
) -> BoxStream<'static, Result<SessionResponse, Status>> {
    let session = Session {
        signal: desk.node.signal(),
        desk: Arc::new(desk),
        requests: Some(requests),
        running: FuturesUnordered::new(),
        under_way: HashMap::new(),
        bytes: 0,
        stopping: false,
        ended: false,
    };
    stream::unfold(session, |mut session| async move { Some((session.next_response().await?, session)) }).boxed()
}

struct Session {
    desk: Arc<Desk>,
    signal: Signal,
    /// `None` once nothing more is read.
    requests: Option<Streaming<SessionRequest>>,
    running: FuturesUnordered<BoxFuture<'static, Ran>>,
    /// By their ids; those that wait for something can be ended.
    under_way: HashMap<u64, Option<AbortHandle>>,
    /// Of the requests under way.
    bytes: usize,
    /// Whether the node shuts down.
    stopping: bool,
    ended: bool,
}

/// A request that ran.
struct Ran {
    id: u64,
    bytes: usize,
    /// `None` if nobody waits for it any more.
    answer: Option<session_response::Response>,
}

impl Session {
    async fn next_response(&mut self) -> Option<Result<SessionResponse, Status>> {
        while !self.ended {
            if self.requests.is_none() && self.running.is_empty() {
                self.ended = true;
                return self.stopping.then(|| Err(STOPPED.into()));
            }
            match self.advance().await {
                Ok(None) => {}
                Ok(Some(response)) => return Some(Ok(response)),
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }

    /// Does the next thing that there is to do.
    async fn advance(&mut self) -> Result<Option<SessionResponse>, Status> {
        let reads = self.requests.is_some() && self.bytes < BYTES_UNDER_WAY;
        tokio::select! {
            // What waits ends by itself then, and what runs is answered.
            () = self.signal.draining(), if !self.stopping => {
                self.stopping = true;
                self.requests = None;
            }
            request = next_request(&mut self.requests), if reads => match request? {
                Some(request) => return self.take(request),
                None => self.requests = None,
            },
            ran = self.running.next(), if !self.running.is_empty() => {
                if let Some(ran) = ran {
                    self.under_way.remove(&ran.id);
                    self.bytes -= ran.bytes;
                    return Ok(ran.answer.map(|answer| response(ran.id, answer)));
                }
            }
        }
        Ok(None)
    }

    /// Begins a request, or answers at once that it cannot be.
    fn take(&mut self, request: SessionRequest) -> Result<Option<SessionResponse>, Status> {
        let (id, bytes) = (request.id, request.encoded_len());
        if let Some(session_request::Request::Forget(_)) = request.request {
            // What does not wait goes on, and is answered though nobody listens.
            if let Some(Some(wait)) = self.under_way.get(&id) {
                wait.abort();
                self.under_way.remove(&id);
            }
            return Ok(None);
        }
        if self.under_way.contains_key(&id) {
            return Err(Status::invalid_argument(format!("coact: request {id} is still under way")));
        }
        let most = self.desk.node.limits().calls_per_connection as usize;
        if self.under_way.len() >= most {
            let error = Error::new(ErrorKind::Exhausted, format!("{most} requests are under way in this session"));
            return Ok(Some(response(id, failed(error.with_retry(Retry::After(CROWDED_PAUSE))))));
        }
        let waits =
            matches!(&request.request, Some(session_request::Request::Read(_) | session_request::Request::Claim(_)));
        let (handle, registration) = AbortHandle::new_pair();
        let work = Abortable::new(run(self.desk.clone(), request), registration);
        self.running.push(work.map(move |answer| Ran { id, bytes, answer: answer.ok() }).boxed());
        self.under_way.insert(id, waits.then_some(handle));
        self.bytes += bytes;
        Ok(None)
    }
}

async fn run(desk: Arc<Desk>, request: SessionRequest) -> session_response::Response {
    use session_request::Request;
    use session_response::Response;
    let answer = async {
        Ok(match part(request.request, "request")? {
            Request::Append(request) => Response::Append(desk.append(request).await?),
            Request::Read(request) => Response::Read(desk.read(request).await?),
            Request::Commit(request) => Response::Commit(desk.commit(request).await?),
            Request::Enqueue(request) => Response::Enqueue(desk.enqueue(request).await?),
            Request::Claim(request) => Response::Claim(desk.claim(request).await?),
            Request::Settle(request) => Response::Settle(desk.settle(request).await?),
            Request::Forget(_) => return Err(Error::new(ErrorKind::Internal, "a request was begun that is none")),
        })
    };
    answer.await.unwrap_or_else(failed)
}

fn failed(error: Error) -> session_response::Response {
    session_response::Response::Failure(Failure::from(&shown(error)))
}

fn response(id: u64, response: session_response::Response) -> SessionResponse {
    SessionResponse { id, response: Some(response) }
}

/// Never returns if nothing more is read; cancel safe.
async fn next_request(requests: &mut Option<Streaming<SessionRequest>>) -> Result<Option<SessionRequest>, Status> {
    match requests {
        Some(requests) => requests.message().await,
        None => std::future::pending().await,
    }
}
