//! Entries and values as JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use coact_core::contract::kv::{Change, Entry, GoneCause};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{extract::invalid, problem::Problem};

/// One stored value.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryView {
    /// Where it is: `dir/name`.
    #[schema(example = "config/colour")]
    key: String,
    /// What it is, if that is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// What it is, if that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// The revision that created it: its fencing token.
    created: u64,
    /// The revision that changed it last: its etag.
    pub(super) modified: u64,
    /// The lease whose end deletes it, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
}

impl From<&Entry> for EntryView {
    fn from(entry: &Entry) -> Self {
        let (value, value_base64) = text_or_base64(&entry.value);
        Self {
            key: entry.key.to_string(),
            value,
            value_base64,
            created: entry.created.0,
            modified: entry.modified.0,
            lease: entry.lease.map(|lease| format!("{:x}", lease.0)),
        }
    }
}

/// A value to be stored: text, or anything in base64.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Value {
    /// Text.
    #[schema(example = "green")]
    pub(super) value: Option<String>,
    /// Anything else.
    pub(super) value_base64: Option<String>,
    /// The session whose end deletes the entry.
    pub(super) session: Option<String>,
}

impl Value {
    pub(super) fn bytes(&self) -> Result<Bytes, Problem> {
        bytes_of(self.value.as_deref(), self.value_base64.as_deref())
    }
}

/// A value that is given as text or in base64.
pub(super) fn bytes_of(text: Option<&str>, base64: Option<&str>) -> Result<Bytes, Problem> {
    match (text, base64) {
        (Some(text), None) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        (None, Some(text)) => from_base64("value_base64", text),
        _ => Err(invalid("the value must be given once: as value (text) or as value_base64")),
    }
}

/// Bytes in base64.
pub(super) fn from_base64(what: &str, text: &str) -> Result<Bytes, Problem> {
    let bytes = STANDARD.decode(text).map_err(|error| invalid(format!("{what} is not base64: {error}")))?;
    Ok(bytes.into())
}

/// Text as it is, anything else in base64.
pub(super) fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// A name and a value.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    name: String,
    /// If it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl Header {
    pub(super) fn read(self) -> Result<(String, Bytes), Problem> {
        Ok((self.name, bytes("the value of a header", self.value, self.value_base64)?))
    }

    pub(super) fn of(name: String, value: &[u8]) -> Self {
        let (value, value_base64) = text_or_base64(value);
        Self { name, value, value_base64 }
    }
}

/// What is given as text or in base64; nothing at all is empty.
pub(super) fn bytes(what: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, Problem> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(invalid(format!("{what} is given twice: use text or base64"))),
        (None, Some(base64)) => from_base64(what, &base64),
        (text, None) => Ok(text.unwrap_or_default().into()),
    }
}

/// A key that is given as text or in base64, or not at all.
pub(super) fn key_of(text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Problem> {
    if text.is_none() && base64.is_none() {
        return Ok(None);
    }
    bytes("key", text, base64).map(Some)
}

/// One item of a watch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ChangeView {
    /// An entry was created or changed.
    Put {
        /// What it is now.
        entry: EntryView,
    },
    /// An entry went away.
    Gone {
        /// Which: `dir/name`.
        key: String,
        /// When.
        at: u64,
        /// Why: `deleted`, `expired` or `unknown`.
        #[schema(value_type = String, example = "expired")]
        cause: &'static str,
    },
    /// Everything up to this revision was delivered.
    Progress {
        /// The revision.
        at: u64,
    },
    /// Changes up to `at` may be missing: read the state again.
    Resync {
        /// The watch goes on after this.
        at: u64,
        /// What happened.
        why: String,
    },
}

impl ChangeView {
    pub(super) fn at(&self) -> u64 {
        match self {
            Self::Put { entry } => entry.modified,
            Self::Gone { at, .. } | Self::Progress { at } | Self::Resync { at, .. } => *at,
        }
    }

    pub(super) fn event(&self) -> &'static str {
        match self {
            Self::Put { .. } => "put",
            Self::Gone { .. } => "gone",
            Self::Progress { .. } => "progress",
            Self::Resync { .. } => "resync",
        }
    }
}

impl From<Change> for ChangeView {
    fn from(change: Change) -> Self {
        match change {
            Change::Put(entry) => Self::Put { entry: (&entry).into() },
            Change::Gone { key, at, cause } => {
                let cause = match cause {
                    GoneCause::Deleted => "deleted",
                    GoneCause::Expired => "expired",
                    GoneCause::Unknown => "unknown",
                };
                Self::Gone { key: key.to_string(), at: at.0, cause }
            }
            Change::Progress(at) => Self::Progress { at: at.0 },
            Change::Resync { why, at } => Self::Resync { at: at.0, why },
        }
    }
}
