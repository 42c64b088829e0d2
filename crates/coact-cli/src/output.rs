//! What people and programs read: rows as a table, as one JSON array, or as JSON lines; messages on stderr.

use std::io::Write;

use coact::{Error, kv::Entry};
use serde_json::{Map, Value, json};

/// How results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, for people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Writes rows of named fields in one format.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    rows: Vec<Map<String, Value>>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, rows: Vec::new() }
    }

    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Adds a row (a JSON object); in `jsonl` it is written at once.
    pub(crate) fn row(&mut self, row: Value) {
        let Value::Object(row) = row else { return };
        if self.format == Format::Jsonl {
            write_line(&Value::Object(row).to_string());
        } else {
            self.rows.push(row);
        }
    }

    /// Writes one row by itself, in a stream that has no end: a table would have to know every row first.
    pub(crate) fn stream(&mut self, row: Value, text: &str) {
        if self.is_table() {
            write_line(text);
        } else {
            write_line(&row.to_string());
        }
    }

    /// Writes what was added. A table without rows is nothing.
    pub(crate) fn finish(self) {
        match self.format {
            Format::Jsonl => {}
            Format::Json => write_line(&Value::Array(self.rows.into_iter().map(Value::Object).collect()).to_string()),
            Format::Table => write_bytes(table(&self.rows).as_bytes()),
        }
    }

    /// Writes one result: an object in JSON, only the text in a table.
    pub(crate) fn one(self, row: Value, text: &str) {
        if self.is_table() {
            write_line(text);
        } else {
            write_line(&row.to_string());
        }
    }
}

/// Rows as aligned columns, which are the fields of the first row; without rows nothing.
pub(crate) fn table(rows: &[Map<String, Value>]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let names: Vec<&String> = first.keys().collect();
    let mut lines = vec![names.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| names.iter().map(|name| cell(row.get(*name))).collect()));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let aligned = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    });
    aligned.collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.escape_debug().to_string(),
        Some(other) => other.to_string(),
    }
}

/// An entry as JSON. A value that is not UTF-8 is `value_base64`.
pub(crate) fn entry(entry: &Entry) -> Value {
    let mut row = json!({ "key": entry.key.to_string() });
    match std::str::from_utf8(&entry.value) {
        Ok(text) => row["value"] = text.into(),
        Err(_) => {
            use base64::Engine;
            row["value_base64"] = base64::engine::general_purpose::STANDARD.encode(&entry.value).into();
        }
    }
    row["created"] = entry.created.0.into();
    row["modified"] = entry.modified.0.into();
    if let Some(lease) = entry.lease {
        row["lease"] = format!("{:x}", lease.0).into();
    }
    row
}

/// Writes a line to stdout. A reader that went away ends the process quietly, as other commands do.
pub(crate) fn write_line(text: &str) {
    let mut line = text.as_bytes().to_vec();
    line.push(b'\n');
    write_bytes(&line);
}

/// As [`write_line`], without the line's end.
pub(crate) fn write_bytes(bytes: &[u8]) {
    if !try_write(bytes) {
        std::process::exit(0);
    }
}

/// Writes to stdout; false if nobody reads it any more.
pub(crate) fn try_write(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).is_ok()
}

/// Writes a message to stderr.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a complaint to stderr.
pub(crate) fn complain(text: &str) {
    say(&format!("coact: {text}"));
}

/// Writes an error to stderr, with where to read on.
pub(crate) fn complain_about(error: &Error) {
    complain(&error.to_string());
    say(&format!("  for what to do: coact explain {}", error.kind()));
}

/// Milliseconds since 1970 as people read them, in UTC (RFC 3339).
pub(crate) fn time(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok())
        .map_or_else(|| unix_ms.to_string(), |time| time.to_string())
}
