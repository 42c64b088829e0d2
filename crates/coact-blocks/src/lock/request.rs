//! Requests of the counting locks: repeated until they are answered, and waits with a safety net.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::kv::{Entry, Found, Read, Revision, Txn, TxnOutcome},
    env::Env,
    name::{Key, Realm},
};
use serde::de::DeserializeOwned;

use crate::{
    backoff::{Backoff, is_retryable},
    session::Core,
};

/// What came of a transaction that was sent until it was answered.
pub(super) struct Answer {
    pub(super) outcome: TxnOutcome,
    /// Whether an earlier try may have taken effect.
    pub(super) in_doubt: bool,
}

/// Sends a transaction until the store answers. It must do no harm twice, as one whose checks its own writes break.
pub(super) async fn answer(core: &Arc<Core>, realm: &Realm, txn: &Txn) -> Result<Answer> {
    let mut backoff = core.backoff();
    let mut in_doubt = false;
    loop {
        core.ensure_alive()?;
        match core.kv().txn(realm, txn.clone()).await {
            Ok(outcome) => return Ok(Answer { outcome, in_doubt }),
            Err(error) if is_retryable(&error) => in_doubt |= error.effect() == Effect::Unknown,
            Err(error) => return Err(error),
        }
        backoff.pause().await;
    }
}

/// Reads at one moment, until the store answers.
pub(super) async fn look(core: &Arc<Core>, realm: &Realm, reads: Vec<Read>) -> Result<Vec<Found>> {
    let txn = Txn { reads, ..Txn::default() };
    match answer(core, realm, &txn).await?.outcome {
        TxnOutcome::Committed { reads, .. } => Ok(reads),
        TxnOutcome::Refused { .. } => {
            Err(Error::new(ErrorKind::Internal, "an engine refused a transaction without checks"))
        }
    }
}

/// Waits until the store says that an entry is gone, or until it is time to look. Look after either.
pub(super) async fn wait_gone(core: &Arc<Core>, key: &Key, created: Revision, backoff: &mut Backoff) -> Result<()> {
    match core.env().timeout(wait_limit(core), core.kv().await_gone(key, created)).await {
        None => Ok(()),
        // A wake-up may lie: the pause keeps one that always does from becoming a busy loop.
        Some(Ok(())) => {
            backoff.pause().await;
            Ok(())
        }
        Some(Err(error)) if is_retryable(&error) => {
            backoff.pause().await;
            Ok(())
        }
        Some(Err(error)) => Err(error),
    }
}

/// How long to rely on a wake-up.
fn wait_limit(core: &Arc<Core>) -> Duration {
    core.ttl() + core.env().random_duration(core.ttl() / 4)
}

/// A name that nobody else has: 128 random bits.
pub(super) fn new_operation(env: &Env) -> String {
    format!("{:016x}{:016x}", env.random(), env.random())
}

pub(super) fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    serde_json::from_slice(&entry.value).map_err(|error| {
        let message = format!("{} does not hold what the lock block wrote", entry.key);
        Error::new(ErrorKind::Corrupt, message).with_source(error)
    })
}
