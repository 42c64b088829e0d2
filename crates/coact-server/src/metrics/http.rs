//! What is counted about HTTP requests: by route, as it is written in the code, so a client cannot make labels up.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use coact_core::env::Env;
use parking_lot::Mutex;

use super::{BUCKETS, Durations, Metrics, Page};

/// Counters of all routes. A request takes the lock once, for a few additions.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<BTreeMap<Route, Counts>>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    path: String,
    method: String,
}

#[derive(Debug, Default)]
struct Counts {
    statuses: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    duration: Duration,
}

/// Counts and times every request up to the first byte of its answer: what follows, of a watch, has no end. A request
/// that its client gave up has the status 499.
pub(crate) async fn measure(
    State((metrics, env)): State<(Arc<Metrics>, Env)>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let route = Route { path: path.as_str().to_owned(), method: request.method().to_string() };
    let mut running = Running { metrics, started: env.now(), env, route: Some(route), status: 499 };
    let response = next.run(request).await;
    running.status = response.status().as_u16();
    response
}

struct Running {
    metrics: Arc<Metrics>,
    env: Env,
    started: Instant,
    route: Option<Route>,
    status: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(route) = self.route.take() {
            let duration = self.env.now().saturating_duration_since(self.started);
            self.metrics.routes.note(route, self.status, duration);
        }
    }
}

impl Routes {
    fn note(&self, route: Route, status: u16, duration: Duration) {
        let mut routes = self.0.lock();
        let counts = routes.entry(route).or_default();
        *counts.statuses.entry(status).or_default() += 1;
        counts.duration += duration;
        if let Some(at) = BUCKETS.iter().position(|bound| duration.as_secs_f64() <= *bound) {
            counts.buckets[at] += 1;
        }
    }

    pub(super) fn render(&self, page: &mut Page) {
        let routes = self.0.lock();
        page.head("coact_http_requests_total", "counter", "HTTP requests answered, by route and status.");
        for (route, counts) in routes.iter() {
            for (status, count) in &counts.statuses {
                let labels = format!("{},status=\"{status}\"", route.labels());
                page.line("coact_http_requests_total", &labels, count);
            }
        }
        page.head("coact_http_request_seconds", "histogram", "How long HTTP requests took to their first byte.");
        for (route, counts) in routes.iter() {
            let total = counts.statuses.values().sum();
            let durations = Durations { buckets: counts.buckets, total, sum: counts.duration };
            page.histogram("coact_http_request_seconds", &route.labels(), &durations);
        }
    }
}

impl Route {
    fn labels(&self) -> String {
        format!("route=\"{}\",method=\"{}\"", self.path, self.method)
    }
}
