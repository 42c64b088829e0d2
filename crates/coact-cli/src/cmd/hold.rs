//! Running a command under a lock of any kind: wait for it, run, release.

use std::{ffi::OsString, time::Duration};

use clap::Args;
use coact::{
    Error, ErrorKind, KvHandle, Result, Retry, Session, SessionOptions,
    lock::{Guard, Kind, Leadership, LockOptions, Permit, ReadGuard, WriteGuard},
};
use futures::future::BoxFuture;

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

/// Arguments of a command that runs another under a lock.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// The name of the lock.
    pub(crate) name: String,
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
    #[command(flatten)]
    target: Target,
    /// The command. It finds its fencing token in COACT_FENCING_TOKEN.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What a command runs under.
pub(crate) enum Held {
    Lock(Guard),
    Read(ReadGuard),
    Write(WriteGuard),
    Permit(Permit),
    Leadership(Leadership),
}

/// Acquires in a session, within a time if one is given.
pub(crate) trait Acquire {
    /// The family of what it acquires.
    const KIND: Kind;

    async fn acquire(&self, session: &Session, options: LockOptions, wait: Option<Duration>) -> Result<Held>;
}

impl Hold {
    /// Runs the command once.
    pub(crate) async fn run(&self, way: &impl Acquire) -> Result<Exit> {
        let kv = self.target.open().await?;
        let mut signals = Signals::new()?;
        let exit = self.run_once(&kv, way, &mut signals).await?;
        kv.close().await?;
        Ok(exit)
    }

    /// Runs the command, and when it was ended because the lock was lost, waits for the lock again.
    pub(crate) async fn run_again(&self, way: &impl Acquire) -> Result<Exit> {
        let kv = self.target.open().await?;
        let mut signals = Signals::new()?;
        loop {
            match self.run_once(&kv, way, &mut signals).await {
                Ok(Exit::LOST) => {}
                Ok(exit) => {
                    kv.close().await?;
                    return Ok(exit);
                }
                Err(error) if passes_with_time(&error) => {
                    output::complain(&format!("trying again: {error}"));
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = kv.env().sleep(PAUSE) => {}
                () = signals.first() => return Ok(INTERRUPTED),
            }
        }
    }

    async fn run_once<W: Acquire>(&self, kv: &KvHandle, way: &W, signals: &mut Signals) -> Result<Exit> {
        let label = self.label.clone().unwrap_or_else(default_label);
        let session = Session::open(kv, SessionOptions { ttl: self.ttl, name: Some(label) }).await?;
        let options = LockOptions { realm: self.target.realm()?, ..LockOptions::default() };
        let held = tokio::select! {
            held = self.in_time(way.acquire(&session, options, self.wait)) => held?,
            () = signals.first() => {
                session.close().await?;
                return Ok(INTERRUPTED);
            }
        };
        let what = format!("{} {}", W::KIND, self.name);
        let Some(held) = held else {
            output::complain(&format!("{what} was not free within {:?}", self.wait.unwrap_or_default()));
            session.close().await?;
            return Ok(Exit::NOT_IN_TIME);
        };
        let name_variable = if W::KIND == Kind::Election { "COACT_ELECTION" } else { "COACT_LOCK" };
        let variables = [("COACT_FENCING_TOKEN", held.token().to_string()), (name_variable, self.name.clone())];
        let exit = match Running::start(&self.command, &variables, self.grace) {
            Ok(running) => running.until_lost(&what, held.lost(), signals).await?,
            Err(exit) => exit,
        };
        if exit != Exit::LOST {
            held.release().await?;
            session.close().await?;
        }
        Ok(exit)
    }

    /// `None` if it was not granted in time.
    async fn in_time(&self, acquiring: impl Future<Output = Result<Held>>) -> Result<Option<Held>> {
        match acquiring.await {
            Ok(held) => Ok(Some(held)),
            // Another conflict, such as a lock used in two modes, does not pass with time.
            Err(error)
                if self.wait.is_some() && error.kind() == ErrorKind::Conflict && error.retry() != Retry::Never =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Held {
    fn token(&self) -> u64 {
        match self {
            Self::Lock(guard) => guard.token(),
            Self::Read(guard) => guard.token(),
            Self::Write(guard) => guard.token(),
            Self::Permit(permit) => permit.token(),
            Self::Leadership(leadership) => leadership.token(),
        }
    }

    fn lost(&self) -> BoxFuture<'static, Error> {
        match self {
            Self::Lock(guard) => Box::pin(guard.lost()),
            Self::Read(guard) => Box::pin(guard.lost()),
            Self::Write(guard) => Box::pin(guard.lost()),
            Self::Permit(permit) => Box::pin(permit.lost()),
            Self::Leadership(leadership) => Box::pin(leadership.lost()),
        }
    }

    async fn release(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
            Self::Permit(permit) => permit.release().await,
            Self::Leadership(leadership) => leadership.resign().await,
        }
    }
}

/// As a shell shows the end by SIGINT.
const INTERRUPTED: Exit = Exit(128 + 2);
const PAUSE: Duration = Duration::from_millis(500);

fn passes_with_time(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Fenced)
}
