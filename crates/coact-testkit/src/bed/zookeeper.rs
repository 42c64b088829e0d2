//! ZooKeeper, from the Debian package: one server.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use coact_core::{Result, env::Env, name::Namespace, registry::Store};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{Bed, OpenUrl, PATIENCE, ServerProcess, StartError, free_port};

const JAVA: &str = "/usr/bin/java";
/// The archive of the package; it names what else it needs.
const CLASSES: &str = "/usr/share/java/zookeeper.jar";
const STARTS_TRIED: usize = 5;
/// The largest transaction of the contract is twice a mebibyte with its history.
const REQUEST_MAX: usize = 8 << 20;

/// ZooKeeper with its defaults, except that it takes larger requests, opened through `zookeeper://…`.
#[derive(Debug)]
pub struct ZookeeperBed {
    open: OpenUrl,
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    process: ServerProcess,
    dir: TempDir,
    port: u16,
}

impl ZookeeperBed {
    /// A bed that starts ZooKeeper when it is first used and opens `zookeeper://…` URLs with this function.
    pub fn new(open: OpenUrl) -> Self {
        Self { open, server: Mutex::new(None) }
    }

    /// The URL of a namespace, once it was started.
    ///
    /// # Panics
    /// If it was not.
    pub async fn url(&self, namespace: &str) -> String {
        let port = self.server.lock().await.as_ref().expect("started first").port;
        format!("zookeeper://127.0.0.1:{port}/{namespace}?max_request={REQUEST_MAX}")
    }

    /// How many sessions the server keeps.
    ///
    /// # Panics
    /// If it was not started.
    pub async fn sessions(&self) -> usize {
        let port = self.server.lock().await.as_ref().expect("started first").port;
        let dump = ask(port, "dump");
        let sessions = dump.lines().take_while(|line| !line.starts_with("ephemeral nodes"));
        sessions.filter(|line| line.trim_start().starts_with("0x")).count()
    }

    async fn start_anew(&self) -> anyhow::Result<Server> {
        for _ in 0..STARTS_TRIED {
            let (port, dir) = (free_port()?, tempfile::tempdir()?);
            let config = format!(
                "tickTime=500\nmaxSessionTimeout=60000\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
                 admin.enableServer=false\nmaxClientCnxns=0\n4lw.commands.whitelist=srvr,dump\n",
                dir.path().join("data").display()
            );
            std::fs::write(dir.path().join("zoo.cfg"), config)?;
            let mut server = Server { process: run(dir.path())?, dir, port };
            if server.serves().await? {
                return Ok(server);
            }
            // It ended: somebody else took the port in between.
        }
        bail!("ZooKeeper did not start in {STARTS_TRIED} attempts")
    }

    async fn crash_and_start(&self) -> anyhow::Result<()> {
        let mut server = self.server.lock().await;
        let server = server.as_mut().context("ZooKeeper was not started")?;
        server.process.kill();
        for _ in 0..STARTS_TRIED {
            server.process = run(server.dir.path())?;
            if server.serves().await? {
                return Ok(());
            }
        }
        bail!("ZooKeeper did not start again; its log ends with:\n{}", server.process.log_tail())
    }
}

impl Server {
    /// Waits until it answers; `false` if it ended instead.
    async fn serves(&mut self) -> anyhow::Result<bool> {
        let env = Env::real();
        let end = env.now() + PATIENCE;
        while self.process.is_running() {
            if ask(self.port, "srvr").contains("Mode:") {
                return Ok(true);
            }
            ensure!(env.now() < end, "ZooKeeper does not serve; its log ends with:\n{}", self.process.log_tail());
            env.sleep(Duration::from_millis(50)).await;
        }
        Ok(false)
    }
}

/// What the server says to one of its four-letter words; nothing if it does not answer.
fn ask(port: u16, word: &str) -> String {
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && printf {word} >&3 && cat <&3");
    // Somebody else's server, which has taken the port, may not answer at all.
    let asked = Command::new("/usr/bin/timeout")
        .args(["2", "/bin/bash", "-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    asked.map(|asked| String::from_utf8_lossy(&asked.stdout).into_owned()).unwrap_or_default()
}

fn run(dir: &Path) -> anyhow::Result<ServerProcess> {
    let mut command = Command::new(JAVA);
    command
        .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j.configuration=file:/dev/null"])
        .args([&format!("-Djute.maxbuffer={REQUEST_MAX}"), "-cp", CLASSES])
        .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
        .arg(dir.join("zoo.cfg"));
    ServerProcess::start(&mut command, &dir.join("log"))
}

impl Bed for ZookeeperBed {
    fn name(&self) -> &str {
        "zookeeper"
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            for file in [JAVA, CLASSES] {
                if !Path::new(file).exists() {
                    return Err(StartError::Missing(format!(
                        "{file} is missing: apt-get install zookeeper, or run `cargo xtask test`, which says what else it \
                         needs"
                    )));
                }
            }
            *self.server.lock().await = Some(self.start_anew().await?);
            Ok(())
        })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async { (self.open)(self.url(namespace.as_str()).await).await })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(self.crash_and_start()))
    }
}
