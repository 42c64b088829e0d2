//! Which worker numbers were ever used, for people.

use coact_core::{Result, contract::kv::KvHandle, name::Realm};
use serde::Serialize;

use super::{
    Layout,
    space::{Names, survey},
};

/// One worker number of an id space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerInfo {
    /// The number.
    pub worker: u32,
    /// The end of what it has reserved, in milliseconds since 1970.
    pub until_ms: u64,
    /// Which claim that was: 128 random bits.
    pub owner: String,
    /// How often the number was claimed.
    pub epoch: u64,
    /// The layout of the space.
    pub layout: Option<Layout>,
    /// The session that uses it now, as far as its lease tells; `None` if the number seems free.
    pub used_by: Option<String>,
}

/// Lists the worker numbers of a space that were ever used, in order.
///
/// # Errors
/// `Invalid` for a space that is no name; `Unavailable` if the engine does not answer; `Corrupt` if an entry is not what
/// the id block wrote.
///
/// # Cancel safety
/// Safe: reads have no effect.
pub async fn workers(kv: &KvHandle, realm: &Realm, space: &str) -> Result<Vec<WorkerInfo>> {
    let mut survey = survey(kv, &Names::new(realm, space)?).await?;
    let layout = survey.layout.map(|(layout, _)| layout);
    let infos = survey.records.into_iter().map(|(worker, (record, _))| WorkerInfo {
        worker,
        until_ms: record.until,
        owner: record.owner,
        epoch: record.epoch,
        layout,
        used_by: survey.hints.remove(&worker).map(|hint| hint.label),
    });
    Ok(infos.collect())
}
