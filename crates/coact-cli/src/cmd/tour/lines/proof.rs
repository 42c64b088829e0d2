//! The proof: what the node holds at the end, compared with the file, line by line.

use std::{collections::HashSet, io::Write as _, path::Path};

use coact::{
    Dir, Error, KvHandle, Realm, Result,
    kv::{Entry, Order},
};
use serde::{Deserialize, Serialize};

use crate::cmd::tour::disproved;

/// What a worker writes before the line, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) line: usize,
    pub(super) id: String,
    pub(super) token: u64,
    pub(super) worker: u64,
}

/// The dir of the results; an entry's name is its line's number.
pub(super) const RESULTS: &str = "lines";

/// What was shown to hold.
pub(super) struct Proof {
    lines: usize,
    tokens: (u64, u64),
    per_worker: Vec<usize>,
}

impl Proof {
    pub(super) fn lines(&self) -> Vec<String> {
        let shares: Vec<_> = self.per_worker.iter().skip(1).map(usize::to_string).collect();
        vec![
            format!("  lines    {} of {}: none lost, none doubled, none changed", self.lines, self.lines),
            format!("  ids      {} given, all different", self.lines),
            format!("  tokens   from {} to {}, never back", self.tokens.0, self.tokens.1),
            format!("  workers  {} lines each; the first was killed", shares.join(" + ")),
        ]
    }
}

/// Reads everything back and compares.
pub(super) async fn prove(kv: &KvHandle, lines: &[Vec<u8>], result: &Path) -> Result<Proof> {
    let entries = read_all(kv).await?;
    if entries.len() != lines.len() {
        return Err(disproved(format!("{} lines came out of {} that went in", entries.len(), lines.len())));
    }
    let mut file =
        std::fs::File::create(result).map(std::io::BufWriter::new).map_err(|error| cannot_write(result, error))?;
    let mut ids = HashSet::new();
    let mut tokens: Vec<u64> = Vec::new();
    let mut per_worker = Vec::new();
    for (index, (entry, line)) in entries.iter().zip(lines).enumerate() {
        let (stamp, text) = split(entry)?;
        if stamp.line != index || text != line {
            return Err(disproved(format!("line {index} does not hold what the file has there")));
        }
        if tokens.last().is_some_and(|last| stamp.token <= *last) {
            return Err(disproved(format!("line {index} has token {} after {:?}", stamp.token, tokens.last())));
        }
        tokens.push(stamp.token);
        per_worker.resize(per_worker.len().max(stamp.worker as usize + 1), 0);
        per_worker[stamp.worker as usize] += 1;
        let row = serde_json::json!({ "line": index, "id": stamp.id, "token": stamp.token, "worker": stamp.worker, "text": String::from_utf8_lossy(text) });
        writeln!(file, "{row}").map_err(|error| cannot_write(result, error))?;
        if !ids.insert(stamp.id) {
            return Err(disproved(format!("line {index} has an id that another line has")));
        }
    }
    file.flush().map_err(|error| cannot_write(result, error))?;
    let tokens = (tokens.first().copied().unwrap_or(0), tokens.last().copied().unwrap_or(0));
    Ok(Proof { lines: lines.len(), tokens, per_worker })
}

async fn read_all(kv: &KvHandle) -> Result<Vec<Entry>> {
    let dir = Dir::new(&Realm::default(), RESULTS)?;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map_or(String::new(), |last| last.key.name().to_owned());
        let page = kv.list(&dir, Order::Name { after }, 500).await?;
        entries.extend(page.entries);
        if !page.more {
            return Ok(entries);
        }
    }
}

fn split(entry: &Entry) -> Result<(Stamp, &[u8])> {
    let unreadable = || disproved(format!("entry {} has no readable stamp", entry.key));
    let cut = entry.value.iter().position(|byte| *byte == b'\n').ok_or_else(unreadable)?;
    let stamp = serde_json::from_slice(&entry.value[..cut]).map_err(|_| unreadable())?;
    Ok((stamp, &entry.value[cut + 1..]))
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::invalid(format!("the result {} cannot be written", path.display())).with_source(error)
}
