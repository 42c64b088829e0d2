//! `coact rw`: run a command as one of many readers, or as the only writer.

use std::time::Duration;

use clap::Subcommand;
use coact::{
    Result, Session,
    lock::{Kind, LockOptions, RwLock},
};

use crate::{
    cmd::hold::{Acquire, Held, Hold},
    exit::Exit,
};

/// Commands of `coact rw`. A read-write lock and a lock of the same name have nothing to do with each other.
#[derive(Debug, Subcommand)]
pub(crate) enum Rw {
    /// Run a command while reading: beside other readers, and no writer.
    Read(Hold),
    /// Run a command while writing: alone. Readers that come later wait.
    Write(Hold),
}

impl Rw {
    pub(crate) async fn run(self) -> Result<Exit> {
        match self {
            Self::Read(hold) => hold.run(&Side { name: hold.name.clone(), writes: false }).await,
            Self::Write(hold) => hold.run(&Side { name: hold.name.clone(), writes: true }).await,
        }
    }
}

struct Side {
    name: String,
    writes: bool,
}

impl Acquire for Side {
    const KIND: Kind = Kind::RwLock;

    async fn acquire(&self, session: &Session, options: LockOptions, wait: Option<Duration>) -> Result<Held> {
        let lock = RwLock::with_options(session, &self.name, options)?;
        Ok(match (self.writes, wait) {
            (false, None) => Held::Read(lock.read().await?),
            (false, Some(limit)) => Held::Read(lock.read_within(limit).await?),
            (true, None) => Held::Write(lock.write().await?),
            (true, Some(limit)) => Held::Write(lock.write_within(limit).await?),
        })
    }
}
