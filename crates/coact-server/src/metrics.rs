//! What a node counts, and the text in which Prometheus reads it.
//!
//! Names and labels are stable. The engine's numbers are read when they are asked for; gRPC calls are counted by one
//! layer around all of them, so no handler can forget.

mod grid;
pub(crate) mod http;
pub(crate) mod messaging;
mod traffic;

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};
use coact_core::env::Env;
use coact_engine_embedded::Stats;
use hyper::body::{Frame, SizeHint};
use tonic::Code;

use messaging::Gathered;
use traffic::Traffic;

/// The upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The names of the gRPC codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Stands for every method that does not exist.
const OTHER: &str = "other";

/// Every method, and whether it is a stream, whose duration says nothing. The set is closed: a client cannot make
/// labels up.
const METHODS: [(&str, bool); 71] = [
    ("/etcdserverpb.Auth/Authenticate", false),
    ("/etcdserverpb.KV/Range", false),
    ("/etcdserverpb.KV/Put", false),
    ("/etcdserverpb.KV/DeleteRange", false),
    ("/etcdserverpb.KV/Txn", false),
    ("/etcdserverpb.KV/Compact", false),
    ("/etcdserverpb.Watch/Watch", true),
    ("/etcdserverpb.Lease/LeaseGrant", false),
    ("/etcdserverpb.Lease/LeaseRevoke", false),
    ("/etcdserverpb.Lease/LeaseKeepAlive", true),
    ("/etcdserverpb.Lease/LeaseTimeToLive", false),
    ("/etcdserverpb.Lease/LeaseLeases", false),
    ("/etcdserverpb.Cluster/MemberAdd", false),
    ("/etcdserverpb.Cluster/MemberRemove", false),
    ("/etcdserverpb.Cluster/MemberUpdate", false),
    ("/etcdserverpb.Cluster/MemberList", false),
    ("/etcdserverpb.Cluster/MemberPromote", false),
    ("/etcdserverpb.Maintenance/Alarm", false),
    ("/etcdserverpb.Maintenance/Status", false),
    ("/etcdserverpb.Maintenance/Defragment", false),
    ("/etcdserverpb.Maintenance/Hash", false),
    ("/etcdserverpb.Maintenance/HashKV", false),
    ("/etcdserverpb.Maintenance/Snapshot", true),
    ("/etcdserverpb.Maintenance/MoveLeader", false),
    ("/v3lockpb.Lock/Lock", false),
    ("/v3lockpb.Lock/Unlock", false),
    ("/v3electionpb.Election/Campaign", false),
    ("/v3electionpb.Election/Proclaim", false),
    ("/v3electionpb.Election/Leader", false),
    ("/v3electionpb.Election/Observe", true),
    ("/v3electionpb.Election/Resign", false),
    ("/coact.v1.Streams/Guarantees", false),
    ("/coact.v1.Streams/CreateTopic", false),
    ("/coact.v1.Streams/AlterTopic", false),
    ("/coact.v1.Streams/DeleteTopic", false),
    ("/coact.v1.Streams/GetTopic", false),
    ("/coact.v1.Streams/ListTopics", false),
    ("/coact.v1.Streams/Append", false),
    ("/coact.v1.Streams/Read", false),
    ("/coact.v1.Streams/Tail", true),
    ("/coact.v1.Streams/Bounds", false),
    ("/coact.v1.Streams/Seek", false),
    ("/coact.v1.Streams/Trim", false),
    ("/coact.v1.Streams/Commit", false),
    ("/coact.v1.Streams/FenceGroup", false),
    ("/coact.v1.Streams/GetGroup", false),
    ("/coact.v1.Streams/ListGroups", false),
    ("/coact.v1.Streams/DeleteGroup", false),
    ("/coact.v1.Streams/Schedule", false),
    ("/coact.v1.Streams/CancelDelayed", false),
    ("/coact.v1.Streams/RescheduleDelayed", false),
    ("/coact.v1.Streams/ListDelayed", false),
    ("/coact.v1.Streams/DelayStats", false),
    ("/coact.v1.Streams/Session", true),
    ("/coact.v1.Queues/PutQueue", false),
    ("/coact.v1.Queues/DeleteQueue", false),
    ("/coact.v1.Queues/GetQueue", false),
    ("/coact.v1.Queues/ListQueues", false),
    ("/coact.v1.Queues/Enqueue", false),
    ("/coact.v1.Queues/Claim", false),
    ("/coact.v1.Queues/Settle", false),
    ("/coact.v1.Queues/CancelJob", false),
    ("/coact.v1.Queues/RescheduleJob", false),
    ("/coact.v1.Queues/GetJob", false),
    ("/coact.v1.Queues/ListJobs", false),
    ("/coact.v1.Queues/FindJob", false),
    ("/coact.v1.Queues/Redrive", false),
    ("/coact.v1.Queues/Purge", false),
    ("/coact.v1.Queues/Pause", false),
    ("/coact.v1.Queues/Stats", false),
    (OTHER, false),
];

/// Counts and times every gRPC call that passes.
pub(crate) async fn measure(
    State((metrics, env)): State<(Arc<Metrics>, Env)>,
    request: Request,
    next: Next,
) -> Response {
    let mut call = Call::begin(metrics, env, request.uri().path());
    let response = next.run(request).await;
    call.note_status(response.headers());
    response.map(|body| Body::new(Measured { body, call }))
}

/// What everything that counts holds.
pub(crate) type SharedMetrics = Arc<Metrics>;

/// What is counted about calls.
#[derive(Debug)]
pub(crate) struct Metrics {
    methods: HashMap<&'static str, MethodMetrics>,
    routes: http::Routes,
    dns: grid::Dns,
    checks: grid::Checks,
}

#[derive(Debug, Default)]
struct MethodMetrics {
    codes: [AtomicU64; CODES.len()],
    in_flight: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
    duration_us: AtomicU64,
    streaming: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let method = |streaming| MethodMetrics { streaming, ..MethodMetrics::default() };
        let methods = METHODS.iter().map(|(name, streaming)| (*name, method(*streaming))).collect();
        Self { methods, routes: http::Routes::default(), dns: grid::Dns::default(), checks: grid::Checks::default() }
    }
}

impl Metrics {
    /// The page that Prometheus reads. `connections` are open, accepted and refused ones.
    pub(crate) fn render(
        &self,
        stats: &Stats,
        healthy: bool,
        connections: (u64, u64, u64),
        messages: (&Gathered, &Traffic),
    ) -> String {
        let mut page = Page::default();
        page.gauge("coact_healthy", "1 unless a failed write stopped the engine.", u64::from(healthy));
        page.gauge("coact_keys", "Keys that exist.", stats.keys);
        page.gauge("coact_revision", "The newest revision that readers see.", stats.revision);
        page.gauge("coact_compacted_revision", "The oldest revision that can be read.", stats.compacted);
        page.counter("coact_commits_total", "Transactions that were committed.", stats.commits);
        page.counter("coact_batches_total", "Batches of transactions written to the log.", stats.batches);
        page.counter("coact_syncs_total", "Times that the log was synced to disk.", stats.syncs);
        page.gauge("coact_log_bytes", "Bytes that the log and its snapshot take.", stats.log_bytes);
        page.counter("coact_snapshots_total", "Snapshots written.", stats.snapshots);
        page.gauge("coact_leases", "Leases that are alive.", stats.leases);
        page.counter(
            "coact_lease_expirations_total",
            "Leases that ended for want of renewal.",
            stats.lease_expirations,
        );
        page.gauge("coact_watchers", "Watches that run.", stats.watchers);
        page.gauge("coact_waiters", "Requests that wait for a key to go away.", stats.waiters);
        page.counter("coact_wakes_total", "Waiting requests that were woken.", stats.wakes);
        let (open, accepted, refused) = connections;
        page.gauge("coact_connections", "Connections that are open.", open);
        page.counter("coact_connections_accepted_total", "Connections taken in.", accepted);
        page.counter("coact_connections_refused_total", "Connections closed at the limit.", refused);
        self.render_calls(&mut page);
        self.routes.render(&mut page);
        self.dns.render(&mut page);
        self.checks.render(&mut page);
        messages.0.render(&mut page);
        messages.1.render(&mut page);
        page.0
    }

    fn render_calls(&self, page: &mut Page) {
        let methods = || METHODS.iter().filter_map(|(name, _)| self.methods.get_key_value(name));
        page.head("coact_grpc_requests_total", "counter", "gRPC calls that ended, by method and code.");
        for (name, method) in methods() {
            for (code, count) in CODES.iter().zip(&method.codes) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels = format!("{},code=\"{code}\"", Labels(name));
                    page.line("coact_grpc_requests_total", &labels, count);
                }
            }
        }
        page.head("coact_grpc_requests_in_flight", "gauge", "gRPC calls that run, streams included.");
        for (name, method) in methods().filter(|(_, method)| method.seen()) {
            page.line("coact_grpc_requests_in_flight", &Labels(name).to_string(), method.in_flight.load(Relaxed));
        }
        page.head("coact_grpc_request_seconds", "histogram", "How long gRPC calls took; streams are left out.");
        for (name, method) in methods().filter(|(_, method)| method.seen() && !method.streaming) {
            method.render_durations(page, &Labels(name).to_string());
        }
    }

    fn method(&self, path: &str) -> Option<&MethodMetrics> {
        self.methods.get(path).or_else(|| self.methods.get(OTHER))
    }
}

impl MethodMetrics {
    fn seen(&self) -> bool {
        self.in_flight.load(Relaxed) > 0 || self.ended() > 0
    }

    fn ended(&self) -> u64 {
        self.codes.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn end(&self, code: Code, duration: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        if let Some(count) = self.codes.get(code as usize) {
            count.fetch_add(1, Relaxed);
        }
        let seconds = duration.as_secs_f64();
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at].fetch_add(1, Relaxed);
        }
        self.duration_us.fetch_add(duration.as_micros() as u64, Relaxed);
    }

    fn render_durations(&self, page: &mut Page, labels: &str) {
        // The total is read last and never below the buckets, which a call may fill meanwhile.
        let buckets = self.buckets.each_ref().map(|count| count.load(Relaxed));
        let total = self.ended().max(buckets.iter().sum());
        let sum = Duration::from_micros(self.duration_us.load(Relaxed));
        page.histogram("coact_grpc_request_seconds", labels, &Durations { buckets, total, sum });
    }
}

/// How long something took, in [`BUCKETS`].
struct Durations {
    buckets: [u64; BUCKETS.len()],
    total: u64,
    sum: Duration,
}

/// `/package.Service/Method` as labels.
struct Labels<'a>(&'a str);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, method) = self.0.trim_start_matches('/').split_once('/').unwrap_or((OTHER, OTHER));
        write!(f, "service=\"{service}\",method=\"{method}\"")
    }
}

/// Text in Prometheus' exposition format.
#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn histogram(&mut self, name: &str, labels: &str, durations: &Durations) {
        let mut cumulative = 0;
        for (bound, count) in BUCKETS.iter().zip(durations.buckets) {
            cumulative += count;
            self.line(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), cumulative);
        }
        self.line(&format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), durations.total);
        self.line(&format!("{name}_sum"), labels, durations.sum.as_secs_f64());
        self.line(&format!("{name}_count"), labels, durations.total);
    }

    fn line(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }
}

/// One call on its way; counted when it is dropped, so that one that the client gave up counts too.
struct Call {
    metrics: Arc<Metrics>,
    env: Env,
    path: String,
    started: Instant,
    code: Option<Code>,
}

impl Call {
    fn begin(metrics: Arc<Metrics>, env: Env, path: &str) -> Self {
        if let Some(method) = metrics.method(path) {
            method.in_flight.fetch_add(1, Relaxed);
        }
        Self { started: env.now(), metrics, env, path: path.to_owned(), code: None }
    }

    /// Takes the status from headers or trailers, wherever it is.
    fn note_status(&mut self, fields: &HeaderMap) {
        if let Some(status) = fields.get(tonic::Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(method) = self.metrics.method(&self.path) {
            let duration = self.env.now().saturating_duration_since(self.started);
            method.end(self.code.unwrap_or(Code::Cancelled), duration);
        }
    }
}

/// A response whose trailers are read as they pass.
struct Measured {
    body: Body,
    call: Call,
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.note_status(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
