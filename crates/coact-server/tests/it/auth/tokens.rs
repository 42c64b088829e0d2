//! The life of a token and of a role.

use coact_engine_embedded::Config;
use coact_engine_etcd::wire::{
    etcdserverpb::{self as pb, WatchCreateRequest, WatchRequest, watch_request::RequestUnion},
    v3lockpb::LockRequest,
};
use coact_server::auth::Token;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{Guarded, id_of, start, with};
use crate::{
    bed::{self, within},
    client::{Clients, bytes, get, put},
};

const KEY: &str = "shop/main/app//key";

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn a_token_is_valid_at_once_and_over_at_once() {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let token = guarded.token("app", &["shop kv read,write"]).await;
    clients.kv.put(with(&token, put(KEY, "1"))).await.expect("it may");

    let watch = WatchCreateRequest { key: bytes(KEY), ..WatchCreateRequest::default() };
    let watch = WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) };
    let open = stream::iter([watch]).chain(stream::pending());
    let mut responses = clients.watch.watch(with(&token, open)).await.expect("a stream").into_inner();
    within("the watch", responses.message()).await.expect("open").expect("created");

    let (status, tokens) = guarded.ask("GET", "/v1/auth/tokens", &guarded.admin, &Value::Null).await;
    let listed = tokens["tokens"].as_array().expect("a list").iter().find(|row| row["label"] == "app").expect("listed");
    assert_eq!((status, listed["id"].as_str(), listed["expired"].as_bool()), (200, Some(id_of(&token)), Some(false)));
    assert_eq!(listed["created_by"], id_of(&guarded.admin));

    let path = format!("/v1/auth/tokens/{}", id_of(&token));
    assert_eq!(guarded.ask("DELETE", &path, &guarded.admin, &Value::Null).await.0, 204);
    assert_eq!(code(clients.kv.range(with(&token, get(KEY))).await), Code::Unauthenticated);
    let ended = within("the end of the watch", responses.message()).await.expect_err("it ends");
    assert_eq!(ended.code(), Code::Unavailable);
    assert_eq!(guarded.ask("DELETE", &path, &guarded.admin, &Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_wait_for_a_lock_ends_with_the_token() {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let token = guarded.token("locker", &["shop lock read,write"]).await;
    let lock = LockRequest { name: bytes("shop/main/lock/deploy/"), lease: 0 };
    let held = clients.lock.lock(with(&guarded.admin, lock.clone())).await.expect("an admin may").into_inner();
    let mut others = clients.clone();
    let wait = others.lock.lock(with(&token, lock.clone()));
    let revoke = async {
        let waiters = pb::RangeRequest { range_end: bytes("shop/main/lock/deploy0"), ..get("shop/main/lock/deploy/") };
        bed::eventually("it waits", async || {
            let found = clients.kv.clone().range(with(&guarded.admin, waiters.clone())).await.expect("an admin may");
            found.into_inner().kvs.len() == 2
        })
        .await;
        guarded.ask("DELETE", &format!("/v1/auth/tokens/{}", id_of(&token)), &guarded.admin, &Value::Null).await
    };
    let (waited, revoked) = futures::join!(within("the wait", wait), revoke);
    assert_eq!((code(waited), revoked.0), (Code::Unavailable, 204));
    assert!(!held.key.is_empty());
}

#[tokio::test]
async fn a_changed_role_is_in_effect_at_once() {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let token = guarded.token("app", &["shop kv read,write"]).await;
    assert_eq!(code(clients.kv.put(with(&token, put(KEY, "1"))).await), Code::Ok);
    let narrower = json!({ "permissions": [{ "namespace": "shop", "block": "kv", "verbs": "read" }] });
    assert_eq!(guarded.ask("PUT", "/v1/auth/roles/app", &guarded.admin, &narrower).await.0, 204);
    assert_eq!(code(clients.kv.put(with(&token, put(KEY, "2"))).await), Code::PermissionDenied);
    assert_eq!(code(clients.kv.range(with(&token, get(KEY))).await), Code::Ok);

    let (status, problem) = guarded.ask("DELETE", "/v1/auth/roles/app", &guarded.admin, &Value::Null).await;
    assert_eq!((status, problem["kind"].as_str()), (409, Some("conflict")), "it is in use: {problem}");
    guarded.ask("DELETE", &format!("/v1/auth/tokens/{}", id_of(&token)), &guarded.admin, &Value::Null).await;
    assert_eq!(guarded.ask("DELETE", "/v1/auth/roles/app", &guarded.admin, &Value::Null).await.0, 204);
}

#[tokio::test]
async fn a_token_ends_by_itself() {
    let guarded = Guarded::start().await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let body = json!({ "label": "short", "roles": ["read-only"], "expires_in": "200ms" });
    let (_, made) = guarded.ask("POST", "/v1/auth/tokens", &guarded.admin, &body).await;
    let token = made["token"].as_str().expect("a token").to_owned();
    bed::eventually("it ends", async || code(clients.kv.range(with(&token, get(KEY))).await) == Code::Unauthenticated)
        .await;
}

#[tokio::test]
async fn tokens_and_roles_survive_a_restart_and_a_revoked_first_admin_stays_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Token::generate().expect("randomness");
    let node = start(Config::in_dir(dir.path()), &first, None).await;
    let guarded = Guarded { node, admin: first.expose() };
    let token = guarded.token("app", &["shop kv read,write"]).await;
    let second = guarded.token_of("second admin", &["admin"]).await;
    let path = format!("/v1/auth/tokens/{}", first.id());
    assert_eq!(guarded.ask("DELETE", &path, &second, &Value::Null).await.0, 204);
    guarded.node.shutdown().await.expect("a clean end");

    let node = start(Config::in_dir(dir.path()), &first, None).await;
    let guarded = Guarded { node, admin: second };
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    assert_eq!(code(clients.kv.put(with(&token, put(KEY, "1"))).await), Code::Ok);
    assert_eq!(guarded.ask("GET", "/v1/auth/tokens", &guarded.admin, &Value::Null).await.0, 200);
    assert_eq!(code(clients.kv.put(with(&first.expose(), put(KEY, "1"))).await), Code::Unauthenticated);
}

#[tokio::test]
async fn says_what_is_wrong_with_a_request() {
    let guarded = Guarded::start().await;
    let permission = json!([{ "namespace": "shop", "block": "kv", "verbs": "read" }]);
    for (method, path, body, status, expected) in [
        (
            "POST",
            "/v1/auth/tokens",
            json!({ "label": "x", "roles": ["nobody"] }),
            400,
            "choose from admin, metrics, read-only",
        ),
        ("POST", "/v1/auth/tokens", json!({ "label": "", "roles": ["admin"] }), 400, "label"),
        ("POST", "/v1/auth/tokens", json!({ "label": "x", "roles": [] }), 400, "a token has from 1"),
        ("POST", "/v1/auth/tokens", json!({ "label": "x" }), 400, "missing field `roles`"),
        (
            "POST",
            "/v1/auth/tokens",
            json!({ "label": "x", "roles": ["admin"], "more": 1 }),
            400,
            "unknown field `more`",
        ),
        (
            "POST",
            "/v1/auth/tokens",
            json!({ "label": "x", "roles": ["admin"], "expires_in": "soon" }),
            400,
            "use a number with a unit",
        ),
        ("PUT", "/v1/auth/roles/admin", json!({ "permissions": permission }), 400, "built in and cannot be changed"),
        ("PUT", "/v1/auth/roles/x", json!({ "permissions": [] }), 400, "from 1 to 256"),
        ("PUT", "/v1/auth/roles/a%2Fb", json!({ "permissions": permission }), 400, "role \"a/b\" is not allowed"),
        ("DELETE", "/v1/auth/roles/admin", Value::Null, 400, "cannot be removed"),
        ("DELETE", "/v1/auth/roles/absent", Value::Null, 404, "there is no role"),
        ("DELETE", "/v1/auth/tokens/..%2F", Value::Null, 404, "there is no token"),
    ] {
        let (found, problem) = guarded.ask(method, path, &guarded.admin, &body).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(found == status && detail.contains(expected), "{method} {path}: {found} {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_gives_a_token_as_a_password() {
    let guarded = Guarded::start().await;
    let address = guarded.node.address();
    let token = guarded.token("app", &["shop kv read,write app/"]).await;
    let user = format!("app:{token}");
    let run = async |arguments: &[&str]| {
        let output = bed::etcdctl(address, arguments, "").await;
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    assert_eq!(run(&["--user", &user, "put", KEY, "blue"]).await, (true, "OK\n".to_owned()));
    assert_eq!(run(&["--user", &user, "get", "--print-value-only", KEY]).await, (true, "blue\n".to_owned()));
    let (done, text) = run(&["--user", &user, "get", "--prefix", "shop/"]).await;
    assert!(!done && text.contains("permission denied"), "{text}");
    let (done, text) = run(&["get", KEY]).await;
    assert!(!done && text.contains("invalid auth token"), "{text}");
    let (done, text) = run(&["--user", "app:wrong", "get", KEY]).await;
    assert!(!done && text.contains("authentication failed"), "{text}");
}
