//! From start to end: one signal that every task of a node listens to.

use tokio::sync::watch;

/// How far the end is. It only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Everything is served.
    Running,
    /// No new connection, no new stream; running requests finish.
    Draining,
    /// What still runs is cut off.
    Ended,
}

/// Moves the phase; when it is dropped, everything ends.
#[derive(Debug)]
pub(crate) struct Lifecycle(watch::Sender<Phase>);

impl Default for Lifecycle {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }
}

impl Lifecycle {
    pub(crate) fn signal(&self) -> Signal {
        Signal(self.0.subscribe())
    }

    pub(crate) fn drain(&self) {
        self.0.send_replace(Phase::Draining);
    }

    pub(crate) fn end(&self) {
        self.0.send_replace(Phase::Ended);
    }
}

/// Hears of the phase.
#[derive(Clone, Debug)]
pub(crate) struct Signal(watch::Receiver<Phase>);

impl Signal {
    pub(crate) fn is_draining(&self) -> bool {
        *self.0.borrow() >= Phase::Draining || self.0.has_changed().is_err()
    }

    /// Returns when the shutdown begins. Cancel safe.
    pub(crate) async fn draining(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// Returns when the shutdown has waited long enough. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        self.reached(Phase::Ended).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // An error says that the server was dropped, which ends everything too.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
