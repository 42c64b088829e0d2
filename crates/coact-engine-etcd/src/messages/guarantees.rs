//! What an engine promises, by its stable names.

use std::time::Duration;

use coact_core::{
    Error, ErrorKind, Result,
    contract::stream::{Atomicity, StreamGuarantees, StreamLimits},
    guarantees::{Durability, Failover, OnPartition},
};

use super::to_ms;
use crate::wire::coact_v1::GuaranteesResponse;

impl From<&StreamGuarantees> for GuaranteesResponse {
    fn from(guarantees: &StreamGuarantees) -> Self {
        Self {
            writes: durability_name(guarantees.writes),
            on_partition: guarantees.on_partition.name(),
            failover: guarantees.failover.name(),
            atomicity: guarantees.atomicity.name().to_owned(),
            dedup_ms: guarantees.dedup.map(to_ms),
            dense_offsets: guarantees.dense_offsets,
            delay_precision_ms: to_ms(guarantees.delay_precision),
            compaction: guarantees.compaction,
            record_bytes: guarantees.limits.record_bytes as u64,
            batch_bytes: guarantees.limits.batch_bytes as u64,
            partitions: guarantees.limits.partitions,
            wait_max_ms: to_ms(guarantees.limits.wait_max),
        }
    }
}

impl TryFrom<GuaranteesResponse> for StreamGuarantees {
    type Error = Error;

    /// # Errors
    /// `Unsupported` for a word that this version does not know.
    fn try_from(message: GuaranteesResponse) -> Result<Self> {
        let on_partition =
            [OnPartition::SingleNode, OnPartition::MinorityStops, OnPartition::ServesStale, OnPartition::MayDiverge];
        let failover = [Failover::KeepsWrites, Failover::MayLoseWrites];
        let atomicity = [Atomicity::Single, Atomicity::Streams, Atomicity::Everything];
        Ok(Self {
            writes: durability(&message.writes).ok_or_else(|| unknown("durability", &message.writes))?,
            on_partition: named(&on_partition, |value| value.name(), "on_partition", &message.on_partition)?,
            failover: named(&failover, |value| value.name(), "failover", &message.failover)?,
            atomicity: named(&atomicity, |value| value.name().to_owned(), "atomicity", &message.atomicity)?,
            dedup: message.dedup_ms.map(Duration::from_millis),
            dense_offsets: message.dense_offsets,
            delay_precision: Duration::from_millis(message.delay_precision_ms),
            compaction: message.compaction,
            limits: StreamLimits {
                record_bytes: size(message.record_bytes),
                batch_bytes: size(message.batch_bytes),
                partitions: message.partitions,
                wait_max: Duration::from_millis(message.wait_max_ms),
            },
        })
    }
}

/// As in the response metadata `coact-durability`.
fn durability_name(durability: Durability) -> String {
    match durability {
        Durability::Interval(interval) => format!("interval:{}", interval.as_millis()),
        other => other.name(),
    }
}

/// Reads what a coact node says about the durability of its engine.
pub(crate) fn durability(text: &str) -> Option<Durability> {
    match text.split_once(':') {
        None if text == "quorum" => Some(Durability::Quorum),
        None if text == "sync" => Some(Durability::Sync),
        None if text == "os" => Some(Durability::Os),
        None if text == "memory" => Some(Durability::Memory),
        Some(("interval", ms)) => ms.parse().ok().map(|ms| Durability::Interval(Duration::from_millis(ms))),
        _ => None,
    }
}

fn named<T: Copy>(values: &[T], name: impl Fn(T) -> String, what: &str, text: &str) -> Result<T> {
    values.iter().copied().find(|value| name(*value) == text).ok_or_else(|| unknown(what, text))
}

fn unknown(what: &str, text: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the node declares {what} {text:?}, which this client does not know: use a newer client"),
    )
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_is_what_is_read() {
        for writes in [Durability::Memory, Durability::Interval(Duration::from_millis(50)), Durability::Quorum] {
            for (atomicity, dedup) in
                [(Atomicity::Single, None), (Atomicity::Everything, Some(Duration::from_secs(600)))]
            {
                let sent = StreamGuarantees {
                    writes,
                    on_partition: OnPartition::MinorityStops,
                    failover: Failover::MayLoseWrites,
                    atomicity,
                    dedup,
                    dense_offsets: true,
                    delay_precision: Duration::from_millis(1),
                    compaction: true,
                    limits: StreamLimits::PORTABLE,
                };
                assert_eq!(StreamGuarantees::try_from(GuaranteesResponse::from(&sent)).expect("known"), sent);
            }
        }
        let later = GuaranteesResponse { writes: "tape".to_owned(), ..GuaranteesResponse::default() };
        assert_eq!(StreamGuarantees::try_from(later).expect_err("unknown").kind(), ErrorKind::Unsupported);
    }
}
