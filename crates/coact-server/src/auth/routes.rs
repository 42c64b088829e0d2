//! Tokens and roles over HTTP: `/v1/auth/tokens` and `/v1/auth/roles`, for admins.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/auth/tokens` | | `{"tokens":[…]}` |
//! | `POST /v1/auth/tokens` | `{"label":…,"roles":[…],"expires_in":"30d"}` | 201, with the `token`, once |
//! | `DELETE /v1/auth/tokens/ID` | | 204 |
//! | `GET /v1/auth/roles` | | `{"roles":[…]}` |
//! | `PUT /v1/auth/roles/NAME` | `{"permissions":[{"namespace":…,"block":…,"verbs":…,"prefix":…}]}` | 204 |
//! | `DELETE /v1/auth/roles/NAME` | | 204 |

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get, put},
};
use coact_core::{Error, ErrorKind, Result, url::parse_duration};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Auth, Caller, NewToken, Permission, Role, table::StoredToken};
use crate::http::problem;

/// The most bytes of a request's body.
const BODY_BYTES: usize = 64 * 1024;

pub(crate) fn routes(auth: Auth) -> Router {
    Router::new()
        .route("/v1/auth/tokens", get(list_tokens).post(create_token))
        .route("/v1/auth/tokens/{id}", delete(revoke_token))
        .route("/v1/auth/roles", get(list_roles))
        .route("/v1/auth/roles/{name}", put(put_role).delete(remove_role))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(auth)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    label: String,
    roles: Vec<String>,
    #[serde(default)]
    expires_in: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleBody {
    permissions: Vec<Permission>,
}

async fn list_tokens(caller: Caller, State(auth): State<Auth>) -> Result<Response, Refused> {
    admin(&caller, &auth, "list tokens")?;
    let now = auth.now_ms();
    let tokens: Vec<_> = auth.tokens().iter().map(|(id, token)| shown(id, token, now)).collect();
    Ok(Json(json!({ "tokens": tokens })).into_response())
}

async fn create_token(caller: Caller, State(auth): State<Auth>, body: Bytes) -> Result<Response, Refused> {
    admin(&caller, &auth, "create a token")?;
    let TokenBody { label, roles, expires_in } = read(&body)?;
    let lives = expires_in.as_deref().map(parse_life).transpose()?;
    let (token, stored) = auth.create_token(caller.principal(), NewToken { label, roles, lives }).await?;
    let mut answer = shown(&token.id(), &stored, auth.now_ms());
    answer["token"] = token.expose().into();
    let mut response = (StatusCode::CREATED, Json(answer)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn revoke_token(caller: Caller, State(auth): State<Auth>, Path(id): Path<String>) -> Result<Response, Refused> {
    admin(&caller, &auth, "revoke a token")?;
    auth.revoke_token(caller.principal(), &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_roles(caller: Caller, State(auth): State<Auth>) -> Result<Response, Refused> {
    admin(&caller, &auth, "list roles")?;
    let built_in = |role: &Role| super::role::built_in(&role.name).is_some();
    let shown = |role: &Role| json!({ "name": role.name, "built_in": built_in(role), "permissions": role.permissions });
    let roles: Vec<_> = auth.roles().iter().map(shown).collect();
    Ok(Json(json!({ "roles": roles })).into_response())
}

async fn put_role(
    caller: Caller,
    State(auth): State<Auth>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Refused> {
    admin(&caller, &auth, "put a role")?;
    let RoleBody { permissions } = read(&body)?;
    auth.put_role(caller.principal(), Role::new(&name, permissions)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn remove_role(caller: Caller, State(auth): State<Auth>, Path(name): Path<String>) -> Result<Response, Refused> {
    admin(&caller, &auth, "remove a role")?;
    auth.remove_role(caller.principal(), &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Without tokens nobody can be told from anybody, and a token planted now would open the node once they are on.
fn admin(caller: &Caller, auth: &Auth, what: &str) -> Result<()> {
    if !auth.is_enabled() {
        let message = "this node asks for no tokens: start it with a configuration that has auth.enabled = true, as \
                       `coact init` writes it";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    caller.allow_admin(what)
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body is not what is expected: {error}")))
}

/// A duration, which may also be in days.
fn parse_life(text: &str) -> Result<Duration> {
    let days =
        text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()).and_then(|days| days.checked_mul(86_400));
    days.map(Duration::from_secs).or_else(|| parse_duration(text)).filter(|life| !life.is_zero()).ok_or_else(|| {
        Error::invalid(format!("expires_in {text:?} is not allowed: use a number with a unit, 10m, 12h or 30d"))
    })
}

/// Everything about a token but what would let somebody use it.
fn shown(id: &str, token: &StoredToken, now_ms: u64) -> Value {
    json!({
        "id": id,
        "label": token.label,
        "roles": token.roles,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms,
        "expired": token.has_expired(now_ms),
        "created_by": token.created_by,
    })
}

/// An error, as a problem of RFC 9457.
struct Refused(Error);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::Unsupported => StatusCode::CONFLICT,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, self.0.kind(), &self.0.to_string())
    }
}
