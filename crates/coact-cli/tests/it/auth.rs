//! Tokens and TLS from the shell: init, serve, contexts, tokens, roles.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, ServerProcess, free_port, wait_until};
use tempfile::TempDir;

use crate::node::coact;

/// A directory with what `coact init` made, and perhaps a node that runs on it.
struct Place {
    dir: TempDir,
    port: u16,
    admin: String,
    node: Option<ServerProcess>,
}

impl Place {
    async fn start(tls: bool) -> Self {
        let (dir, port) = (tempfile::tempdir().expect("a directory"), free_port().expect("a free port"));
        let mut place = Self { dir, port, admin: String::new(), node: None };
        let (home, listen) = (place.path("node"), format!("127.0.0.1:{port}"));
        let mut arguments = vec!["init", "--dir", text(&home), "--listen", &listen];
        if tls {
            arguments.extend(["--tls", "self-signed", "--host", "localhost"]);
        }
        let made = place.run(&arguments);
        assert!(made.status.success(), "{made:?}");
        place.admin = String::from_utf8(made.stdout).expect("text").trim_end().to_owned();
        std::fs::write(place.path("admin.token"), format!("{}\n", place.admin)).expect("a file");
        place.serve();
        let ca = home.join("tls/ca.pem");
        let at = format!("coact://localhost:{port}");
        let token = place.path("admin.token");
        let mut arguments = vec!["context", "add", "admin", "--at", &at, "--token-file", text(&token)];
        if tls {
            arguments.extend(["--ca", text(&ca)]);
        }
        assert!(place.run(&arguments).status.success());
        wait_until(&Env::real(), "the node answers", PATIENCE, async || place.run(&["kv", "ls"]).status.success())
            .await
            .unwrap_or_else(|error| panic!("{error:#}: {}", place.log()));
        place
    }

    fn serve(&mut self) {
        let mut command = coact();
        command.args(["serve", "--config"]).arg(self.path("node/coact.toml"));
        command.env("COACT_LOG", "trace,h2=off,hyper=off,hyper_util=off,tower=off");
        self.node = Some(ServerProcess::start(&mut command, &self.path("node.log")).expect("the node starts"));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("node.log")).expect("a log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = coact();
        command.args(arguments).env("COACT_CONFIG", self.path("contexts.toml")).envs(variables.iter().copied());
        command.output().expect("it runs")
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn at(&self) -> String {
        format!("coact://localhost:{}", self.port)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn failed(output: &Output, code: i32, message: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && text.contains(message), "{output:?} should say {message:?}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_node_is_initialised_used_and_shared() {
    let place = Place::start(true).await;
    for file in ["node/coact.toml", "node/tls/node.key", "contexts.toml"] {
        assert_eq!(mode(&place.path(file)), 0o600, "{file}");
    }
    assert_eq!(place.stdout(&["kv", "put", "app/colour", "blue"]).trim(), "3", "over TLS, as the admin");

    place.stdout(&[
        "role",
        "put",
        "deployer",
        "--allow",
        "main lock read,write deploy/",
        "--allow",
        "main kv read app/",
    ]);
    let made = place.run(&["token", "create", "--label", "ci", "--role", "deployer", "--expires", "30d"]);
    let token = String::from_utf8(made.stdout.clone()).expect("text").trim_end().to_owned();
    assert!(made.status.success() && token.starts_with("coact_") && token.lines().count() == 1, "{made:?}");
    assert!(!String::from_utf8_lossy(&made.stderr).contains(&token));

    let ca = place.path("node/tls/ca.pem");
    let (at, ca) = (place.at(), text(&ca));
    assert!(place.run(&["context", "add", "ci", "--at", &at, "--token-env", "CI_TOKEN", "--ca", ca]).status.success());
    let ci = [("CI_TOKEN", token.as_str())];
    let as_ci = |arguments: &[&str]| place.run_with(&[arguments, &["--context", "ci"]].concat(), &ci);
    assert_eq!(as_ci(&["kv", "get", "app/colour"]).stdout, b"blue\n");
    failed(&as_ci(&["kv", "put", "app/colour", "red"]), 9, "permission denied");
    failed(&as_ci(&["kv", "get", "other/colour"]), 9, "permission denied");
    failed(&as_ci(&["token", "ls"]), 9, "lacks the permission `* * admin`");
    let locked = place.run_with(&["lock", "run", "--context", "ci", "deploy/eu", "--", "echo", "done"], &ci);
    assert!(locked.status.success() && locked.stdout == b"done\n", "{locked:?}");
    let denied = place.run_with(&["lock", "run", "--context", "ci", "other", "--", "true"], &ci);
    failed(&denied, 9, "permission denied");

    let listed = place.stdout(&["token", "ls", "-o", "jsonl"]);
    assert!(listed.contains("\"label\":\"ci\"") && !listed.contains(&token), "{listed}");
    assert!(place.stdout(&["role", "ls"]).contains("main lock read,write deploy/"));
    failed(&place.run(&["role", "rm", "deployer"]), 4, "is in use");
    place.stdout(&["token", "revoke", &token[6..14]]);
    failed(&as_ci(&["kv", "get", "app/colour"]), 9, "give a valid token in the URL");
    place.stdout(&["role", "rm", "deployer"]);

    // The canary: neither log nor data nor configuration has the text of a token.
    for file in ["node.log", "node/coact.toml", "contexts.toml"] {
        let text = std::fs::read_to_string(place.path(file)).expect("a file");
        for token in [&token, &place.admin] {
            assert!(!text.contains(&token[15..35]), "{file} shows a token");
        }
    }
    assert!(place.log().contains("token created"), "the control: the log tells of tokens");
}

#[tokio::test]
async fn what_a_token_may_not_see_is_said_and_the_rest_is_shown() {
    let place = Place::start(false).await;
    place.stdout(&["role", "put", "deployer", "--allow", "main lock read,write"]);
    let token = place.stdout(&["token", "create", "--label", "ci", "--role", "deployer"]);
    let context = ["context", "add", "ci", "--at", &place.at(), "--token-env", "CI_TOKEN"];
    assert!(place.run(&context).status.success());
    let as_ci = |arguments: &[&str], token: &str| {
        place.run_with(&[arguments, &["--context", "ci", "-o", "json"]].concat(), &[("CI_TOKEN", token)])
    };
    let statuses = |output: &Output| {
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        rows.iter().map(|row| (text(&row["check"]), text(&row["status"]))).collect::<Vec<_>>()
    };
    let is = |found: &[(String, String)], check: &str, status: &str| {
        assert!(found.contains(&(check.to_owned(), status.to_owned())), "{check} should be {status}: {found:?}");
    };

    let limited = as_ci(&["doctor"], token.trim());
    assert_eq!(limited.status.code(), Some(0), "what it may not do is no fault of the node's: {limited:?}");
    let found = statuses(&limited);
    ["engine", "read", "write"].iter().for_each(|check| is(&found, check, "warn"));
    is(&found, "lease", "ok");
    assert_eq!(place.run(&["doctor"]).status.code(), Some(0));
    is(&statuses(&place.run(&["doctor", "-o", "json"])), "write", "ok");
    let stranger = as_ci(&["doctor"], "coact_nobody");
    assert_eq!(stranger.status.code(), Some(1), "{stranger:?}");

    let top = as_ci(&["top", "--once"], token.trim());
    let top: serde_json::Value = serde_json::from_slice(&top.stdout).unwrap_or_else(|_| panic!("{top:?}"));
    let notes: Vec<&str> = top["notes"].as_array().expect("a list").iter().filter_map(|note| note.as_str()).collect();
    assert!(notes.iter().any(|note| note.starts_with("services: ")), "{top}");
    assert!(!notes.iter().any(|note| note.starts_with("lock: ")), "{top}");
}

#[tokio::test]
async fn the_way_to_a_node_is_chosen_in_order() {
    let place = Place::start(false).await;
    let at = place.at();
    failed(&place.run(&["kv", "ls", "--at", &at]), 9, "asks who we are: give a valid token");
    let url = format!("{at}?token=file:{}", text(&place.path("admin.token")));
    assert!(place.run(&["kv", "ls", "--at", &url, "--context", "nonsense"]).status.success(), "--at beats --context");
    let dead = [("COACT_AT", "coact://127.0.0.1:1")];
    assert!(place.run_with(&["kv", "ls", "--context", "admin"], &dead).status.success(), "--context beats COACT_AT");
    failed(&place.run_with(&["kv", "ls"], &dead), 6, "cannot reach");
    failed(&place.run(&["kv", "ls", "--context", "nonsense"]), 3, "there are admin");
    let other = ["context", "add", "other", "--at", "coact://127.0.0.1:1", "--token-env", "NOT_SET"];
    assert!(place.run(&other).status.success());
    assert!(place.stdout(&["context", "ls", "-o", "jsonl"]).contains("\"name\":\"other\",\"current\":false"));
    place.stdout(&["context", "use", "other"]);
    failed(&place.run(&["kv", "ls"]), 2, "env:NOT_SET, but NOT_SET is not set");
    place.stdout(&["context", "rm", "other"]);
    failed(&place.run(&["kv", "ls"]), 6, "");
    failed(&place.run(&["context", "add", "admin", "--at", &at]), 4, "there is a context \"admin\" already");
    let secret = format!("{at}?token={}", place.admin);
    let refused = place.run(&["context", "add", "x", "--at", &secret]);
    failed(&refused, 2, "put it into a file");
    assert!(!String::from_utf8_lossy(&refused.stderr).contains(&place.admin));
}

#[test]
fn init_overwrites_nothing_and_opens_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = text(dir.path());
    let init = |more: &[&str]| coact().args(["init", "--dir", home]).args(more).output().expect("it runs");
    failed(&init(&["--listen", "0.0.0.0:7070"]), 2, "needs TLS: add --tls self-signed");
    assert!(init(&[]).status.success());
    let before = std::fs::read(dir.path().join("coact.toml")).expect("a file");
    failed(&init(&[]), 4, "exists: nothing is overwritten");
    failed(&init(&["--tls", "self-signed"]), 4, "exists: nothing is overwritten");
    assert_eq!(std::fs::read(dir.path().join("coact.toml")).expect("a file"), before);
    assert!(!dir.path().join("tls").exists());
}

#[test]
fn a_configuration_that_is_wrong_is_named_by_line_and_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("coact.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\n\n[auth]\nenable = true\n").expect("a file");
    let output = coact().args(["serve", "--config", text(&file)]).output().expect("it runs");
    failed(&output, 2, "coact.toml:4: auth.enable: unknown field `enable`");
    let output = coact().args(["serve", "--config", "/nonexistent"]).output().expect("it runs");
    failed(&output, 2, "the configuration /nonexistent cannot be read");
    std::fs::write(&file, "listen = \"0.0.0.0:0\"\n[auth]\nenabled = true\n").expect("a file");
    failed(&coact().args(["serve", "--config", text(&file)]).output().expect("it runs"), 9, "TLS is missing");
}
