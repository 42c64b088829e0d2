//! The conformance suite of the queue contract.

mod context;

pub use self::context::Context;
use super::{ALONE, DURABLE, RESTARTS};

themes! { "queue": queues enqueue claim settle lease order manage dead stats limits life history }
