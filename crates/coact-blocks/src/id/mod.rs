//! Ids: unique 64-bit ones that grow with time ([`Generator`]), dense numbers ([`Segment`]), and, without a store, ULIDs
//! ([`UlidGenerator`]) and UUIDs of version 7 ([`Uuid7Generator`]).
//!
//! A [`Generator`] makes ids after Twitter's Snowflake: time, worker number, sequence.
//!
//! Uniqueness rests neither on clocks nor on leases. A worker number has a persistent record; a [`Generator`] reserves
//! time windows in it by compare-and-set, each beginning where the last one ended, and issues only inside its window. So
//! the windows of one number are disjoint whatever happens: pauses, crashes, leases that end early, clocks that step.
//! A lease only hints which numbers are free, so that nobody takes one that is in use.
//!
//! In the store, `id/<space>` holds the agreed layout (`layout`) and one record for each worker number that was ever used;
//! `id-hint/<space>` holds one leased entry for each number in use. `id/segment` holds the counter of each segment.

mod ascending;
mod clock;
mod counter;
mod generator;
mod layout;
mod list;
mod segment;
mod space;
mod ulid;
mod uuid7;
mod window;

use std::{fmt, str::FromStr};

use coact_core::{
    Error,
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use counter::{SegmentInfo, segments};
pub use generator::{Generator, IdOptions, Ids};
pub use layout::{Decoded, EPOCH_MS, Layout};
pub use list::{WorkerInfo, workers};
pub use segment::{Segment, SegmentOptions};
pub use ulid::{Ulid, UlidGenerator};
pub use uuid7::{Uuid7, Uuid7Generator};

/// What unique ids need from an engine.
pub const NEEDS: Needs = Needs {
    block: "id",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::PerProcess,
};

/// A unique id. It fits a signed 64-bit integer; in JSON it is a string, since JavaScript rounds beyond 53 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

impl Id {
    /// The id with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<Id> for u64 {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self).map_err(|_| Error::invalid(format!("id {text:?} is no number from 0 to {}", u64::MAX)))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
