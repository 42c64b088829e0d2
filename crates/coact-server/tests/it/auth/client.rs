//! coact's own client and blocks, with a token that allows only so much.

use coact_core::{
    ErrorKind, Result,
    contract::kv::{Change, KvHandle, Scope},
    env::Env,
    name::{Dir, Key, Realm},
    registry::Registry,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{Guarded, id_of};
use crate::bed::within;

async fn open(guarded: &Guarded, token: &str) -> Result<KvHandle> {
    let url = format!("coact://{}/shop?token={token}", guarded.node.address());
    let store =
        Registry::default().with(coact_engine_etcd::driver()).open(url.parse().expect("a URL"), Env::real()).await?;
    Ok(store.kv().clone())
}

fn key(text: &str) -> Key {
    Key::parse(&Realm::default(), text).expect("valid")
}

fn dir(path: &str) -> Dir {
    Dir::new(&Realm::default(), path).expect("valid")
}

fn denied<T>(what: &str, result: Result<T>, token: &str) {
    let error = result.err().expect(what);
    assert_eq!(error.kind(), ErrorKind::Denied, "{what}: {error}");
    assert!(!format!("{error:?}").contains(&token[15..35]), "{error:?}");
}

#[tokio::test]
async fn the_client_says_what_is_denied_and_does_what_is_not() {
    let guarded = Guarded::start().await;
    let token = guarded.token("app", &["shop kv read,write app/"]).await;
    let kv = open(&guarded, &token).await.expect("a token");
    kv.put(&key("app/a"), "1", None).await.expect("its own");
    assert!(kv.get(&key("app/a")).await.expect("its own").is_some());
    let lease = kv.lease_grant(std::time::Duration::from_secs(60)).await.expect("a lease, with its own key");
    kv.lease_renew(lease.id).await.expect("renewed");
    kv.lease_revoke(lease.id).await.expect("revoked");
    denied("get", kv.get(&key("other/a")).await, &token);
    denied("put", kv.put(&key("other/a"), "1", None).await, &token);
    denied("a lock's entry", kv.put(&key("lock/app/a"), "1", None).await, &token);
    denied("dirs", kv.dirs(&Realm::default(), "", "", 10).await, &token);
    denied("watch", within("a refusal", kv.watch(Scope::Dir(dir("other")), None)).await, &token);
    assert_eq!(kv.dirs(&Realm::default(), "app/", "", 10).await.expect("below its own").len(), 0);

    guarded.ask("DELETE", &format!("/v1/auth/tokens/{}", id_of(&token)), &guarded.admin, &Value::Null).await;
    denied("after the end", kv.get(&key("app/a")).await, &token);
    denied("open", open(&guarded, &token).await, &token);
    denied("open", open(&guarded, "nonsense").await, &token);
}

#[tokio::test]
async fn a_watch_goes_on_without_gap_when_a_role_changes_and_leaves_it_allowed() {
    let guarded = Guarded::start().await;
    let token = guarded.token("app", &["shop kv read,write app/"]).await;
    let kv = open(&guarded, &token).await.expect("a token");
    let mut feed = kv.watch(Scope::Dir(dir("app")), None).await.expect("allowed");
    for round in 0..5 {
        let verbs = ["read,write,admin", "read,write"][round % 2];
        let permissions = json!([{ "namespace": "shop", "block": "kv", "verbs": verbs, "prefix": "app/" }]);
        let (status, _) =
            guarded.ask("PUT", "/v1/auth/roles/app", &guarded.admin, &json!({ "permissions": permissions })).await;
        assert_eq!(status, 204);
        kv.put(&key(&format!("app/{round}")), "1", None).await.expect("allowed");
    }
    let mut seen = Vec::new();
    while seen.len() < 5 {
        match within("a change", feed.next()).await.expect("it goes on").expect("it goes on") {
            Change::Put(entry) => seen.push(entry.key.name().to_owned()),
            Change::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
}
