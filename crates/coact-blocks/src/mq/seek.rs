//! Where to go on in a partition, and letting a whole group go on there.

use std::ops::RangeInclusive;

use bytes::Bytes;
use coact_core::{
    Error, Result,
    contract::stream::{GroupOffset, Offset, OffsetCommit, Seek, StreamHandle},
    name::{Group, Topic},
};

/// Where to go on in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// At this offset.
    Offset(Offset),
    /// Where the engine finds this.
    Found(Seek),
}

impl SeekTo {
    /// The offset of it in one partition.
    ///
    /// # Errors
    /// `NotFound` if there is no such partition, unless the offset is given; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn offset(self, streams: &StreamHandle, topic: &Topic, partition: u32) -> Result<Offset> {
        match self {
            Self::Offset(offset) => Ok(offset),
            Self::Found(seek) => streams.seek(topic, partition, seek).await,
        }
    }
}

/// Lets a group go on elsewhere in these partitions of a topic, all or none; it begins to exist with this. Members that it
/// has commit over it: look at [`Monitor::member_count`](super::Monitor::member_count) first.
///
/// # Errors
/// `NotFound` if there is no such partition; `Invalid` if an offset is beyond its end; `Fenced` if the group went over to
/// another generation meanwhile; otherwise what the engine answers.
///
/// # Cancel safety
/// It may happen though the future is dropped; again is harmless.
pub async fn seek(
    streams: &StreamHandle,
    group: &Group,
    topic: &Topic,
    partitions: RangeInclusive<u32>,
    to: SeekTo,
) -> Result<Vec<GroupOffset>> {
    let mut offsets = Vec::new();
    for partition in partitions {
        let offset = to.offset(streams, topic, partition).await?;
        let end = streams.bounds(topic, partition).await?.end;
        if offset > end {
            return Err(Error::invalid(format!("{topic}/{partition} ends at {end}: a group cannot go on at {offset}")));
        }
        offsets.push(GroupOffset { topic: topic.clone(), partition, offset, metadata: Bytes::new() });
    }
    let generation = streams.group(group).await?.map_or(0, |known| known.generation);
    let commit = OffsetCommit { group: group.clone(), generation, offsets: offsets.clone() };
    streams.commit_offsets(commit).await?;
    Ok(offsets)
}
