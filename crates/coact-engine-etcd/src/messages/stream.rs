//! Topics, records, and how far groups came.

use std::time::Duration;

use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{
        Append, Appended, Batch, Bounds, DelayId, DelayStats, Delayed, Fetched, GroupInfo, GroupOffset, Offset,
        OffsetCommit, Pending, Record, Seek, Stamp, StoredBatch, TopicInfo, TopicSpec,
    },
    name::{Group, Topic},
};

use super::{all, from_headers, part, to_headers, to_ms, try_all};
use crate::wire::coact_v1 as wire;

impl From<&TopicSpec> for wire::TopicSpec {
    fn from(spec: &TopicSpec) -> Self {
        Self {
            partitions: spec.partitions,
            retention_age_ms: spec.retention_age.map(to_ms),
            retention_bytes: spec.retention_bytes,
            compact: spec.compact,
        }
    }
}

impl From<wire::TopicSpec> for TopicSpec {
    fn from(message: wire::TopicSpec) -> Self {
        Self {
            partitions: message.partitions,
            retention_age: message.retention_age_ms.map(Duration::from_millis),
            retention_bytes: message.retention_bytes,
            compact: message.compact,
        }
    }
}

impl From<TopicInfo> for wire::TopicInfo {
    fn from(info: TopicInfo) -> Self {
        Self { name: info.name.to_string(), spec: Some((&info.spec).into()), created_ms: info.created_ms }
    }
}

impl TryFrom<wire::TopicInfo> for TopicInfo {
    type Error = Error;

    fn try_from(message: wire::TopicInfo) -> Result<Self> {
        Ok(Self {
            name: Topic::new(&message.name)?,
            spec: part(message.spec, "spec")?.into(),
            created_ms: message.created_ms,
        })
    }
}

impl From<Append> for wire::Append {
    fn from(append: Append) -> Self {
        Self {
            topic: append.topic.to_string(),
            partition: append.partition,
            records: append.batch.bytes().clone(),
            stamp: append.stamp.map(|stamp| wire::Stamp {
                producer: stamp.producer,
                epoch: stamp.epoch,
                sequence: stamp.sequence,
            }),
            expect: append.expect.map(|Offset(offset)| offset),
        }
    }
}

impl TryFrom<wire::Append> for Append {
    type Error = Error;

    /// # Errors
    /// `Invalid` for records that are none: it is the request that is damaged, nothing that is stored.
    fn try_from(message: wire::Append) -> Result<Self> {
        let batch = Batch::decode(message.records).map_err(|error| Error::invalid(error.message().to_owned()))?;
        Ok(Self {
            topic: Topic::new(&message.topic)?,
            partition: message.partition,
            batch,
            stamp: message.stamp.map(|stamp| Stamp {
                producer: stamp.producer,
                epoch: stamp.epoch,
                sequence: stamp.sequence,
            }),
            expect: message.expect.map(Offset),
        })
    }
}

impl From<Appended> for wire::Appended {
    fn from(appended: Appended) -> Self {
        Self { first: appended.first.0, time_ms: appended.time_ms, duplicate: appended.duplicate }
    }
}

impl From<wire::Appended> for Appended {
    fn from(message: wire::Appended) -> Self {
        Self { first: Offset(message.first), time_ms: message.time_ms, duplicate: message.duplicate }
    }
}

impl From<Fetched> for wire::ReadResponse {
    fn from(fetched: Fetched) -> Self {
        Self { batches: all(fetched.batches), next: fetched.next.0, start: fetched.start.0, end: fetched.end.0 }
    }
}

impl TryFrom<wire::ReadResponse> for Fetched {
    type Error = Error;

    fn try_from(message: wire::ReadResponse) -> Result<Self> {
        Ok(Self {
            batches: try_all(message.batches)?,
            next: Offset(message.next),
            start: Offset(message.start),
            end: Offset(message.end),
        })
    }
}

impl From<StoredBatch> for wire::StoredBatch {
    fn from(stored: StoredBatch) -> Self {
        Self {
            first: stored.first.0,
            time_ms: stored.time_ms,
            records: stored.batch.bytes().clone(),
            span: stored.batch.span(),
        }
    }
}

impl TryFrom<wire::StoredBatch> for StoredBatch {
    type Error = Error;

    /// # Errors
    /// `Corrupt` for records that are none.
    fn try_from(message: wire::StoredBatch) -> Result<Self> {
        let batch = Batch::decode(message.records)?;
        if message.span < batch.span() {
            return Err(Error::new(ErrorKind::Corrupt, "a batch has records beyond its span"));
        }
        Ok(Self {
            first: Offset(message.first),
            time_ms: message.time_ms,
            batch: Batch::trusted(batch.bytes().clone(), batch.count(), message.span),
        })
    }
}

impl From<Bounds> for wire::BoundsResponse {
    fn from(bounds: Bounds) -> Self {
        Self {
            start: bounds.start.0,
            end: bounds.end.0,
            oldest_ms: bounds.oldest_ms,
            bytes: bounds.bytes,
            records: bounds.records,
        }
    }
}

impl From<wire::BoundsResponse> for Bounds {
    fn from(message: wire::BoundsResponse) -> Self {
        Self {
            start: Offset(message.start),
            end: Offset(message.end),
            oldest_ms: message.oldest_ms,
            bytes: message.bytes,
            records: message.records,
        }
    }
}

impl From<Seek> for wire::seek_request::To {
    fn from(seek: Seek) -> Self {
        match seek {
            Seek::Earliest => Self::Earliest(wire::Done {}),
            Seek::Latest => Self::Latest(wire::Done {}),
            Seek::Time(ms) => Self::TimeMs(ms),
        }
    }
}

impl From<wire::seek_request::To> for Seek {
    fn from(message: wire::seek_request::To) -> Self {
        match message {
            wire::seek_request::To::Earliest(_) => Self::Earliest,
            wire::seek_request::To::Latest(_) => Self::Latest,
            wire::seek_request::To::TimeMs(ms) => Self::Time(ms),
        }
    }
}

impl From<Record> for wire::Record {
    fn from(record: Record) -> Self {
        Self { key: record.key, value: record.value, headers: to_headers(record.headers) }
    }
}

impl From<wire::Record> for Record {
    fn from(message: wire::Record) -> Self {
        Self { key: message.key, value: message.value, headers: from_headers(message.headers) }
    }
}

impl From<Delayed> for wire::Delayed {
    fn from(delayed: Delayed) -> Self {
        Self {
            topic: delayed.topic.to_string(),
            partition: delayed.partition,
            record: Some(delayed.record.into()),
            due_ms: delayed.due_ms,
        }
    }
}

impl TryFrom<wire::Delayed> for Delayed {
    type Error = Error;

    fn try_from(message: wire::Delayed) -> Result<Self> {
        Ok(Self {
            topic: Topic::new(&message.topic)?,
            partition: message.partition,
            record: part(message.record, "record")?.into(),
            due_ms: message.due_ms,
        })
    }
}

impl From<DelayId> for wire::DelayId {
    fn from(id: DelayId) -> Self {
        Self { due_ms: id.due_ms, number: id.number }
    }
}

impl From<wire::DelayId> for DelayId {
    fn from(message: wire::DelayId) -> Self {
        Self { due_ms: message.due_ms, number: message.number }
    }
}

impl From<Pending> for wire::Pending {
    fn from(pending: Pending) -> Self {
        Self { id: Some(pending.id.into()), delayed: Some(pending.delayed.into()) }
    }
}

impl TryFrom<wire::Pending> for Pending {
    type Error = Error;

    fn try_from(message: wire::Pending) -> Result<Self> {
        Ok(Self { id: part(message.id, "handle")?.into(), delayed: part(message.delayed, "record")?.try_into()? })
    }
}

impl From<DelayStats> for wire::DelayStatsResponse {
    fn from(stats: DelayStats) -> Self {
        Self {
            pending: stats.pending,
            next_due_ms: stats.next_due_ms,
            by_due: stats.by_due,
            by_lateness: stats.by_lateness,
        }
    }
}

impl From<wire::DelayStatsResponse> for DelayStats {
    fn from(message: wire::DelayStatsResponse) -> Self {
        Self {
            pending: message.pending,
            next_due_ms: message.next_due_ms,
            by_due: message.by_due,
            by_lateness: message.by_lateness,
        }
    }
}

impl From<GroupOffset> for wire::GroupOffset {
    fn from(offset: GroupOffset) -> Self {
        Self {
            topic: offset.topic.to_string(),
            partition: offset.partition,
            offset: offset.offset.0,
            metadata: offset.metadata,
        }
    }
}

impl TryFrom<wire::GroupOffset> for GroupOffset {
    type Error = Error;

    fn try_from(message: wire::GroupOffset) -> Result<Self> {
        Ok(Self {
            topic: Topic::new(&message.topic)?,
            partition: message.partition,
            offset: Offset(message.offset),
            metadata: message.metadata,
        })
    }
}

impl From<OffsetCommit> for wire::OffsetCommit {
    fn from(commit: OffsetCommit) -> Self {
        Self { group: commit.group.to_string(), generation: commit.generation, offsets: all(commit.offsets) }
    }
}

impl TryFrom<wire::OffsetCommit> for OffsetCommit {
    type Error = Error;

    fn try_from(message: wire::OffsetCommit) -> Result<Self> {
        Ok(Self {
            group: Group::new(&message.group)?,
            generation: message.generation,
            offsets: try_all(message.offsets)?,
        })
    }
}

impl From<GroupInfo> for wire::GroupInfo {
    fn from(info: GroupInfo) -> Self {
        Self { name: info.name.to_string(), generation: info.generation, offsets: all(info.offsets) }
    }
}

impl TryFrom<wire::GroupInfo> for GroupInfo {
    type Error = Error;

    fn try_from(message: wire::GroupInfo) -> Result<Self> {
        Ok(Self {
            name: Group::new(&message.name)?,
            generation: message.generation,
            offsets: try_all(message.offsets)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_was_compacted_reads_back_with_its_gaps() {
        let records: Vec<_> = (0..5).map(|number| Record::new(number.to_string())).collect();
        let kept = Batch::new(&records).retain(|place, _| place % 2 == 1);
        let stored = StoredBatch { first: Offset(10), time_ms: 3, batch: kept };
        let fetched = Fetched { batches: vec![stored], next: Offset(15), start: Offset(2), end: Offset(20) };
        let got = Fetched::try_from(wire::ReadResponse::from(fetched.clone())).expect("the same");
        assert_eq!(got, fetched);
        assert_eq!(got.records(Offset(12)).map(|record| record.offset).collect::<Vec<_>>(), [Offset(13)]);
    }

    #[test]
    fn a_batch_beyond_its_span_is_no_batch() {
        let batch = Batch::new([&Record::new("a"), &Record::new("b")]);
        let message = wire::StoredBatch { records: batch.bytes().clone(), span: 1, ..wire::StoredBatch::default() };
        assert_eq!(StoredBatch::try_from(message).expect_err("too short").kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn specs_read_back() {
        for spec in [
            TopicSpec::default(),
            TopicSpec { partitions: 9, retention_age: Some(Duration::ZERO), retention_bytes: Some(0), compact: true },
        ] {
            assert_eq!(TopicSpec::from(wire::TopicSpec::from(&spec)), spec);
        }
    }
}
