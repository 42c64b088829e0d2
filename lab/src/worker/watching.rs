//! A watch of the registers, which must tell everything.

use std::time::Duration;

use anyhow::Result;
use coact::{
    Error,
    kv::{Change, Revision, Scope},
};
use futures::{
    StreamExt as _,
    future::{Either, select},
};
use serde_json::json;

use super::{Context, END, Stage, list, registers, row};
use crate::{
    history::{Answer, Process, Told},
    plant::Plant,
};

/// How long the last change may take after everything else has stopped.
const LAST: Duration = Duration::from_secs(3);
const REST_MS: u64 = 50;

/// One follower.
pub(super) struct Watching {
    context: Context,
    process: Process,
    /// Everything up to this was told.
    at: Revision,
    changes: u64,
    /// A resync was told, and not yet made up for.
    lost: bool,
    /// The key that ends it was told.
    ended: bool,
}

pub(super) async fn open(context: &Context) -> Result<Watching> {
    let process = context.recorder.process("watch");
    let mut watching =
        Watching { context: context.clone(), process, at: Revision(0), changes: 0, lost: false, ended: false };
    watching.read().await?;
    Ok(watching)
}

impl Watching {
    /// Follows until the key that ends it was told, or the lab loses patience.
    pub(super) async fn run(mut self) -> Result<()> {
        let context = self.context.clone();
        let over = async {
            context.reached(Stage::Close).await;
            context.kv.env().sleep(LAST).await;
        };
        let follow = async {
            while !self.ended {
                if let Err(error) = self.follow().await {
                    let value = json!(error.to_string());
                    self.process.note("watch-error", Answer { value, ..Answer::default() });
                }
                self.context.rest(REST_MS).await;
            }
        };
        match select(std::pin::pin!(over), std::pin::pin!(follow)).await {
            Either::Left(_) => context.recorder.note("watch-unfinished", json!(null)),
            Either::Right(_) => {}
        }
        context.reached(Stage::Close).await;
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), Error> {
        if self.lost {
            self.read().await?;
        }
        let scope = Scope::Dir(registers::dir()?);
        let mut feed = self.context.kv.watch(scope, Some(self.at)).await?;
        while let Some(change) = feed.next().await {
            self.take(change?).await?;
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    async fn take(&mut self, change: Change) -> Result<(), Error> {
        let (told, at) = match &change {
            Change::Put(entry) => (Told::Put(row(entry)), entry.modified),
            Change::Gone { key, at, .. } => (Told::Gone { name: key.name().to_owned(), at: at.0 }, *at),
            Change::Progress(at) => (Told::Progress(at.0), *at),
            Change::Resync { at, .. } => (Told::Resync { at: at.0 }, *at),
        };
        self.at = self.at.max(at);
        self.changes += 1;
        self.ended |= matches!(&told, Told::Put(row) if row.name == END);
        if !(self.context.planted(Plant::WatchGap) && self.changes.is_multiple_of(7)) {
            self.tell(&told);
        }
        self.lost |= matches!(change, Change::Resync { .. });
        if self.lost { self.read().await } else { Ok(()) }
    }

    async fn read(&mut self) -> Result<(), Error> {
        let (revision, rows) = list(&self.context.kv, &registers::dir()?).await?;
        self.at = self.at.max(Revision(revision));
        self.ended |= rows.iter().any(|row| row.name == END);
        self.lost = false;
        self.tell(&Told::List { revision, rows });
        Ok(())
    }

    fn tell(&self, told: &Told) {
        self.process.note("watch", Answer { value: json!(told), ..Answer::default() });
    }
}
