//! Records on stdout: a line each, for pipes, or a JSON object each.

use base64::Engine as _;
use bytes::Bytes;
use clap::Args;
use coact::{Topic, contract::stream::StoredRecord};
use serde_json::{Value, json};

use crate::{
    Target,
    output::{self, Format},
};

/// Where the records are and how they are printed.
#[derive(Debug, Args)]
pub(super) struct Lines {
    /// The engine, as for the other commands.
    #[arg(long, value_name = "URL")]
    at: Option<String>,
    /// A node by the name that `coact context add` gave it.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The realm in which groups meet.
    #[arg(long, default_value = "main")]
    realm: String,
    /// line: the value and a newline. jsonl: an object a line, with what is no UTF-8 in base64.
    #[arg(short, long, value_enum, default_value = "line")]
    output: Shape,
    /// Print the key and this before the value; a record without a key has an empty one.
    #[arg(long, value_name = "SEPARATOR")]
    key_separator: Option<String>,
}

/// How a record is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    Line,
    Jsonl,
}

impl Lines {
    pub(super) fn target(&self) -> Target {
        let (at, context, realm) = (self.at.clone(), self.context.clone(), self.realm.clone());
        Target { at, context, realm, output: Format::Table }
    }

    /// Adds a record to a text, as it is printed.
    pub(super) fn put(&self, text: &mut Vec<u8>, topic: &Topic, partition: u32, stored: &StoredRecord) {
        match self.output {
            Shape::Jsonl => text.extend_from_slice(row(topic, partition, stored).to_string().as_bytes()),
            Shape::Line => {
                if let Some(separator) = &self.key_separator {
                    text.extend_from_slice(stored.record.key.as_deref().unwrap_or_default());
                    text.extend_from_slice(separator.as_bytes());
                }
                text.extend_from_slice(&stored.record.value);
            }
        }
        text.push(b'\n');
    }

    /// What gathers records and writes them.
    pub(super) fn printer(&self, topic: &Topic) -> Printer<'_> {
        Printer { lines: self, topic: topic.clone(), text: Vec::new() }
    }
}

/// Gathers records, so that many go to stdout at once.
pub(super) struct Printer<'a> {
    lines: &'a Lines,
    topic: Topic,
    text: Vec<u8>,
}

impl Printer<'_> {
    pub(super) fn print(&mut self, partition: u32, stored: &StoredRecord) {
        self.lines.put(&mut self.text, &self.topic, partition, stored);
        if self.text.len() >= MUCH {
            self.flush();
        }
    }

    /// Writes what was gathered. A reader that went away ends the process quietly.
    pub(super) fn flush(&mut self) {
        if !self.text.is_empty() {
            output::write_bytes(&self.text);
            self.text.clear();
        }
    }
}

/// How many bytes are worth a write of their own.
const MUCH: usize = 64 * 1024;

/// A record as JSON.
fn row(topic: &Topic, partition: u32, stored: &StoredRecord) -> Value {
    let mut row = json!({
        "topic": topic.as_str(),
        "partition": partition,
        "offset": stored.offset.0,
        "time": output::time(stored.time_ms),
    });
    put_record(&mut row, &stored.record);
    row
}

/// Adds key, value and headers; what is no UTF-8 is in base64, under a name that says so.
pub(super) fn put_record(row: &mut Value, record: &coact::contract::stream::Record) {
    match &record.key {
        None => row["key"] = Value::Null,
        Some(key) => put_bytes(row, "key", key),
    }
    put_bytes(row, "value", &record.value);
    if !record.headers.is_empty() {
        let header = |(name, value): &(String, Bytes)| {
            let mut header = json!({ "name": name });
            put_bytes(&mut header, "value", value);
            header
        };
        row["headers"] = record.headers.iter().map(header).collect();
    }
}

fn put_bytes(row: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => row[name] = text.into(),
        Err(_) => row[format!("{name}_base64")] = base64::engine::general_purpose::STANDARD.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use coact::contract::stream::{Offset, Record};

    use super::*;

    #[test]
    fn what_is_no_text_is_in_base64() {
        let record = Record::new(&b"\xff\x00"[..]).with_key("k").with_header("h", &b"\xfe"[..]);
        let stored = StoredRecord { offset: Offset(7), time_ms: 1500, record };
        let topic = Topic::new("t").expect("a name");
        assert_eq!(
            row(&topic, 2, &stored),
            json!({
                "topic": "t", "partition": 2, "offset": 7, "time": "1970-01-01T00:00:01.5Z", "key": "k",
                "value_base64": "/wA=", "headers": [{ "name": "h", "value_base64": "/g==" }],
            })
        );
    }
}
