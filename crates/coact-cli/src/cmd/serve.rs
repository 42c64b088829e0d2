//! `coact serve`: a node.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use coact::{
    Env, Error, ErrorKind, Result,
    embedded::{Config, parse_durability},
    guarantees::Weakness,
};
use coact_server::{DnsConfig, Server, ServerConfig, settings::Settings};
use tokio::signal::unix::{SignalKind, signal};

use crate::{cmd::duration, exit::Exit, output::say};

/// Arguments of `coact serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A configuration file, as `coact init` writes it. What is said here beats what it says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen; beyond loopback only with TLS and tokens. [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The data directory, created if absent. [default: ./coact-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep everything in memory: for trying things out.
    #[arg(long, conflicts_with_all = ["data", "durability"])]
    memory: bool,
    /// What an acknowledged write survives: sync (a power cut), interval:10ms (all but the last 10 ms of it), os (a
    /// crash of the process only). [default: sync]
    #[arg(long)]
    durability: Option<String>,
    /// How many revisions of history to keep. [default: 100000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "REVISIONS")]
    history: Option<u64>,
    /// Forget history older than this, however few revisions it is.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    history_age: Option<Duration>,
    /// Answer DNS about services here, over UDP and TCP; only loopback addresses are allowed.
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Option<SocketAddr>,
    /// The domain that names in DNS end with, as in web.service.coact.
    #[arg(long, default_value = "coact.", value_name = "DOMAIN", requires = "dns")]
    dns_domain: String,
}

impl Serve {
    pub(crate) async fn run(self) -> Result<Exit> {
        let config = self.server_config()?;
        let what = match &config.engine.dir {
            Some(dir) => format!("the embedded engine in {}", dir.display()),
            None => "the embedded engine in memory".to_owned(),
        };
        let how = config.engine.durability.to_string();
        let guarded = Guarded { tls: config.tls.is_some(), tokens: config.auth.enabled };
        // Before the node is up, so that a signal during a long recovery is not lost.
        let mut signals = Signals::new()?;
        let server = Server::start(config, Env::real()).await?;
        greet(server.address(), &what, &how, guarded);
        if let Some(address) = server.dns_address() {
            say(&format!("  answers DNS on {address}"));
        }
        signals.first().await;
        say("finishing what was asked; once more to end at once");
        tokio::select! {
            result = server.shutdown() => result.map(|()| Exit::SUCCESS),
            () = signals.first() => Ok(Exit::FAILURE),
        }
    }

    fn server_config(&self) -> Result<ServerConfig> {
        let settings = self.config.as_deref().map(Settings::load).transpose()?.unwrap_or_default();
        let mut config = ServerConfig::new(self.engine_config(&settings)?);
        config.listen = self.listen.or(settings.listen).unwrap_or(config.listen);
        config.limits = settings.limits;
        config.auth = settings.auth;
        config.tls = settings.tls;
        config.check_commands = settings.check_commands;
        config.dns =
            self.dns.map(|listen| DnsConfig { listen, domain: self.dns_domain.clone(), ..DnsConfig::default() });
        if self.memory {
            // Asked for by name: what forgets is what was wanted.
            config.accepted = [Weakness::Volatile].into_iter().collect();
        }
        Ok(config)
    }

    fn engine_config(&self, settings: &Settings) -> Result<Config> {
        let dir = self.data.as_ref().or(settings.data.as_ref());
        let dir = dir.map_or_else(|| Path::new("./coact-data"), PathBuf::as_path);
        let mut config = if self.memory { Config::default() } else { Config::in_dir(dir) };
        if !self.memory {
            let said = self.durability.as_deref().map(parse_durability).transpose()?;
            config.durability = said.or(settings.durability).unwrap_or(config.durability);
        }
        config.history.revisions = self.history.or(settings.history_revisions).unwrap_or(config.history.revisions);
        config.history.age = self.history_age.or(settings.history_age).or(config.history.age);
        Ok(config)
    }
}

/// What a client needs besides the address.
#[derive(Clone, Copy)]
struct Guarded {
    tls: bool,
    tokens: bool,
}

fn greet(address: SocketAddr, what: &str, how: &str, guarded: Guarded) {
    let Guarded { tls, tokens } = guarded;
    if tls || tokens {
        let wants = match (tls, tokens) {
            (true, true) => "TLS and a token",
            (true, false) => "TLS",
            _ => "a token",
        };
        return say(&format!(
            "coact serves {what} on {address}\n\
             \x20 acknowledges {how}\n\
             \x20 asks for {wants}: name the node and the way to them with `coact context add`"
        ));
    }
    greet_openly(address, what, how);
}

fn greet_openly(address: SocketAddr, what: &str, how: &str) {
    let at = if address.port() == 7070 { String::new() } else { format!(" --at coact://{address}") };
    say(&format!(
        "coact serves {what} on {address}\n\
         \x20 acknowledges {how}\n\
         \x20 speaks etcd v3 gRPC, /healthz, /readyz, /metrics\n\
         try, from another shell:\n\
         \x20 coact lock run{at} deploy -- sh -c 'echo I am alone, token $COACT_FENCING_TOKEN'\n\
         \x20 coact id next{at} -n 3\n\
         \x20 ETCDCTL_API=3 etcdctl --endpoints {address} put greeting hello"
    ));
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::new(ErrorKind::Internal, "no signal handler").with_source(error))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The next of them.
    pub(crate) async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
