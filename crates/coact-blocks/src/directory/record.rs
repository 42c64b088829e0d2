//! The values of the directory's entries. Whatever else is found there is skipped and counted, never trusted.

use coact_core::{
    Result,
    contract::kv::{Entry, Write},
};
use serde::{Deserialize, Serialize};

use super::{Health, Instance};
use crate::json::{read, to_bytes};

/// The value of an instance's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) instance: Instance,
    /// Which registration wrote it: 128 random bits; empty for a plain put.
    #[serde(default)]
    pub(super) owner: String,
    /// Who wrote it, for people.
    #[serde(default)]
    pub(super) label: String,
    /// The owner's own wish that it gets no traffic.
    #[serde(default)]
    pub(super) draining: bool,
}

/// The value of a health entry.
#[derive(Serialize, Deserialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) health: Health,
    /// Milliseconds since 1970, by the reporter's wall clock.
    pub(super) at: u64,
}

/// The value of a drain marker.
#[derive(Serialize, Deserialize)]
pub(super) struct DrainMarker {
    /// Milliseconds since 1970, by the operator's wall clock.
    pub(super) at: u64,
}

impl Record {
    /// Reads an instance's entry; `None` if it is not what an instance of this service and id would be.
    pub(super) fn read(entry: &Entry, service: &str, id: &str) -> Option<Self> {
        let record: Self = read(entry)?;
        let belongs = record.instance.service == service && record.instance.id == id;
        (belongs && record.instance.validate().is_ok()).then_some(record)
    }
}

/// What its owner writes into an instance's entry before deleting it, so that watchers know a departure from a death also
/// where the store does not tell them; `None` if the entry says so already.
pub(super) fn farewell(entry: &Entry) -> Result<Option<Write>> {
    let Some(record) = read::<Record>(entry).filter(|record| !record.draining) else {
        return Ok(None);
    };
    let value = to_bytes(&Record { draining: true, ..record })?;
    Ok(Some(Write::Put { key: entry.key.clone(), value, lease: entry.lease }))
}
