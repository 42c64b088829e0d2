//! Redis: a primary, two replicas, and a Sentinel on each host.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use futures::future::{LocalBoxFuture, join_all};

use super::{Cluster, Servers, ask, hosts_from};
use crate::net::{HOSTS, Net, Run, address, step_clock};

pub(super) const MADE_OF: &str = "A primary, two replicas and three Sentinels (quorum 2, down after 1.5 s) of Debian's Redis 7.0, `appendfsync always`, \
     `min-replicas-to-write` unset. A primary that was replaced is a primary for 8 s more until a Sentinel says otherwise; \
     after the workloads have ended, the lab says it";
const SERVER: &str = "/usr/bin/redis-server";
const CLI: &str = "/usr/bin/redis-cli";
/// The name that the Sentinels know the primary by.
const NAME: &str = "main";

pub(super) struct Redis<'a> {
    net: &'a Net,
    place: PathBuf,
    servers: Servers,
    /// They are never struck by themselves: one that was stopped for a while trusts its clock no more, and waits.
    sentinels: Servers,
}

impl<'a> Redis<'a> {
    pub(super) async fn start(net: &'a Net, place: &Path) -> Result<Self> {
        let (servers, sentinels) = (Servers::default(), Servers::default());
        let mut redis = Self { net, place: place.to_owned(), servers, sentinels };
        for host in 1..=HOSTS {
            fs::create_dir(place.join(format!("h{host}")))?;
            step_clock(&redis.clock_file(host), 0)?;
            redis.start_server(host, (host != 1).then_some(1))?;
        }
        wait_until(&Env::real(), "both replicas follow", PATIENCE, async || {
            Env::real().sleep(Duration::from_millis(50)).await;
            redis.replicas(1).await == Some(HOSTS - 1)
        })
        .await?;
        for host in 1..=HOSTS {
            redis.start_sentinel(host)?;
        }
        Ok(redis)
    }

    fn start_server(&mut self, host: usize, primary: Option<usize>) -> Result<()> {
        let clock = self.clock_file(host);
        let mut command = self.net.on(host, Run { clock: Some(&clock), ..Run::default() }, Path::new(SERVER));
        command.args(["--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir"]);
        command.arg(self.place.join(format!("h{host}")));
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]);
        if let Some(primary) = primary {
            command.args(["--replicaof", &address(primary), "6379"]);
        }
        self.servers.start(host, &mut command, &self.place.join(format!("h{host}.log")))
    }

    fn start_sentinel(&mut self, host: usize) -> Result<()> {
        let place = &self.place;
        let config = place.join(format!("sentinel-{host}.conf"));
        let primary = address(1);
        let text = format!(
            "port 26379\nbind 0.0.0.0\nprotected-mode no\ndir {}\nsentinel monitor {NAME} {primary} 6379 2\n\
             sentinel down-after-milliseconds {NAME} 1500\nsentinel failover-timeout {NAME} 3000\n\
             sentinel parallel-syncs {NAME} 2\n",
            place.display()
        );
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut command = self.net.on(host, Run::default(), Path::new(SERVER));
        command.arg(&config).arg("--sentinel");
        self.sentinels.start(host, &mut command, &place.join(format!("sentinel-{host}.log")))
    }

    /// What a server, or a Sentinel, of a host answers to itself.
    async fn ask(&self, host: usize, port: &str, words: &[&str]) -> Option<String> {
        let mut command = self.net.on(host, Run::default(), Path::new(CLI));
        command.args(["-p", port]).args(words);
        ask(command).await
    }

    /// Who is the primary, in the words of this host's Sentinel.
    async fn named(&self, host: usize) -> Option<usize> {
        let answer = self.ask(host, "26379", &["sentinel", "get-master-addr-by-name", NAME]).await?;
        let named = answer.lines().next()?.to_owned();
        (1..=HOSTS).find(|host| address(*host) == named)
    }

    /// How many replicas follow this primary; `None` if it is none.
    async fn replicas(&self, host: usize) -> Option<usize> {
        let info = self.ask(host, "6379", &["info", "replication"]).await?;
        info.contains("role:master").then(|| info.matches("state=online").count())
    }

    async fn sees_all(&self, host: usize) -> bool {
        let quorum = self.ask(host, "26379", &["sentinel", "ckquorum", NAME]).await;
        let replicas = self.ask(host, "26379", &["sentinel", "replicas", NAME]).await;
        let doubts = |replicas: &str| replicas.contains("s_down") || replicas.contains("disconnected");
        let fine = replicas.is_some_and(|replicas| !doubts(&replicas) && replicas.contains("slave"));
        fine && quorum.is_some_and(|quorum| quorum.contains(&format!("{HOSTS} usable")))
    }

    fn clock_file(&self, host: usize) -> PathBuf {
        self.place.join(format!("server-{host}.clock"))
    }
}

impl Cluster for Redis<'_> {
    fn url(&self, host: usize, namespace: &str) -> String {
        let sentinels: Vec<_> = hosts_from(host).map(|host| format!("{}:26379", address(host))).collect();
        let options = format!("sentinel={NAME}&accept=failover-loss,weak-fence&timeout=1s&connect_timeout=500ms");
        format!("redis://{}/{namespace}?{options}", sentinels.join(","))
    }

    fn leader(&self) -> LocalBoxFuture<'_, Option<usize>> {
        Box::pin(async {
            let named = join_all((1..=HOSTS).map(|host| self.named(host))).await;
            let by_most = |host: &usize| named.iter().filter(|named| **named == Some(*host)).count() > HOSTS / 2;
            (1..=HOSTS).find(by_most)
        })
    }

    fn is_whole(&mut self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async {
            let Some(leader) = self.leader().await else { return false };
            if self.replicas(leader).await != Some(HOSTS - 1) {
                return false;
            }
            join_all((1..=HOSTS).map(|host| self.sees_all(host))).await.into_iter().all(|sees| sees)
        })
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        self.start_server(host, None)
    }

    fn clock(&self, host: usize) -> Option<PathBuf> {
        Some(self.clock_file(host))
    }

    fn settle(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Some(leader) = self.leader().await else { return Ok(()) };
            for host in (1..=HOSTS).filter(|host| *host != leader) {
                self.ask(host, "6379", &["replicaof", &address(leader), "6379"]).await;
            }
            Ok(())
        })
    }
}
