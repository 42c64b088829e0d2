//! `coact serve`: a node.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use coact::{
    Env, Error, ErrorKind, Result,
    embedded::{Config, parse_durability},
    guarantees::Weakness,
};
use coact_server::{DnsConfig, Server, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::{cmd::duration, exit::Exit, output::say};

/// Arguments of `coact serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen; only loopback addresses are allowed.
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The data directory, created if absent.
    #[arg(long, default_value = "./coact-data", value_name = "DIR")]
    data: PathBuf,
    /// Keep everything in memory: for trying things out.
    #[arg(long, conflicts_with_all = ["data", "durability"])]
    memory: bool,
    /// What an acknowledged write survives: sync (a power cut), interval:10ms (all but the last 10 ms of it), os (a
    /// crash of the process only).
    #[arg(long, default_value = "sync")]
    durability: String,
    /// How many revisions of history to keep.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..), value_name = "REVISIONS")]
    history: u64,
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
        let config = self.engine_config()?;
        let what = match &config.dir {
            Some(dir) => format!("the embedded engine in {}", dir.display()),
            None => "the embedded engine in memory".to_owned(),
        };
        let how = config.durability.to_string();
        // Before the node is up, so that a signal during a long recovery is not lost.
        let mut signals = Signals::new()?;
        let mut config = ServerConfig { listen: self.listen, ..ServerConfig::new(config) };
        if self.memory {
            // Asked for by name: what forgets is what was wanted.
            config.accepted = [Weakness::Volatile].into_iter().collect();
        }
        config.dns = self.dns.map(|listen| DnsConfig { listen, domain: self.dns_domain, ..DnsConfig::default() });
        let server = Server::start(config, Env::real()).await?;
        greet(server.address(), &what, &how);
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

    fn engine_config(&self) -> Result<Config> {
        let mut config = if self.memory { Config::default() } else { Config::in_dir(&self.data) };
        if !self.memory {
            config.durability = parse_durability(&self.durability)?;
        }
        config.history.revisions = self.history;
        config.history.age = self.history_age;
        Ok(config)
    }
}

fn greet(address: SocketAddr, what: &str, how: &str) {
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
