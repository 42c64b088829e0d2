//! Who is it? Asked of every request, before anything else looks at it.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use coact_core::ErrorKind;

use super::{Access, Auth, Block, Caller, Principal, Verb};
use crate::{api::problem::Problem, http::speaks_grpc};

/// What answers without a token: nothing that tells of data, and where a token is shown.
const OPEN: [&str; 5] = ["/healthz", "/readyz", "/health", "/version", "/etcdserverpb.Auth/Authenticate"];
/// Where etcd's clients put what `Authenticate` gave them.
const ETCD_TOKEN: &str = "token";

/// Puts a [`Caller`] into the request, or refuses it.
pub(crate) async fn authenticate(State(auth): State<Auth>, mut request: Request, next: Next) -> Response {
    let principal = auth.identify(bearer(request.headers()));
    let path = request.uri().path();
    if matches!(principal, Principal::Anonymous) && !OPEN.contains(&path) {
        auth.note_anonymous(&format!("{} {path}", request.method()));
        return unauthenticated(request.headers());
    }
    if path == "/metrics" {
        let page = Access { namespace: None, block: Block::Metrics, verb: Verb::Read, resource: "" };
        if let Err(denied) = auth.check(&principal, &page) {
            return Problem::from(denied).into_response();
        }
    }
    request.extensions_mut().insert(principal.clone());
    request.extensions_mut().insert(Caller::new(auth, principal));
    next.run(request).await
}

/// The token that a request carries.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then_some(token.trim());
    }
    headers.get(ETCD_TOKEN)?.to_str().ok()
}

fn unauthenticated(headers: &HeaderMap) -> Response {
    if speaks_grpc(headers) {
        return tonic::Status::unauthenticated("etcdserver: invalid auth token").into_http::<axum::body::Body>();
    }
    let detail = "a valid token is needed: send it as `Authorization: Bearer TOKEN`";
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, ErrorKind::Denied, detail).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
