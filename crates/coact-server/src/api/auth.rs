//! Tokens and roles, for admins.

use std::time::Duration;

use axum::{
    Json as Answer,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use coact_core::{Error, ErrorKind, Result, url::parse_duration};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller,
    extract::{Json, Path},
    problem::{self, Problem},
};
use crate::auth::{Auth, NewToken, Permission, Role, StoredToken};

/// A token.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TokenPath {
    /// Its id: the first eight digits after `coact_`.
    #[param(example = "0a1b2c3d")]
    id: String,
}

/// A role.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct RolePath {
    /// Its name.
    #[param(example = "deployer")]
    name: String,
}

/// A token to be made.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewToken)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenBody {
    /// Who will have it, for people.
    #[schema(example = "ci")]
    label: String,
    /// What its bearer may do.
    #[schema(example = json!(["read-only"]))]
    roles: Vec<String>,
    /// How long it is valid, such as `30d`; without it until it is revoked.
    #[schema(example = "30d")]
    expires_in: Option<String>,
}

/// What a role allows.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewRole)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleBody {
    /// What is not named here is denied.
    #[schema(value_type = Vec<PermissionView>)]
    permissions: Vec<Permission>,
}

/// Verbs on resources of a block whose names start with a prefix, in a namespace.
#[derive(ToSchema)]
#[schema(as = Permission)]
#[allow(dead_code, reason = "describes how Permission is written")]
pub(super) struct PermissionView {
    /// One, or `*`.
    #[schema(example = "shop")]
    namespace: String,
    /// `kv`, `lock`, `directory`, `config`, `id`, `session`, `mq`, `queue`, `metrics` or `*`.
    #[schema(example = "lock")]
    block: String,
    /// `read`, `write` and `admin`, joined by commas.
    #[schema(example = "read,write")]
    verbs: String,
    /// Empty for all.
    #[schema(example = "deploy/")]
    prefix: String,
}

/// Everything about a token but what would let somebody use it.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenView {
    id: String,
    label: String,
    roles: Vec<String>,
    created_ms: u64,
    expires_ms: Option<u64>,
    expired: bool,
    created_by: String,
    /// The token itself, shown once: when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// Every token.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    tokens: Vec<TokenView>,
}

/// Every role.
#[derive(Serialize, ToSchema)]
pub(super) struct Roles {
    roles: Vec<RoleView>,
}

/// A role.
#[derive(Serialize, ToSchema)]
struct RoleView {
    name: String,
    /// Built-in ones cannot be changed.
    built_in: bool,
    #[schema(value_type = Vec<PermissionView>)]
    permissions: Vec<Permission>,
}

/// List tokens.
#[utoipa::path(
    get, path = "/v1/auth/tokens", operation_id = "auth_tokens", tag = "auth",
    responses(
        (status = 200, description = "Every token, without what would let somebody use it", body = Tokens),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn tokens(State(api): State<Api>, caller: Caller) -> Result<Answer<Tokens>, Problem> {
    let auth = admin(&api, &caller, "list tokens")?;
    let tokens = auth.tokens().iter().map(|(id, token)| view(auth, id, token)).collect();
    Ok(Answer(Tokens { tokens }))
}

/// Make a token. It is shown once.
#[utoipa::path(
    post, path = "/v1/auth/tokens", operation_id = "auth_create_token", tag = "auth", request_body = TokenBody,
    responses(
        (status = 201, description = "The token", body = TokenView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_token(
    State(api): State<Api>,
    caller: Caller,
    body: Result<Json<TokenBody>, Problem>,
) -> Result<Response, Problem> {
    let auth = admin(&api, &caller, "create a token")?;
    let Json(TokenBody { label, roles, expires_in }) = body?;
    let lives = expires_in.as_deref().map(parse_life).transpose()?;
    let (token, stored) = auth.create_token(caller.principal(), NewToken { label, roles, lives }).await?;
    let shown = TokenView { token: Some(token.expose()), ..view(auth, &token.id(), &stored) };
    let mut response = (StatusCode::CREATED, Answer(shown)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Revoke a token, at once.
#[utoipa::path(
    delete, path = "/v1/auth/tokens/{id}", operation_id = "auth_revoke_token", tag = "auth", params(TokenPath),
    responses(
        (status = 204, description = "It is worth nothing any more"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn revoke_token(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<TokenPath>,
) -> Result<StatusCode, Problem> {
    admin(&api, &caller, "revoke a token")?.revoke_token(caller.principal(), &path.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List roles.
#[utoipa::path(
    get, path = "/v1/auth/roles", operation_id = "auth_roles", tag = "auth",
    responses(
        (status = 200, description = "Every role", body = Roles),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn roles(State(api): State<Api>, caller: Caller) -> Result<Answer<Roles>, Problem> {
    let auth = admin(&api, &caller, "list roles")?;
    let roles = auth.roles().into_iter().map(|role| RoleView {
        built_in: Role::is_built_in(&role.name),
        name: role.name,
        permissions: role.permissions,
    });
    Ok(Answer(Roles { roles: roles.collect() }))
}

/// Write a role, or replace it. Its bearers have the new permissions at once.
#[utoipa::path(
    put, path = "/v1/auth/roles/{name}", operation_id = "auth_put_role", tag = "auth", params(RolePath),
    request_body = RoleBody,
    responses(
        (status = 204, description = "Written"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_role(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<RolePath>,
    body: Result<Json<RoleBody>, Problem>,
) -> Result<StatusCode, Problem> {
    let auth = admin(&api, &caller, "put a role")?;
    let Json(RoleBody { permissions }) = body?;
    auth.put_role(caller.principal(), Role::new(&path.name, permissions)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a role from everybody who has it.
#[utoipa::path(
    delete, path = "/v1/auth/roles/{name}", operation_id = "auth_remove_role", tag = "auth", params(RolePath),
    responses(
        (status = 204, description = "Nobody has it any more"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn remove_role(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<RolePath>,
) -> Result<StatusCode, Problem> {
    admin(&api, &caller, "remove a role")?.remove_role(caller.principal(), &path.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Without tokens nobody can be told from anybody, and a token planted now would open the node once they are on.
fn admin<'a>(api: &'a Api, caller: &Caller, what: &str) -> Result<&'a Auth, Problem> {
    let auth = api.0.node.auth();
    if !auth.is_enabled() {
        let detail = "this node asks for no tokens: start it with a configuration that has auth.enabled = true, as \
                      `coact init` writes it";
        return Err(Problem::new(StatusCode::CONFLICT, ErrorKind::Unsupported, detail));
    }
    caller.allow_admin(what)?;
    Ok(auth)
}

/// A duration, which may also be in days.
fn parse_life(text: &str) -> Result<Duration> {
    let days =
        text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()).and_then(|days| days.checked_mul(86_400));
    days.map(Duration::from_secs).or_else(|| parse_duration(text)).filter(|life| !life.is_zero()).ok_or_else(|| {
        Error::invalid(format!("expires_in {text:?} is not allowed: use a number with a unit, 10m, 12h or 30d"))
    })
}

fn view(auth: &Auth, id: &str, token: &StoredToken) -> TokenView {
    TokenView {
        id: id.to_owned(),
        label: token.label.clone(),
        roles: token.roles.clone(),
        created_ms: token.created_ms,
        expires_ms: token.expires_ms,
        expired: token.has_expired(auth.now_ms()),
        created_by: token.created_by.clone(),
        token: None,
    }
}
