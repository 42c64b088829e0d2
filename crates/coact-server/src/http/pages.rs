//! The pages beside gRPC: health, metrics, version, and what says that there is no such page.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use coact_core::ErrorKind;
use serde_json::json;

use super::Port;
use crate::{ETCD_VERSION, api::problem::Problem, grpc::Node, metrics::Metrics};

#[derive(Clone)]
struct Pages {
    node: Node,
    metrics: Arc<Metrics>,
    port: Arc<Port>,
}

pub(super) fn routes(node: Node, metrics: Arc<Metrics>, port: Arc<Port>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .route("/health", get(etcd_health))
        .route("/version", get(version))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(Pages { node, metrics, port })
}

/// Whether the process should live on. A failed write stops the engine for good, and a restart recovers it.
async fn healthz(State(pages): State<Pages>) -> Response {
    match pages.node.engine().health() {
        Ok(()) => Json(json!({ "status": "ok" })).into_response(),
        Err(reason) => unavailable(json!({ "status": "failed", "reason": reason })),
    }
}

/// Whether requests should be sent here.
async fn readyz(State(pages): State<Pages>) -> Response {
    let reason = if pages.node.is_draining() { Err("shutting down".to_owned()) } else { pages.node.engine().health() };
    match reason {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(reason) => unavailable(json!({ "status": "not-ready", "reason": reason })),
    }
}

/// As etcd writes it: the boolean is a string.
async fn etcd_health(State(pages): State<Pages>) -> Response {
    match pages.node.engine().health() {
        Ok(()) => Json(json!({ "health": "true" })).into_response(),
        Err(_) => unavailable(json!({ "health": "false" })),
    }
}

async fn version() -> Response {
    let version = json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": "3.4.0",
        "coact": env!("CARGO_PKG_VERSION"),
    });
    Json(version).into_response()
}

async fn metrics_page(State(pages): State<Pages>) -> Response {
    let stats = pages.node.engine().stats();
    let healthy = pages.node.engine().health().is_ok();
    let overview = pages.node.overview();
    let gathered = overview.latest().await;
    let text = pages.metrics.render(&stats, healthy, pages.port.counts(), (&gathered, overview.traffic()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

fn unavailable(body: serde_json::Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    if speaks_grpc(&headers) {
        return tonic::Status::unimplemented(format!("coact does not serve {}", uri.path()))
            .into_http::<axum::body::Body>();
    }
    let detail = format!("{} does not exist; see /docs for what does", uri.path());
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail).into_response()
}

pub(crate) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not answer {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::Unsupported, detail)
}

/// Keeps gRPC to HTTP/2, which it is defined on and which no browser speaks without TLS: a web page that tricks a
/// browser into talking to a loopback port gets no further than the pages.
pub(super) async fn require_http2(request: Request, next: Next) -> Response {
    if request.version() == Version::HTTP_2 {
        return next.run(request).await;
    }
    let detail = "gRPC is spoken over HTTP/2; connect with an etcd v3 client";
    Problem::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ErrorKind::Unsupported, detail).into_response()
}

pub(crate) fn speaks_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
