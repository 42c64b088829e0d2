//! The proof: the topic is read once more and compared with the log, and what consumers wrote down with the topic.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    time::Duration,
};

use coact::{
    Result, StreamHandle, Topic,
    contract::stream::{Read, StoredRecord},
};

use super::{
    PARTITIONS,
    input::Input,
    ledger::{Found, Ledger},
    replay::{DUE, LINE, number},
};
use crate::cmd::tour::{cannot, disproved};

/// How much is read at once.
const READ_BYTES: usize = 4 << 20;

/// What was shown to hold.
pub(super) struct Proof {
    lines: usize,
    bytes: u64,
    programs: usize,
    /// How often a line was handled another time.
    again: usize,
    failing: usize,
    lateness_ms: Vec<u64>,
}

/// How fast it went, from the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// Until everything was sent.
    pub(super) sent: Duration,
    /// Until everything was handled but for what was parked.
    pub(super) handled: Duration,
    /// Until all was.
    pub(super) all: Duration,
    /// The most lines that were to be done when somebody looked, and how old the first of them was, in milliseconds.
    pub(super) most_lag: (u64, u64),
}

impl Proof {
    pub(super) fn lines(&self, rates: &Rates) -> Vec<String> {
        let Self { lines, programs, again, failing, lateness_ms, .. } = self;
        let late = |part: usize| lateness_ms.get((lateness_ms.len() * part / 100).min(lateness_ms.len().max(1) - 1));
        let [median, most, last] = [50, 99, 100].map(|part| late(part).copied().unwrap_or(0));
        let per_second = |time: Duration| *lines as f64 / time.as_secs_f64();
        let megabytes = self.bytes as f64 / 1e6 / rates.handled.as_secs_f64();
        let (lag, age) = (rates.most_lag.0, rates.most_lag.1 as f64 / 1e3);
        vec![
            format!(
                "  log      {lines} of {lines} lines: none lost, none doubled, none changed, in the order of {programs} programs"
            ),
            format!(
                "  delayed  {} lines, none early, handed over once; late by {median} ms (median), {most} ms (p99), {last} ms (most)",
                lateness_ms.len()
            ),
            format!("  parked   the lines of {failing} programs, until they were mended; then handled in their order"),
            format!(
                "  handled  all lines, in the order of their programs; {again} of them again, after somebody was killed"
            ),
            format!(
                "  rates    {:.0} lines/s sent, {:.0} lines/s ({megabytes:.1} MB/s) handled, kills and all; {:.1} s in all",
                per_second(rates.sent),
                per_second(rates.handled),
                rates.all.as_secs_f64()
            ),
            format!("  lag      at most {lag} lines, the oldest {age:.1} s old"),
        ]
    }
}

/// Reads everything back and compares.
pub(super) async fn prove(streams: &StreamHandle, topic: &Topic, input: &Input, handled: &Path) -> Result<Proof> {
    let mut ledger = Ledger::new(input);
    for partition in 0..PARTITIONS {
        let bounds = streams.bounds(topic, partition).await?;
        let mut next = bounds.start;
        while next < bounds.end {
            let read =
                Read { topic: topic.clone(), partition, from: next, max_bytes: READ_BYTES, wait: Duration::ZERO };
            let fetched = streams.read(read).await?;
            for stored in fetched.records(next) {
                let found = compare(input, &stored)?;
                ledger.found(partition, stored.offset.0, found).map_err(disproved)?;
            }
            next = fetched.next;
        }
    }
    ledger.all_found().map_err(disproved)?;
    for line in BufReader::new(File::open(handled).map_err(cannot("read what is done"))?).lines() {
        let line = line.map_err(cannot("read what is done"))?;
        let place =
            line.split_once(' ').and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
        let (partition, offset) = place.ok_or_else(|| disproved(format!("{line:?} is no place of a line")))?;
        ledger.handled(partition, offset).map_err(disproved)?;
    }
    ledger.all_handled().map_err(disproved)?;
    Ok(Proof {
        lines: input.count(),
        bytes: input.bytes(),
        programs: input.programs().len(),
        again: ledger.again(),
        failing: input.failing().len(),
        lateness_ms: ledger.lateness_ms(),
    })
}

/// Whether a record is what was sent.
fn compare(input: &Input, stored: &StoredRecord) -> Result<Found> {
    let header = |name: &str| stored.record.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value);
    let line = header(LINE).ok_or_else(|| disproved(format!("the record at {} has no number", stored.offset)))?;
    let line: usize = number(line)?;
    let due_ms: Option<u64> = header(DUE).map(number).transpose()?;
    if line >= input.count() {
        return Err(disproved(format!("line {line} was never sent")));
    }
    let program = &input.programs()[input.program(line)].name;
    if stored.record.value != input.line(line) || stored.record.key.as_ref() != Some(program) {
        return Err(disproved(format!("line {line} is not what the log has there")));
    }
    if due_ms.is_some() != Input::delay_ms(line).is_some() {
        return Err(disproved(format!("line {line} is delayed, or not, against what was sent")));
    }
    Ok(Found { number: line, time_ms: stored.time_ms, due_ms })
}
