//! The narrow waist of coact: what engines implement and blocks use.
//!
//! Two audiences read this crate. An **engine author** implements [`contract::kv::KvStore`] and registers a
//! [`registry::Driver`]. A **block author** holds a [`contract::kv::KvHandle`] and states what it
//! [`guarantees::Needs`]. Users of coact depend on the `coact` crate, which re-exports what they meet.
//!
//! Nothing here opens a socket or a file on its own account: [`env::Env`] is the only way to time, randomness,
//! tasks and disks.

pub mod codec;
pub mod consumer;
pub mod contract;
pub mod env;
pub mod error;
pub mod follow;
pub mod guarantees;
pub mod name;
pub mod registry;
pub mod url;

pub use error::{Effect, Error, ErrorKind, Result, Retry};
