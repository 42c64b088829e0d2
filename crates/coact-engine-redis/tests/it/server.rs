//! One Redis server with settings of the test's own.

use std::process::{Command, Stdio};

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};
use coact_testkit::bed::{PATIENCE, ServerProcess, free_port, wait_until};
use tempfile::TempDir;

pub(crate) struct Server {
    pub(crate) port: u16,
    _dir: TempDir,
    _process: ServerProcess,
}

impl Server {
    /// Starts one with these settings besides `appendonly yes`.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        let (port, dir) = (free_port().expect("a port"), tempfile::tempdir().expect("a directory"));
        let mut command = Command::new("/usr/bin/redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--appendonly",
            "yes",
            "--save",
            "",
            "--dir",
        ]);
        command.arg(dir.path()).args(settings);
        let process = ServerProcess::start(&mut command, &dir.path().join("log")).expect("redis-server is installed");
        let server = Self { port, _dir: dir, _process: process };
        // Whatever it says, it is there.
        wait_until(&Env::real(), "Redis answers", PATIENCE, async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
                && server.cli(&["ping"]).contains(|c: char| c.is_alphabetic())
        })
        .await
        .expect("it starts");
        server
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        let output = Command::new("/usr/bin/redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

pub(crate) async fn open(url: &str) -> Result<KvHandle> {
    let store = Registry::default().with(coact_engine_redis::driver()).open(url.parse()?, Env::real()).await?;
    Ok(store.kv().clone())
}

/// What opening is refused with.
pub(crate) async fn refusal(url: &str) -> coact_core::Error {
    open(url).await.err().unwrap_or_else(|| panic!("{url} opened"))
}
