//! A command that goes on while the test does other things.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Stdio},
};

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::node::Node;

/// A running command, killed with what it started when dropped.
pub(crate) struct Running {
    process: Child,
    out: PathBuf,
    children: Vec<Pid>,
}

impl Running {
    /// Starts it; its stdout goes to a file of this name.
    pub(crate) fn start(node: &Node, name: &str, arguments: &[&str]) -> Self {
        let out = node.path().join(name);
        let file = File::create(&out).expect("a file");
        let mut command = node.command(arguments);
        command.stdin(Stdio::null()).stdout(file).stderr(File::create(out.with_extension("err")).expect("a file"));
        Self { process: command.spawn().expect("it starts"), out, children: Vec::new() }
    }

    /// What it has written to stdout.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(&self.out).expect("text")
    }

    /// What it has written to stderr.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.out.with_extension("err")).expect("text")
    }

    /// Waits until what it has written is as wished.
    pub(crate) async fn wrote(&self, what: &str, mut wish: impl FnMut(&str) -> bool) -> String {
        wait_until(&Env::real(), what, PATIENCE, async || wish(&self.stdout()))
            .await
            .unwrap_or_else(|error| panic!("{error:#}: {:?}, {:?}", self.stdout(), self.stderr()));
        self.stdout()
    }

    /// kill -9 of the command itself. What it started goes on until the test ends.
    pub(crate) fn kill(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let pid = |text: &str| text.parse().ok().and_then(Pid::from_raw);
        self.children.extend(children.split_whitespace().filter_map(pid));
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Waits until it ends, and returns its exit code.
    pub(crate) async fn code(&mut self) -> Option<i32> {
        let process = &mut self.process;
        let ended = async || process.try_wait().expect("it can be asked").is_some();
        wait_until(&Env::real(), "the command ends", PATIENCE, ended).await.expect("in time");
        process.wait().expect("it ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
        for child in &self.children {
            // Commands without a terminal lead a group of their own.
            let _ = kill_process_group(*child, Signal::KILL);
        }
    }
}
