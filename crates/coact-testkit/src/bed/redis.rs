//! Redis, from the Debian package: one server, Sentinels with a primary and a replica, or a Cluster.

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

const SERVER: &str = "/usr/bin/redis-server";
const CLI: &str = "/usr/bin/redis-cli";
const STARTS_TRIED: usize = 5;
/// A Cluster's servers talk to each other on this much above their port.
const BUS: u16 = 10_000;
/// What Sentinels call the primary.
const NAME: &str = "main";

/// How the servers are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// One server.
    Single,
    /// A primary, a replica, and three Sentinels.
    Sentinel,
    /// Three primaries that share the slots.
    Cluster,
}

/// Redis with an append-only file that is synced at every write, opened through `redis://…`.
#[derive(Debug)]
pub struct RedisBed {
    mode: RedisMode,
    open: OpenUrl,
    servers: Mutex<Option<Servers>>,
}

#[derive(Debug)]
struct Servers {
    dir: TempDir,
    mode: RedisMode,
    redis: Vec<Server>,
    sentinels: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    process: ServerProcess,
    port: u16,
    arguments: Vec<String>,
}

impl RedisBed {
    /// A bed that starts Redis when it is first used and opens `redis://…` URLs with this function.
    pub fn new(mode: RedisMode, open: OpenUrl) -> Self {
        Self { mode, open, servers: Mutex::new(None) }
    }

    /// The URL of a namespace, once it was started.
    ///
    /// # Panics
    /// If it was not.
    pub async fn url(&self, namespace: &str) -> String {
        self.servers.lock().await.as_ref().expect("started first").url(namespace)
    }

    /// Ends the replica as hard as it can: what the primary acknowledges from now on, it alone has.
    ///
    /// # Errors
    /// If there is no replica.
    pub async fn kill_replica(&self) -> anyhow::Result<()> {
        let mut servers = self.servers.lock().await;
        let servers = servers.as_mut().context("Redis was not started")?;
        servers.redis.get_mut(1).context("there is no replica")?.process.kill();
        Ok(())
    }

    /// Whether the replica has this field of this hash.
    pub async fn replica_has(&self, hash: &str, field: &str) -> bool {
        let servers = self.servers.lock().await;
        let replica = servers.as_ref().and_then(|servers| servers.redis.get(1));
        replica.is_some_and(|replica| cli(replica.port, &["hexists", hash, field]).is_ok_and(|answer| answer == "1"))
    }

    /// Ends the primary as hard as it can, and starts the replica that was killed, which Sentinels then make the primary.
    ///
    /// # Errors
    /// If there is no replica, or no Sentinel promotes it in time.
    pub async fn fail_over(&self) -> anyhow::Result<()> {
        let mut servers = self.servers.lock().await;
        let servers = servers.as_mut().context("Redis was not started")?;
        servers.redis[0].process.kill();
        let place = servers.dir.path().to_owned();
        let replica = servers.redis.get_mut(1).context("there is no replica")?;
        replica.process = Server::run(&replica.arguments, replica.port, &place)?;
        until("the replica is the primary", || {
            cli(replica.port, &["role"]).is_ok_and(|role| role.starts_with("master"))
        })
        .await
    }

    async fn start_anew(&self) -> anyhow::Result<Servers> {
        let mut complaint = String::new();
        for _ in 0..STARTS_TRIED {
            match Servers::start(self.mode).await {
                Ok(servers) => return Ok(servers),
                // Somebody else may have taken a port in between.
                Err(error) => complaint = format!("{error:#}"),
            }
        }
        bail!("Redis did not start in {STARTS_TRIED} attempts: {complaint}")
    }

    async fn crash_and_start(&self) -> anyhow::Result<()> {
        let mut servers = self.servers.lock().await;
        servers.as_mut().context("Redis was not started")?.crash_and_start().await
    }
}

impl Servers {
    async fn start(mode: RedisMode) -> anyhow::Result<Self> {
        let mut servers = Self { dir: tempfile::tempdir()?, mode, redis: Vec::new(), sentinels: Vec::new() };
        let count = match mode {
            RedisMode::Single => 1,
            RedisMode::Sentinel => 2,
            RedisMode::Cluster => 3,
        };
        for index in 0..count {
            servers.start_server(index)?;
        }
        servers.until_they_answer().await?;
        match mode {
            RedisMode::Single => {}
            RedisMode::Sentinel => servers.start_sentinels().await?,
            RedisMode::Cluster => servers.join_cluster().await?,
        }
        Ok(servers)
    }

    fn start_server(&mut self, index: usize) -> anyhow::Result<()> {
        let port = match self.mode {
            RedisMode::Cluster => free_port_for_cluster()?,
            RedisMode::Single | RedisMode::Sentinel => free_port()?,
        };
        let dir = self.dir.path().join(format!("redis{index}"));
        std::fs::create_dir(&dir)?;
        let mut arguments = words(&format!(
            "--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --repl-diskless-sync-delay 0 --dir"
        ));
        arguments.push(dir.display().to_string());
        // An empty word: no snapshots.
        arguments.extend(["--save".to_owned(), String::new()]);
        match (self.mode, self.redis.first()) {
            (RedisMode::Cluster, _) => arguments.extend(words("--cluster-enabled yes --cluster-node-timeout 2000")),
            (RedisMode::Sentinel, Some(primary)) => {
                arguments.extend(words(&format!("--replicaof 127.0.0.1 {}", primary.port)));
            }
            _ => {}
        }
        self.redis.push(Server::start(port, arguments, self.dir.path())?);
        Ok(())
    }

    async fn until_they_answer(&mut self) -> anyhow::Result<()> {
        for server in &mut self.redis {
            until("Redis answers", || answers(server.port) || !server.process.is_running()).await?;
            ensure!(server.process.is_running(), "Redis ended; its log ends with:\n{}", server.process.log_tail());
        }
        Ok(())
    }

    async fn start_sentinels(&mut self) -> anyhow::Result<()> {
        let primary = self.redis[0].port;
        for index in 0..3 {
            let port = free_port()?;
            let dir = self.dir.path().join(format!("sentinel{index}"));
            std::fs::create_dir(&dir)?;
            let file = dir.join("sentinel.conf");
            let lines = [
                format!("port {port}\nbind 127.0.0.1\ndir {}", dir.display()),
                format!("sentinel monitor {NAME} 127.0.0.1 {primary} 2"),
                format!("sentinel down-after-milliseconds {NAME} 1500\nsentinel failover-timeout {NAME} 6000\n"),
            ];
            std::fs::write(&file, lines.join("\n"))?;
            let arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
            self.sentinels.push(Server::start(port, arguments, self.dir.path())?);
        }
        let ports: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.port).collect();
        until("the Sentinels know each other and the replica", || {
            ports.iter().all(|port| {
                let quorum = cli(*port, &["sentinel", "ckquorum", NAME]).unwrap_or_default();
                let replicas = cli(*port, &["sentinel", "replicas", NAME]).unwrap_or_default();
                quorum.starts_with("OK 3 usable") && replicas.contains("master-link-status\nok")
            })
        })
        .await
    }

    async fn join_cluster(&mut self) -> anyhow::Result<()> {
        let mut arguments = words("--cluster create");
        arguments.extend(self.redis.iter().map(|server| format!("127.0.0.1:{}", server.port)));
        arguments.push("--cluster-yes".to_owned());
        let output = Command::new(CLI).args(&arguments).stdin(Stdio::null()).output().context("running redis-cli")?;
        ensure!(output.status.success(), "redis-cli: {}", String::from_utf8_lossy(&output.stdout));
        self.until_the_cluster_serves().await
    }

    async fn until_the_cluster_serves(&self) -> anyhow::Result<()> {
        until("the Cluster serves", || {
            self.redis.iter().all(|server| {
                cli(server.port, &["cluster", "info"]).is_ok_and(|info| info.contains("cluster_state:ok"))
            })
        })
        .await
    }

    /// Ends the servers as hard as it can, all before the first is started again, so that there is no failover.
    async fn crash_and_start(&mut self) -> anyhow::Result<()> {
        for server in self.sentinels.iter_mut().chain(&mut self.redis) {
            server.process.kill();
        }
        for server in &mut self.redis {
            server.process = Server::run(&server.arguments, server.port, self.dir.path())?;
        }
        self.until_they_answer().await?;
        if self.mode == RedisMode::Cluster {
            self.until_the_cluster_serves().await?;
        }
        for sentinel in &mut self.sentinels {
            sentinel.process = Server::run(&sentinel.arguments, sentinel.port, self.dir.path())?;
        }
        let ports: Vec<_> = self.sentinels.iter().map(|sentinel| sentinel.port).collect();
        until("the Sentinels answer", || ports.iter().all(|port| answers(*port))).await
    }

    fn url(&self, namespace: &str) -> String {
        let hosts = |servers: &[Server]| {
            let hosts: Vec<_> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
            hosts.join(",")
        };
        match self.mode {
            RedisMode::Single => format!("redis://{}/{namespace}", hosts(&self.redis)),
            RedisMode::Cluster => {
                format!("redis://{}/{namespace}?accept=failover-loss", hosts(&self.redis))
            }
            RedisMode::Sentinel => {
                format!("redis://{}/{namespace}?sentinel={NAME}&accept=failover-loss", hosts(&self.sentinels))
            }
        }
    }
}

impl Server {
    fn start(port: u16, arguments: Vec<String>, dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { process: Self::run(&arguments, port, dir)?, port, arguments })
    }

    fn run(arguments: &[String], port: u16, dir: &Path) -> anyhow::Result<ServerProcess> {
        ServerProcess::start(Command::new(SERVER).args(arguments), &dir.join(format!("{port}.log")))
    }
}

impl Bed for RedisBed {
    fn name(&self) -> &str {
        match self.mode {
            RedisMode::Single => "redis",
            RedisMode::Sentinel => "redis_sentinel",
            RedisMode::Cluster => "redis_cluster",
        }
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            for binary in [SERVER, CLI] {
                if !Path::new(binary).exists() {
                    return Err(StartError::Missing(format!(
                        "{binary} is missing: apt-get install redis-server redis-tools, or run `cargo xtask test`, \
                         which says what else it needs"
                    )));
                }
            }
            *self.servers.lock().await = Some(self.start_anew().await?);
            Ok(())
        })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async { (self.open)(self.url(namespace.as_str()).await).await })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(self.crash_and_start()))
    }

    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(async move {
            let servers = self.servers.lock().await;
            let servers = servers.as_ref().context("Redis was not started")?;
            let (stream, from) = (format!("coact:{{{}}}:changes", Namespace::default()), (revision.0 + 1).to_string());
            for server in &servers.redis {
                // All but the one that has it refuse.
                let _ = cli(server.port, &["xtrim", &stream, "MINID", "=", &from]);
            }
            Ok(())
        }))
    }
}

/// Asks a server with Redis's own command.
fn cli(port: u16, words: &[&str]) -> anyhow::Result<String> {
    let port = port.to_string();
    let mut command = Command::new(CLI);
    let output = command.args(["-p", &port]).args(words).stdin(Stdio::null()).output().context("running redis-cli")?;
    ensure!(output.status.success(), "redis-cli {words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn answers(port: u16) -> bool {
    cli(port, &["ping"]).is_ok_and(|answer| answer == "PONG")
}

/// Waits until a server says that it is so. The future of a bed must be `Send`, which one that waits for asynchronous
/// conditions is not.
async fn until(what: &str, mut holds: impl FnMut() -> bool + Send) -> anyhow::Result<()> {
    let env = Env::real();
    let end = env.now() + PATIENCE;
    while !holds() {
        ensure!(env.now() < end, "waited {PATIENCE:?} in vain until {what}");
        env.sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A free port whose bus port exists and is free too.
fn free_port_for_cluster() -> anyhow::Result<u16> {
    loop {
        let port = free_port()?;
        if let Some(bus) = port.checked_add(BUS)
            && std::net::TcpListener::bind(("127.0.0.1", bus)).is_ok()
        {
            return Ok(port);
        }
    }
}
