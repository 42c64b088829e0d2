//! A token's text is nowhere but in its owner's hands.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, OnceLock},
};

use coact_engine_embedded::Config;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Guarded, id_of, with};
use crate::{
    bed,
    client::{Clients, get, put},
};

/// Everything that this process logs, at the finest level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_env_filter("trace,h2=off,hyper=off")
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .init();
        log
    })
}

/// What the canary looks for: the secret part, whole or in its beginning, and the digest past the id.
fn secrets_of(token: &str) -> [String; 2] {
    let digest = coact_server::auth::Token::parse(token).expect("a token").digest().to_hex();
    [token[15..35].to_owned(), digest[8..24].to_owned()]
}

fn assert_clean(what: &str, text: &str, token: &str) {
    for secret in secrets_of(token) {
        assert!(!text.contains(&secret), "{what} shows a secret: {text}");
    }
}

#[tokio::test]
async fn no_log_error_page_or_file_shows_a_token() {
    let log = log();
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.jsonl");
    let guarded = Guarded::start_with(Config::default(), Some(&audit)).await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let token = guarded.token("app", &["shop kv read"]).await;
    let mut broken = token.clone();
    broken.pop();

    let mut shown = vec![format!("{:?} {:?}", guarded.node, coact_server::auth::Token::parse(&token))];
    for token in [&token, &broken] {
        let answer = clients.kv.put(with(token, put("shop/main/a//b", "1"))).await.map(drop);
        shown.push(format!("{answer:?}"));
        shown.push(format!("{:?}", clients.kv.range(with(token, get("shop/main/a//b"))).await));
        for path in ["/metrics", "/v1/auth/tokens", "/nowhere"] {
            let (head, body) =
                bed::http_with(guarded.node.address(), "GET", path, &format!("token: {token}\r\n"), "").await;
            shown.push(format!("{head}{body}"));
        }
    }
    let bad = json!({ "label": "x", "roles": ["nobody"] });
    for (method, path, body) in
        [("GET", "/metrics", &Value::Null), ("GET", "/v1/auth/tokens", &Value::Null), ("POST", "/v1/auth/tokens", &bad)]
    {
        shown.push(guarded.ask(method, path, &guarded.admin, body).await.1.to_string());
    }
    let lines = std::fs::read_to_string(&audit).expect("an audit file");
    shown.push(lines.clone());
    for token in [&token, &guarded.admin] {
        shown.iter().for_each(|text| assert_clean("an answer", text, token));
        assert_clean("the log", &String::from_utf8_lossy(&log.0.lock()), token);
    }
    // The control: the log and the file do have the lines in which a careless writer would show it.
    let logged = String::from_utf8_lossy(&log.0.lock()).into_owned();
    for text in [&lines, &logged] {
        assert!(text.contains("token created") && text.contains(id_of(&token)), "{text}");
    }
    let mode = std::fs::metadata(&audit).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn the_audit_file_has_denials_changes_and_acts_of_admins() {
    let dir = tempfile::tempdir().expect("a directory");
    let audit = dir.path().join("audit.jsonl");
    let guarded = Guarded::start_with(Config::default(), Some(&audit)).await;
    let mut clients = Clients::connect(guarded.node.address()).await.expect("the node answers");
    let token = guarded.token("app", &["shop kv read"]).await;
    clients.kv.put(with(&token, put("shop/main/a//b", "1"))).await.expect_err("denied");
    bed::get(guarded.node.address(), "/metrics").await;
    let compact = coact_engine_etcd::wire::etcdserverpb::CompactionRequest { revision: 1, physical: false };
    let _ = clients.kv.compact(with(&guarded.admin, compact)).await;
    guarded.ask("DELETE", &format!("/v1/auth/tokens/{}", id_of(&token)), &guarded.admin, &Value::Null).await;

    let text = std::fs::read_to_string(&audit).expect("an audit file");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let admin = id_of(&guarded.admin);
    for (event, who, detail) in [
        ("role put", admin, "shop kv read"),
        ("token created", admin, id_of(&token)),
        ("denied", id_of(&token), "write shop/main/a//b"),
        ("denied", "anonymous", "GET /metrics"),
        ("admin", admin, "compact"),
        ("token revoked", admin, id_of(&token)),
    ] {
        let found =
            lines.iter().any(|line| line["event"] == event && line["who"] == who && line.to_string().contains(detail));
        assert!(found, "{event} by {who}: {text}");
    }
}
