//! ZooKeeper of three servers.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::{LocalBoxFuture, join_all};

use super::{Cluster, Servers, ask, hosts_from};
use crate::{
    net::{HOSTS, Net, Run, address},
    worker::TTL,
};

pub(super) const MADE_OF: &str = "Three servers of Debian's ZooKeeper 3.8, `tickTime` 500 ms, `syncLimit` 4; only the clients' wall clock is \
                                  stepped, since Java stands still under libfaketime";
const JAVA: &str = "/usr/bin/java";
const CLASSES: &str = "/usr/share/java/zookeeper.jar";

pub(super) struct Zookeeper<'a> {
    net: &'a Net,
    place: PathBuf,
    servers: Servers,
}

impl<'a> Zookeeper<'a> {
    pub(super) fn start(net: &'a Net, place: &Path) -> Result<Self> {
        let mut zookeeper = Self { net, place: place.to_owned(), servers: Servers::default() };
        for host in 1..=HOSTS {
            zookeeper.write_config(host).with_context(|| format!("the files of host {host}"))?;
            zookeeper.restart(host)?;
        }
        Ok(zookeeper)
    }

    fn write_config(&self, host: usize) -> Result<()> {
        let data = self.place.join(format!("h{host}"));
        fs::create_dir(&data)?;
        fs::write(data.join("myid"), host.to_string())?;
        let servers = (1..=HOSTS).map(|host| format!("server.{host}={}:2888:3888\n", address(host)));
        let config = format!(
            "tickTime=500\ninitLimit=10\nsyncLimit=4\ndataDir={}\nclientPort=2181\n4lw.commands.whitelist=srvr\n\
             admin.enableServer=false\nmaxClientCnxns=0\n{}",
            data.display(),
            servers.collect::<String>()
        );
        fs::write(self.config_file(host), config)?;
        fs::write(data.join("log4j.properties"), LOG4J)?;
        Ok(())
    }

    /// `leader`, `follower`, or nothing.
    async fn mode(&self, host: usize) -> Option<String> {
        let mut command = self.net.on(host, Run::default(), Path::new("/bin/bash"));
        command.args(["-c", "exec 3<>/dev/tcp/127.0.0.1/2181 && printf srvr >&3 && cat <&3"]);
        let answer = ask(command).await?;
        answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    async fn modes(&self) -> Vec<Option<String>> {
        join_all((1..=HOSTS).map(|host| self.mode(host))).await
    }

    fn config_file(&self, host: usize) -> PathBuf {
        self.place.join(format!("h{host}.cfg"))
    }
}

const LOG4J: &str = "log4j.rootLogger=WARN, CONSOLE\nlog4j.appender.CONSOLE=org.apache.log4j.ConsoleAppender\n\
                     log4j.appender.CONSOLE.layout=org.apache.log4j.PatternLayout\n\
                     log4j.appender.CONSOLE.layout.ConversionPattern=%d %p %c: %m%n\n";

impl Cluster for Zookeeper<'_> {
    fn url(&self, host: usize, namespace: &str) -> String {
        let servers: Vec<_> = hosts_from(host).map(|host| format!("{}:2181", address(host))).collect();
        format!("zookeeper://{}/{namespace}?timeout=1s&connect_timeout=500ms&session=2s", servers.join(","))
    }

    fn leader(&self) -> LocalBoxFuture<'_, Option<usize>> {
        Box::pin(async {
            let leads = |mode: &Option<String>| mode.as_deref() == Some("leader");
            self.modes().await.iter().position(leads).map(|index| index + 1)
        })
    }

    fn is_whole(&mut self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async { self.modes().await.iter().flatten().count() == HOSTS })
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        let data = self.place.join(format!("h{host}"));
        let mut command = self.net.on(host, Run::default(), Path::new(JAVA));
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(format!("{}:{CLASSES}", data.display()));
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(self.config_file(host));
        self.servers.start(host, &mut command, &self.place.join(format!("h{host}.log")))
    }

    fn lease_delay(&self) -> Duration {
        // The session of the dead one, until another notices, and the whole length of the lease.
        Duration::from_secs(2) + Duration::from_millis(1500) + TTL
    }

    fn clock(&self, _host: usize) -> Option<PathBuf> {
        None
    }
}
