//! The commands, one file each.

pub(crate) mod again;
pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod dir;
pub(crate) mod doctor;
pub(crate) mod elect;
pub(crate) mod explain;
pub(crate) mod guarantees;
pub(crate) mod hold;
pub(crate) mod id;
pub(crate) mod init;
pub(crate) mod kv;
pub(crate) mod lock;
pub(crate) mod mq;
pub(crate) mod queue;
pub(crate) mod role;
pub(crate) mod rw;
pub(crate) mod sem;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod tour;

/// Reads a duration argument.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    coact::url::parse_duration(text).ok_or_else(|| "use a number with a unit: 250ms, 10s, 5m, 1h".to_owned())
}
