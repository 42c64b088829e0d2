//! Users of a real etcd with authentication on: tokens are asked for, and renewed when etcd has forgotten them.

use std::process::Command;

use coact_core::{
    ErrorKind, Result,
    contract::kv::{Change, Scope},
};

use crate::{
    dir, key, next,
    server::{Etcd, open},
    within,
};

const ETCDCTL: &str = "/usr/bin/etcdctl";

fn etcdctl(etcd: &Etcd, arguments: &[&str]) {
    let endpoint = format!("127.0.0.1:{}", etcd.port);
    let output = Command::new(ETCDCTL)
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &endpoint])
        .args(arguments)
        .output()
        .expect("etcdctl runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// An etcd in which `app` may do everything below `shop/`.
async fn guarded() -> Etcd {
    let etcd = Etcd::start().await;
    for command in [
        "user add root:rootpw",
        "user grant-role root root",
        "role add shop",
        "role grant-permission shop readwrite --prefix=true shop/",
        "user add app:canary-pw",
        "user grant-role app shop",
        "auth enable",
    ] {
        etcdctl(&etcd, &command.split(' ').collect::<Vec<_>>());
    }
    etcd
}

fn url(etcd: &Etcd, user: &str, namespace: &str) -> String {
    format!("etcd://{user}127.0.0.1:{}/{namespace}", etcd.port)
}

fn denied<T>(result: Result<T>, expected: &str) {
    let error = result.err().expect(expected);
    let text = error.to_string();
    assert!(error.kind() == ErrorKind::Denied && text.contains(expected) && !text.contains("canary"), "{text}");
}

#[tokio::test]
async fn a_user_does_what_etcd_lets_them() {
    let etcd = guarded().await;
    let nobody = open(&url(&etcd, "", "shop")).await.expect("etcd tells everybody what it is");
    denied(nobody.put(&key("a/b"), "1", None).await, "asks who we are: write etcd://user:password@host");
    denied(open(&url(&etcd, "app:canary-wrong@", "shop")).await, "does not accept this user and password");

    let kv = open(&url(&etcd, "app:canary-pw@", "shop")).await.expect("its password");
    kv.put(&key("a/b"), "1", None).await.expect("its namespace");
    let mut feed = kv.watch(Scope::Dir(dir("a")), None).await.expect("its namespace");
    kv.put(&key("a/c"), "2", None).await.expect("its namespace");
    loop {
        if let Change::Put(entry) = next(&mut feed).await {
            assert_eq!(entry.key, key("a/c"));
            break;
        }
    }
    let lease = kv.lease_grant(std::time::Duration::from_secs(60)).await.expect("a lease");
    kv.lease_renew(lease.id).await.expect("renewed");
    assert!(!format!("{kv:?}").contains("canary"));

    let other = open(&url(&etcd, "app:canary-pw@", "other")).await.expect("it opens");
    denied(other.put(&key("a/b"), "1", None).await, "permission denied");
    denied(within("a refusal", other.watch(Scope::Dir(dir("a")), None)).await, "permission denied");
}

#[tokio::test]
async fn a_token_that_etcd_forgot_is_renewed() {
    let mut etcd = guarded().await;
    let kv = open(&url(&etcd, "app:canary-pw@", "shop")).await.expect("its password");
    kv.put(&key("a/b"), "1", None).await.expect("its namespace");
    // etcd keeps its tokens in memory, so a restart forgets them all.
    etcd.kill();
    etcd.restart().await;
    let lease = within("a new token", async {
        loop {
            match kv.lease_grant(std::time::Duration::from_secs(60)).await {
                Ok(lease) => break lease,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        }
    })
    .await;
    kv.put(&key("a/b"), "2", None).await.expect("its namespace");
    kv.lease_renew(lease.id).await.expect("renewed");
}

/// The control: a URL with a user also opens a server that asks nobody.
#[tokio::test]
async fn a_server_without_authentication_takes_a_user_too() {
    let etcd = Etcd::start().await;
    let kv = open(&url(&etcd, "app:canary-pw@", "shop")).await.expect("it opens");
    kv.put(&key("a/b"), "1", None).await.expect("everybody may");
}
