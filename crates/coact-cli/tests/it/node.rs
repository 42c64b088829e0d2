//! A node process of a test's own, and commands against it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, ServerProcess, free_port, wait_until};

/// The command under test.
pub(crate) fn coact() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coact"));
    command
        .env_remove("COACT_AT")
        .env_remove("COACT_LOG")
        .env("COACT_CONFIG", "/nonexistent/contexts.toml")
        .env("RUST_BACKTRACE", "0");
    command
}

/// A running `coact serve`, killed when dropped.
pub(crate) struct Node {
    place: tempfile::TempDir,
    port: u16,
    process: ServerProcess,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let port = free_port().expect("a free port");
        let process = Self::serve(place.path(), port);
        let node = Self { place, port, process };
        node.ready().await;
        node
    }

    fn serve(place: &Path, port: u16) -> ServerProcess {
        let mut command = coact();
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(place.join("data"));
        ServerProcess::start(&mut command, &place.join("node.log")).expect("the node starts")
    }

    async fn ready(&self) {
        wait_until(&Env::real(), "the node answers", PATIENCE, async || self.run(&["kv", "ls"]).status.success())
            .await
            .unwrap_or_else(|error| panic!("{error:#}: {}", self.process.log_tail()));
    }

    /// kill -9, and up again on the same data.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.crash();
        self.restart().await;
    }

    /// kill -9.
    pub(crate) fn crash(&mut self) {
        self.process.kill();
    }

    /// Up again after a [`crash`](Self::crash), on the same data and port.
    pub(crate) async fn restart(&mut self) {
        self.process = Self::serve(self.place.path(), self.port);
        self.ready().await;
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its HTTP API is.
    pub(crate) fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn url(&self, namespace: &str) -> String {
        format!("coact://{}/{namespace}", self.address())
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    /// A command against this node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = coact();
        command.args(arguments).env("COACT_AT", format!("coact://127.0.0.1:{}", self.port));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }

    /// Runs a command that must succeed and returns its stdout.
    pub(crate) fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}
