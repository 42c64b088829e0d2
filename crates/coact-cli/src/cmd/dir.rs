//! `coact dir`: register a service while a command runs; find, watch and drain instances.

mod register;

use clap::Subcommand;
use coact::{
    Error, ErrorKind, Result,
    directory::{Directory, DirectoryOptions, Health, PickOptions, Picker, Seen, Snapshot, State, Strategy},
};
use serde_json::{Value, json};

use crate::{Target, exit::Exit, output};

/// Commands of `coact dir`.
#[derive(Debug, Subcommand)]
pub(crate) enum Dir {
    /// Register an instance while a command runs, or until a signal.
    Register(register::Register),
    /// Remove an instance that nobody keeps registered.
    Deregister {
        /// The service.
        service: String,
        /// The instance.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show services and how many instances they have.
    Ls {
        /// Only services whose name starts with this.
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show the instances of a service.
    Show {
        /// The service.
        service: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show the instances of a service at each change, with a line for each.
    Watch {
        /// The service.
        service: String,
        #[command(flatten)]
        target: Target,
    },
    /// Choose an instance as a client would, and print its address and port.
    Resolve {
        /// The service.
        service: String,
        /// How it is chosen.
        #[arg(long, value_enum, default_value = "p2c")]
        strategy: StrategyName,
        /// What requests for the same instance have in common, for ring and sticky.
        #[arg(long)]
        key: Option<String>,
        /// Instances of this zone, if there are any.
        #[arg(long)]
        zone: Option<String>,
        /// How often.
        #[arg(short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        n: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Take an instance out of traffic.
    Drain {
        /// The service.
        service: String,
        /// The instance.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Put a drained instance back into traffic.
    Undrain {
        /// The service.
        service: String,
        /// The instance.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Say whether an instance works, in place of a check.
    Health {
        /// The service.
        service: String,
        /// The instance.
        id: String,
        /// What was found.
        #[arg(value_enum)]
        health: Verdict,
        /// Why it fails, for people.
        #[arg(long, default_value = "reported as failing")]
        why: String,
        #[command(flatten)]
        target: Target,
    },
}

/// How an instance is chosen.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum StrategyName {
    /// The less busy of two that are drawn by lot.
    P2c,
    /// In turn, by weight.
    Weighted,
    /// By the hash of the key: most keys keep their instance when another comes or goes.
    Ring,
    /// As ring, and a key keeps its instance as long as that is eligible.
    Sticky,
}

/// What was found about an instance.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Verdict {
    /// It works.
    Passing,
    /// It does not.
    Failing,
    /// Nobody knows.
    Unchecked,
}

impl Dir {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Register(register) => return register.run().await,
            Self::Deregister { service, id, target } => {
                let directory = existing(&service, &id, &target).await?;
                directory.remove_instance(&service, &id).await?;
            }
            Self::Ls { prefix, target } => list(&prefix, &target).await?,
            Self::Show { service, target } => return show(&service, &target).await,
            Self::Watch { service, target } => watch(&service, &target).await?,
            Self::Resolve { service, strategy, key, zone, n, target } => {
                resolve(&service, strategy, key.as_deref(), zone, n, &target).await?;
            }
            Self::Drain { service, id, target } => open(&target).await?.set_drain(&service, &id, true).await?,
            Self::Undrain { service, id, target } => {
                existing(&service, &id, &target).await?.set_drain(&service, &id, false).await?;
            }
            Self::Health { service, id, health, why, target } => {
                let health = match health {
                    Verdict::Passing => Health::Passing,
                    Verdict::Failing => Health::Failing { why },
                    Verdict::Unchecked => Health::Unchecked,
                };
                open(&target).await?.report_health(&service, &id, health, None).await?;
            }
        }
        Ok(Exit::SUCCESS)
    }
}

async fn open(target: &Target) -> Result<Directory> {
    let options = DirectoryOptions { realm: target.realm()?, ..DirectoryOptions::default() };
    Directory::open(&target.open().await?, options)
}

/// The directory, if it has the instance: a misspelt one should not look removed.
async fn existing(service: &str, id: &str, target: &Target) -> Result<Directory> {
    let directory = open(target).await?;
    if directory.list(service).await?.instances.iter().any(|seen| seen.instance.id == id) {
        return Ok(directory);
    }
    Err(Error::new(ErrorKind::NotFound, format!("service {service} has no instance {id}")))
}

async fn list(prefix: &str, target: &Target) -> Result<()> {
    const PAGE: usize = 1_000;
    let directory = open(target).await?;
    let mut out = target.output();
    let mut after = String::new();
    loop {
        let services = directory.services(prefix, &after, PAGE).await?;
        for service in &services {
            let instances = directory.list(service).await?.instances;
            let count = |wish: fn(&Seen) -> bool| instances.iter().filter(|seen| wish(seen)).count();
            out.row(json!({
                "service": service,
                "instances": instances.len(),
                "eligible": count(Seen::is_healthy),
                "failing": count(|seen| matches!(seen.health, Health::Failing { .. })),
                "draining": count(|seen| seen.draining),
            }));
        }
        match services.last() {
            Some(last) if services.len() == PAGE => after.clone_from(last),
            _ => break,
        }
    }
    out.finish();
    Ok(())
}

async fn show(service: &str, target: &Target) -> Result<Exit> {
    let listing = open(target).await?.list(service).await?;
    if listing.instances.is_empty() {
        output::complain(&format!("service {service} has no instances"));
        return Ok(Exit::ABSENT);
    }
    let mut out = target.output();
    listing.instances.iter().for_each(|seen| out.row(row(seen)));
    out.finish();
    Ok(Exit::SUCCESS)
}

async fn watch(service: &str, target: &Target) -> Result<()> {
    let mut watch = open(target).await?.watch(service).await?;
    let mut out = target.output();
    let mut snapshot = watch.snapshot();
    loop {
        let (state, why) = state_of(&snapshot);
        let instances: Vec<Value> = snapshot.instances.iter().map(|seen| row(seen)).collect();
        let text = snapshot.instances.iter().map(|seen| line(seen)).collect::<Vec<_>>().join(" ");
        let text = format!("{state} {}", if text.is_empty() { "-" } else { &text });
        let revision = snapshot.revision.0;
        out.stream(json!({ "state": state, "why": why, "revision": revision, "instances": instances }), &text);
        snapshot = watch.changed().await?;
    }
}

async fn resolve(
    service: &str,
    strategy: StrategyName,
    key: Option<&str>,
    zone: Option<String>,
    n: u32,
    target: &Target,
) -> Result<()> {
    let strategy = match strategy {
        StrategyName::P2c => Strategy::P2c,
        StrategyName::Weighted => Strategy::WeightedRoundRobin,
        StrategyName::Ring => Strategy::HashRing,
        StrategyName::Sticky => Strategy::Sticky,
    };
    let prefer_zone = zone.is_some();
    let watch = open(target).await?.watch(service).await?;
    let picker = Picker::new(watch, strategy, PickOptions { zone, prefer_zone, ..PickOptions::default() });
    let mut out = target.output();
    // Kept, so that each counts as a call in flight and the next goes elsewhere.
    let mut picks = Vec::new();
    for _ in 0..n {
        let picked = picker.pick(key)?;
        let place = place(&picked.address, picked.port);
        out.stream(json!({ "service": service, "id": picked.id, "at": place }), &place);
        picks.push(picked);
    }
    Ok(())
}

fn state_of(snapshot: &Snapshot) -> (&'static str, Option<&str>) {
    match &snapshot.state {
        State::Fresh => ("fresh", None),
        State::Stale { .. } => ("stale", None),
        State::Degraded { why, .. } => ("degraded", Some(why)),
    }
}

fn row(seen: &Seen) -> Value {
    let instance = &seen.instance;
    json!({
        "id": instance.id,
        "at": place(&instance.address, instance.port),
        "zone": instance.zone,
        "weight": instance.weight,
        "tags": instance.tags.join(","),
        "health": health_of(seen),
        "draining": seen.draining,
        "held": seen.held,
        "eligible": seen.is_healthy(),
    })
}

fn line(seen: &Seen) -> String {
    let state = match seen {
        _ if seen.held => "held",
        _ if seen.draining => "draining",
        _ => health_of(seen),
    };
    format!("{}={}({state})", seen.instance.id, place(&seen.instance.address, seen.instance.port))
}

fn health_of(seen: &Seen) -> &'static str {
    match seen.health {
        Health::Unchecked => "unchecked",
        Health::Passing => "passing",
        Health::Failing { .. } => "failing",
    }
}

/// `address:port`, with brackets where the address has colons of its own.
fn place(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
