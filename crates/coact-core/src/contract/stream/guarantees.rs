//! What an engine promises for streams and queues.

use std::time::Duration;

use crate::{
    error::{Error, Result},
    guarantees::{
        Accepted, Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, Needs, OnPartition, WakeUp,
        WatchFrom, Weakness,
    },
};

/// What one [`Commit`](crate::contract::commit::Commit) can span. Ordered from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atomicity {
    /// One append, one schedule, one offset commit at a time.
    Single,
    /// Appends and the offsets of a group.
    Streams,
    /// Everything, in every contract that the engine has.
    Everything,
}

impl Atomicity {
    /// The stable name, as in `coact guarantees`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Streams => "streams",
            Self::Everything => "everything",
        }
    }
}

/// Bounds of one engine, checked in core before a request leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// The most bytes of a record, or of a job, with its key and headers.
    pub record_bytes: usize,
    /// The most bytes of a batch.
    pub batch_bytes: usize,
    /// The most partitions of a topic.
    pub partitions: u32,
    /// The longest claim of a job, and the longest wait of a request.
    pub wait_max: Duration,
}

impl StreamLimits {
    /// What every engine holds.
    pub const PORTABLE: StreamLimits = StreamLimits {
        record_bytes: 1024 * 1024,
        batch_bytes: 4 * 1024 * 1024,
        partitions: 1024,
        wait_max: Duration::from_secs(24 * 3600),
    };

    /// Refuses a request that waits longer than allowed.
    pub(crate) fn check_wait(&self, wait: Duration) -> Result<()> {
        if wait > self.wait_max {
            let most = self.wait_max;
            return Err(Error::invalid(format!("a wait of {wait:?} is not allowed: at most {most:?}")));
        }
        Ok(())
    }
}

/// What an engine promises for the stream and queue contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamGuarantees {
    /// What an acknowledged append, commit or settlement survives.
    pub writes: Durability,
    /// Behaviour in a network partition.
    pub on_partition: OnPartition,
    /// Behaviour on failover.
    pub failover: Failover,
    /// What one commit can span.
    pub atomicity: Atomicity,
    /// For how long a repeated batch is recognized; `None` if it is not.
    pub dedup: Option<Duration>,
    /// Whether offsets have no gaps, but for compaction, so that differences are counts.
    pub dense_offsets: bool,
    /// How exactly delayed records and jobs come, at best; they never come early.
    pub delay_precision: Duration,
    /// Whether topics can be compacted by key.
    pub compaction: bool,
    /// Bounds.
    pub limits: StreamLimits,
}

impl StreamGuarantees {
    /// Refuses if these guarantees do not meet the needs and the user did not accept the difference by name. Of the
    /// needs, durability and failover count here.
    ///
    /// # Errors
    /// `Unsupported`, naming the block's need, the engine's declaration, and the word that accepts it.
    pub fn require(&self, engine: &str, needs: &Needs, accepted: &Accepted) -> Result<()> {
        self.comparable().require(engine, needs, accepted)
    }

    /// What a user would have to accept by name for a block to open; nothing if the needs are met.
    pub fn to_accept(&self, needs: &Needs) -> Vec<Weakness> {
        self.comparable().to_accept(needs)
    }

    /// The same for needs, of which only durability and failover count.
    fn comparable(&self) -> Guarantees {
        Guarantees {
            reads: Consistency::Linearizable,
            writes: self.writes,
            on_partition: self.on_partition,
            failover: self.failover,
            fence: Fence::Strong,
            watch: WatchFrom::Revision,
            wake: WakeUp::Told,
            increment: Increment::Native,
            limits: Limits::PORTABLE,
        }
    }
}
