//! What streams and queues write in the log: each change says what became of one thing, as a whole.
//!
//! ```text
//!   0x30 topic put         id, name, partitions, age ms + 1, bytes + 1, compact, created ms
//!   0x31 topic deleted     id
//!   0x32 appended          topic, partition, first, count, span, time ms, stamped, (producer, epoch, sequence), body
//!   0x33 trimmed           topic, partition, before
//!   0x34 group committed   group, generation, topic, partition, offset, metadata
//!   0x35 group fenced      group, generation
//!   0x36 group deleted     group
//!   0x37 compacted         topic, partition, first, count, span, time ms, body   (a batch with fewer records; 0: none)
//!   0x40 delayed           topic, number, due ms, partition, body
//!   0x41 delay ended       topic, due ms, number                      (cancelled, or appended in the same frame)
//!   0x42 delay moved       topic, due ms, number, new due ms, new number
//!   0x50 queue put         id, name, max attempts, keep dead ms, paused
//!   0x51 queue deleted     id
//!   0x52 job enqueued      queue, job, time ms, priority, run at ms, max attempts, expires ms + 1, name, key, body
//!   0x53 job claimed       queue, job, token, lease ms, worker
//!   0x54 job ended         queue, job, done
//!   0x55 job waits         queue, job, run at ms, attempts, error
//!   0x56 job died          queue, job, time ms, error
//! body = length varint, crc32c u32, bytes; numbers are varints, bytes length-prefixed
//! ```

use std::time::Duration;

use bytes::{Buf, Bytes};
use coact_core::{
    codec::{get_bytes, get_varint, put_bytes, put_varint},
    contract::stream::{Stamp, TopicSpec},
};

use crate::body::Place;

/// A change of a stream or a queue. Bodies are beside it: they stay where they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MessageChange {
    TopicPut { id: u64, name: String, spec: TopicSpec, created_ms: u64 },
    TopicDeleted { id: u64 },
    Appended { at: At, first: u64, count: u32, span: u32, time_ms: u64, stamp: Option<Stamp> },
    Trimmed { at: At, before: u64 },
    GroupCommitted { group: String, generation: u64, at: At, offset: u64, metadata: Bytes },
    GroupFenced { group: String, generation: u64 },
    GroupDeleted { group: String },
    Compacted { at: At, first: u64, count: u32, span: u32, time_ms: u64 },
    Delayed { at: At, due_ms: u64, number: u64 },
    DelayEnded { topic: u64, due_ms: u64, number: u64 },
    DelayMoved { topic: u64, from: (u64, u64), to: (u64, u64) },
    QueuePut { id: u64, name: String, max_attempts: u32, keep_dead_ms: u64, paused: bool },
    QueueDeleted { id: u64 },
    JobEnqueued { queue: u64, job: u64, new: NewJobOf },
    JobClaimed { queue: u64, job: u64, token: u64, lease_ms: u64, worker: String },
    JobEnded { queue: u64, job: u64, done: bool },
    JobWaits { queue: u64, job: u64, run_at_ms: u64, attempts: u32, error: String },
    JobDied { queue: u64, job: u64, time_ms: u64, error: String },
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct At {
    pub(crate) topic: u64,
    pub(crate) partition: u32,
}

/// What is known of a job without its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NewJobOf {
    pub(crate) time_ms: u64,
    pub(crate) priority: u8,
    pub(crate) run_at_ms: u64,
    pub(crate) max_attempts: u32,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) name: String,
    pub(crate) order_key: Bytes,
}

impl MessageChange {
    /// Writes the tag and the fields; a body, where there is one, comes after them.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut fields = Fields(out);
        match self {
            Self::TopicPut { id, name, spec, created_ms } => {
                fields.tag(0x30).number(*id).text(name);
                for number in spec_numbers(spec) {
                    fields.number(number);
                }
                fields.number(*created_ms);
            }
            Self::TopicDeleted { id } => fields.tag(0x31).number(*id).end(),
            Self::Appended { at, first, count, span, time_ms, stamp } => {
                fields.tag(0x32).at(*at).number(*first).number((*count).into()).number((*span).into());
                fields.number(*time_ms).number(stamp.is_some().into());
                if let Some(Stamp { producer, epoch, sequence }) = stamp {
                    fields.number(*producer).number((*epoch).into()).number(*sequence);
                }
            }
            Self::Trimmed { at, before } => fields.tag(0x33).at(*at).number(*before).end(),
            Self::GroupCommitted { group, generation, at, offset, metadata } => {
                fields.tag(0x34).text(group).number(*generation).at(*at).number(*offset).bytes(metadata);
            }
            Self::GroupFenced { group, generation } => fields.tag(0x35).text(group).number(*generation).end(),
            Self::GroupDeleted { group } => fields.tag(0x36).text(group).end(),
            Self::Compacted { at, first, count, span, time_ms } => {
                fields.tag(0x37).at(*at).number(*first).number((*count).into()).number((*span).into());
                fields.number(*time_ms);
            }
            Self::Delayed { at, due_ms, number } => {
                fields.tag(0x40).number(at.topic).number(*number).number(*due_ms).number(at.partition.into());
            }
            Self::DelayEnded { topic, due_ms, number } => {
                fields.tag(0x41).number(*topic).number(*due_ms).number(*number);
            }
            Self::DelayMoved { topic, from, to } => {
                fields.tag(0x42).number(*topic).number(from.0).number(from.1).number(to.0).number(to.1);
            }
            Self::QueuePut { id, name, max_attempts, keep_dead_ms, paused } => {
                fields.tag(0x50).number(*id).text(name).number((*max_attempts).into()).number(*keep_dead_ms);
                fields.number((*paused).into());
            }
            Self::QueueDeleted { id } => fields.tag(0x51).number(*id).end(),
            Self::JobEnqueued { queue, job, new } => {
                fields.tag(0x52).number(*queue).number(*job).number(new.time_ms).number(new.priority.into());
                fields.number(new.run_at_ms).number(new.max_attempts.into()).option(new.expires_ms);
                fields.text(&new.name).bytes(&new.order_key);
            }
            Self::JobClaimed { queue, job, token, lease_ms, worker } => {
                fields.tag(0x53).number(*queue).number(*job).number(*token).number(*lease_ms).text(worker);
            }
            Self::JobEnded { queue, job, done } => {
                fields.tag(0x54).number(*queue).number(*job).number((*done).into());
            }
            Self::JobWaits { queue, job, run_at_ms, attempts, error } => {
                fields.tag(0x55).number(*queue).number(*job).number(*run_at_ms).number((*attempts).into()).text(error);
            }
            Self::JobDied { queue, job, time_ms, error } => {
                fields.tag(0x56).number(*queue).number(*job).number(*time_ms).text(error);
            }
        }
    }

    /// Whether a body comes after the fields.
    pub(crate) fn has_body(&self) -> bool {
        matches!(self, Self::Appended { .. } | Self::Compacted { .. } | Self::Delayed { .. } | Self::JobEnqueued { .. })
    }

    /// Whether it may change when something is due.
    pub(crate) fn changes_times(&self) -> bool {
        !matches!(
            self,
            Self::Appended { .. } | Self::Compacted { .. } | Self::Trimmed { .. } | Self::GroupCommitted { .. }
        )
    }

    /// Reads the fields after a tag.
    pub(crate) fn decode(tag: u8, from: &mut Bytes) -> Option<Self> {
        let mut take = Take(from);
        Some(match tag {
            0x30 => Self::TopicPut {
                id: take.number()?,
                name: take.text()?,
                spec: spec_of([take.number()?, take.number()?, take.number()?, take.number()?])?,
                created_ms: take.number()?,
            },
            0x31 => Self::TopicDeleted { id: take.number()? },
            0x32 => Self::Appended {
                at: take.at()?,
                first: take.number()?,
                count: take.short()?,
                span: take.short()?,
                time_ms: take.number()?,
                stamp: if take.flag()? {
                    Some(Stamp { producer: take.number()?, epoch: take.short()?, sequence: take.number()? })
                } else {
                    None
                },
            },
            0x33 => Self::Trimmed { at: take.at()?, before: take.number()? },
            0x34 => Self::GroupCommitted {
                group: take.text()?,
                generation: take.number()?,
                at: take.at()?,
                offset: take.number()?,
                metadata: take.bytes()?,
            },
            0x35 => Self::GroupFenced { group: take.text()?, generation: take.number()? },
            0x36 => Self::GroupDeleted { group: take.text()? },
            0x37 => Self::Compacted {
                at: take.at()?,
                first: take.number()?,
                count: take.short()?,
                span: take.short()?,
                time_ms: take.number()?,
            },
            0x40 => {
                let (topic, number, due_ms) = (take.number()?, take.number()?, take.number()?);
                Self::Delayed { at: At { topic, partition: take.short()? }, due_ms, number }
            }
            0x41 => Self::DelayEnded { topic: take.number()?, due_ms: take.number()?, number: take.number()? },
            0x42 => Self::DelayMoved {
                topic: take.number()?,
                from: (take.number()?, take.number()?),
                to: (take.number()?, take.number()?),
            },
            0x50 => Self::QueuePut {
                id: take.number()?,
                name: take.text()?,
                max_attempts: take.short()?,
                keep_dead_ms: take.number()?,
                paused: take.flag()?,
            },
            0x51 => Self::QueueDeleted { id: take.number()? },
            0x52 => Self::JobEnqueued {
                queue: take.number()?,
                job: take.number()?,
                new: NewJobOf {
                    time_ms: take.number()?,
                    priority: u8::try_from(take.number()?).ok()?,
                    run_at_ms: take.number()?,
                    max_attempts: take.short()?,
                    expires_ms: take.option()?,
                    name: take.text()?,
                    order_key: take.bytes()?,
                },
            },
            0x53 => Self::JobClaimed {
                queue: take.number()?,
                job: take.number()?,
                token: take.number()?,
                lease_ms: take.number()?,
                worker: take.text()?,
            },
            0x54 => Self::JobEnded { queue: take.number()?, job: take.number()?, done: take.flag()? },
            0x55 => Self::JobWaits {
                queue: take.number()?,
                job: take.number()?,
                run_at_ms: take.number()?,
                attempts: take.short()?,
                error: take.text()?,
            },
            0x56 => Self::JobDied {
                queue: take.number()?,
                job: take.number()?,
                time_ms: take.number()?,
                error: take.text()?,
            },
            _ => return None,
        })
    }
}

/// A topic's layout in numbers: partitions, age in milliseconds + 1, bytes + 1, whether it is compacted.
pub(super) fn spec_numbers(spec: &TopicSpec) -> [u64; 4] {
    let option = |number: Option<u64>| number.map_or(0, |number| number.saturating_add(1));
    let TopicSpec { partitions, retention_age, retention_bytes, compact } = spec;
    [(*partitions).into(), option(retention_age.map(millis)), option(*retention_bytes), (*compact).into()]
}

pub(super) fn spec_of([partitions, age_ms, bytes, compact]: [u64; 4]) -> Option<TopicSpec> {
    Some(TopicSpec {
        partitions: u32::try_from(partitions).ok()?,
        retention_age: age_ms.checked_sub(1).map(Duration::from_millis),
        retention_bytes: bytes.checked_sub(1),
        compact: compact != 0,
    })
}

/// Whole milliseconds; what is longer than any time is as good as for ever.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a body and returns the place of its checksum in `out`.
pub(crate) fn encode_body(out: &mut Vec<u8>, body: &[u8]) -> usize {
    put_varint(out, body.len() as u64);
    let at = out.len();
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out.extend_from_slice(body);
    at
}

/// Passes over a body: its place, if what is left of the batch begins at `address`.
pub(crate) fn decode_body(from: &mut Bytes, end: u64) -> Option<Place> {
    let length = u32::try_from(get_varint(from)?).ok()?;
    let address = end.checked_sub(from.len() as u64)?;
    let whole = 4 + length as usize;
    (whole <= from.len()).then(|| from.advance(whole))?;
    Some(Place { address, length })
}

struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        put_varint(self.0, number);
        self
    }

    fn option(&mut self, number: Option<u64>) -> &mut Self {
        self.number(number.map_or(0, |number| number.saturating_add(1)))
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        put_bytes(self.0, bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn at(&mut self, at: At) -> &mut Self {
        self.number(at.topic).number(at.partition.into())
    }

    fn end(&mut self) {}
}

struct Take<'a>(&'a mut Bytes);

impl Take<'_> {
    fn number(&mut self) -> Option<u64> {
        get_varint(self.0)
    }

    fn short(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.number()? != 0)
    }

    fn option(&mut self) -> Option<Option<u64>> {
        Some(self.number()?.checked_sub(1))
    }

    /// A copy of its own, lest a few bytes keep a whole batch in memory.
    fn bytes(&mut self) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(&get_bytes(self.0)?))
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(get_bytes(self.0)?.to_vec()).ok()
    }

    fn at(&mut self) -> Option<At> {
        Some(At { topic: self.number()?, partition: self.short()? })
    }
}
