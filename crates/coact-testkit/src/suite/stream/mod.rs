//! The conformance suite of the stream contract, with delayed records, groups and commits.

mod context;

use coact_core::contract::stream::{Atomicity, StreamGuarantees};

pub use self::context::Context;
use super::{ALONE, Basis, DURABLE, Need, RESTARTS};

/// To recognize a batch that was appended before.
const DEDUP: Need = Need::new("an engine that recognizes repeated batches", |basis| {
    declares(basis, |guarantees| guarantees.dedup.is_some())
});
/// To have no gaps between offsets.
const DENSE: Need = Need::new("dense offsets", |basis| declares(basis, |guarantees| guarantees.dense_offsets));
/// To compact by key.
const COMPACTION: Need =
    Need::new("an engine that compacts by key", |basis| declares(basis, |guarantees| guarantees.compaction));
/// To refuse compaction.
const NO_COMPACTION: Need =
    Need::new("an engine that does not compact by key", |basis| declares(basis, |guarantees| !guarantees.compaction));
/// To append and commit offsets in one step.
const TOGETHER: Need = Need::new("an engine that appends and commits offsets in one step", |basis| {
    declares(basis, |guarantees| guarantees.atomicity >= Atomicity::Streams)
});
/// To commit over all contracts.
const EVERYTHING: Need = Need::new("an engine that commits over all contracts", |basis| {
    declares(basis, |guarantees| guarantees.atomicity == Atomicity::Everything)
});
/// To refuse commits over several contracts.
const NOT_EVERYTHING: Need = Need::new("an engine that does not commit over all contracts", |basis| {
    declares(basis, |guarantees| guarantees.atomicity < Atomicity::Everything)
});

fn declares(basis: &Basis, holds: impl Fn(&StreamGuarantees) -> bool) -> bool {
    basis.store.streams().is_ok_and(|streams| holds(streams.guarantees()))
}

themes! { "stream": topics append read dedup trim groups commit delay limits life history }
