//! Where the examples keep their data: `COACT_AT`, or an embedded engine in a directory that goes away.

use coact::{Error, ErrorKind, KvHandle};
use tempfile::TempDir;

pub(crate) async fn open() -> coact::Result<(KvHandle, TempDir)> {
    let dir = tempfile::tempdir()
        .map_err(|error| Error::new(ErrorKind::Unavailable, "no temporary directory").with_source(error))?;
    let embedded = format!("embedded://{}?segment=1MiB", dir.path().display());
    let url = std::env::var("COACT_AT").unwrap_or(embedded);
    Ok((coact::open(&url).await?, dir))
}
