//! `coact dir register`: an instance that is there as long as its command is.

use std::{ffi::OsString, time::Duration};

use clap::Args;
use coact::{
    Env, Error, Result,
    directory::{Check, CheckKind, Directory, DirectoryOptions, Instance, Mode, Registration},
};

use crate::{
    Target,
    cmd::{
        child::{Running, default_label},
        duration,
        serve::Signals,
    },
    exit::Exit,
    output::{complain, say},
};

/// Arguments of `coact dir register`.
#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The service.
    service: String,
    /// A host name or an IP address that clients reach it at.
    #[arg(long)]
    address: String,
    /// The port.
    #[arg(long)]
    port: u16,
    /// Its name within the service; by default a random one.
    #[arg(long, default_value = "")]
    id: String,
    /// Where it runs.
    #[arg(long, default_value = "")]
    zone: String,
    /// How much traffic it takes compared with others; 0 for none.
    #[arg(long, default_value_t = 100)]
    weight: u32,
    /// A word to filter by; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Anything else; may be repeated.
    #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// How a node finds out whether it works: tcp, http:/path, grpc, grpc:SERVICE or command:NAME.
    #[arg(long, value_parser = check_kind, value_name = "CHECK")]
    check: Option<CheckKind>,
    /// How often it is checked.
    #[arg(long, value_parser = duration, requires = "check", value_name = "DURATION")]
    check_interval: Option<Duration>,
    /// How long it stays when this process dies.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    ttl: Duration,
    /// At the first signal, take it out of traffic for this long before the command is told.
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "DURATION")]
    drain_for: Duration,
    /// Write it and return: it stays until `coact dir deregister`.
    #[arg(long, conflicts_with = "command")]
    persistent: bool,
    #[command(flatten)]
    target: Target,
    /// The command that serves. It finds its id in COACT_INSTANCE.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Register {
    pub(crate) async fn run(self) -> Result<Exit> {
        let kv = self.target.open().await?;
        let options = DirectoryOptions {
            realm: self.target.realm()?,
            ttl: self.ttl,
            label: Some(default_label()),
            ..DirectoryOptions::default()
        };
        let directory = Directory::open(&kv, options)?;
        if self.persistent {
            return self.put(&directory).await;
        }
        // Before the command: who finds it in the directory may be refused for a moment, but is not missed for a while.
        let registration = directory.register(self.instance(), Mode::Ephemeral).await?;
        let mut signals = Signals::new()?;
        let exit = if self.command.is_empty() {
            say(&format!("{}/{} is registered until a signal ends this", self.service, registration.id()));
            signals.first().await;
            self.drain(&registration).await;
            Exit::SUCCESS
        } else {
            self.run_command(&registration, &mut signals).await?
        };
        if let Err(error) = registration.deregister().await {
            // How the command ended matters more.
            complain(&format!("the instance stays for up to {:?}: {error}", self.ttl));
        }
        kv.close().await?;
        Ok(exit)
    }

    /// Writes what it says now over what was put before under the same id.
    async fn put(&self, directory: &Directory) -> Result<Exit> {
        let mut instance = self.instance();
        if instance.id.is_empty() {
            instance.id = format!("{:016x}", directory.kv().env().random());
        }
        directory.put_instance(None, &instance).await?;
        directory.kv().close().await?;
        self.target.output().one(serde_json::json!({ "id": instance.id }), &instance.id);
        Ok(Exit::SUCCESS)
    }

    async fn run_command(&self, registration: &Registration, signals: &mut Signals) -> Result<Exit> {
        let environment = [("COACT_INSTANCE", registration.id().to_owned())];
        // It is not ended from here: whoever loses its registration goes on serving, and is registered again.
        let mut running = match Running::start(&self.command, &environment, Duration::MAX) {
            Ok(running) => running,
            Err(exit) => return Ok(exit),
        };
        tokio::select! {
            exit = running.ended() => return exit,
            () = signals.first() => {}
        }
        tokio::select! {
            exit = running.ended() => return exit,
            () = self.drain(registration) => {}
            // Once more: without waiting.
            () = signals.first() => {}
        }
        running.terminate();
        loop {
            tokio::select! {
                exit = running.ended() => return exit,
                () = signals.first() => running.terminate(),
            }
        }
    }

    /// Takes it out of traffic for a while. The store may not answer just now: then the wait is all there is.
    async fn drain(&self, registration: &Registration) {
        if self.drain_for.is_zero() {
            return;
        }
        let (env, began) = (Env::real(), Env::real().now());
        if let Some(Err(error)) = env.timeout(self.drain_for, registration.drain(true)).await {
            say(&format!("the drain could not be written: {error}"));
        }
        env.sleep_until(began + self.drain_for).await;
    }

    fn instance(&self) -> Instance {
        let mut instance = Instance::new(&self.service, &self.address, self.port);
        instance.id.clone_from(&self.id);
        instance.zone.clone_from(&self.zone);
        instance.weight = self.weight;
        instance.tags.clone_from(&self.tags);
        instance.metadata = self.metadata.iter().cloned().collect();
        instance.check = self.check.clone().map(|kind| {
            let check = Check::new(kind);
            let interval = self.check_interval.unwrap_or(check.interval);
            Check { interval, timeout: check.timeout.min(interval), ..check }
        });
        instance
    }
}

fn pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Error::invalid(format!("{text:?} is not allowed: write it as KEY=VALUE"))),
    }
}

fn check_kind(text: &str) -> Result<CheckKind> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("tcp", "") => Ok(CheckKind::Tcp),
        ("http", path) if path.starts_with('/') => Ok(CheckKind::Http { path: path.to_owned(), expect_status: None }),
        ("grpc", service) => Ok(CheckKind::Grpc { service: service.to_owned() }),
        ("command", name) if !name.is_empty() => Ok(CheckKind::Command { name: name.to_owned() }),
        _ => Err(Error::invalid(format!(
            "check {text:?} is not known: use tcp, http:/path, grpc, grpc:SERVICE or command:NAME"
        ))),
    }
}
