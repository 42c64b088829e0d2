//! A few connections, each to one server at a time; the next server when that one fails.
//!
//! HTTP/2 carries many requests over one connection, but one connection is also one task that frames them: a handful
//! of connections serve concurrent unary calls measurably better than one. Channels connect when first used and
//! reconnect by themselves; what is done here is to choose, to give up in time, and to move on.

use std::{
    fmt,
    future::Future,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use coact_core::{Error, Result, env::Env, error::Effect};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tonic::{Response, Status, service::interceptor::InterceptedService, transport::Endpoint};

use crate::{
    config::Config,
    credentials::{Credentials, Login, Wire, token_is_over},
    errors::{Access, Failure, Peer, closed},
    wire::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient},
};

/// How many connections a handle keeps.
const LINES: usize = 4;
/// The longest answer that is accepted. etcd itself sends answers of any length.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How often an open stream is probed. etcd closes connections that are probed more often than every 5 s.
const PROBE_INTERVAL: Duration = Duration::from_secs(6);
/// How long a probe may stay without answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection as taken for one request.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) channel: Wire,
    slot: usize,
    server: usize,
    generation: u64,
}

pub(crate) struct Connections {
    pub(crate) config: Config,
    pub(crate) env: Env,
    endpoints: Vec<Endpoint>,
    credentials: Credentials,
    /// Empty once closed.
    lines: Mutex<Vec<Line>>,
    turn: AtomicUsize,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({})", self.config.description)
    }
}

impl Connections {
    pub(crate) fn new(config: Config, env: Env) -> Result<Self> {
        let endpoint = |server: &String| {
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
                .map_err(|error| Error::invalid(format!("URL host {server:?} is not allowed")).with_source(error))?;
            let endpoint = match &config.tls {
                None => endpoint,
                Some(tls) => endpoint.tls_config(tls.clone()).map_err(|error| {
                    Error::invalid(format!("the TLS options of {} cannot be used", config.description))
                        .with_source(error)
                })?,
            };
            Ok::<_, Error>(
                endpoint
                    .connect_timeout(config.connect_timeout)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(PROBE_INTERVAL)
                    .keep_alive_timeout(PROBE_TIMEOUT)
                    .keep_alive_while_idle(false),
            )
        };
        let endpoints = config.servers.iter().map(endpoint).collect::<Result<Vec<_>>>()?;
        // Handles begin at different servers, so that they do not all lean on the first one.
        let first = env.random() as usize % endpoints.len();
        let credentials = Credentials::new(&config.login)?;
        let line = |slot: usize| {
            let server = (first + slot) % endpoints.len();
            Line { channel: wire(&endpoints[server], &credentials), slot, server, generation: 0 }
        };
        let lines = Mutex::new((0..LINES).map(line).collect());
        Ok(Self { config, env, endpoints, credentials, lines, turn: AtomicUsize::new(0) })
    }

    /// The next connection in turn.
    pub(crate) fn line(&self) -> Result<Line> {
        self.line_in(self.slot())
    }

    /// The place of a connection: whoever keeps to one gets a fresh connection there after it was replaced.
    pub(crate) fn slot(&self) -> usize {
        self.turn.fetch_add(1, Relaxed) % LINES
    }

    pub(crate) fn line_in(&self, slot: usize) -> Result<Line> {
        self.lines.lock().get(slot).cloned().ok_or_else(|| closed(&self.config.description))
    }

    /// Replaces a connection that failed by one to the next server. Whoever comes first does it.
    pub(crate) fn replace(&self, failed: &Line) {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get_mut(failed.slot)
            && line.generation == failed.generation
        {
            line.server = (line.server + 1) % self.endpoints.len();
            line.channel = wire(&self.endpoints[line.server], &self.credentials);
            line.generation += 1;
        }
    }

    /// The server of a connection, for messages.
    pub(crate) fn peer(&self, line: &Line) -> Peer {
        self.named(self.config.servers[line.server].clone())
    }

    /// All servers, for messages.
    pub(crate) fn peers(&self) -> Peer {
        self.named(self.config.servers.join(", "))
    }

    fn named(&self, address: String) -> Peer {
        Peer { flavour: self.config.flavour, address, connect_timeout: self.config.connect_timeout }
    }

    pub(crate) fn servers(&self) -> usize {
        self.endpoints.len()
    }

    /// Lets go of every connection; requests under way finish.
    pub(crate) fn close(&self) {
        self.lines.lock().clear();
    }

    /// Sends one request, and repeats it elsewhere if that is safe: because it was not sent, or because it does no more
    /// when it happens twice.
    pub(crate) async fn call<Q, A, F>(
        &self,
        access: Access,
        request: Q,
        send: impl Fn(Wire, Q) -> F,
    ) -> Result<Response<A>>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_with(matches!(self.config.login, Login::User(..)), access, request, send).await
    }

    /// As [`call`](Self::call); `renew` says whether to ask for a new token, once, if the server has forgotten ours.
    async fn call_with<Q, A, F>(
        &self,
        renew: bool,
        access: Access,
        request: Q,
        send: impl Fn(Wire, Q) -> F,
    ) -> Result<Response<A>>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = self.env.now() + self.config.timeout;
        let mut line = self.line()?;
        let mut tries = 0;
        let mut renew = renew;
        loop {
            let left = deadline.saturating_duration_since(self.env.now());
            let status = match self.env.timeout(left, send(line.channel.clone(), request.clone())).await {
                Some(Ok(response)) => return Ok(response),
                Some(Err(status)) => status,
                None => {
                    self.replace(&line);
                    return Err(Failure::timeout(&self.peer(&line), self.config.timeout, access).error);
                }
            };
            if renew && token_is_over(&status) {
                renew = false;
                self.log_in().await?;
                continue;
            }
            tries += 1;
            let failure = Failure::of(&status, &self.peer(&line), access);
            if !failure.elsewhere {
                return Err(failure.error);
            }
            self.replace(&line);
            let harmless = access != Access::Write || failure.error.effect() == Effect::NotApplied;
            // A broken connection to the only server is worth a second one; a server that accepts none is not.
            let enough = self.servers() + usize::from(!failure.unreachable);
            if !harmless || tries >= enough {
                let everywhere = failure.unreachable && self.servers() > 1;
                return Err(if everywhere { Failure::of(&status, &self.peers(), access).error } else { failure.error });
            }
            line = self.line_in(line.slot)?;
        }
    }

    /// Gets a token for the user of the URL, if it names one. etcd forgets its tokens after a while.
    pub(crate) fn log_in(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Login::User(name, password) = &self.config.login else { return Ok(()) };
            let request = AuthenticateRequest { name: name.clone(), password: password.expose()? };
            let authenticate = |wire: Wire, request| async move { AuthClient::new(wire).authenticate(request).await };
            match self.call_with(false, Access::Read, request, authenticate).await {
                Ok(answer) => self.credentials.set(&answer.get_ref().token),
                // Nobody is asked who they are, so who we are does not matter.
                Err(error) if error.message().ends_with("authentication is not enabled") => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// After a stream was refused: a new token, if that is why.
    pub(crate) async fn log_in_after(&self, status: &Status) {
        if token_is_over(status)
            && let Err(error) = self.log_in().await
        {
            tracing::debug!(%error, "no new token");
        }
    }
}

fn wire(endpoint: &Endpoint, credentials: &Credentials) -> Wire {
    InterceptedService::new(endpoint.connect_lazy(), credentials.clone())
}
