//! The audit log: one line of JSON for every denial, every change of tokens and roles, and every act of an admin.
//!
//! Lines go to the log under the target `coact_audit`, and to a file if the configuration names one. No line has a
//! secret in it: tokens appear by id.

use std::{fs::OpenOptions, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use coact_core::{Error, ErrorKind, Result, env::Env};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::{error, info};

use super::Principal;

/// Where the lines go.
#[derive(Debug)]
pub(super) struct Audit {
    env: Env,
    file: Option<Mutex<std::fs::File>>,
}

impl Audit {
    /// Opens the file, readable by its owner only, and goes on at its end.
    pub(super) fn open(path: Option<&Path>, env: Env) -> Result<Self> {
        let open = |path: &Path| {
            OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(Mutex::new).map_err(|error| {
                let message = format!("the audit file {} cannot be opened", path.display());
                Error::new(ErrorKind::Unavailable, message).with_source(error)
            })
        };
        Ok(Self { env, file: path.map(open).transpose()? })
    }

    /// Writes one line.
    pub(super) fn write(&self, event: &str, who: &Principal, details: &[(&str, &str)]) {
        let mut line = Map::new();
        line.insert("time_ms".to_owned(), self.env.wall_ms().into());
        line.insert("event".to_owned(), event.into());
        line.insert("who".to_owned(), who.id().into());
        if let Some(label) = who.label() {
            line.insert("label".to_owned(), label.into());
        }
        for (name, value) in details {
            line.insert((*name).to_owned(), (*value).into());
        }
        let line = Value::Object(line).to_string();
        info!(target: "coact_audit", "{line}");
        if let Some(file) = &self.file
            && let Err(error) = file.lock().write_all(format!("{line}\n").as_bytes())
        {
            error!(%error, "a line of the audit file is lost");
        }
    }
}
