//! A real etcd of one member.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use coact_core::{Result, contract::kv::Revision, env::Env, name::Namespace, registry::Store};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{Bed, OpenUrl, PATIENCE, ServerProcess, StartError, free_port};

const ETCD: &str = "/usr/bin/etcd";
/// What asks a server to compact.
pub(super) const ETCDCTL: &str = "/usr/bin/etcdctl";
const STARTS_TRIED: usize = 5;

/// etcd, as the Debian packages bring it, with its defaults: it syncs every write.
#[derive(Debug)]
pub struct EtcdBed {
    open: OpenUrl,
    server: Mutex<Option<Etcd>>,
}

#[derive(Debug)]
struct Etcd {
    process: ServerProcess,
    dir: TempDir,
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    peer: u16,
}

impl EtcdBed {
    /// A bed that starts etcd when it is first used and opens `etcd://…` URLs with this function.
    pub fn new(open: OpenUrl) -> Self {
        Self { open, server: Mutex::new(None) }
    }

    /// The URL of a namespace, once it was started.
    ///
    /// # Panics
    /// If it was not.
    pub async fn url(&self, namespace: &str) -> String {
        self.server.lock().await.as_ref().expect("started first").ports.url(namespace)
    }

    async fn start_anew(&self) -> anyhow::Result<Etcd> {
        for _ in 0..STARTS_TRIED {
            let ports = Ports { client: free_port()?, peer: free_port()? };
            let dir = tempfile::tempdir()?;
            let process = ServerProcess::start(&mut command(dir.path(), ports), &dir.path().join("log"))?;
            let mut etcd = Etcd { process, dir, ports };
            if self.serves(&mut etcd).await? {
                return Ok(etcd);
            }
            // It ended: somebody else took a port in between.
        }
        bail!("etcd did not start in {STARTS_TRIED} attempts")
    }

    /// Waits until it answers; `false` if it ended instead.
    async fn serves(&self, etcd: &mut Etcd) -> anyhow::Result<bool> {
        let env = Env::real();
        let end = env.now() + PATIENCE;
        while etcd.process.is_running() {
            if let Ok(store) = (self.open)(etcd.ports.url("probe")).await {
                store.close().await?;
                return Ok(true);
            }
            ensure!(env.now() < end, "etcd does not serve; its log ends with:\n{}", etcd.process.log_tail());
            env.sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }

    async fn crash_and_start(&self) -> anyhow::Result<()> {
        let mut server = self.server.lock().await;
        let etcd = server.as_mut().context("etcd was not started")?;
        etcd.process.kill();
        for _ in 0..STARTS_TRIED {
            etcd.process =
                ServerProcess::start(&mut command(etcd.dir.path(), etcd.ports), &etcd.dir.path().join("log"))?;
            if self.serves(etcd).await? {
                return Ok(());
            }
        }
        bail!("etcd did not start again; its log ends with:\n{}", etcd.process.log_tail())
    }
}

impl Ports {
    fn url(self, namespace: &str) -> String {
        format!("etcd://127.0.0.1:{}/{namespace}", self.client)
    }
}

impl Bed for EtcdBed {
    fn name(&self) -> &str {
        "etcd"
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            for binary in [ETCD, ETCDCTL] {
                if !Path::new(binary).exists() {
                    return Err(StartError::Missing(format!(
                        "{binary} is missing: apt-get install etcd-server etcd-client, or run `cargo xtask test`, \
                         which says what else it needs"
                    )));
                }
            }
            *self.server.lock().await = Some(self.start_anew().await?);
            Ok(())
        })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async {
            let url = self.url(namespace.as_str()).await;
            (self.open)(url).await
        })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(self.crash_and_start()))
    }

    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(async move {
            let port = self.server.lock().await.as_ref().context("etcd was not started")?.ports.client;
            compact_with_etcdctl(port, revision)
        }))
    }
}

fn command(dir: &Path, ports: Ports) -> Command {
    let (client, peer) = (format!("http://127.0.0.1:{}", ports.client), format!("http://127.0.0.1:{}", ports.peer));
    let mut command = Command::new(ETCD);
    command
        .args(["--name", "one", "--log-level", "error", "--data-dir"])
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")]);
    command
}

/// Asks whoever speaks etcd's protocol on this port to forget the history before a revision.
pub(super) fn compact_with_etcdctl(port: u16, revision: Revision) -> anyhow::Result<()> {
    let output = Command::new(ETCDCTL)
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &format!("127.0.0.1:{port}"), "compact", &revision.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("running etcdctl")?;
    ensure!(output.status.success(), "etcdctl compact: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
