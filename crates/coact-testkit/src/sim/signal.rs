//! A number that tasks wait for to change.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Wakes those who wait in the order in which they began to: tokio's watch channel wakes them in a random order, which no
/// seed of ours decides.
#[derive(Clone, Debug, Default)]
pub(super) struct Signal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    value: Mutex<u64>,
    changed: Notify,
}

impl Signal {
    pub(super) fn value(&self) -> u64 {
        *self.0.value.lock()
    }

    pub(super) fn update(&self, change: impl FnOnce(u64) -> u64) {
        {
            let mut value = self.0.value.lock();
            *value = change(*value);
        }
        self.0.changed.notify_waiters();
    }

    /// Returns once the value fits.
    pub(super) async fn wait_for(&self, fits: impl Fn(u64) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Listen first, then look.
            changed.as_mut().enable();
            if fits(self.value()) {
                return;
            }
            changed.await;
        }
    }
}
