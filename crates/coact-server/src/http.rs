//! The one port: who may connect, for how long, and with how much; then the routes.

mod browser;
mod first_bytes;
pub(crate) mod pages;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, middleware};
use coact_core::env::Env;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
pub(crate) use pages::speaks_grpc;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};

use crate::{
    Limits,
    api::{self, Api},
    auth,
    grpc::{self, Node},
    lifecycle::Signal,
    metrics::{self, Metrics},
    tls::Tls,
};

/// How long accepting rests when the system has no socket left for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Everything that the port answers.
pub(crate) fn router(node: Node, api: Api, metrics: Arc<Metrics>, port: Arc<Port>) -> Router {
    let meter = (metrics.clone(), node.env().clone());
    let measured = middleware::from_fn_with_state(meter.clone(), metrics::measure);
    let calls = grpc::routes(node.clone()).layer(middleware::from_fn(pages::require_http2)).layer(measured);
    let auth = node.auth().clone();
    let mut api = api::routes(api);
    if !auth.is_enabled() {
        api = api.layer(middleware::from_fn(browser::refuse_foreign_pages));
    }
    let api = api.route_layer(middleware::from_fn_with_state(meter, metrics::http::measure));
    let routes = pages::routes(node, metrics, port).merge(calls).merge(api);
    // Around everything: a route that is added above is asked for a token without doing anything.
    routes.layer(middleware::from_fn_with_state(auth, auth::authenticate))
}

/// The listening side: takes connections in, keeps them within the limits, ends them.
#[derive(Debug)]
pub(crate) struct Port {
    env: Env,
    limits: Limits,
    tls: Option<Tls>,
    signal: Signal,
    /// One place for each connection, and one for the listener.
    places: Arc<Semaphore>,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Port {
    pub(crate) fn new(env: Env, limits: Limits, tls: Option<Tls>, signal: Signal) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections as usize + 1));
        Self { env, limits, tls, signal, places, accepted: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// Takes connections in until the shutdown begins.
    pub(crate) fn accept(self: Arc<Self>, listener: TcpListener, router: Router) -> impl Future<Output = ()> + Send {
        // Taken now, not when the future first runs, so that `idle` cannot overtake it.
        let place = self.places.clone().try_acquire_owned();
        async move {
            let _place = place;
            let mut signal = self.signal.clone();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = signal.draining() => return,
                };
                match accepted {
                    Ok((stream, _)) => self.admit(stream, &router),
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        self.env.sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Returns when nobody is connected and the listener is closed; meant for after the shutdown began.
    pub(crate) async fn idle(&self) {
        let _ = self.places.acquire_many(self.limits.connections.saturating_add(1)).await;
    }

    /// How many connections are open, were accepted, and were refused for want of a place.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let taken = (self.limits.connections as usize + 1).saturating_sub(self.places.available_permits());
        (taken.saturating_sub(1) as u64, self.accepted.load(Relaxed), self.refused.load(Relaxed))
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, router: &Router) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            if self.refused.fetch_add(1, Relaxed) == 0 {
                warn!(limit = self.limits.connections, "connections are refused: the limit is reached");
            }
            return;
        };
        self.accepted.fetch_add(1, Relaxed);
        self.env.spawn(self.clone().run(stream, router.clone(), place));
    }

    async fn run(self: Arc<Self>, stream: TcpStream, router: Router, _place: OwnedSemaphorePermit) {
        if let Err(error) = self.serve(stream, router).await {
            debug!(error, "a connection ended early");
        }
    }

    async fn serve(&self, stream: TcpStream, router: Router) -> Result<(), Failure> {
        stream.set_nodelay(true)?;
        let mut signal = self.signal.clone();
        let Some(tls) = &self.tls else { return self.speak(stream, router).await };
        let stream = tokio::select! {
            stream = tls.accept(stream, &self.env) => stream?,
            () = signal.draining() => return Ok(()),
        };
        self.speak(stream, router).await
    }

    async fn speak<S>(&self, stream: S, router: Router) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut signal = self.signal.clone();
        let opened = tokio::select! {
            opened = self.env.timeout(self.limits.header_time, first_bytes::read(stream)) => opened.transpose()?,
            () = signal.draining() => return Ok(()),
        };
        let Some(stream) = opened else {
            return Err("nothing was asked in time".into());
        };
        let builder = self.protocol();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = signal.draining() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection => ended,
            () = signal.ended() => Ok(()),
        }
    }

    fn protocol(&self) -> auto::Builder<Spawn> {
        let limits = &self.limits;
        let mut builder = auto::Builder::new(Spawn(self.env.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_buf_size(limits.header_bytes.max(8 * 1024) as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(limits.header_bytes)
            .max_concurrent_streams(limits.calls_per_connection)
            .keep_alive_interval(limits.ping_every)
            .keep_alive_timeout(limits.ping_timeout);
        builder
    }
}

/// Runs what hyper and tonic want to run beside a connection.
#[derive(Clone)]
pub(crate) struct Spawn(pub(crate) Env);

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}
