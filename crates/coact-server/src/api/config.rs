//! Configuration entries: versioned values, with their history and a way back.

use axum::{
    Json as Answer,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coact_blocks::directory::{Setting, SettingChange, Settings};
use coact_core::{ErrorKind, Result};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Block, Caller, KEEP_ALIVE, Store, Verb,
    entry::{bytes_of, text_or_base64},
    extract::{Json, Path, Query},
    kv::{DirsQuery, InRealm, NamespacePath, limit},
    problem::{self, Problem},
};

/// A group of settings.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct GroupPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The group, percent-encoded.
    #[param(example = "billing")]
    group: String,
}

/// A setting.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SettingPath {
    /// The namespace.
    #[param(example = "main", pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    namespace: String,
    /// The group, percent-encoded.
    #[param(example = "billing")]
    group: String,
    /// The setting.
    #[param(example = "currency")]
    key: String,
}

/// A value, and what it may replace.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSetting {
    /// Text.
    #[schema(example = "EUR")]
    value: Option<String>,
    /// Anything else.
    value_base64: Option<String>,
    /// Only over this version; 0 for none.
    expected_version: Option<u64>,
}

/// Which version to bring back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    /// One of the history.
    version: u64,
}

/// One version of a setting.
#[derive(Serialize, ToSchema)]
pub(super) struct SettingView {
    /// Its name in the group.
    key: String,
    /// What it is, if that is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// What it is, if that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// Whether this version deleted it: only in a history.
    deleted: bool,
    /// Which version this is.
    version: u64,
    /// The version whose value it brought back.
    #[serde(skip_serializing_if = "Option::is_none")]
    restores: Option<u64>,
    /// When it was written, in milliseconds since 1970.
    at_ms: u64,
}

/// Settings.
#[derive(Serialize, ToSchema)]
pub(super) struct SettingList {
    settings: Vec<SettingView>,
}

/// Groups of settings.
#[derive(Serialize, ToSchema)]
pub(super) struct Groups {
    groups: Vec<String>,
    /// Give this as `after` to get the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A new version.
#[derive(Serialize, ToSchema)]
pub(super) struct NewVersion {
    /// Its number.
    version: u64,
}

/// A change of a setting.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum SettingChangeView {
    /// It has a new version.
    Set {
        /// The version.
        setting: SettingView,
    },
    /// It was deleted.
    Deleted {
        /// Which.
        key: String,
    },
}

/// List groups, page by page.
#[utoipa::path(
    get, path = "/v1/{namespace}/config", operation_id = "config_groups", tag = "config",
    params(NamespacePath, DirsQuery),
    responses(
        (status = 200, description = "A page", body = Groups),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn groups(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<DirsQuery>,
) -> Result<Answer<Groups>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let prefix = query.prefix.unwrap_or_default();
    store.caller.allow_prefix(Block::Config, Verb::Read, store.namespace.as_str(), &prefix)?;
    let limit = limit(query.limit)?;
    let groups = settings(&store)?.groups(&prefix, query.after.as_deref().unwrap_or_default(), limit).await?;
    let next = groups.last().filter(|_| groups.len() == limit).cloned();
    Ok(Answer(Groups { groups, next }))
}

/// Read a group.
#[utoipa::path(
    get, path = "/v1/{namespace}/config/{group}", operation_id = "config_list", tag = "config",
    params(GroupPath, InRealm),
    responses(
        (status = 200, description = "Its settings; none for a group that nobody wrote", body = SettingList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
    Query(query): Query<InRealm>,
) -> Result<Answer<SettingList>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Config, Verb::Read, &path.group)?;
    let settings = settings(&store)?.list(&path.group).await?;
    Ok(Answer(SettingList { settings: settings.iter().map(SettingView::from).collect() }))
}

/// Watch a group as server-sent events: first every setting, then each change.
#[utoipa::path(
    get, path = "/v1/{namespace}/config/{group}/watch", operation_id = "config_watch", tag = "config",
    params(GroupPath, InRealm),
    responses(
        (status = 200, description = "Events `set` and `deleted`", body = SettingChangeView, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn watch(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<GroupPath>,
    Query(query): Query<InRealm>,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Config, Verb::Read, &path.group)?;
    let changes = settings(&store)?.watch(&path.group)?;
    let events = stream::unfold(changes, async |mut changes| {
        let change = match changes.next().await.ok()? {
            SettingChange::Set(setting) => SettingChangeView::Set { setting: (&setting).into() },
            SettingChange::Deleted { key } => SettingChangeView::Deleted { key },
        };
        let name = if matches!(change, SettingChangeView::Set { .. }) { "set" } else { "deleted" };
        Some((Event::default().event(name).json_data(change), changes))
    });
    let events = events.take_until(api.until_cut(store.caller));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Read a setting.
#[utoipa::path(
    get, path = "/v1/{namespace}/config/{group}/keys/{key}", operation_id = "config_read", tag = "config",
    params(SettingPath, InRealm),
    responses(
        (status = 200, description = "Its current version", body = SettingView),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SettingPath>,
    Query(query): Query<InRealm>,
) -> Result<Answer<SettingView>, Problem> {
    let (settings, SettingPath { group, key, .. }) = setting(&api, caller, path, &query, Verb::Read)?;
    match settings.get(&group, &key).await? {
        Some(setting) => Ok(Answer((&setting).into())),
        None => Err(missing(&group, &key)),
    }
}

/// Write a new version of a setting.
#[utoipa::path(
    put, path = "/v1/{namespace}/config/{group}/keys/{key}", operation_id = "config_put", tag = "config",
    params(SettingPath, InRealm), request_body = NewSetting,
    responses(
        (status = 200, description = "Written", body = NewVersion),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SettingPath>,
    Query(query): Query<InRealm>,
    Json(body): Json<NewSetting>,
) -> Result<Answer<NewVersion>, Problem> {
    let (settings, SettingPath { group, key, .. }) = setting(&api, caller, path, &query, Verb::Write)?;
    let value = bytes_of(body.value.as_deref(), body.value_base64.as_deref())?;
    let version = settings.put(&group, &key, value, body.expected_version).await?;
    Ok(Answer(NewVersion { version }))
}

/// Delete a setting. Its history stays.
#[utoipa::path(
    delete, path = "/v1/{namespace}/config/{group}/keys/{key}", operation_id = "config_delete", tag = "config",
    params(SettingPath, InRealm),
    responses(
        (status = 204, description = "There is no such setting any more"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SettingPath>,
    Query(query): Query<InRealm>,
) -> Result<StatusCode, Problem> {
    let (settings, SettingPath { group, key, .. }) = setting(&api, caller, path, &query, Verb::Write)?;
    settings.delete(&group, &key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read the last 50 versions of a setting, oldest first.
#[utoipa::path(
    get, path = "/v1/{namespace}/config/{group}/keys/{key}/history", operation_id = "config_history", tag = "config",
    params(SettingPath, InRealm),
    responses(
        (status = 200, description = "Its versions", body = SettingList),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn history(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SettingPath>,
    Query(query): Query<InRealm>,
) -> Result<Answer<SettingList>, Problem> {
    let (settings, SettingPath { group, key, .. }) = setting(&api, caller, path, &query, Verb::Read)?;
    let versions = settings.history(&group, &key).await?;
    Ok(Answer(SettingList { settings: versions.iter().map(SettingView::from).collect() }))
}

/// Bring an earlier value back, as a new version.
#[utoipa::path(
    post, path = "/v1/{namespace}/config/{group}/keys/{key}/rollback", operation_id = "config_rollback", tag = "config",
    params(SettingPath, InRealm), request_body = Rollback,
    responses(
        (status = 200, description = "It is back", body = NewVersion),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<SettingPath>,
    Query(query): Query<InRealm>,
    Json(body): Json<Rollback>,
) -> Result<Answer<NewVersion>, Problem> {
    let (settings, SettingPath { group, key, .. }) = setting(&api, caller, path, &query, Verb::Write)?;
    Ok(Answer(NewVersion { version: settings.rollback(&group, &key, body.version).await? }))
}

fn settings(store: &Store) -> Result<Settings> {
    Settings::new(&store.kv, store.realm.clone())
}

fn setting(
    api: &Api,
    caller: Caller,
    path: SettingPath,
    query: &InRealm,
    verb: Verb,
) -> Result<(Settings, SettingPath), Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    store.allow(Block::Config, verb, &format!("{}/{}", path.group, path.key))?;
    Ok((settings(&store)?, path))
}

fn missing(group: &str, key: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, format!("there is no setting {group}/{key}"))
}

impl From<&Setting> for SettingView {
    fn from(setting: &Setting) -> Self {
        let (value, value_base64) = setting.value.as_deref().map(text_or_base64).unwrap_or_default();
        Self {
            key: setting.key.clone(),
            value,
            value_base64,
            deleted: setting.value.is_none(),
            version: setting.version,
            restores: setting.restores,
            at_ms: setting.at_ms,
        }
    }
}
