//! `coact lock`: run a command alone; see who holds and who waits.

use std::time::Duration;

use clap::{Args, Subcommand};
use coact::{
    ErrorKind, Result, Retry, Session, SessionOptions,
    lock::{Guard, LockInfo, Mode, Mutex, MutexOptions},
};
use serde_json::json;

use crate::{
    Target,
    cmd::{
        child::{Running, default_label},
        duration,
        serve::Signals,
    },
    exit::Exit,
    output,
};

/// Commands of `coact lock`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lock {
    /// Run a command while holding a lock; wait for it first.
    Run(LockRun),
    /// Show locks: who holds, with which token, for how long, and who waits, in order.
    Ls {
        /// Only locks whose name starts with this.
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Arguments of `coact lock run`.
#[derive(Debug, Args)]
pub(crate) struct LockRun {
    /// The name of the lock.
    name: String,
    /// How long the lock outlives a holder that cannot renew it.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    ttl: Duration,
    /// Give up after waiting this long (exit 124) [default: wait for ever].
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    wait: Option<Duration>,
    /// How long the command may take to end after SIGTERM when the lock is lost, before SIGKILL.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    grace: Duration,
    /// Who this is, as shown by `coact lock ls`.
    #[arg(long)]
    label: Option<String>,
    /// Whoever comes first after a release gets it, for throughput; all users of a lock must agree.
    #[arg(long)]
    barging: bool,
    #[command(flatten)]
    target: Target,
    /// The command. It finds its fencing token in COACT_FENCING_TOKEN.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

impl Lock {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Run(run) => run.run().await,
            Self::Ls { prefix, target } => list(&prefix, &target).await,
        }
    }
}

impl LockRun {
    async fn run(self) -> Result<Exit> {
        let kv = self.target.open().await?;
        let name = self.label.clone().unwrap_or_else(default_label);
        let session = Session::open(&kv, SessionOptions { ttl: self.ttl, name: Some(name) }).await?;
        let options = MutexOptions {
            realm: self.target.realm()?,
            mode: if self.barging { Mode::Barging } else { Mode::Fair },
            ..MutexOptions::default()
        };
        let mutex = Mutex::with_options(&session, &self.name, options)?;
        let mut signals = Signals::new()?;
        let guard = tokio::select! {
            guard = self.acquire(&mutex) => guard?,
            () = signals.first() => {
                session.close().await?;
                return Ok(Exit(128 + 2));
            }
        };
        let Some(guard) = guard else {
            output::complain(&format!("lock {} was not free within {:?}", self.name, self.wait.unwrap_or_default()));
            session.close().await?;
            return Ok(Exit::NOT_IN_TIME);
        };
        let environment = [("COACT_FENCING_TOKEN", guard.token().to_string()), ("COACT_LOCK", self.name.clone())];
        let exit = match Running::start(&self.command, &environment, self.grace) {
            Ok(running) => running.until_lost(&format!("lock {}", self.name), guard.lost(), &mut signals).await?,
            Err(exit) => exit,
        };
        if exit != Exit::LOST {
            guard.release().await?;
            session.close().await?;
        }
        kv.close().await?;
        Ok(exit)
    }

    async fn acquire(&self, mutex: &Mutex) -> Result<Option<Guard>> {
        match self.wait {
            None => mutex.acquire().await.map(Some),
            Some(limit) => match mutex.acquire_within(limit).await {
                Ok(guard) => Ok(Some(guard)),
                // Another conflict, such as a lock used in two modes, does not pass with time.
                Err(error) if error.kind() == ErrorKind::Conflict && error.retry() != Retry::Never => Ok(None),
                Err(error) => Err(error),
            },
        }
    }
}

async fn list(prefix: &str, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let locks = coact::lock::list(&kv, &target.realm()?, prefix, 1000).await?;
    let mut out = target.output();
    let now_ms = kv.env().wall_ms();
    for lock in &locks {
        show(&mut out, lock, now_ms);
    }
    out.finish();
    Ok(Exit::SUCCESS)
}

fn show(out: &mut output::Output, lock: &LockInfo, now_ms: u64) {
    let seconds = |milliseconds: u64| (milliseconds as f64 / 100.0).round() / 10.0;
    let everyone = lock.holder.iter().map(|holder| ("held".to_owned(), holder));
    let waiting = lock.waiters.iter().enumerate().map(|(index, waiter)| (format!("waits {}", index + 1), waiter));
    for (state, entry) in everyone.chain(waiting) {
        out.row(json!({
            "lock": lock.name,
            "state": state,
            "who": entry.label,
            "token": entry.token,
            "age_s": seconds(now_ms.saturating_sub(entry.since_ms)),
            "lease_left_s": entry.lease_left_ms.map(seconds),
        }));
    }
}
