//! coact's blocks, written once on the contracts: [`lock`] and [`id`], and the [`Session`] that both stand on.
//!
//! A block holds a [`KvHandle`](coact_core::contract::kv::KvHandle) and never knows the engine behind it. It states what
//! it [`Needs`](coact_core::guarantees::Needs) when it opens; time, randomness and tasks come from the handle's `Env`.

mod backoff;
pub mod directory;
pub mod id;
mod json;
pub mod lock;
pub mod mq;
mod panic;
pub mod queue;
mod session;

pub use session::{Session, SessionOptions};
