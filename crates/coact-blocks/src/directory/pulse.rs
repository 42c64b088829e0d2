//! Whether the store answers at all: one question now and then for all watches of a directory.
//!
//! A feed is silent both when nothing happens and when the store is gone: a client that will resume it without a gap, for
//! however long that takes, has nothing to say meanwhile. So somebody has to ask.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use coact_core::{ErrorKind, contract::kv::KvHandle, name::Key};
use tokio::sync::watch;

const EVERY: Duration = Duration::from_secs(3);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Held by every watch; the asking ends with the last.
pub(super) struct Pulse {
    answers: watch::Sender<bool>,
}

impl Pulse {
    /// Starts to ask for this entry, which need not exist.
    pub(super) fn start(kv: &KvHandle, key: Key) -> Arc<Self> {
        let pulse = Arc::new(Self { answers: watch::Sender::new(true) });
        kv.env().spawn(ask(kv.clone(), key, Arc::downgrade(&pulse)));
        pulse
    }

    /// Whether the store answers, and every change of that.
    pub(super) fn answers(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }
}

async fn ask(kv: KvHandle, key: Key, pulse: Weak<Pulse>) {
    loop {
        kv.env().sleep(EVERY.mul_f64(0.8) + kv.env().random_duration(EVERY.mul_f64(0.4))).await;
        if pulse.strong_count() == 0 {
            return;
        }
        let answered = match kv.env().timeout(ANSWER_LIMIT, kv.get(&key)).await {
            None => false,
            Some(Ok(_)) => true,
            // Any other answer is one.
            Some(Err(error)) => error.kind() != ErrorKind::Unavailable,
        };
        let Some(pulse) = pulse.upgrade() else { return };
        pulse.answers.send_if_modified(|answers| std::mem::replace(answers, answered) != answered);
    }
}
