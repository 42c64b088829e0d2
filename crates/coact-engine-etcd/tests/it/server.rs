//! A real etcd of its own for each test, on free loopback ports, in a temporary directory, ended by its process id.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};

const BINARY: &str = "/usr/bin/etcd";
/// How long anything may take that has no reason to take long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Etcd {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    peer_port: u16,
}

impl Etcd {
    /// Starts etcd and waits until it serves.
    pub(crate) async fn start() -> Self {
        assert!(
            Path::new(BINARY).exists(),
            "{BINARY} is missing: run the tests with `cargo xtask test`, which says how to get it"
        );
        let mut dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..5 {
            let (port, peer_port) = (free_port(), free_port());
            let child = spawn(dir.path(), port, peer_port);
            let mut etcd = Self { child, dir, port, peer_port };
            if etcd.serves().await {
                return etcd;
            }
            // Somebody else took a port in between.
            dir = etcd.into_dir();
        }
        panic!("etcd did not start");
    }

    async fn serves(&mut self) -> bool {
        let env = Env::real();
        let deadline = env.now() + PATIENCE;
        while env.now() < deadline {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            if let Ok(kv) = open(&self.url("probe")).await {
                kv.close().await.expect("closed");
                return true;
            }
            env.sleep(Duration::from_millis(20)).await;
        }
        false
    }

    pub(crate) fn url(&self, namespace: &str) -> String {
        format!("etcd://127.0.0.1:{}/{namespace}", self.port)
    }

    pub(crate) async fn kv(&self) -> KvHandle {
        open(&self.url("main")).await.expect("etcd serves")
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Starts it again, on the same ports and data.
    pub(crate) async fn restart(&mut self) {
        for _ in 0..5 {
            self.child = spawn(self.dir.path(), self.port, self.peer_port);
            if self.serves().await {
                return;
            }
        }
        panic!("etcd did not start again");
    }

    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("removed");
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.child.id())).status();
        assert!(status.expect("sh").success());
    }

    /// How many requests of the KV service the server has begun.
    pub(crate) fn requests(&self) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("etcd serves");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("metrics");
        let counts = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("grpc_server_started_total{")?;
            rest.contains("grpc_service=\"etcdserverpb.KV\"").then_some(())?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        counts.sum::<f64>() as u64
    }

    fn into_dir(mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a temporary directory"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, port: u16, peer_port: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    Command::new(BINARY)
        .args(["--name", "one", "--log-level", "error", "--data-dir"])
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port()
}

pub(crate) async fn open(url: &str) -> Result<KvHandle> {
    let store = Registry::default().with(coact_engine_etcd::driver()).open(url.parse()?, Env::real()).await?;
    Ok(store.kv().clone())
}
