//! Which node checks a namespace, and which services there are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use coact_blocks::{
    Session, SessionOptions,
    directory::{Directory, DirectoryOptions},
    lock::Mutex,
};
use coact_core::{
    Result,
    contract::kv::{KvHandle, LeaseId},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Common, service};
use crate::lifecycle::Signal;

/// The lock that the checking node holds.
const LOCK: &str = "coact-checks";
/// How often new services are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many services are listed in one request.
const PAGE: usize = 1_000;

/// Checks a namespace, as often as this node gets to, until the shutdown begins.
pub(super) async fn run(common: Arc<Common>, kv: KvHandle, mut signal: Signal) {
    // Whatever vanished is gone for a checker: nothing is held.
    let options = DirectoryOptions { realm: common.realm.clone(), protect: 0.0, ..DirectoryOptions::default() };
    let directory = match Directory::open(&kv, options) {
        Ok(directory) => directory,
        Err(error) => {
            warn!(%error, "no instance is checked");
            return;
        }
    };
    let leader = Leader { common, kv, directory };
    while !signal.is_draining() {
        if let Err(error) = leader.serve(&mut signal).await {
            debug!(%error, "instances are not checked for a moment");
        }
        tokio::select! {
            () = leader.pause() => {}
            () = signal.draining() => return,
        }
    }
}

struct Leader {
    common: Arc<Common>,
    kv: KvHandle,
    directory: Directory,
}

impl Leader {
    /// Takes the lock if there is something to check, and checks while it is held.
    async fn serve(&self, signal: &mut Signal) -> Result<()> {
        // No service, no trace in the store.
        if self.directory.services("", "", 1).await?.is_empty() {
            return Ok(());
        }
        let options = SessionOptions { name: Some(format!("checks-{}", self.directory.label())), ..Default::default() };
        let session = Session::open(&self.kv, options).await?;
        let checked = tokio::select! {
            checked = self.check_in(&session) => checked,
            () = signal.draining() => Ok(()),
        };
        // With the session go the lock and the verdicts.
        session.close().await?;
        checked
    }

    /// Checks from the moment that the lock is ours until it is lost or nothing is left.
    async fn check_in(&self, session: &Session) -> Result<()> {
        let guard = Mutex::new(session, LOCK)?.acquire().await?;
        tokio::select! {
            checked = self.check_all(session.lease()) => checked,
            why = guard.lost() => Err(why),
        }
    }

    /// Has a task for every service, until there is none.
    async fn check_all(&self, lease: LeaseId) -> Result<()> {
        // When a sender is dropped, its task ends.
        let mut tasks: HashMap<String, watch::Sender<()>> = HashMap::new();
        loop {
            match self.services().await {
                Ok(services) if services.is_empty() => return Ok(()),
                Ok(services) => {
                    tasks.retain(|service, task| !task.is_closed() && services.contains(service));
                    for service in services {
                        tasks.entry(service).or_insert_with_key(|service| self.start(service, lease));
                    }
                }
                Err(error) => debug!(%error, "new services are not seen for a moment"),
            }
            self.pause().await;
        }
    }

    fn start(&self, service: &str, lease: LeaseId) -> watch::Sender<()> {
        let (task, stop) = watch::channel(());
        let job = service::Job {
            common: self.common.clone(),
            directory: self.directory.clone(),
            service: service.to_owned(),
            lease,
        };
        self.common.env.spawn(job.run(stop));
        task
    }

    async fn services(&self) -> Result<Vec<String>> {
        let mut services: Vec<String> = Vec::new();
        loop {
            let after = services.last().map_or("", String::as_str);
            let page = self.directory.services("", after, PAGE).await?;
            let is_last = page.len() < PAGE;
            services.extend(page);
            if is_last {
                return Ok(services);
            }
        }
    }

    async fn pause(&self) {
        let env = &self.common.env;
        env.sleep(LOOK_EVERY.mul_f64(0.8) + env.random_duration(LOOK_EVERY.mul_f64(0.4))).await;
    }
}
