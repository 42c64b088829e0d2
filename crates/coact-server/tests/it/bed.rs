//! Real processes and nodes to test with, on free loopback ports.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use coact_core::env::Env;
use coact_engine_embedded::Config;
use coact_server::{Limits, Server, ServerConfig};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::Clients;

/// Long enough for the slowest machine; nothing is asserted about time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const ETCD: &str = "/usr/bin/etcd";
const ETCDCTL: &str = "/usr/bin/etcdctl";

/// A node in memory with these limits.
pub(crate) async fn node_with(limits: Limits) -> Server {
    let mut config = ServerConfig::new(Config::default());
    config.listen = ([127, 0, 0, 1], 0).into();
    config.limits = limits;
    Server::start(config, Env::real()).await.expect("a node starts")
}

/// A node in memory.
pub(crate) async fn node() -> Server {
    node_with(Limits::default()).await
}

/// A real etcd with one member; killed when dropped.
pub(crate) struct Etcd {
    pub(crate) address: SocketAddr,
    process: Child,
    _dir: TempDir,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        require(ETCD);
        let dir = tempfile::tempdir().expect("a temp dir");
        let (address, peer) = (free_address(), free_address());
        let process = Command::new(ETCD)
            .args(["--name", "peer", "--logger", "zap", "--log-level", "error", "--log-outputs", "stderr"])
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &url(address), "--advertise-client-urls", &url(address)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &format!("peer={}", url(peer))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        let etcd = Self { address, process, _dir: dir };
        eventually("etcd answers", async || {
            let Ok(mut clients) = Clients::connect(address).await else { return false };
            clients.kv.range(crate::client::get("ready")).await.is_ok()
        })
        .await;
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs etcdctl 3.4 against an address.
pub(crate) async fn etcdctl(address: SocketAddr, arguments: &[&str], input: &str) -> Output {
    require(ETCDCTL);
    let mut command = etcdctl_command(address);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("etcdctl starts");
    let input = input.to_owned();
    off_runtime(move || {
        use std::io::Write as _;
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("etcdctl reads its input");
        drop(stdin);
        child.wait_with_output().expect("etcdctl ends")
    })
    .await
}

/// An etcdctl command to be started by the caller.
pub(crate) fn etcdctl_command(address: SocketAddr) -> Command {
    let mut command = Command::new(ETCDCTL);
    command.env("ETCDCTL_API", "3").args([
        "--endpoints",
        &address.to_string(),
        "--dial-timeout",
        "30s",
        "--command-timeout",
        "30s",
    ]);
    command
}

/// Runs what blocks beside the runtime.
pub(crate) async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (to, answer) = tokio::sync::oneshot::channel();
    Env::real().spawn_thread("test", move || drop(to.send(work()))).expect("a thread");
    within("work beside the runtime", answer).await.expect("the work does not panic")
}

/// Waits for a future, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    Env::real().timeout(PATIENCE, future).await.unwrap_or_else(|| panic!("{what}: still waiting after {PATIENCE:?}"))
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !holds().await {
            Env::real().sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn require(binary: &str) {
    assert!(
        Path::new(binary).exists(),
        "{binary} is missing: this test compares with a real etcd; run `cargo xtask test`, which installs it"
    );
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Asks for a page; returns the status and the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    http(address, "GET", path).await
}

/// Makes an HTTP/1.1 request by hand; returns the status and the body.
pub(crate) async fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let (head, body) = http_with(address, method, path, "", "").await;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "the length is known: {head}");
    (status, body)
}

/// As [`http`], with more lines in the header and a body; returns the header and the body.
pub(crate) async fn http_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    more: &str,
    body: &str,
) -> (String, String) {
    let stream = TcpStream::connect(address).await.expect("it accepts");
    http_over(stream, method, path, more, body).await
}

/// As [`http_with`], over a connection that is open.
pub(crate) async fn http_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    more: &str,
    body: &str,
) -> (String, String) {
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    };
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}{length}\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a header and a body");
    (head.to_owned(), body.to_owned())
}
