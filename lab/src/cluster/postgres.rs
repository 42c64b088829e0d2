//! PostgreSQL: a primary and two standbys, one of which must have each commit. Nobody but the lab decides who takes over.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use futures::future::{LocalBoxFuture, join_all};
use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, Servers, ask, hosts_from};
use crate::net::{HOSTS, Net, Run, address, step_clock};

pub(super) const MADE_OF: &str = "A primary and two standbys of Debian's PostgreSQL 15, `synchronous_standby_names = 'ANY 1 (h1, h2, h3)'`. It has no \
     failover of its own: the lab promotes the standby with more of the log a second after the strike, kills the old \
     primary before its host can be reached again, and makes it a standby anew after the workloads have ended";
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const USER: &str = "postgres";
/// How long whoever watches the cluster takes to notice.
const NOTICE: Duration = Duration::from_secs(1);

pub(super) struct Postgres<'a> {
    net: &'a Net,
    place: PathBuf,
    servers: Servers,
    primary: usize,
    /// Replaced by another, and to be made a standby anew.
    replaced: Option<usize>,
}

impl<'a> Postgres<'a> {
    pub(super) async fn start(net: &'a Net, place: &Path) -> Result<Self> {
        let (servers, place) = (Servers::default(), place.to_owned());
        fs::set_permissions(&place, fs::Permissions::from_mode(0o711))?;
        let mut postgres = Self { net, place, servers, primary: 1, replaced: None };
        for host in 1..=HOSTS {
            step_clock(&postgres.clock_file(host), 0)?;
            postgres.empty(host)?;
        }
        postgres.create().await?;
        postgres.start_server(1)?;
        postgres.wait_serving(1).await?;
        for sql in ["CREATE ROLE coact LOGIN", "CREATE DATABASE coact OWNER coact"] {
            postgres.sql(1, sql).await.with_context(|| format!("{sql} failed"))?;
        }
        for host in 2..=HOSTS {
            postgres.clone_from(1, host).await?;
        }
        // Only now: before, nobody could confirm a commit.
        let names = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (h1, h2, h3)'";
        postgres.everywhere(names).await?;
        Ok(postgres)
    }

    /// Makes the first server's data.
    async fn create(&self) -> Result<()> {
        let data = self.data(1);
        let mut command = self.on(1, "initdb");
        command.args(["--auth=trust", "--no-sync", "--username", USER, "--pgdata"]).arg(&data);
        ask_long(command).await.context("initdb failed")?;
        let settings = "listen_addresses = '*'\nshared_buffers = 32MB\nmax_connections = 100\nmax_wal_senders = 10\n\
                        wal_keep_size = 512MB\nhot_standby = on\nwal_retrieve_retry_interval = 200ms\n\
                        wal_receiver_timeout = 2s\nwal_sender_timeout = 2s\n";
        let hba = "local all all trust\nhost all all 10.77.0.0/24 trust\nhost all all 127.0.0.1/32 trust\n\
                   host replication all 10.77.0.0/24 trust\n";
        let path = data.join("postgresql.conf");
        fs::write(&path, fs::read_to_string(&path)? + settings)?;
        fs::write(data.join("pg_hba.conf"), hba)?;
        Ok(())
    }

    /// Copies one server to another host, as a standby.
    async fn clone_from(&mut self, primary: usize, host: usize) -> Result<()> {
        self.empty(host)?;
        let mut command = self.on(host, "pg_basebackup");
        command.args(["--checkpoint=fast", "--no-sync", "--wal-method=stream", "--username", USER, "--pgdata"]);
        command.arg(self.data(host)).args(["--host", &address(primary)]);
        ask_long(command).await.with_context(|| format!("host {host} could not be cloned from {primary}"))?;
        fs::write(self.data(host).join("standby.signal"), "")?;
        fs::write(self.data(host).join("postgresql.auto.conf"), self.follows(host, primary))?;
        self.start_server(host)?;
        self.wait_serving(host).await
    }

    /// The settings of a standby.
    fn follows(&self, host: usize, primary: usize) -> String {
        let names = "synchronous_standby_names = 'ANY 1 (h1, h2, h3)'";
        format!("primary_conninfo = '{}'\n{names}\n", self.source(host, primary))
    }

    fn source(&self, host: usize, primary: usize) -> String {
        format!("host={} user={USER} application_name=h{host}", address(primary))
    }

    fn start_server(&mut self, host: usize) -> Result<()> {
        let clock = self.clock_file(host);
        let run = Run { user: Some(USER), clock: Some(&clock) };
        let mut command = self.net.on(host, run, &Path::new(BINARIES).join("postgres"));
        command.arg("-D").arg(self.data(host)).arg("-k").arg(self.place.join(format!("socket-{host}")));
        command.current_dir("/");
        self.servers.start(host, &mut command, &self.place.join(format!("h{host}.log")))
    }

    async fn wait_serving(&mut self, host: usize) -> Result<()> {
        let serves = wait_until(&Env::real(), "PostgreSQL serves", PATIENCE, async || {
            Env::real().sleep(Duration::from_millis(30)).await;
            self.sql(host, "SELECT 1").await.is_some()
        })
        .await;
        serves.map_err(|error| error.context(self.servers.log_tails()))
    }

    async fn everywhere(&self, sql: &str) -> Result<()> {
        for host in 1..=HOSTS {
            self.sql(host, sql).await.with_context(|| format!("host {host}: {sql}"))?;
            self.sql(host, "SELECT pg_reload_conf()").await.with_context(|| format!("host {host}: reloading"))?;
        }
        Ok(())
    }

    /// What a server answers on its own host.
    async fn sql(&self, host: usize, sql: &str) -> Option<String> {
        let mut command = self.on(host, "psql");
        command.args(["--username", USER, "--no-align", "--tuples-only", "--no-psqlrc", "--host"]);
        command.arg(self.place.join(format!("socket-{host}"))).args(["--command", sql, "postgres"]);
        ask(command).await.map(|answer| answer.trim().to_owned())
    }

    fn on(&self, host: usize, program: &str) -> Command {
        let mut command = self.net.on(host, Run { user: Some(USER), clock: None }, &Path::new(BINARIES).join(program));
        command.current_dir("/");
        command
    }

    /// Empty directories that belong to the server's user.
    fn empty(&self, host: usize) -> Result<()> {
        let owner =
            fs::metadata("/var/lib/postgresql").context("the user postgres has no home: install postgresql-15")?;
        for path in [self.data(host), self.place.join(format!("socket-{host}"))] {
            if path.exists() {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            let (user, group) =
                (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
            chown(&path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// How much of the log a standby has.
    async fn received(&self, host: usize) -> Option<u64> {
        let sql =
            "SELECT pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')::bigint";
        self.sql(host, sql).await?.parse().ok()
    }

    fn data(&self, host: usize) -> PathBuf {
        self.place.join(format!("h{host}"))
    }

    fn clock_file(&self, host: usize) -> PathBuf {
        self.place.join(format!("server-{host}.clock"))
    }

    async fn promote(&mut self, away_from: usize) -> Result<()> {
        Env::real().sleep(NOTICE).await;
        let others: Vec<_> = (1..=HOSTS).filter(|host| *host != away_from).collect();
        // Neither takes more from the old one from here on, so that it can acknowledge nothing more.
        for host in &others {
            let sql = "ALTER SYSTEM SET primary_conninfo = ''";
            self.sql(*host, sql).await.with_context(|| format!("host {host}: {sql}"))?;
            self.sql(*host, "SELECT pg_reload_conf()").await.with_context(|| format!("host {host}: reloading"))?;
        }
        let silent = "SELECT count(*) = 0 FROM pg_stat_wal_receiver";
        wait_until(&Env::real(), "the standbys have let go", PATIENCE, async || {
            let quiet = join_all(others.iter().map(|host| self.sql(*host, silent))).await;
            quiet.iter().all(|quiet| quiet.as_deref() == Some("t"))
        })
        .await?;
        let received = join_all(others.iter().map(|host| self.received(*host))).await;
        let best = if received[0] >= received[1] { 0 } else { 1 };
        ensure!(received.iter().all(Option::is_some), "a standby does not say what it has");
        let (new, follower) = (others[best], others[1 - best]);
        self.sql(new, "SELECT pg_promote(true, 10)").await.context("promoting")?;
        let follow = format!("ALTER SYSTEM SET primary_conninfo = '{}'", self.source(follower, new));
        self.sql(follower, &follow).await.context("following the new primary")?;
        self.sql(follower, "SELECT pg_reload_conf()").await.context("reloading")?;
        (self.primary, self.replaced) = (new, Some(away_from));
        Ok(())
    }

    /// A server and all its processes; first it is stopped, so that it starts none meanwhile.
    fn signal(&self, host: usize, signal: Signal) -> Result<()> {
        self.servers.pause(host)?;
        for parent in self.servers.ids(host) {
            for process in std::iter::once(parent).chain(children(parent)) {
                // One that has just ended needs no signal.
                let _ = Pid::from_raw(process as i32).map(|process| kill_process(process, signal));
            }
        }
        Ok(())
    }
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |number: &u32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // After the name in parentheses: the state, and the parent.
        let after = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        after.and_then(|parent| parent.parse().ok()) == Some(parent)
    };
    numbers.filter(is_child).collect()
}

/// Runs a program that may take its time.
async fn ask_long(command: Command) -> Result<()> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = Env::real().timeout(PATIENCE, command.output()).await.context("it takes too long")??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

impl Cluster for Postgres<'_> {
    fn url(&self, host: usize, namespace: &str) -> String {
        let servers: Vec<_> = hosts_from(host).map(|host| format!("{}:5432", address(host))).collect();
        format!("postgres://coact@{}/{namespace}?database=coact&timeout=1s&connect_timeout=500ms", servers.join(","))
    }

    fn leader(&self) -> LocalBoxFuture<'_, Option<usize>> {
        Box::pin(async {
            let recovering = self.sql(self.primary, "SELECT pg_is_in_recovery()").await;
            (recovering.as_deref() == Some("f")).then_some(self.primary)
        })
    }

    fn is_whole(&mut self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async {
            let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
            self.sql(self.primary, streaming).await.as_deref() == Some("2")
        })
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn pause(&mut self, host: usize) -> Result<()> {
        self.signal(host, Signal::STOP)
    }

    fn resume(&mut self, host: usize) -> Result<()> {
        self.signal(host, Signal::CONT)
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        // One that was replaced must not serve: it is cloned anew.
        if self.replaced == Some(host) { Ok(()) } else { self.start_server(host) }
    }

    fn clock(&self, host: usize) -> Option<PathBuf> {
        Some(self.clock_file(host))
    }

    fn take_over_from(&mut self, host: usize) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(self.promote(host))
    }

    fn shoot(&mut self, host: usize) {
        if self.replaced == Some(host) {
            let _ = self.signal(host, Signal::KILL);
            self.servers.kill(host);
        }
    }

    fn settle(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            match self.replaced.take() {
                Some(host) => self.clone_from(self.primary, host).await,
                None => Ok(()),
            }
        })
    }
}
