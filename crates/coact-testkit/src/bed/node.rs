//! A coact node: `coact serve` as a process of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use coact_core::{Result, contract::kv::Revision, env::Env, name::Namespace, registry::Store};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{
    Bed, OpenUrl, PATIENCE, ServerProcess, StartError,
    etcd::{ETCDCTL, compact_with_etcdctl},
    free_port,
};

const STARTS_TRIED: usize = 5;

/// A node with a durable engine, opened through `coact://…`.
#[derive(Debug)]
pub struct NodeBed {
    binary: PathBuf,
    open: OpenUrl,
    node: Mutex<Option<Node>>,
}

#[derive(Debug)]
struct Node {
    process: ServerProcess,
    dir: TempDir,
    port: u16,
}

impl NodeBed {
    /// A bed that runs this `coact` binary and opens `coact://…` URLs with this function.
    pub fn new(binary: impl Into<PathBuf>, open: OpenUrl) -> Self {
        Self { binary: binary.into(), open, node: Mutex::new(None) }
    }

    async fn start_anew(&self) -> anyhow::Result<Node> {
        for _ in 0..STARTS_TRIED {
            let (dir, port) = (tempfile::tempdir()?, free_port()?);
            let mut node = Node { process: self.run(&dir, port)?, dir, port };
            if self.serves(&mut node).await? {
                return Ok(node);
            }
            // It ended: somebody else took the port in between.
        }
        bail!("the node did not start in {STARTS_TRIED} attempts")
    }

    fn run(&self, dir: &TempDir, port: u16) -> anyhow::Result<ServerProcess> {
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(dir.path().join("data"));
        ServerProcess::start(&mut command, &dir.path().join("log"))
    }

    /// Waits until it answers; `false` if it ended instead.
    async fn serves(&self, node: &mut Node) -> anyhow::Result<bool> {
        let env = Env::real();
        let end = env.now() + PATIENCE;
        while node.process.is_running() {
            if let Ok(store) = (self.open)(node.url("probe")).await {
                store.close().await?;
                return Ok(true);
            }
            ensure!(env.now() < end, "the node does not serve; its log ends with:\n{}", node.process.log_tail());
            env.sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }

    async fn crash_and_start(&self) -> anyhow::Result<()> {
        let mut node = self.node.lock().await;
        let node = node.as_mut().context("the node was not started")?;
        node.process.kill();
        for _ in 0..STARTS_TRIED {
            node.process = self.run(&node.dir, node.port)?;
            if self.serves(node).await? {
                return Ok(());
            }
        }
        bail!("the node did not start again; its log ends with:\n{}", node.process.log_tail())
    }
}

impl Node {
    fn url(&self, namespace: &str) -> String {
        format!("coact://127.0.0.1:{}/{namespace}", self.port)
    }
}

impl Bed for NodeBed {
    fn name(&self) -> &str {
        "node"
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            *self.node.lock().await = Some(self.start_anew().await?);
            Ok(())
        })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async {
            let url = self.node.lock().await.as_ref().expect("started first").url(namespace.as_str());
            (self.open)(url).await
        })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(self.crash_and_start()))
    }

    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        // coact has no command of its own for it; a node answers etcd's.
        Path::new(ETCDCTL).exists().then_some(Box::pin(async move {
            let port = self.node.lock().await.as_ref().context("the node was not started")?.port;
            compact_with_etcdctl(port, revision)
        }))
    }
}
