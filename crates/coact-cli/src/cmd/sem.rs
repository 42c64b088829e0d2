//! `coact sem`: run a command with one of N permits.

use std::time::Duration;

use clap::Subcommand;
use coact::{
    Error, ErrorKind, Result, Session, SessionOptions,
    lock::{Kind, LockOptions, Semaphore, inspect},
};
use serde_json::json;

use crate::{
    Target,
    cmd::hold::{Acquire, Held, Hold},
    exit::Exit,
};

/// Commands of `coact sem`.
#[derive(Debug, Subcommand)]
pub(crate) enum Sem {
    /// Run a command while holding a permit; wait for one first.
    Run {
        #[command(flatten)]
        hold: Hold,
        /// How many permits there are. All users of a semaphore must agree; the first one decides.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
        permits: u32,
    },
    /// Change how many permits there are, for everybody; who holds one keeps it.
    Resize {
        /// The name of the semaphore.
        name: String,
        /// How many from now on.
        #[arg(value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
        permits: u32,
        #[command(flatten)]
        target: Target,
    },
}

impl Sem {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Run { hold, permits } => hold.run(&OneOf { name: hold.name.clone(), permits }).await,
            Self::Resize { name, permits, target } => resize(&name, permits, &target).await,
        }
    }
}

struct OneOf {
    name: String,
    permits: u32,
}

impl Acquire for OneOf {
    const KIND: Kind = Kind::Semaphore;

    async fn acquire(&self, session: &Session, options: LockOptions, wait: Option<Duration>) -> Result<Held> {
        let semaphore = Semaphore::with_options(session, &self.name, self.permits, options)?;
        let permit = match wait {
            None => semaphore.acquire().await?,
            Some(limit) => semaphore.acquire_within(limit).await?,
        };
        Ok(Held::Permit(permit))
    }
}

/// How many semaphores below the name are looked through.
const NAMESAKES_MAX: usize = 1_000;

async fn resize(name: &str, permits: u32, target: &Target) -> Result<Exit> {
    let kv = target.open().await?;
    let realm = target.realm()?;
    // It must be opened with the number that it has.
    let found = inspect(&kv, &realm, Kind::Semaphore, &format!("{name}/"), NAMESAKES_MAX).await?;
    let current = found.into_iter().find(|found| found.name == name).and_then(|found| found.permits);
    let Some(current) = current else {
        let message = format!("there is no semaphore {name}: the first `coact sem run` creates it");
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    let session = Session::open(&kv, SessionOptions::default()).await?;
    let options = LockOptions { realm, ..LockOptions::default() };
    let resized = Semaphore::with_options(&session, name, current, options)?.resize(permits).await;
    session.close().await?;
    kv.close().await?;
    resized?;
    target.output().one(json!({ "semaphore": name, "permits": permits, "before": current }), &permits.to_string());
    Ok(Exit::SUCCESS)
}
