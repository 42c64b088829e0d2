//! etcd of three members.

use std::path::{Path, PathBuf};

use anyhow::Result;
use futures::future::{LocalBoxFuture, join_all};
use serde_json::Value;

use super::{Cluster, Servers, ask, hosts_from};
use crate::net::{HOSTS, Net, Run, address};

pub(super) const MADE_OF: &str = "Three members of Debian's etcd 3.4, elections after 1 s; it reads the kernel's clock, so \
                                  only the clients' wall clock is stepped";
const ETCD: &str = "/usr/bin/etcd";
const ETCDCTL: &str = "/usr/bin/etcdctl";

pub(super) struct Etcd<'a> {
    net: &'a Net,
    place: PathBuf,
    servers: Servers,
}

impl<'a> Etcd<'a> {
    pub(super) fn start(net: &'a Net, place: &Path) -> Result<Self> {
        let mut etcd = Self { net, place: place.to_owned(), servers: Servers::default() };
        (1..=HOSTS).try_for_each(|host| etcd.restart(host))?;
        Ok(etcd)
    }

    /// What `etcdctl` on this host says about its own member.
    async fn status(&self, host: usize) -> Option<Value> {
        let mut command = self.net.on(host, Run::default(), Path::new(ETCDCTL));
        command.env("ETCDCTL_API", "3").args(["--endpoints=127.0.0.1:2379", "--command-timeout=1s"]);
        let status = ask({
            command.args(["endpoint", "status", "--write-out=json"]);
            command
        });
        let status: Value = serde_json::from_str(&status.await?).ok()?;
        Some(status[0]["Status"].clone())
    }
}

impl Cluster for Etcd<'_> {
    fn url(&self, host: usize, namespace: &str) -> String {
        let servers: Vec<_> = hosts_from(host).map(|host| format!("{}:2379", address(host))).collect();
        format!("etcd://{}/{namespace}?timeout=1s&connect_timeout=500ms", servers.join(","))
    }

    fn leader(&self) -> LocalBoxFuture<'_, Option<usize>> {
        Box::pin(async {
            let statuses = join_all((1..=HOSTS).map(|host| self.status(host))).await;
            let leads = |status: &Value| {
                let leader = status["leader"].as_u64().filter(|leader| *leader != 0);
                leader.is_some() && leader == status["header"]["member_id"].as_u64()
            };
            statuses.iter().position(|status| status.as_ref().is_some_and(leads)).map(|index| index + 1)
        })
    }

    fn is_whole(&mut self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async {
            let statuses = join_all((1..=HOSTS).map(|host| self.status(host))).await;
            // Everybody follows the same leader, and nobody lags far behind.
            let leaders: Vec<_> = statuses.iter().flatten().filter_map(|status| status["leader"].as_u64()).collect();
            let applied: Vec<_> =
                statuses.iter().flatten().filter_map(|status| status["raftAppliedIndex"].as_u64()).collect();
            let lag = applied.iter().max().zip(applied.iter().min()).map_or(u64::MAX, |(most, least)| most - least);
            leaders.len() == HOSTS && leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0]) && lag < 100
        })
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        let (client, peer) = (format!("http://{}:2379", address(host)), format!("http://{}:2380", address(host)));
        let cluster: Vec<_> = (1..=HOSTS).map(|host| format!("h{host}=http://{}:2380", address(host))).collect();
        let mut command = self.net.on(host, Run::default(), Path::new(ETCD));
        command.args(["--name", &format!("h{host}"), "--log-level", "error", "--data-dir"]);
        command.arg(self.place.join(format!("h{host}")));
        command.args(["--listen-client-urls", &format!("{client},http://127.0.0.1:2379")]);
        command.args(["--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        command.args(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
        self.servers.start(host, &mut command, &self.place.join(format!("h{host}.log")))
    }

    fn clock(&self, _host: usize) -> Option<PathBuf> {
        None
    }
}
