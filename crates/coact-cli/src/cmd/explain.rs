//! `coact explain KIND`: the remedy page of a kind of error.

use clap::Args;
use coact::{Error, ErrorKind, Result};

use crate::{exit::Exit, output};

/// Arguments of `coact explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The kind, as an error names it; without it, the list of kinds.
    kind: Option<String>,
}

impl Explain {
    pub(crate) fn run(self) -> Result<Exit> {
        let Some(name) = self.kind else {
            ErrorKind::ALL.iter().for_each(|kind| output::write_line(kind.name()));
            return Ok(Exit::SUCCESS);
        };
        let Some(kind) = ErrorKind::from_name(&name) else {
            let names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
            return Err(Error::invalid(format!("{name:?} is no kind of error: choose from {}", names.join(", "))));
        };
        output::write_bytes(kind.remedy().as_bytes());
        Ok(Exit::SUCCESS)
    }
}
