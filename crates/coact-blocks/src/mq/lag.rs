//! Monitoring: who is in a group, how far it came, how far behind it is, and what it has put aside. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        kv::{KvHandle, Order, Revision},
        stream::{Bounds, DelayStats, GroupOffset, Offset, Read, StreamHandle, TopicInfo},
    },
    name::{Dir, Group, Realm, Topic},
};

use super::{
    group::{Assignment, GROUPS, Member, Phase, TopicPartition, assignment_key, members_dir},
    parked::{Parked, ParkedKey},
    producer::describe,
};
use crate::json::read;

/// How much is listed at once.
const PAGE: usize = 1_000;

/// Looks at groups and topics.
#[derive(Clone, Debug)]
pub struct Monitor {
    kv: KvHandle,
    streams: StreamHandle,
    realm: Realm,
}

/// A group as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLag {
    /// Its name.
    pub group: Group,
    /// The generation that is stable, or being prepared; zero if nobody ever joined.
    pub generation: u64,
    /// Whether partitions are changing hands.
    pub rebalancing: bool,
    /// Its members, oldest first: the first one coordinates.
    pub members: Vec<GroupMember>,
    /// Its partitions: those that its members want, or for which it has committed.
    pub partitions: Vec<PartitionLag>,
    /// The keys whose records it has put aside.
    pub parked: Vec<ParkedKey>,
}

impl GroupLag {
    /// How many records it is behind in all; `None` if that is not known of some partition.
    pub fn messages(&self) -> Option<u64> {
        self.partitions.iter().map(|partition| partition.messages).sum()
    }

    /// How old the oldest record is that it has not done, in milliseconds.
    pub fn age_ms(&self) -> Option<u64> {
        self.partitions.iter().filter_map(|partition| partition.age_ms).max()
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its random name.
    pub incarnation: String,
    /// Who it is, for people.
    pub name: String,
    /// What it reads.
    pub topics: Vec<String>,
    /// What is assigned to it.
    pub partitions: Vec<TopicPartition>,
}

/// How far a group came in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It has never committed: it is as far behind as the partition is long, if it starts at the earliest record.
    Never,
    /// Everything before this offset is done.
    At(Offset),
}

/// How far behind a group is in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// Which partition.
    pub place: TopicPartition,
    /// Which member has it.
    pub member: Option<String>,
    /// How far the group came.
    pub committed: Committed,
    /// What the partition holds.
    pub bounds: Bounds,
    /// How many records are not done: exact but for those that are done out of order; the most that there can be where a
    /// topic is compacted. `None` if the engine's offsets have gaps and there are some.
    pub messages: Option<u64>,
    /// How old the first record is that is not done, in milliseconds; `None` if there is none.
    pub age_ms: Option<u64>,
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStats {
    /// Its layout.
    pub info: TopicInfo,
    /// What each partition holds.
    pub partitions: Vec<Bounds>,
    /// Its delayed records.
    pub delays: DelayStats,
}

impl TopicStats {
    /// How many bytes it keeps, about.
    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|bounds| bounds.bytes).sum()
    }

    /// How many records it keeps, if the engine counts them.
    pub fn records(&self) -> Option<u64> {
        self.partitions.iter().map(|bounds| bounds.records).sum()
    }

    /// The sum of the partitions' ends: it grows with what is appended, and so gives a rate.
    pub fn end(&self) -> u64 {
        self.partitions.iter().map(|bounds| bounds.end.0).sum()
    }
}

impl Monitor {
    /// Looks at the streams, and at the groups that meet in a realm of this store.
    pub fn new(kv: &KvHandle, streams: &StreamHandle, realm: &Realm) -> Self {
        Self { kv: kv.clone(), streams: streams.clone(), realm: realm.clone() }
    }

    /// The groups that have committed, or that anybody joined, by name.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn groups(&self) -> Result<Vec<Group>> {
        let mut found = BTreeSet::new();
        loop {
            let after = found.last().map_or("", Group::as_str).to_owned();
            let page = self.streams.groups(&after, PAGE).await?;
            let is_last = page.len() < PAGE;
            found.extend(page.into_iter().map(|group| group.name));
            if is_last {
                break;
            }
        }
        let mut after = String::new();
        loop {
            let dirs = self.kv.dirs(&self.realm, GROUPS, &after, PAGE).await?;
            let name = |dir: &Dir| Group::new(dir.path().strip_prefix(GROUPS)?.split('/').next()?).ok();
            found.extend(dirs.iter().filter_map(name));
            match dirs.last().filter(|_| dirs.len() == PAGE) {
                Some(last) => last.path().clone_into(&mut after),
                None => return Ok(found.into_iter().collect()),
            }
        }
    }

    /// How far a group is.
    ///
    /// # Errors
    /// `NotFound` if nobody ever joined it and it has committed nothing; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn group(&self, group: &Group) -> Result<GroupLag> {
        let entry = self.kv.get(&assignment_key(&self.realm, group)?).await?;
        let assignment: Option<Assignment> = entry.as_ref().and_then(read);
        let members = self.members(group, assignment.as_ref()).await?;
        let known = self.streams.group(group).await?;
        if assignment.is_none() && members.is_empty() && known.is_none() {
            return Err(Error::new(ErrorKind::NotFound, format!("nobody knows group {group}")));
        }
        let offsets = known.map_or(Vec::new(), |known| known.offsets);
        let mut places: BTreeMap<TopicPartition, Option<String>> = BTreeMap::new();
        for GroupOffset { topic, partition, .. } in &offsets {
            places.insert(TopicPartition { topic: topic.clone(), partition: *partition }, None);
        }
        // What is wanted counts before it is assigned: a group that has not begun is behind.
        for topic in members.iter().flat_map(|member| &member.topics).collect::<BTreeSet<_>>() {
            let Ok(topic) = Topic::new(topic) else { continue };
            let count = self.streams.topic(&topic).await?.map_or(0, |info| info.spec.partitions);
            let place = |partition| TopicPartition { topic: topic.clone(), partition };
            places.extend((0..count).map(|partition| (place(partition), None)));
        }
        for member in &members {
            let of_member = member.partitions.iter().map(|place| (place.clone(), Some(member.incarnation.clone())));
            places.extend(of_member);
        }
        let mut partitions = Vec::new();
        for (place, member) in places {
            let is_place = |offset: &&GroupOffset| offset.topic == place.topic && offset.partition == place.partition;
            let committed = offsets.iter().find(is_place).map_or(Committed::Never, |found| Committed::At(found.offset));
            partitions.extend(self.partition(place, member, committed).await?);
        }
        Ok(GroupLag {
            group: group.clone(),
            generation: assignment.as_ref().map_or(0, |found| found.generation),
            rebalancing: assignment.as_ref().is_some_and(|found| found.phase == Phase::Preparing),
            members,
            partitions,
            parked: Parked::open(&self.kv, &self.realm, group)?.list().await?,
        })
    }

    /// How many members a group has; none if nobody knows it.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn member_count(&self, group: &Group) -> Result<usize> {
        Ok(self.members(group, None).await?.len())
    }

    /// What a topic holds.
    ///
    /// # Errors
    /// `NotFound` if there is no such topic; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: reads have no effect.
    pub async fn topic(&self, topic: &Topic) -> Result<TopicStats> {
        let info = describe(&self.streams, topic).await?;
        let mut partitions = Vec::new();
        for partition in 0..info.spec.partitions {
            partitions.push(self.streams.bounds(topic, partition).await?);
        }
        Ok(TopicStats { info, partitions, delays: self.streams.delay_stats(topic).await? })
    }

    async fn members(&self, group: &Group, assignment: Option<&Assignment>) -> Result<Vec<GroupMember>> {
        const PAGE: usize = 1_000;
        let dir = members_dir(&self.realm, group)?;
        let (mut found, mut after) = (Vec::new(), Revision(0));
        loop {
            let page = self.kv.list(&dir, Order::Created { after }, PAGE).await?;
            after = page.entries.last().map_or(after, |entry| entry.created);
            for entry in &page.entries {
                let Some(member) = read::<Member>(entry) else { continue };
                let incarnation = entry.key.name().to_owned();
                let partitions = assignment.map(|found| found.of(&incarnation)).unwrap_or_default();
                found.push(GroupMember {
                    incarnation,
                    name: member.name,
                    topics: member.topics,
                    partitions: partitions.into_iter().collect(),
                });
            }
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// How far behind a group is in one partition; `None` if the partition is gone.
    async fn partition(
        &self,
        place: TopicPartition,
        member: Option<String>,
        committed: Committed,
    ) -> Result<Option<PartitionLag>> {
        let bounds = match self.streams.bounds(&place.topic, place.partition).await {
            Ok(bounds) => bounds,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // What went before it was read is not to be done any more.
        let from = match committed {
            Committed::Never => bounds.start,
            Committed::At(offset) => offset.max(bounds.start),
        };
        let first = if from < bounds.end { self.first_unread(&place, from).await? } else { None };
        let messages = match first {
            // Offsets may have gaps: only a record that is there counts.
            None => Some(0),
            Some(_) if self.streams.guarantees().dense_offsets => {
                Some((bounds.end.0 - from.0).min(bounds.records.unwrap_or(u64::MAX)))
            }
            Some(_) => None,
        };
        let age_ms = first.map(|time_ms| self.streams.env().wall_ms().saturating_sub(time_ms));
        Ok(Some(PartitionLag { place, member, committed, bounds, messages, age_ms }))
    }

    /// When the first record at or after an offset was appended.
    async fn first_unread(&self, place: &TopicPartition, from: Offset) -> Result<Option<u64>> {
        let read = Read {
            topic: place.topic.clone(),
            partition: place.partition,
            from,
            max_bytes: 1,
            wait: std::time::Duration::ZERO,
        };
        let fetched = self.streams.read(read).await?;
        Ok(fetched.records(from).next().map(|stored| stored.time_ms))
    }
}
