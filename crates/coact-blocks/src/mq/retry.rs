//! What becomes of a record that fails again and again.

use std::time::Duration;

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{Record, StoredRecord, StreamHandle, TopicSpec},
    name::{Group, Topic},
};
use sha2::{Digest, Sha256};

use super::{group::TopicPartition, producer::describe};

/// What to do with a record after its last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Keep trying: later records of its key wait, others go on.
    BlockKey,
    /// Move it, and all later ones of its key, in order to the topic [`parked`](parked_topic), until
    /// [`Parked::redrive`](super::Parked::redrive) brings them back, in order. A record without a key goes to the dead
    /// letters instead. The engine must commit everything at once.
    #[default]
    ParkKey,
    /// Append it to the topic [`dead`](dead_topic), and go on with the next of its key.
    DeadLetter,
    /// Append it after a delay to the topic [`retry`](retry_topic), which the group reads too, and go on with the next of
    /// its key: its order is lost. After so many rounds it goes to the dead letters.
    RetryTopic {
        /// How long it rests before each round.
        delay: Duration,
        /// How many rounds there are.
        rounds: u32,
    },
}

/// The header that says where a record was first: `topic/partition/offset/time`.
pub const ORIGIN_HEADER: &str = "coact-origin";
/// The header that says why a record failed last.
pub const ERROR_HEADER: &str = "coact-error";
/// The header that says how often a record was tried.
pub const ATTEMPTS_HEADER: &str = "coact-attempts";
/// The header that says how many rounds a record went through the retry topic.
pub const ROUND_HEADER: &str = "coact-round";

/// Where a group's dead letters of a topic are.
///
/// # Errors
/// `Invalid` if topic and group are too long to make a name.
pub fn dead_topic(topic: &Topic, group: &Group) -> Result<Topic> {
    Topic::new(&format!("{topic}.{group}.dead"))
}

/// Where a group's parked records of a topic are.
///
/// # Errors
/// `Invalid` if topic and group are too long to make a name.
pub fn parked_topic(topic: &Topic, group: &Group) -> Result<Topic> {
    Topic::new(&format!("{topic}.{group}.parked"))
}

/// Where a group's records of a topic are that wait for another round.
///
/// # Errors
/// `Invalid` if topic and group are too long to make a name.
pub fn retry_topic(topic: &Topic, group: &Group) -> Result<Topic> {
    Topic::new(&format!("{topic}.{group}.retry"))
}

/// The topic that [`retry_topic`] made this one of, if it did.
pub(super) fn before_retry(topic: &Topic, group: &Group) -> Option<Topic> {
    Topic::new(topic.as_str().strip_suffix(&format!(".{group}.retry"))?).ok()
}

/// Makes sure that a topic beside another has as many partitions.
pub(super) async fn ensure_beside(streams: &StreamHandle, beside: &Topic, topic: &Topic) -> Result<()> {
    let partitions = describe(streams, beside).await?.spec.partitions;
    let spec = match streams.topic(topic).await? {
        Some(found) if found.spec.partitions >= partitions => return Ok(()),
        Some(found) => TopicSpec { partitions, ..found.spec },
        None => match streams.create_topic(topic, &TopicSpec { partitions, ..TopicSpec::default() }).await {
            // Another member was first.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            created => return created,
        },
    };
    match streams.alter_topic(topic, &spec).await {
        // Another member was first, and saw more partitions.
        Err(error) if error.kind() == ErrorKind::Invalid => Ok(()),
        altered => altered,
    }
}

/// The record with where it came from, why it failed and how often it was tried.
pub(super) fn letter(place: &TopicPartition, stored: &StoredRecord, error: &str, attempts: u32) -> Record {
    let mut record = stored.record.clone();
    let before = header(&record, ATTEMPTS_HEADER).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let origin = header(&record, ORIGIN_HEADER).unwrap_or_else(|| origin(place, stored));
    record.headers.retain(|(name, _)| ![ORIGIN_HEADER, ERROR_HEADER, ATTEMPTS_HEADER].contains(&name.as_str()));
    record
        .with_header(ORIGIN_HEADER, origin)
        .with_header(ERROR_HEADER, shorten(error))
        .with_header(ATTEMPTS_HEADER, before.saturating_add(attempts).to_string())
}

pub(super) fn origin(place: &TopicPartition, stored: &StoredRecord) -> String {
    format!("{}/{}/{}/{}", place.topic, place.partition, stored.offset, stored.time_ms)
}

pub(super) fn header(record: &Record, name: &str) -> Option<String> {
    let found = record.headers.iter().rev().find(|(found, _)| found == name)?;
    Some(String::from_utf8_lossy(&found.1).into_owned())
}

/// Cuts what a failure said: it is for people.
pub(super) fn shorten(error: &str) -> String {
    error.chars().take(ERROR_CHARS_MAX).collect()
}

const ERROR_CHARS_MAX: usize = 500;

/// What stands for a key: short, whatever the key is.
pub(super) type KeyHash = [u8; 16];

pub(super) fn hash(key: &Bytes) -> KeyHash {
    let mut short = KeyHash::default();
    short.copy_from_slice(&Sha256::digest(key)[..16]);
    short
}

/// A producer number that only one record of one group has, so that moving it elsewhere twice is recognized.
pub(super) fn number_of(group: &Group, place: &TopicPartition, stored: &StoredRecord) -> u64 {
    let digest = Sha256::digest(format!("{group}/{}/{}/{}", place.topic, place.partition, stored.offset));
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A group that cannot be served.
pub(super) fn unsupported(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
