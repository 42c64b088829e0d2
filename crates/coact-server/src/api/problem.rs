//! Errors over HTTP: RFC 9457, with the three axes of a coact error.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use coact_core::{Effect, Error, ErrorKind, Retry};
use serde::Serialize;
use utoipa::ToSchema;

/// An error under an HTTP status.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    error: Error,
}

impl Problem {
    /// A problem that is final and changed nothing.
    pub(crate) fn new(status: StatusCode, kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: Error::new(kind, detail.into()).with_retry(Retry::Never) }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { status: status_of(&error), error }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body::of(self.status, &self.error);
        let pause = body.retry_after_ms;
        let body = serde_json::to_string(&body).unwrap_or_default();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(pause) = pause {
            // In whole seconds, rounded up, as HTTP has it.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(pause.div_ceil(1000)));
        }
        response
    }
}

/// What went wrong, as `application/problem+json`.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Body {
    /// Always `about:blank`: the kind says more.
    #[schema(value_type = String, example = "about:blank")]
    r#type: &'static str,
    /// The status in words.
    #[schema(value_type = String, example = "Conflict")]
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What was wrong and what is allowed, for people.
    detail: String,
    /// What programs act on: `coact explain KIND` has a page for each.
    #[schema(value_type = String, example = "conflict")]
    kind: &'static str,
    /// Whether the same request may succeed later: `never` or `after`.
    #[schema(value_type = String, example = "never")]
    retry: &'static str,
    /// After how long, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    retry_after_ms: Option<u64>,
    /// Whether the request may have taken effect: `not-applied` or `unknown`.
    #[schema(value_type = String, example = "not-applied")]
    effect: &'static str,
}

impl Body {
    fn of(status: StatusCode, error: &Error) -> Self {
        let (retry, retry_after_ms) = match error.retry() {
            Retry::Never => ("never", None),
            Retry::After(pause) => ("after", Some(pause.as_millis() as u64)),
        };
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: error.to_string(),
            kind: error.kind().name(),
            retry,
            retry_after_ms,
            effect: error.effect().name(),
        }
    }
}

fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Fenced => StatusCode::CONFLICT,
        ErrorKind::Compacted => StatusCode::GONE,
        ErrorKind::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable | ErrorKind::Closed if error.effect() == Effect::Unknown => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
