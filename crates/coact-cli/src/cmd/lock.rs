//! `coact lock`: run a command alone; see who holds and who waits.

use std::time::Duration;

use clap::{Args, Subcommand};
use coact::{
    Result, Session,
    lock::{Contender, Inspection, Kind, LockOptions, Mode, Mutex, MutexOptions, TicketKind, inspect},
};
use serde_json::json;

use crate::{
    Target,
    cmd::hold::{Acquire, Held, Hold},
    exit::Exit,
    output::Output,
};

/// Commands of `coact lock`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lock {
    /// Run a command while holding a lock; wait for it first.
    Run(LockRun),
    /// Show locks of every kind: who holds, with which token, for how long, and who waits, in order.
    Ls {
        /// Only locks whose name starts with this.
        #[arg(default_value = "")]
        prefix: String,
        /// Only locks of this kind.
        #[arg(long, value_enum)]
        kind: Option<KindName>,
        #[command(flatten)]
        target: Target,
    },
}

/// Arguments of `coact lock run`.
#[derive(Debug, Args)]
pub(crate) struct LockRun {
    #[command(flatten)]
    hold: Hold,
    /// Whoever comes first after a release gets it, for throughput; all users of a lock must agree.
    #[arg(long)]
    barging: bool,
}

/// A family of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KindName {
    Lock,
    Rw,
    Sem,
    Election,
}

impl Lock {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Run(LockRun { hold, barging }) => {
                let mode = if barging { Mode::Barging } else { Mode::Fair };
                hold.run(&Alone { name: hold.name.clone(), mode }).await
            }
            Self::Ls { prefix, kind, target } => list(&prefix, kind, &target).await,
        }
    }
}

/// By a mutex.
struct Alone {
    name: String,
    mode: Mode,
}

impl Acquire for Alone {
    const KIND: Kind = Kind::Lock;

    async fn acquire(&self, session: &Session, options: LockOptions, wait: Option<Duration>) -> Result<Held> {
        let options = MutexOptions { realm: options.realm, mode: self.mode, ..MutexOptions::default() };
        let mutex = Mutex::with_options(session, &self.name, options)?;
        let guard = match wait {
            None => mutex.acquire().await?,
            Some(limit) => mutex.acquire_within(limit).await?,
        };
        Ok(Held::Lock(guard))
    }
}

impl KindName {
    const ALL: [Self; 4] = [Self::Lock, Self::Rw, Self::Sem, Self::Election];

    fn kind(self) -> Kind {
        match self {
            Self::Lock => Kind::Lock,
            Self::Rw => Kind::RwLock,
            Self::Sem => Kind::Semaphore,
            Self::Election => Kind::Election,
        }
    }
}

async fn list(prefix: &str, only: Option<KindName>, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let realm = target.realm()?;
    let mut out = target.output();
    for name in KindName::ALL.into_iter().filter(|name| only.is_none_or(|only| only == *name)) {
        let locks = inspect(&kv, &realm, name.kind(), prefix, LOCKS_MAX).await?;
        let now_ms = kv.env().wall_ms();
        locks.iter().for_each(|lock| show(&mut out, lock, now_ms));
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

const LOCKS_MAX: usize = 1_000;

fn show(out: &mut Output, lock: &Inspection, now_ms: u64) {
    let everyone = lock.holders.iter().map(|holder| (held_as(holder.kind).to_owned(), holder));
    let waiting = lock.waiters.iter().enumerate().map(|(index, waiter)| (format!("waits {}", index + 1), waiter));
    for (state, entry) in everyone.chain(waiting) {
        out.row(row(lock, &state, entry, now_ms));
    }
}

fn row(lock: &Inspection, state: &str, entry: &Contender, now_ms: u64) -> serde_json::Value {
    let seconds = |milliseconds: u64| (milliseconds as f64 / 100.0).round() / 10.0;
    json!({
        "kind": kind_name(lock.kind),
        "lock": lock.name,
        "state": state,
        "who": entry.label,
        "token": entry.token,
        "age_s": seconds(now_ms.saturating_sub(entry.since_ms)),
        "lease_left_s": entry.lease_left_ms.map(seconds),
        "of": lock.permits,
        "value": entry.value,
    })
}

fn held_as(kind: TicketKind) -> &'static str {
    match kind {
        TicketKind::Read | TicketKind::Downgraded => "reads",
        TicketKind::Write => "writes",
        TicketKind::Leadership => "leads",
        TicketKind::Mutex | TicketKind::BargingMutex | TicketKind::Permit => "held",
    }
}

/// The word for a kind, as the commands are called.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lock => "lock",
        Kind::RwLock => "rw",
        Kind::Semaphore => "sem",
        Kind::Election => "election",
    }
}
