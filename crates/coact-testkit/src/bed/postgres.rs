//! A real PostgreSQL server.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use coact_core::{Result, contract::kv::Revision, env::Env, name::Namespace, registry::Store};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::{Bed, OpenUrl, PATIENCE, ServerProcess, StartError, free_port};

/// Where Debian puts it.
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const STARTS_TRIED: usize = 5;
const CRASH_STARTS_TRIED: usize = 100;
/// Who the server is for us.
const USER: &str = "coact";
/// Its password, asked for over TCP.
const PASSWORD: &str = "secret of the bed";

/// PostgreSQL, as the Debian packages bring it, with its defaults: it syncs every commit.
#[derive(Debug)]
pub struct PostgresBed {
    open: OpenUrl,
    server: Mutex<Option<Postgres>>,
}

impl PostgresBed {
    /// A bed that starts PostgreSQL when it is first used and opens `postgres://…` URLs with this function.
    pub fn new(open: OpenUrl) -> Self {
        Self { open, server: Mutex::new(None) }
    }

    /// The URL of a namespace, once it was started.
    ///
    /// # Panics
    /// If it was not.
    pub async fn url(&self, namespace: &str) -> String {
        self.server.lock().await.as_ref().expect("started first").url(namespace)
    }

    /// How a driver of PostgreSQL connects to it, as `name=value` pairs.
    ///
    /// # Panics
    /// If it was not started.
    pub async fn driver_settings(&self) -> String {
        let port = self.server.lock().await.as_ref().expect("started first").port;
        format!("host=127.0.0.1 port={port} user={USER} password='{PASSWORD}' dbname={USER}")
    }
}

impl Bed for PostgresBed {
    fn name(&self) -> &str {
        "postgres"
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async {
            *self.server.lock().await = Some(Postgres::start(&[]).await?);
            Ok(())
        })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async { (self.open)(self.url(namespace.as_str()).await).await })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(async {
            self.server.lock().await.as_mut().context("PostgreSQL was not started")?.crash_and_start().await
        }))
    }

    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(async move {
            let server = self.server.lock().await;
            let all = format!(
                "SELECT coact.compact(namespace, realm, {revision}), coact.delete_compacted(namespace, realm) \
                 FROM coact.realm"
            );
            server.as_ref().context("PostgreSQL was not started")?.sql(&all).map(drop)
        }))
    }
}

/// A running server with a database of the user `coact`, who may do everything, in a temporary directory.
#[derive(Debug)]
pub struct Postgres {
    process: ServerProcess,
    dir: TempDir,
    settings: Vec<String>,
    /// Where it listens, on the loopback.
    pub port: u16,
}

impl Postgres {
    /// Starts a server with these settings, each as `name=value`.
    ///
    /// # Errors
    /// `Missing` if the machine lacks the program; `Failed` for anything else.
    pub async fn start(settings: &[&str]) -> Result<Self, StartError> {
        if !binary("postgres").exists() {
            return Err(StartError::Missing(format!(
                "{BINARIES}/postgres is missing: apt-get install postgresql-15, or run `cargo xtask test`, which says \
                 what else it needs"
            )));
        }
        let dir = own_dir()?;
        initialise(dir.path())?;
        let server = Self::start_in(dir, settings).await?;
        server.sql_in("postgres", &format!("CREATE DATABASE {USER}"))?;
        Ok(server)
    }

    /// Starts a replica of this server, which takes no writes.
    ///
    /// # Errors
    /// If the copy cannot be made or does not start.
    pub async fn replica(&self, settings: &[&str]) -> anyhow::Result<Self> {
        let dir = own_dir()?;
        let mut command = as_owner(&binary("pg_basebackup"), dir.path());
        let port = self.port.to_string();
        command
            .env("PGPASSWORD", PASSWORD)
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &port, "--checkpoint=fast", "--no-sync", "-R", "-D"])
            .arg(data(dir.path()));
        run(&mut command)?;
        Self::start_in(dir, settings).await
    }

    /// The URL of a namespace for the user `coact`.
    pub fn url(&self, namespace: &str) -> String {
        self.url_at(self.port, namespace)
    }

    /// The same through another port of this machine, as of a proxy or a pooler.
    pub fn url_at(&self, port: u16, namespace: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{port}/{namespace}", PASSWORD.replace(' ', "%20"))
    }

    /// The password of the user `coact`.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Runs SQL in coact's database, and returns what it prints: a line for each row, columns divided by `|`.
    ///
    /// # Errors
    /// If the server refuses it.
    pub fn sql(&self, sql: &str) -> anyhow::Result<String> {
        self.sql_in(USER, sql)
    }

    /// Everything that the server has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// Where its data and settings are.
    pub fn data_dir(&self) -> PathBuf {
        data(self.dir.path())
    }

    /// Gives a file to the user that the server runs as.
    ///
    /// # Errors
    /// If this user may not.
    pub fn own(path: &Path) -> anyhow::Result<()> {
        if let Some((user, group)) = owner()? {
            chown(path, Some(user), Some(group)).with_context(|| format!("giving away {}", path.display()))?;
        }
        Ok(())
    }

    /// A command that runs as the server's user, in the server's directory: for programs that refuse root as it does.
    pub fn command(&self, program: &Path) -> Command {
        as_owner(program, self.dir.path())
    }

    /// A directory that the server's user can read and write.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Stops it in its tracks: it accepts connections no more, though the machine does, and nobody answers.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.pause()
    }

    /// Ends it as hard as it can and starts it again on the same data and port.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn crash_and_start(&mut self) -> anyhow::Result<()> {
        self.process.kill();
        // Its children end a moment later; until then a new server refuses to start.
        for _ in 0..CRASH_STARTS_TRIED {
            self.process = spawn(self.dir.path(), self.port, &self.settings)?;
            if self.serves().await? {
                return Ok(());
            }
            Env::real().sleep(Duration::from_millis(20)).await;
        }
        bail!("PostgreSQL did not start again; its log ends with:\n{}", self.process.log_tail())
    }

    async fn start_in(mut dir: TempDir, settings: &[&str]) -> anyhow::Result<Self> {
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut last = String::new();
        for _ in 0..STARTS_TRIED {
            let port = free_port()?;
            let process = spawn(dir.path(), port, &settings)?;
            let mut server = Self { process, dir, settings: settings.clone(), port };
            if server.serves().await? {
                return Ok(server);
            }
            // It ended: somebody else took the port in between.
            last = server.process.log_tail();
            dir = server.dir;
        }
        bail!("PostgreSQL did not start in {STARTS_TRIED} attempts; its log ends with:\n{last}")
    }

    /// Waits until it answers; `false` if it ended instead.
    async fn serves(&mut self) -> anyhow::Result<bool> {
        let env = Env::real();
        let end = env.now() + PATIENCE;
        while self.process.is_running() {
            if self.sql_in("postgres", "SELECT 1").is_ok() {
                return Ok(true);
            }
            ensure!(env.now() < end, "PostgreSQL does not serve; its log ends with:\n{}", self.process.log_tail());
            env.sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }

    fn sql_in(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let port = self.port.to_string();
        let mut command = Command::new(binary("psql"));
        command
            .env("PGPASSWORD", PASSWORD)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", USER])
            .args(["-d", database, "-c", sql]);
        run(&mut command)
    }
}

fn binary(name: &str) -> PathBuf {
    Path::new(BINARIES).join(name)
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// A temporary directory of the user that the server runs as.
fn own_dir() -> anyhow::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    Postgres::own(dir.path())?;
    Ok(dir)
}

fn initialise(dir: &Path) -> anyhow::Result<()> {
    let password = dir.join("password");
    fs::write(&password, PASSWORD)?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
    Postgres::own(&password)?;
    let mut command = as_owner(&binary("initdb"), dir);
    command
        .args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--pwfile"])
        .arg(&password)
        .arg("-D")
        .arg(data(dir));
    run(&mut command).map(drop)
}

fn spawn(dir: &Path, port: u16, settings: &[String]) -> anyhow::Result<ServerProcess> {
    let mut command = as_owner(&binary("postgres"), dir);
    command.arg("-D").arg(data(dir));
    let own = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        "unix_socket_directories=".to_owned(),
        // Every test opens clients of its own.
        "max_connections=300".to_owned(),
    ];
    for setting in own.iter().chain(settings) {
        command.args(["-c", setting]);
    }
    ServerProcess::start(&mut command, &dir.join("log"))
}

/// A command in this directory, run by a user that PostgreSQL accepts: it refuses root.
fn as_owner(program: &Path, dir: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir(dir);
    command
}

/// The user and group `postgres`, if this process is root and must not be the server's owner itself.
fn owner() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:")).context("there is no user postgres")?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(user)), Some(Ok(group))) => Ok(Some((user, group))),
        _ => bail!("the user postgres has no numbers in /etc/passwd"),
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
