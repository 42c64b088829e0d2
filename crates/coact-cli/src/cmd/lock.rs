//! `coact lock`: run a command alone; see who holds and who waits.

use std::{
    io::IsTerminal as _,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::{Args, Subcommand};
use coact::{
    Env, Error, ErrorKind, Result, Retry, Session, SessionOptions,
    lock::{Guard, LockInfo, Mode, Mutex, MutexOptions},
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    Target,
    cmd::{duration, serve::Signals},
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
        let exit = self.run_command(&guard, &mut signals).await?;
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

    async fn run_command(&self, guard: &Guard, signals: &mut Signals) -> Result<Exit> {
        let mut child = match self.spawn(guard) {
            Ok(child) => child,
            Err(error) => {
                output::complain(&format!("{} cannot be run: {error}", self.command[0].to_string_lossy()));
                let absent = error.kind() == std::io::ErrorKind::NotFound;
                return Ok(if absent { Exit::NO_COMMAND } else { Exit::CANNOT_RUN });
            }
        };
        let child_signals = ChildSignals { id: child.id(), group: own_group() };
        loop {
            tokio::select! {
                status = child.wait() => return Ok(exit_of(status.map_err(cannot_wait)?)),
                error = guard.lost() => {
                    output::complain(&format!("lock {} is lost, ending the command: {error}", self.name));
                    self.end(&mut child, &child_signals).await?;
                    return Ok(Exit::LOST);
                }
                () = signals.first() => child_signals.send(Signal::TERM),
            }
        }
    }

    fn spawn(&self, guard: &Guard) -> std::io::Result<Child> {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env("COACT_FENCING_TOKEN", guard.token().to_string())
            .env("COACT_LOCK", &self.name)
            .stdin(Stdio::inherit());
        if own_group() {
            command.process_group(0);
        }
        command.spawn()
    }

    /// SIGTERM, then SIGKILL: the command must not outlive the lock by more than the grace.
    async fn end(&self, child: &mut Child, signals: &ChildSignals) -> Result<()> {
        signals.send(Signal::TERM);
        if Env::real().timeout(self.grace, child.wait()).await.is_none() {
            signals.send(Signal::KILL);
            child.wait().await.map_err(cannot_wait)?;
        }
        // What the command had started may have ignored the polite one.
        signals.send(Signal::KILL);
        Ok(())
    }
}

/// A command at a terminal stays in its group, so that it can read from it; elsewhere it gets one of its own, so that
/// what it starts is signalled with it.
fn own_group() -> bool {
    !std::io::stdin().is_terminal()
}

struct ChildSignals {
    id: Option<u32>,
    group: bool,
}

impl ChildSignals {
    fn send(&self, signal: Signal) {
        let Some(id) = self.id.and_then(|id| Pid::from_raw(id as i32)) else { return };
        // It may have ended meanwhile.
        let _ = if self.group { kill_process_group(id, signal) } else { kill_process(id, signal) };
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Exit(u8::try_from(code).unwrap_or(1))
}

fn cannot_wait(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "the command cannot be waited for").with_source(error)
}

fn default_label() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
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
