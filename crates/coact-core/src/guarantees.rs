//! What an engine promises, what a block needs, and the meeting of the two when a block opens.
//!
//! This is coact's answer to the CAP question: declared by each engine, required by each block, checked at open,
//! shown by a test in each direction. There is no "mostly": an engine that loses acknowledged writes on failover says
//! so, and a block that cannot live with it refuses, unless the user accepts that weakness by name.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use crate::error::{Error, ErrorKind, Result};

/// How fresh a read is. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consistency {
    /// May be older than what the same caller has seen.
    Eventual,
    /// Never goes back for one caller, may lag behind others.
    Sequential,
    /// Sees every write that was acknowledged before the read began.
    Linearizable,
}

/// What an acknowledged write survives. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: it lives in the memory of one process.
    Memory,
    /// A crash of the process, not of the machine: it is with the operating system.
    Os,
    /// As [`Os`](Self::Os), and a power cut but for the last interval.
    Interval(Duration),
    /// A power cut: it was synced to the disk of one machine before the acknowledgement.
    Sync,
    /// The loss of a minority of machines.
    Quorum,
}

/// What happens when the network divides the engine's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPartition {
    /// There is one server: a client that cannot reach it gets no answer.
    SingleNode,
    /// The side without a majority stops answering (CP).
    MinorityStops,
    /// The side without a majority serves reads that may be stale.
    ServesStale,
    /// Both sides accept writes; one side's are lost or merged later (AP).
    MayDiverge,
}

/// Whether a failover of the engine can lose acknowledged writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failover {
    /// It cannot.
    KeepsWrites,
    /// It can: replication is asynchronous.
    MayLoseWrites,
}

/// How strong fencing tokens are. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fence {
    /// Tokens may come twice: they start anew with the process, or go back with writes that were lost.
    PerProcess,
    /// Tokens are monotonic, though the writes they belong to may vanish.
    Epoch,
    /// Tokens are monotonic over crashes and failovers.
    Strong,
}

/// What a watch can resume from. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchFrom {
    /// Only from now: a reconnect is a `Resync`.
    Now,
    /// From any revision that the history still holds.
    Revision,
}

/// How a waiter learns that it may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeUp {
    /// The store tells it.
    Told,
    /// It looks again after at most this long.
    Polls(Duration),
}

/// How a read-modify-write of a number is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Increment {
    /// In the engine, in one step.
    Native,
    /// By compare-and-set from the client, repeated on conflict.
    Emulated,
}

/// Bounds of one engine. The portable ones are checked in core before a request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a value.
    pub value_bytes: usize,
    /// The most checks of a transaction.
    pub checks: usize,
    /// The most writes of a transaction.
    pub writes: usize,
    /// The shortest lease.
    pub ttl_min: Duration,
    /// The longest lease.
    pub ttl_max: Duration,
}

impl Limits {
    /// What every engine holds.
    pub const PORTABLE: Limits = Limits {
        value_bytes: 64 * 1024,
        checks: 8,
        writes: 16,
        ttl_min: Duration::from_secs(1),
        ttl_max: Duration::from_secs(24 * 3600),
    };
}

/// What an engine promises for the Kv contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// Freshness of linearizable reads as far as the engine can give them.
    pub reads: Consistency,
    /// What an acknowledged write survives.
    pub writes: Durability,
    /// Behaviour in a network partition.
    pub on_partition: OnPartition,
    /// Behaviour on failover.
    pub failover: Failover,
    /// Strength of fencing tokens.
    pub fence: Fence,
    /// What a watch can resume from.
    pub watch: WatchFrom,
    /// How a waiter learns that it may go on.
    pub wake: WakeUp,
    /// How `Incr` is done.
    pub increment: Increment,
    /// Bounds.
    pub limits: Limits,
}

/// A promise that a user may give up by name, as in `?accept=volatile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weakness {
    /// `volatile`: writes, and the order of fencing tokens, end with the process (`memory:`).
    Volatile,
    /// `loss-window`: a power cut may lose the last acknowledged writes (`durability=os`, `interval`).
    LossWindow,
    /// `failover-loss`: a failover of the engine may lose acknowledged writes.
    FailoverLoss,
    /// `stale-reads`: reads may miss acknowledged writes.
    StaleReads,
    /// `weak-fence`: fencing tokens may repeat or go back.
    WeakFence,
}

impl Weakness {
    const ALL: [Weakness; 5] =
        [Self::Volatile, Self::LossWindow, Self::FailoverLoss, Self::StaleReads, Self::WeakFence];

    /// The name used in `accept=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::LossWindow => "loss-window",
            Self::FailoverLoss => "failover-loss",
            Self::StaleReads => "stale-reads",
            Self::WeakFence => "weak-fence",
        }
    }
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Weakness {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|weakness| weakness.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|weakness| weakness.name()).collect();
            Error::invalid(format!("accept={text} is not known: choose from {}", names.join(", ")))
        })
    }
}

/// The weaknesses that a user accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted(BTreeSet<Weakness>);

impl Accepted {
    /// Whether this one was accepted.
    pub fn contains(&self, weakness: Weakness) -> bool {
        self.0.contains(&weakness)
    }
}

impl FromStr for Accepted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split(',').filter(|name| !name.is_empty()).map(str::parse).collect::<Result<_>>().map(Self)
    }
}

impl FromIterator<Weakness> for Accepted {
    fn from_iter<I: IntoIterator<Item = Weakness>>(weaknesses: I) -> Self {
        Self(weaknesses.into_iter().collect())
    }
}

/// What a block needs from an engine to keep its own promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The block, as shown in the refusal.
    pub block: &'static str,
    /// The weakest consistency of reads it can work on.
    pub reads: Consistency,
    /// The weakest durability it can work on.
    pub writes: Durability,
    /// Whether it must not lose acknowledged writes on failover.
    pub failover: Failover,
    /// The weakest fence it can work on.
    pub fence: Fence,
}

impl Guarantees {
    /// Refuses if these guarantees do not meet the needs and the user did not accept the difference by name.
    ///
    /// # Errors
    /// `Unsupported`, naming the block's need, the engine's declaration, and the word that accepts it.
    pub fn require(&self, engine: &str, needs: &Needs, accepted: &Accepted) -> Result<()> {
        for (weakness, need, have) in self.shortfalls(needs) {
            if !accepted.contains(weakness) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} needs {need}, but {engine} declares {have}; choose another engine, or accept it with ?accept={weakness}",
                        needs.block
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What a user would have to accept by name for a block to open; nothing if the needs are met.
    pub fn to_accept(&self, needs: &Needs) -> Vec<Weakness> {
        self.shortfalls(needs).into_iter().map(|(weakness, ..)| weakness).collect()
    }

    fn shortfalls(&self, needs: &Needs) -> Vec<(Weakness, String, String)> {
        let mut found = Vec::new();
        let volatile = self.writes == Durability::Memory;
        if self.writes < needs.writes {
            let weakness = if volatile { Weakness::Volatile } else { Weakness::LossWindow };
            found.push((weakness, needs.writes.to_string(), self.writes.to_string()));
        }
        if self.reads < needs.reads {
            found.push((Weakness::StaleReads, format!("{:?} reads", needs.reads), format!("{:?} reads", self.reads)));
        }
        if self.failover == Failover::MayLoseWrites && needs.failover == Failover::KeepsWrites {
            let need = "acknowledged writes to survive a failover".to_owned();
            found.push((Weakness::FailoverLoss, need, "that a failover may lose them".to_owned()));
        }
        // A volatile store's tokens end with it: one word accepts both.
        if self.fence < needs.fence && !volatile {
            let need = format!("{:?} fencing tokens", needs.fence);
            found.push((Weakness::WeakFence, need, format!("{:?} ones", self.fence)));
        }
        found
    }
}

/// Gives each variant of an enum its stable name, as in `coact guarantees`.
macro_rules! names {
    ($($type:ident { $($variant:ident $(($inner:ident))? => $name:expr,)+ })+) => {
        $(impl $type {
            /// The stable name, as in `coact guarantees`.
            pub fn name(self) -> String {
                match self {
                    $(Self::$variant $(($inner))? => ($name).to_owned(),)+
                }
            }
        })+
    };
}

names! {
    Consistency {
        Eventual => "eventual",
        Sequential => "sequential",
        Linearizable => "linearizable",
    }
    Durability {
        Memory => "memory",
        Os => "os",
        Interval(interval) => format!("interval:{}ms", interval.as_millis()),
        Sync => "sync",
        Quorum => "quorum",
    }
    OnPartition {
        SingleNode => "single-node",
        MinorityStops => "minority-stops",
        ServesStale => "serves-stale",
        MayDiverge => "may-diverge",
    }
    Failover {
        KeepsWrites => "keeps-writes",
        MayLoseWrites => "may-lose-writes",
    }
    Fence {
        PerProcess => "per-process",
        Epoch => "epoch",
        Strong => "strong",
    }
    WatchFrom {
        Now => "now",
        Revision => "revision",
    }
    WakeUp {
        Told => "told",
        Polls(pause) => format!("polls:{}ms", pause.as_millis()),
    }
    Increment {
        Native => "native",
        Emulated => "emulated",
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("writes that end with the process"),
            Self::Os => f.write_str("writes that survive a crash of the process but not a power cut"),
            Self::Interval(interval) => {
                write!(f, "writes of which a power cut may lose the last {} ms", interval.as_millis())
            }
            Self::Sync => f.write_str("writes synced to disk before they are acknowledged"),
            Self::Quorum => f.write_str("writes acknowledged by a majority of servers"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRONG: Guarantees = Guarantees {
        reads: Consistency::Linearizable,
        writes: Durability::Sync,
        on_partition: OnPartition::SingleNode,
        failover: Failover::KeepsWrites,
        fence: Fence::Strong,
        watch: WatchFrom::Revision,
        wake: WakeUp::Told,
        increment: Increment::Native,
        limits: Limits::PORTABLE,
    };
    const NEEDS: Needs = Needs {
        block: "id",
        reads: Consistency::Linearizable,
        writes: Durability::Sync,
        failover: Failover::KeepsWrites,
        fence: Fence::Strong,
    };

    #[test]
    fn refuses_what_is_weaker_and_names_both_sides() {
        STRONG.require("embedded", &NEEDS, &Accepted::default()).expect("meets");
        let memory = Guarantees { writes: Durability::Memory, fence: Fence::PerProcess, ..STRONG };
        let error = memory.require("memory:", &NEEDS, &Accepted::default()).expect_err("weaker");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(
            error.to_string(),
            "id needs writes synced to disk before they are acknowledged, but memory: declares writes that end with \
             the process; choose another engine, or accept it with ?accept=volatile"
        );
        memory.require("memory:", &NEEDS, &"volatile".parse().expect("known")).expect("accepted by name");
    }

    #[test]
    fn an_accepted_weakness_does_not_cover_another() {
        let redis = Guarantees { failover: Failover::MayLoseWrites, fence: Fence::Epoch, ..STRONG };
        let error = redis.require("redis", &NEEDS, &"failover-loss".parse().expect("known")).expect_err("fence");
        assert!(error.to_string().ends_with("accept it with ?accept=weak-fence"), "{error}");
    }

    #[test]
    fn names_the_choices_for_a_misspelt_weakness() {
        let error = "volatil".parse::<Accepted>().expect_err("misspelt").to_string();
        assert_eq!(
            error,
            "accept=volatil is not known: choose from volatile, loss-window, failover-loss, stale-reads, weak-fence"
        );
    }
}
