//! Real clusters of three, one server on each host of the lab's network.

mod etcd;
mod postgres;
mod redis;
mod zookeeper;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use coact::Env;
use coact_testkit::bed::{PATIENCE, ServerProcess, wait_until};
use futures::future::LocalBoxFuture;

use crate::net::{HOSTS, Net};

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Engine {
    Etcd,
    Zookeeper,
    Redis,
    Postgres,
}

impl Engine {
    /// Those that coact has an engine for: they run unless others are asked for.
    pub(crate) const SHOWN: [Self; 4] = [Self::Etcd, Self::Zookeeper, Self::Redis, Self::Postgres];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Zookeeper => "zookeeper",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// What the cluster is made of, for people.
    pub(crate) fn made_of(self) -> &'static str {
        match self {
            Self::Etcd => etcd::MADE_OF,
            Self::Zookeeper => zookeeper::MADE_OF,
            Self::Redis => redis::MADE_OF,
            Self::Postgres => postgres::MADE_OF,
        }
    }

    /// Starts the servers, and waits until all of them take part.
    pub(crate) async fn start<'a>(self, net: &'a Net, place: &Path) -> Result<Box<dyn Cluster + 'a>> {
        let mut cluster: Box<dyn Cluster + 'a> = match self {
            Self::Etcd => Box::new(etcd::Etcd::start(net, place)?),
            Self::Zookeeper => Box::new(zookeeper::Zookeeper::start(net, place)?),
            Self::Redis => Box::new(redis::Redis::start(net, place).await?),
            Self::Postgres => Box::new(postgres::Postgres::start(net, place).await?),
        };
        wait_whole(cluster.as_mut()).await?;
        Ok(cluster)
    }
}

/// A store of three servers.
pub(crate) trait Cluster {
    /// How coact opens it from this host: its own server is named first.
    fn url(&self, host: usize, namespace: &str) -> String;

    /// The host whose server leads, if there is one now.
    fn leader(&self) -> LocalBoxFuture<'_, Option<usize>>;

    /// Whether every server takes part.
    fn is_whole(&mut self) -> LocalBoxFuture<'_, bool>;

    /// Its processes.
    fn servers(&mut self) -> &mut Servers;

    /// Starts the server of this host again, on its data.
    fn restart(&mut self, host: usize) -> Result<()>;

    /// The file that steps the wall clock of this host's server; `None` if it reads the kernel's.
    fn clock(&self, host: usize) -> Option<PathBuf>;

    /// Somebody must decide that another server takes over from this one, and this cluster leaves it to the lab.
    fn take_over_from(&mut self, host: usize) -> LocalBoxFuture<'_, Result<()>> {
        let _ = host;
        Box::pin(async { Ok(()) })
    }

    /// Stops the server of this host in its tracks.
    fn pause(&mut self, host: usize) -> Result<()> {
        self.servers().pause(host)
    }

    /// Lets it go on.
    fn resume(&mut self, host: usize) -> Result<()> {
        self.servers().resume(host)
    }

    /// Before a struck host can be reached again: its server is killed if another has taken over, and this cluster leaves
    /// that to the lab.
    fn shoot(&mut self, host: usize) {
        let _ = host;
    }

    /// How much later a lease may end because the client that ends leases died, and another begins to count anew.
    fn lease_delay(&self) -> Duration {
        Duration::ZERO
    }

    /// What this cluster leaves to the lab once the workloads have ended: a server that was replaced joins again.
    fn settle(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// Waits until every server takes part, and one leads.
pub(crate) async fn wait_whole(cluster: &mut dyn Cluster) -> Result<()> {
    let env = Env::real();
    let whole = wait_until(&env, "every server takes part", PATIENCE, async || {
        let whole = cluster.is_whole().await && cluster.leader().await.is_some();
        if !whole {
            env.sleep(Duration::from_millis(50)).await;
        }
        whole
    })
    .await;
    whole.map_err(|error| error.context(cluster.servers().log_tails()))
}

/// The processes of a cluster, by host.
#[derive(Debug, Default)]
pub(crate) struct Servers(Vec<(usize, ServerProcess)>);

impl Servers {
    /// Starts a process of a host.
    pub(crate) fn start(&mut self, host: usize, command: &mut Command, log: &Path) -> Result<()> {
        let process = ServerProcess::start(command, log).with_context(|| format!("on host {host}"))?;
        self.0.push((host, process));
        Ok(())
    }

    pub(crate) fn pause(&self, host: usize) -> Result<()> {
        self.of(host).try_for_each(ServerProcess::pause)
    }

    pub(crate) fn resume(&self, host: usize) -> Result<()> {
        self.of(host).try_for_each(ServerProcess::resume)
    }

    /// Their process numbers.
    fn ids(&self, host: usize) -> impl Iterator<Item = u32> {
        self.of(host).map(ServerProcess::id)
    }

    pub(crate) fn kill(&mut self, host: usize) {
        self.0.retain_mut(|(of, process)| {
            if *of == host {
                process.kill();
            }
            *of != host
        });
    }

    fn of(&self, host: usize) -> impl Iterator<Item = &ServerProcess> {
        self.0.iter().filter(move |(of, _)| *of == host).map(|(_, process)| process)
    }

    /// The end of what each of them has said.
    pub(crate) fn log_tails(&self) -> String {
        self.0.iter().map(|(host, process)| format!("log of host {host}:\n{}\n", process.log_tail())).collect()
    }
}

/// Every host, this one first.
fn hosts_from(host: usize) -> impl Iterator<Item = usize> {
    std::iter::once(host).chain((1..=HOSTS).filter(move |other| *other != host))
}

/// Runs a program with a limit, and gives what it printed if it succeeded.
async fn ask(command: Command) -> Option<String> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true);
    let output = Env::real().timeout(Duration::from_secs(3), command.output()).await?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
