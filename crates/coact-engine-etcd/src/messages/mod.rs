//! Between the messages of coact's own services and the contracts: names change, nothing else. Client and node share it.
//!
//! What comes from the wire is checked here: a name that is not allowed, a part that is missing, a batch that is none.

mod commit;
pub mod failure;
mod guarantees;
mod kv;
mod queue;
mod stream;

use std::time::Duration;

use bytes::Bytes;
use coact_core::{Error, Result};

pub(crate) use commit::{outcome, settled};
pub(crate) use guarantees::durability;

use crate::wire::coact_v1::Header;

/// A message for each item of a list.
pub fn all<A, B: From<A>>(items: impl IntoIterator<Item = A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}

/// An item for each message of a list.
///
/// # Errors
/// The first one's.
pub fn try_all<A, B: TryFrom<A, Error = Error>>(items: impl IntoIterator<Item = A>) -> Result<Vec<B>> {
    items.into_iter().map(B::try_from).collect()
}

/// A part of a message that must be there.
///
/// # Errors
/// `Invalid`, naming it.
pub fn part<T>(part: Option<T>, what: &str) -> Result<T> {
    part.ok_or_else(|| Error::invalid(format!("the message has no {what}")))
}

/// Whole milliseconds, rounded up: what was asked to last does not end early.
pub fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What the engine takes as a limit, as far as a message can say it.
pub(crate) fn to_limit(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

fn to_headers(headers: Vec<(String, Bytes)>) -> Vec<Header> {
    headers.into_iter().map(|(name, value)| Header { name, value }).collect()
}

fn from_headers(headers: Vec<Header>) -> Vec<(String, Bytes)> {
    headers.into_iter().map(|header| (header.name, header.value)).collect()
}
