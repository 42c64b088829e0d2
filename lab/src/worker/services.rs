//! Each host registers an instance of one service, and watches who is there.

use std::collections::BTreeSet;

use anyhow::Result;
use coact::directory::{Directory, DirectoryOptions, Instance, Mode, Registration, State, Watch};
use futures::future::{Either, select};
use serde_json::json;

use super::{Context, Stage, TTL};
use crate::plant::Plant;

const SERVICE: &str = "lab";
const PORT: u16 = 80;

/// One instance, and one observer.
pub(super) struct Services {
    context: Context,
    /// Its sessions end with it.
    _directory: Directory,
    registration: Registration,
    watch: Watch,
    ever_seen: BTreeSet<String>,
}

pub(super) async fn open(context: &Context) -> Result<Services> {
    // Every loss is believed: what is measured is the store and the lease, not the protection.
    let options = DirectoryOptions { ttl: TTL, protect: 0.0, ..DirectoryOptions::default() };
    let directory = Directory::open(&context.kv, options)?;
    let instance = Instance { id: context.job.node.clone(), ..Instance::new(SERVICE, &context.job.node, PORT) };
    let registration = directory.register(instance, Mode::Ephemeral).await?;
    context.recorder.note("up", json!(registration.id()));
    let watch = directory.watch(SERVICE).await?;
    Ok(Services { context: context.clone(), _directory: directory, registration, watch, ever_seen: BTreeSet::new() })
}

impl Services {
    pub(super) async fn run(mut self) -> Result<()> {
        self.note();
        while self.changed().await? {
            self.note();
        }
        self.context.recorder.note("down", json!(self.registration.id()));
        self.context.reached(Stage::Close).await;
        // It goes with its lease, if the store cannot be told.
        let _ = self.registration.deregister().await;
        Ok(())
    }

    /// Waits for another picture; `false` if the workloads stop instead.
    async fn changed(&mut self) -> Result<bool> {
        let stopped = std::pin::pin!(self.context.reached(Stage::Stop));
        let changed = std::pin::pin!(self.watch.changed());
        match select(stopped, changed).await {
            Either::Left(_) => Ok(false),
            Either::Right((changed, _)) => Ok(changed.map(|_| true)?),
        }
    }

    fn note(&mut self) {
        let snapshot = self.watch.snapshot();
        let mut ids: BTreeSet<_> = snapshot.instances.iter().map(|seen| seen.instance.id.clone()).collect();
        if self.context.planted(Plant::Ghost) {
            self.ever_seen.extend(ids);
            ids = self.ever_seen.clone();
        }
        let fresh = matches!(snapshot.state, State::Fresh);
        self.context.recorder.note("seen", json!({ "fresh": fresh, "ids": ids }));
    }
}
