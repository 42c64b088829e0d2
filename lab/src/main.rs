//! coact's lab: real clusters in network namespaces, cut and healed, and what coact's blocks showed.
//!
//! `cargo xtask lab` builds it and runs it, as root. It writes the histories into `target/lab` and the tables into
//! `docs/guarantees.md`, and fails if anything was not as declared.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a command says to the person who runs it")]

mod check;
mod cluster;
mod history;
mod net;
mod phase;
#[cfg(test)]
mod pipeline;
mod plant;
mod report;
mod resource;
mod worker;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use coact::Env;

use crate::{
    cluster::{Engine, wait_whole},
    net::Net,
    phase::{Nemesis, Plan},
    plant::Plant,
    report::Outcome,
};

/// Cuts real clusters apart, and compares what coact showed with what it declares.
#[derive(Debug, Parser)]
struct Lab {
    #[command(subcommand)]
    part: Option<Part>,
    /// Do not write the page
    #[arg(long)]
    check: bool,
    /// Only these engines; then the page is not written
    #[arg(long)]
    engine: Vec<Engine>,
    /// Only these faults; then the page is not written
    #[arg(long)]
    nemesis: Vec<Nemesis>,
    /// Plant a defect into the clients: the lab must fail
    #[arg(long)]
    plant: Option<Plant>,
    /// Seeds what the clients choose
    #[arg(long)]
    seed: Option<u64>,
    /// Where the histories go
    #[arg(long, default_value = "target/lab")]
    histories: PathBuf,
    /// The page that the tables go into
    #[arg(long, default_value = "docs/guarantees.md")]
    page: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// One client; the lab starts it on a host
    #[command(hide = true)]
    Worker(worker::Job),
}

fn main() -> ExitCode {
    // One thread: what the lab starts dies with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("no runtime").and_then(|runtime| runtime.block_on(run(Lab::parse())));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coact-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(lab: Lab) -> Result<()> {
    if let Some(Part::Worker(job)) = lab.part {
        return worker::main(job).await;
    }
    Net::preflight()?;
    fs::create_dir_all(&lab.histories).with_context(|| format!("creating {}", lab.histories.display()))?;
    let outcomes = run_all(&lab).await?;
    if !lab.check && lab.engine.is_empty() && lab.nemesis.is_empty() && lab.plant.is_none() {
        report::write(&lab.page, &outcomes)?;
        println!("lab: wrote {}", lab.page.display());
    }
    let wrong: Vec<_> = outcomes.iter().filter(|outcome| !outcome.wrong.is_empty()).map(complaint).collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} phases were not as declared:\n{}",
        wrong.len(),
        outcomes.len(),
        wrong.join("\n")
    );
    println!("lab: {} phases, all as declared", outcomes.len());
    Ok(())
}

fn complaint(outcome: &Outcome) -> String {
    format!("  {} {}: {}", outcome.engine.name(), outcome.nemesis.name(), outcome.wrong.join("; "))
}

async fn run_all(lab: &Lab) -> Result<Vec<Outcome>> {
    let chosen = |some: &[Engine]| if some.is_empty() { Engine::SHOWN.to_vec() } else { some.to_vec() };
    let seed = lab.seed.unwrap_or_else(|| Env::real().random() >> 40);
    println!("lab: seed {seed}");
    let mut outcomes = Vec::new();
    for engine in chosen(&lab.engine) {
        outcomes.extend(run_engine(lab, engine, seed).await.with_context(|| engine.name())?);
    }
    Ok(outcomes)
}

async fn run_engine(lab: &Lab, engine: Engine, seed: u64) -> Result<Vec<Outcome>> {
    let begun = history::now();
    let net = Net::new()?;
    let place = tempfile::Builder::new().prefix("coact-lab-").tempdir()?;
    let mut cluster = engine.start(&net, place.path()).await?;
    println!("lab: {} serves after {:.1} s", engine.name(), seconds_since(begun));
    let mut outcomes = Vec::new();
    for nemesis in if lab.nemesis.is_empty() { Nemesis::all() } else { &lab.nemesis } {
        let plan = plan(lab, engine, *nemesis, seed, place.path());
        let seen = phase::run(&net, cluster.as_mut(), &plan).await.with_context(|| nemesis.name())?;
        let outcome = Outcome::new(engine, *nemesis, check::check(&seen));
        println!("lab: {}", outcome.line(&plan));
        if !outcome.wrong.is_empty() {
            let complaints = check::complaints(&history::operations(&seen.events)).join("\n  ");
            println!("  {complaints}\n{}", cluster.servers().log_tails());
        }
        outcomes.push(outcome);
        wait_whole(cluster.as_mut()).await?;
    }
    println!("lab: {} took {:.1} s", engine.name(), seconds_since(begun));
    Ok(outcomes)
}

fn plan(lab: &Lab, engine: Engine, nemesis: Nemesis, seed: u64, place: &Path) -> Plan {
    let history = lab.histories.join(format!("{}-{}.jsonl", engine.name(), nemesis.name()));
    Plan { engine: engine.name(), nemesis, seed, plant: lab.plant, place: place.to_owned(), history }
}

fn seconds_since(begun: u64) -> f64 {
    (history::now() - begun) as f64 / 1e9
}
