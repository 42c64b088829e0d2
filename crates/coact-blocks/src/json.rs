//! The values of entries, in JSON.

use bytes::Bytes;
use coact_core::{Error, ErrorKind, Result, contract::kv::Entry};
use serde::{Serialize, de::DeserializeOwned};

/// A value for an entry.
pub(crate) fn to_bytes(value: &impl Serialize) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Error::new(ErrorKind::Internal, "the value of an entry could not be written").with_source(error)
    })
}

/// The value of an entry; `None` for a foreign one.
pub(crate) fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_slice(&entry.value).ok()
}
