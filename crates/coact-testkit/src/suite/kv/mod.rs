//! The conformance suite of the Kv contract: one line per engine runs all of it.

mod context;

pub use self::context::{Context, Watching};
use super::{ALONE, DURABLE, Need, RESTARTS};

/// To forget history on request.
const COMPACTS: Need = Need {
    what: "a bed that can compact its store",
    is_met: |basis| basis.bed.compact(Default::default()).is_some(),
    alone: true,
};

themes! { "kv": txn writes limits list watch wait lease life history }
