//! Defects that the lab plants into its own clients, to see that it catches them.

use clap::ValueEnum;

/// A client that lies, or that a defect of coact would make lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// Every tenth write is acknowledged, but never sent.
    LostWrite,
    /// Every tenth read answers what was read first.
    StaleRead,
    /// Every grant of the lock has the same token.
    TokenTwice,
    /// Every generator counts from one.
    IdTwice,
    /// Every seventh change is not told to a watch.
    WatchGap,
    /// A directory shows whom it has ever seen.
    Ghost,
}
