//! What handlers get: parts of the request, each with an error that says what was wrong with it.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
};
use coact_core::ErrorKind;
use serde::de::DeserializeOwned;

use super::{Api, problem::Problem};

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long a request may wait.
const WAIT_MAX_MS: u64 = 60_000;

/// A body in JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ErrorKind::Invalid,
                "the body must be JSON: send it with the header content-type: application/json",
            ));
        }
        let bytes = match api.env().timeout(BODY_TIME, Bytes::from_request(request, api)).await {
            Some(Ok(bytes)) => bytes,
            Some(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("the body is larger than {} bytes", api.body_bytes_max());
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Exhausted, detail));
            }
            Some(Err(rejection)) => {
                return Err(invalid(format!("the body could not be read: {}", rejection.body_text())));
            }
            None => {
                let detail = format!("the body did not arrive within {BODY_TIME:?}");
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, ErrorKind::Unavailable, detail));
            }
        };
        // An array would be taken for an object's fields in their order.
        if bytes.trim_ascii_start().starts_with(b"[") {
            return Err(invalid("the body is an array: an object is expected here"));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| invalid(format!("the body is not what is expected here: {error}")))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// The parts of the path, percent-decoded: a slash in a name is written `%2F`.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(invalid(format!("the path is not what is expected here: {}", rejection.body_text()))),
        }
    }
}

/// The parameters after the question mark; one that is not known is an error.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(invalid(format!("the query is not what is expected here: {}", error.body_text())))
            }
            Err(rejection) => Err(invalid(rejection.body_text())),
        }
    }
}

/// The name that a client gives to a request so that repeating it is safe: 1 to 128 visible ASCII characters.
pub(crate) struct IdempotencyKey(pub(crate) String);

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Problem> {
        let Some(key) = parts.headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
        match key.to_str() {
            Ok(key) if (1..=128).contains(&key.len()) => Ok(Some(Self(key.to_owned()))),
            _ => Err(invalid("the header idempotency-key is not allowed: use 1 to 128 visible ASCII characters")),
        }
    }
}

/// A condition on the entry that a write replaces: the headers If-Match and If-None-Match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// There must be no entry: `If-None-Match: *`.
    Absent,
    /// The entry must have been changed last at this revision: `If-Match: "7"`.
    ModifiedAt(u64),
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Condition {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Problem> {
        let header = |name| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
        match (header(header::IF_MATCH), header(header::IF_NONE_MATCH)) {
            (None, None) => Ok(None),
            (None, Some("*")) => Ok(Some(Self::Absent)),
            (Some(tag), None) => match tag.trim_matches('"').parse() {
                Ok(revision) if revision > 0 => Ok(Some(Self::ModifiedAt(revision))),
                _ => Err(invalid(format!("If-Match: {tag} is not allowed: use the etag of an answer, such as \"7\""))),
            },
            (None, Some(tag)) => Err(invalid(format!("If-None-Match: {tag} is not allowed here: only * is"))),
            (Some(_), Some(_)) => Err(invalid("If-Match and If-None-Match exclude each other")),
        }
    }
}

pub(crate) fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, ErrorKind::Invalid, detail)
}

/// How long a request waits for what is not there yet; not at all by default.
pub(super) fn wait_of(wait_ms: Option<u64>) -> Result<Duration, Problem> {
    match wait_ms.unwrap_or(0) {
        wait_ms @ 0..=WAIT_MAX_MS => Ok(Duration::from_millis(wait_ms)),
        other => Err(invalid(format!("wait_ms {other} is not allowed: use at most {WAIT_MAX_MS}"))),
    }
}

/// Reads a number that the document shows as a signed one of 64 bits.
pub(super) fn int64<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    at_most(from, i64::MAX as u64)
}

/// Reads a number that the document shows as a signed one of 32 bits.
pub(super) fn int32<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    Ok(at_most(from, i32::MAX as u64)?.map(|number| number as u32))
}

fn at_most<'de, D: serde::Deserializer<'de>>(from: D, most: u64) -> Result<Option<u64>, D::Error> {
    let number: Option<u64> = serde::Deserialize::deserialize(from)?;
    match number.filter(|number| *number > most) {
        None => Ok(number),
        Some(number) => Err(serde::de::Error::custom(format!("{number} is too large: at most {most} is allowed"))),
    }
}
