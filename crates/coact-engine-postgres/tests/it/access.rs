//! Who may open a store, and what the refusals say.

use coact_core::{Error, ErrorKind, error::Effect};

use crate::server::{key, kv, open, start, value};

async fn refusal(url: &str) -> Error {
    open(url).await.expect_err("it is refused")
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let server = start(&[]).await;
    kv(&server).await.put(&key("a/x"), "1", None).await.expect("commits");
    server.sql("UPDATE coact.version SET version = 2").expect("runs");
    let error = refusal(&server.url("main")).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = "has version 2, made by a newer coact; this one knows up to version 1: use the newer coact here too";
    assert!(error.to_string().contains(text), "{error}");
    assert_eq!(server.sql("SELECT version FROM coact.version").expect("runs"), "2");
    // Another schema of the same database is another store.
    let other = open(&format!("{}?schema=other", server.url("main"))).await.expect("it opens");
    assert_eq!(value(&other, "a/x").await, None);
}

#[tokio::test]
async fn many_who_open_at_once_make_one_schema() {
    let server = start(&[]).await;
    let opened = futures::future::join_all((0..8).map(async |_| open(&server.url("main")).await)).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    assert_eq!(server.sql("SELECT count(*), max(version) FROM coact.version").expect("runs"), "1|1");
}

#[tokio::test]
async fn a_role_without_rights_is_told_what_an_administrator_has_to_run() {
    let server = start(&[]).await;
    server.sql("CREATE ROLE app LOGIN PASSWORD 'canary'; CREATE ROLE other LOGIN PASSWORD 'canary'").expect("runs");
    let url = |role: &str| format!("postgres://{role}:canary@127.0.0.1:{}/main?database=coact", server.port);
    let error = refusal(&url("app")).await;
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(!error.to_string().contains("canary"), "{error}");
    let remedy = "CREATE SCHEMA coact AUTHORIZATION \"app\"";
    assert!(error.to_string().contains(&format!("as an administrator run: {remedy}; or")), "{error}");
    server.sql(remedy).expect("the remedy runs");
    let app = open(&url("app")).await.expect("the remedy helps");
    app.put(&key("a/x"), "1", None).await.expect("commits");

    // The schema is there, and belongs to somebody else.
    let error = refusal(&url("other")).await;
    assert_eq!(error.kind(), ErrorKind::Denied);
    let (_, remedy) = error.message().split_once("as an administrator run: ").expect("a remedy");
    assert!(remedy.starts_with("GRANT USAGE ON SCHEMA coact TO \"other\";"), "{remedy}");
    server.sql(remedy).expect("the remedy runs");
    let other = open(&url("other")).await.expect("the remedy helps");
    assert_eq!(value(&other, "a/x").await.as_deref(), Some("1"));
    let lease = other.lease_grant(std::time::Duration::from_secs(60)).await.expect("granted").id;
    other.put(&key("a/y"), "2", Some(lease)).await.expect("commits");
    other.lease_revoke(lease).await.expect("revoked");
    assert_eq!(value(&app, "a/y").await, None);
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_and_no_secret_is_shown() {
    let server = start(&[]).await;
    let port = server.port;
    for (url, kind, text) in [
        ("postgres://coact:canary@H/x", ErrorKind::Denied, "does not let user \"coact\" in"),
        ("postgres://coact@H/x", ErrorKind::Denied, "asks for a password: write user:password@host"),
        ("postgres://nobody:canary@H/x", ErrorKind::Denied, "does not let user \"nobody\" in"),
        ("postgres://coact:env:COACT_TEST_UNSET@H/x", ErrorKind::Invalid, "COACT_TEST_UNSET is not set"),
        (
            "postgres://coact:canary@127.0.0.1:1/x",
            ErrorKind::Unavailable,
            "cannot reach PostgreSQL at 127.0.0.1:1: connection refused; is it running?",
        ),
    ] {
        let url = url.replace('H', &format!("127.0.0.1:{port}"));
        let error = refusal(&format!("{url}?timeout=300ms")).await;
        assert_eq!((error.kind(), error.effect()), (kind, Effect::NotApplied), "{error}");
        assert!(error.to_string().contains(text) && !format!("{error:?}").contains("canary"), "{error}");
    }
    let error = refusal(&format!("{}?database=nowhere", server.url("main"))).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("name one with the URL option database=NAME"), "{error}");
}

#[tokio::test]
async fn a_role_with_too_few_connections_is_told_which_option_helps() {
    let server = start(&[]).await;
    kv(&server).await;
    server
        .sql("CREATE ROLE few SUPERUSER LOGIN PASSWORD 'canary'; ALTER ROLE few NOSUPERUSER CONNECTION LIMIT 0")
        .expect("runs");
    let error = refusal(&format!("postgres://few:canary@127.0.0.1:{}/main?database=coact", server.port)).await;
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert!(error.to_string().contains("lower pool=N in the URLs of its clients"), "{error}");
}

#[tokio::test]
async fn a_database_whose_encoding_lacks_characters_is_refused() {
    let server = start(&[]).await;
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0").expect("runs");
    let error = refusal(&format!("{}?database=latin", server.url("main"))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("the database has encoding LATIN1"), "{error}");
}
