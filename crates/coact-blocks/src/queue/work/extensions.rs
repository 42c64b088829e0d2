//! How claims are kept alive while their handlers run: one request for all that are due.

use std::time::Instant;

use coact_core::{
    ErrorKind, Result,
    contract::queue::{Settle, Settled, Token, Verdict},
    env::PlantedBug,
};

use super::{Answer, Running, Work};
use crate::backoff::within;

impl Work {
    /// Extends the claims that are due, and with them those that soon would be.
    pub(super) fn extend(&mut self, now: Instant) {
        if self.extension_due().is_none_or(|due| due > now) {
            return;
        }
        let lease = self.shared.options.lease;
        let soon = now + lease / 12;
        let due = self.extendable().filter(|running| running.extend_at <= soon);
        let settle: Vec<_> = due
            .map(|running| Settle { receipt: running.hold.claimed.receipt(), verdict: Verdict::Extend { lease } })
            .collect();
        let tokens = settle.iter().map(|settle| settle.receipt.token).collect();
        let (queues, queue) = (self.shared.queue.handle().clone(), self.shared.queue.name().clone());
        let env = self.env.clone();
        self.is_extending = true;
        self.send(async move {
            let sent = env.now();
            let answer = within(&env, lease / 3, "an extension", queues.settle(&queue, settle)).await;
            Answer::Extended { sent, tokens, answer }
        });
    }

    pub(super) fn extension_due(&self) -> Option<Instant> {
        if self.is_extending || self.env.planted(PlantedBug::SkipHeartbeat) {
            return None;
        }
        self.extendable().map(|running| running.extend_at).min()
    }

    pub(super) fn take_extended(&mut self, sent: Instant, tokens: &[Token], answer: Result<Vec<Settled>>) {
        self.is_extending = false;
        let lease = self.shared.options.lease;
        let now = self.env.now();
        match answer {
            Ok(settled) => {
                for (token, settled) in tokens.iter().zip(settled) {
                    let Some(running) = self.running.get_mut(token) else { continue };
                    if settled == Settled::Done {
                        running.hold.extend(sent + lease);
                        running.extend_at = sent + lease / 3;
                    } else {
                        running.hold.fence();
                    }
                }
            }
            // The queue was deleted, and its claims with it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tokens.iter().filter_map(|token| self.running.get(token)).for_each(|running| running.hold.fence());
            }
            Err(error) => {
                tracing::warn!(queue = %self.shared.queue.name(), %error, "claims could not be extended; trying again");
                for token in tokens {
                    if let Some(running) = self.running.get_mut(token) {
                        running.extend_at = now + lease / 12;
                    }
                }
            }
        }
    }

    fn extendable(&self) -> impl Iterator<Item = &Running> {
        self.running.values().filter(|running| !running.hold.is_fenced())
    }
}
