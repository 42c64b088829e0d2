//! Watches: a stream of server-sent events, and a long poll for clients that cannot read one.

use std::time::Duration;

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use coact_core::contract::kv::{Change, Feed, Scope};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Caller, KEEP_ALIVE, Store, Verb,
    entry::ChangeView,
    extract::{Path, Query, invalid},
    kv::{NamespacePath, revision},
    problem::{self, Problem},
};

const WAIT_MAX_MS: u64 = 60_000;
const CHANGES_MAX: usize = 1_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// Every entry of this dir.
    #[param(example = "config")]
    dir: Option<String>,
    /// One key, `dir/name`.
    key: Option<String>,
    /// Only what changed after this revision; from now on by default.
    #[param(minimum = 0)]
    after: Option<i64>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PollQuery {
    /// The realm; `main` by default.
    #[param(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")]
    realm: Option<String>,
    /// Every entry of this dir.
    #[param(example = "config")]
    dir: Option<String>,
    /// One key, `dir/name`.
    key: Option<String>,
    /// Only what changed after this revision: that of a listing, or of the last answer.
    #[param(minimum = 0)]
    after: i64,
    /// How long to wait for a first change; 10000 by default, at most 60000.
    #[param(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// What changed.
#[derive(Serialize, ToSchema)]
pub(super) struct Changes {
    /// In the order in which it happened; empty if nothing did.
    changes: Vec<ChangeView>,
    /// Give this as the next `after`.
    revision: u64,
}

/// Watch a dir or a key as server-sent events: `put`, `gone`, `progress`, `resync`; the id of an event is its revision,
/// so a client that connects anew with `Last-Event-ID` misses nothing.
#[utoipa::path(
    get, path = "/v1/{namespace}/watch", operation_id = "kv_watch", tag = "kv", params(NamespacePath, WatchQuery,
        ("Last-Event-ID" = Option<i64>, Header, description = "Goes before `after`"),
    ),
    responses(
        (status = 200, description = "Events, each with a change as data", body = ChangeView, content_type = "text/event-stream"),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let scope = scope(&store, query.dir.as_deref(), query.key.as_deref())?;
    let after = match headers.get("last-event-id") {
        Some(id) => match id.to_str().ok().and_then(|id| id.parse().ok()) {
            Some(id) => Some(id),
            None => return Err(invalid("Last-Event-ID must be the id of an event: a revision")),
        },
        None => query.after,
    };
    let after = after.map(revision).transpose()?;
    let feed = store.kv.watch(scope, after).await?;
    let events = events(feed).take_until(api.until_cut(store.caller));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Each change as an event. A failed watch ends the stream: the client connects anew after the last id.
fn events(feed: Feed) -> impl Stream<Item = Result<Event, axum::Error>> + Send {
    feed.take_while(|change| std::future::ready(change.is_ok())).filter_map(async |change| {
        let change = ChangeView::from(change.ok()?);
        Some(Event::default().id(change.at().to_string()).event(change.event()).json_data(&change))
    })
}

/// Wait for the next changes of a dir or a key: a long poll.
#[utoipa::path(
    get, path = "/v1/{namespace}/changes", operation_id = "kv_poll", tag = "kv", params(NamespacePath, PollQuery),
    responses(
        (status = 200, description = "What changed until now", body = Changes),
        (status = "default", description = "What went wrong", body = problem::Body, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn poll(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<NamespacePath>,
    Query(query): Query<PollQuery>,
) -> Result<axum::Json<Changes>, Problem> {
    let store = api.store(caller, &path.namespace, query.realm.as_deref())?;
    let scope = scope(&store, query.dir.as_deref(), query.key.as_deref())?;
    let wait = Duration::from_millis(match query.wait_ms.unwrap_or(10_000) {
        wait @ 0..=WAIT_MAX_MS => wait,
        other => return Err(invalid(format!("wait_ms {other} is not allowed: use 0 to {WAIT_MAX_MS}"))),
    });
    let after = revision(query.after)?;
    let mut feed = store.kv.watch(scope, Some(after)).await?;
    let first = tokio::select! {
        first = api.env().timeout(wait, first_change(&mut feed)) => first.transpose()?.flatten(),
        () = api.until_cut(store.caller) => None,
    };
    let changes: Vec<ChangeView> = match first {
        None => Vec::new(),
        Some(first) => {
            let rest = stream::poll_fn(|context| match feed.poll_next_unpin(context) {
                std::task::Poll::Pending => std::task::Poll::Ready(None),
                ready => ready,
            });
            let rest: Vec<_> = rest.take(CHANGES_MAX - 1).collect().await;
            let changes = std::iter::once(Ok(first)).chain(rest);
            changes.map(|change| change.map(ChangeView::from)).collect::<Result<_, _>>()?
        }
    };
    let revision = changes.iter().map(ChangeView::at).max().unwrap_or(after.0);
    Ok(axum::Json(Changes { changes, revision }))
}

/// The next item that says more than how far the watch is.
async fn first_change(feed: &mut Feed) -> coact_core::Result<Option<Change>> {
    while let Some(change) = feed.next().await {
        match change? {
            Change::Progress(_) => {}
            change => return Ok(Some(change)),
        }
    }
    Ok(None)
}

fn scope(store: &Store, dir: Option<&str>, key: Option<&str>) -> Result<Scope, Problem> {
    match (dir, key) {
        (Some(dir), None) => Ok(Scope::Dir(store.dir(dir, Verb::Read)?)),
        (None, Some(key)) => Ok(Scope::Key(store.key(key, Verb::Read)?)),
        _ => Err(invalid("name what to watch once: as dir or as key")),
    }
}
