//! Consumer groups on the Kv contract: who is there, who has which partition, and since which generation.
//!
//! Members are entries under their sessions' leases. The one whose entry is oldest coordinates; nobody elects it, and two
//! that believe to be it do no harm, since what they write is checked. A change goes in two phases. First the next
//! assignment is published as *preparing*: members stop what moves away from them, finish and commit what is in flight,
//! and answer. When all have, or the time for it is over, the group is fenced at the new generation, so that whoever did
//! not answer commits nothing any more, and the assignment is published as *stable*.

mod assign;
mod entry;
mod membership;

use std::collections::BTreeSet;

use coact_core::{
    Result,
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
    name::{Dir, Group, Key, Realm, Topic},
};

pub(super) use entry::{Assignment, Member, Phase};
pub(super) use membership::{Join, Membership, View};

/// What groups need from the store that they meet in. It may forget: members write themselves again, and the generation
/// that fences is kept beside the offsets.
pub const GROUP_NEEDS: Needs = Needs {
    block: "mq (consumer groups)",
    reads: Consistency::Linearizable,
    writes: Durability::Memory,
    failover: Failover::MayLoseWrites,
    fence: Fence::PerProcess,
};

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Topic,
    /// The partition, from zero.
    pub partition: u32,
}

pub(super) type Partitions = BTreeSet<TopicPartition>;

/// What the dirs of all groups start with.
pub(super) const GROUPS: &str = "mq/group/";

/// Where the members of a group are.
pub(super) fn members_dir(realm: &Realm, group: &Group) -> Result<Dir> {
    Dir::new(realm, &format!("{GROUPS}{group}/members"))
}

/// Where the assignment of a group is.
pub(super) fn assignment_key(realm: &Realm, group: &Group) -> Result<Key> {
    Key::new(realm, &format!("{GROUPS}{group}"), "assignment")
}
