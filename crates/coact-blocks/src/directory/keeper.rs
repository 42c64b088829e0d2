//! The one session of a directory: opened when the first registration needs it, and again after it was lost.

use std::time::{Duration, Instant};

use coact_core::{Error, Result, contract::kv::KvHandle};
use tokio::sync::Mutex;

use crate::{Session, SessionOptions, backoff::Backoff};

pub(super) struct Keeper {
    kv: KvHandle,
    ttl: Duration,
    label: String,
    slot: Mutex<Slot>,
}

struct Slot {
    session: Option<Session>,
    backoff: Backoff,
    /// Why the last try failed, and until when nobody tries again.
    failed: Option<(Error, Instant)>,
}

impl Keeper {
    pub(super) fn new(kv: &KvHandle, ttl: Duration, label: String) -> Self {
        let backoff = Backoff::new(kv.env(), ttl / 100, ttl / 4);
        let slot = Slot { session: None, backoff, failed: None };
        Self { kv: kv.clone(), ttl, label, slot: Mutex::new(slot) }
    }

    pub(super) fn kv(&self) -> &KvHandle {
        &self.kv
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Pauses between the attempts of one registration.
    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.kv.env(), self.ttl / 100, self.ttl / 4)
    }

    /// The session, alive when this returns. Many may ask at once: one tries, and the others share how that ended.
    pub(super) async fn session(&self) -> Result<Session> {
        let mut slot = self.slot.lock().await;
        if let Some(session) = slot.session.as_ref().filter(|session| session.is_alive()) {
            return Ok(session.clone());
        }
        // The lost one is revoked in the background.
        slot.session = None;
        let now = self.kv.env().now();
        if let Some((error, until)) = &slot.failed
            && now < *until
        {
            return Err(error.clone());
        }
        let options = SessionOptions { ttl: self.ttl, name: Some(self.label.clone()) };
        let opening = Session::open(&self.kv, options);
        let opened = self.kv.env().timeout(self.ttl, opening).await.unwrap_or_else(|| {
            Err(Error::new(coact_core::ErrorKind::Unavailable, "the store did not grant a lease in time"))
        });
        match opened {
            Ok(session) => {
                slot.failed = None;
                slot.backoff.reset();
                slot.session = Some(session.clone());
                Ok(session)
            }
            Err(error) => {
                let pause = slot.backoff.next_pause();
                slot.failed = Some((error.clone(), self.kv.env().now() + pause));
                Err(error)
            }
        }
    }
}
