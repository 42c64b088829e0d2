//! The value of a setting's entries: one line of JSON about the version, then the value as it is.

use bytes::Bytes;
use coact_core::{Error, ErrorKind, Result, contract::kv::Entry};
use serde::{Deserialize, Serialize};

use super::{Setting, Version};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) version: Version,
    /// `None` for a deletion.
    pub(super) value: Option<Bytes>,
    pub(super) restores: Option<Version>,
    pub(super) at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: Version,
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restores: Option<Version>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

impl Stored {
    pub(super) fn to_bytes(&self) -> Result<Bytes> {
        let header =
            Header { version: self.version, at: self.at_ms, restores: self.restores, deleted: self.value.is_none() };
        let mut bytes = serde_json::to_vec(&header).map_err(|error| {
            Error::new(ErrorKind::Internal, "the header of a setting could not be written").with_source(error)
        })?;
        bytes.push(b'\n');
        bytes.extend_from_slice(self.value.as_deref().unwrap_or_default());
        Ok(bytes.into())
    }

    pub(super) fn read(entry: &Entry) -> Result<Self> {
        let corrupt = || {
            let message = format!("{} does not hold a setting: delete it, and put the setting anew", entry.key);
            Error::new(ErrorKind::Corrupt, message)
        };
        let end = entry.value.iter().position(|byte| *byte == b'\n').ok_or_else(corrupt)?;
        let header: Header =
            serde_json::from_slice(&entry.value[..end]).map_err(|error| corrupt().with_source(error))?;
        let value = (!header.deleted).then(|| entry.value.slice(end + 1..));
        Ok(Self { version: header.version, value, restores: header.restores, at_ms: header.at })
    }

    pub(super) fn into_setting(self, group: &str, key: &str) -> Setting {
        Setting {
            group: group.to_owned(),
            key: key.to_owned(),
            value: self.value,
            version: self.version,
            restores: self.restores,
            at_ms: self.at_ms,
        }
    }
}
