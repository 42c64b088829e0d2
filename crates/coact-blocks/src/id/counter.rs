//! A segment's counter in the store: ranges are taken from it, and what is left of them comes back.
//!
//! Everything that uniqueness rests on is here: a range is taken by a compare-and-set on the counter's entry, and one that
//! may have come back is never given back again.

use std::{ops::Range, time::Duration};

use coact_core::{
    Effect, Error, ErrorKind, Result,
    contract::kv::{Check, Entry, KvHandle, Order, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use serde::{Deserialize, Serialize};

use super::space::{SEGMENT_SPACE, parse};
use crate::{
    backoff::{Backoff, is_retryable},
    json::to_bytes,
};

/// One counter, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentInfo {
    /// Which.
    pub tag: String,
    /// The first number that no range was taken with yet.
    pub next: u64,
    /// How many numbers below `next` came back unused, and are issued first.
    pub returned: u64,
}

/// Lists the counters of a realm whose tags start with `prefix`, in the order of tags.
///
/// # Errors
/// `Unavailable` if the engine does not answer; `Corrupt` if an entry is not what the id block wrote.
///
/// # Cancel safety
/// Safe: reads have no effect.
pub async fn segments(kv: &KvHandle, realm: &Realm, prefix: &str) -> Result<Vec<SegmentInfo>> {
    const PAGE: usize = 1_000;
    let dir = dir_of(realm)?;
    let mut infos = Vec::new();
    let mut after = String::new();
    loop {
        let page = kv.list(&dir, Order::Name { after }, PAGE).await?;
        for entry in page.entries.iter().filter(|entry| entry.key.name().starts_with(prefix)) {
            let record = Record::read(entry)?;
            let returned = record.returned.iter().map(|(from, to)| to - from).sum();
            infos.push(SegmentInfo { tag: entry.key.name().to_owned(), next: record.next, returned });
        }
        match page.entries.last() {
            Some(last) if page.more => after = last.key.name().to_owned(),
            _ => return Ok(infos),
        }
    }
}

/// One opener's way to a counter.
#[derive(Debug)]
pub(super) struct Counter {
    kv: KvHandle,
    key: Key,
    step: u64,
    start: u64,
    /// A request whose answer did not come. It is sent again as it was: then it takes its range once, whenever it arrives.
    unanswered: Option<Change>,
}

/// A change of the counter.
#[derive(Clone, Debug)]
struct Change {
    txn: Txn,
    operation: String,
    range: Range<u64>,
}

/// The first number that does not fit a signed integer.
const END: u64 = 1 << 63;
/// How many returned ranges a counter remembers; what comes back to a full one is never issued.
const RETURNED_MAX: usize = 256;
/// How long to try to give numbers back.
const GIVE_BACK_FOR: Duration = Duration::from_secs(5);

impl Counter {
    pub(super) fn new(kv: &KvHandle, realm: &Realm, tag: &str, step: u64, start: u64) -> Result<Self> {
        if start >= END {
            return Err(Error::invalid(format!("segment {tag} cannot start at {start}: use 0 to {}", END - 1)));
        }
        Ok(Self { kv: kv.clone(), key: dir_of(realm)?.key(tag)?, step, start, unanswered: None })
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.kv.env(), Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Takes the next range. After a failure call it again: if the failed request took effect, its range is found.
    pub(super) async fn take(&mut self) -> Result<Range<u64>> {
        let mut change = match self.unanswered.take() {
            Some(change) => change,
            None => self.take_from(self.kv.get(&self.key).await?.as_ref())?,
        };
        loop {
            // Before the request leaves, since it may take effect and fail.
            self.unanswered = Some(change.clone());
            let outcome = self.kv.txn(self.key.realm(), change.txn.clone()).await?;
            self.unanswered = None;
            match outcome {
                TxnOutcome::Committed { .. } => return Ok(change.range),
                TxnOutcome::Refused { found: Some(found), .. } if change.is(&found)? => return Ok(change.range),
                // The check can never hold again, so an earlier try of ours cannot arrive any more.
                TxnOutcome::Refused { found, .. } => change = self.take_from(found.as_ref())?,
            }
        }
    }

    /// Gives numbers back that nobody has seen. What a lost answer leaves in doubt is not given back again.
    pub(super) async fn give_back(&mut self, ranges: &[Range<u64>]) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        let give_up = self.kv.env().now() + GIVE_BACK_FOR;
        let mut backoff = self.backoff();
        let mut change: Option<Change> = None;
        let mut in_doubt = false;
        loop {
            match self.try_give_back(ranges, &mut change, in_doubt).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if !is_retryable(&error) || self.kv.env().now() >= give_up => return Err(error),
                Err(error) => {
                    in_doubt |= error.effect() == Effect::Unknown;
                    backoff.pause().await;
                }
            }
        }
    }

    /// `false` if somebody else was faster and it is to be tried anew.
    async fn try_give_back(&self, ranges: &[Range<u64>], kept: &mut Option<Change>, in_doubt: bool) -> Result<bool> {
        let change = match kept {
            Some(change) => change,
            None => match self.kv.get(&self.key).await? {
                Some(found) => kept.insert(self.return_to(&found, ranges)?),
                // Somebody deleted the counter: it starts anew, and our numbers with it.
                None => return Ok(true),
            },
        };
        match self.kv.txn(self.key.realm(), change.txn.clone()).await? {
            TxnOutcome::Committed { .. } => Ok(true),
            // They came back, and somebody may have them by now; or they did not, and a few numbers are wasted.
            TxnOutcome::Refused { .. } if in_doubt => Ok(true),
            TxnOutcome::Refused { .. } => {
                *kept = None;
                Ok(false)
            }
        }
    }

    fn take_from(&self, found: Option<&Entry>) -> Result<Change> {
        let (check, mut record) = match found {
            Some(entry) => (Check::ModifiedAt(self.key.clone(), entry.modified), Record::read(entry)?),
            None => (Check::Absent(self.key.clone()), Record::starting_at(self.start)),
        };
        let Some(range) = record.take(self.step) else {
            let message = format!("segment {} is used up: its numbers end at {}", self.key.name(), END - 1);
            return Err(Error::new(ErrorKind::Exhausted, message));
        };
        self.change(check, record, range)
    }

    fn return_to(&self, found: &Entry, ranges: &[Range<u64>]) -> Result<Change> {
        let mut record = Record::read(found)?;
        record.give_back(ranges);
        self.change(Check::ModifiedAt(self.key.clone(), found.modified), record, 0..0)
    }

    fn change(&self, check: Check, mut record: Record, range: Range<u64>) -> Result<Change> {
        let env = self.kv.env();
        let operation = format!("{:016x}{:016x}", env.random(), env.random());
        record.operation.clone_from(&operation);
        let put = Write::Put { key: self.key.clone(), value: to_bytes(&record)?, lease: None };
        Ok(Change { txn: Txn { checks: vec![check], reads: Vec::new(), writes: vec![put] }, operation, range })
    }
}

impl Change {
    /// Whether this is what made the entry what it is.
    fn is(&self, found: &Entry) -> Result<bool> {
        Ok(Record::read(found)?.operation == self.operation)
    }
}

fn dir_of(realm: &Realm) -> Result<Dir> {
    Dir::new(realm, &format!("id/{SEGMENT_SPACE}"))
}

/// The counter, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The first number that no range was taken with yet.
    next: u64,
    /// Unused numbers below, as ranges `[from, to)`: in order, not touching each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    returned: Vec<(u64, u64)>,
    /// Which change this is: 128 random bits.
    operation: String,
}

impl Record {
    fn starting_at(next: u64) -> Self {
        Self { next, returned: Vec::new(), operation: String::new() }
    }

    fn read(entry: &Entry) -> Result<Self> {
        let record: Self = parse(entry)?;
        if record.next > END || record.returned.iter().any(|(from, to)| from >= to || *to > record.next) {
            let message = format!("{} holds numbers that no segment has: 0 to {} are allowed", entry.key, END - 1);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(record)
    }

    /// Takes up to `step` numbers: what came back first.
    fn take(&mut self, step: u64) -> Option<Range<u64>> {
        if let Some((from, to)) = self.returned.first_mut() {
            let range = *from..(*to).min(*from + step);
            *from = range.end;
            if from == to {
                self.returned.remove(0);
            }
            return Some(range);
        }
        let range = self.next..(self.next + step).min(END);
        self.next = range.end;
        (!range.is_empty()).then_some(range)
    }

    fn give_back(&mut self, ranges: &[Range<u64>]) {
        let mut all = std::mem::take(&mut self.returned);
        all.extend(ranges.iter().map(|range| (range.start, range.end)));
        all.sort_unstable();
        for (from, to) in all {
            match self.returned.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => self.returned.push((from, to)),
            }
        }
        if let Some((from, _)) = self.returned.pop_if(|(_, to)| *to == self.next) {
            self.next = from;
        }
        self.returned.truncate(RETURNED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_taken_first_and_touching_ranges_become_one() {
        let mut record = Record::starting_at(1);
        assert_eq!([record.take(10), record.take(10), record.take(10)], [Some(1..11), Some(11..21), Some(21..31)]);
        record.give_back(&[18..21, 5..11]);
        assert_eq!((record.next, &record.returned[..]), (31, &[(5, 11), (18, 21)][..]));
        record.give_back(&[21..31, 11..12]);
        assert_eq!((record.next, &record.returned[..]), (18, &[(5, 12)][..]), "the end of all lowers next");
        assert_eq!([record.take(4), record.take(4), record.take(4)], [Some(5..9), Some(9..12), Some(18..22)]);
    }

    #[test]
    fn numbers_end_with_the_signed_integer() {
        let mut record = Record::starting_at(END - 3);
        assert_eq!(record.take(2), Some(END - 3..END - 1));
        assert_eq!(record.take(2), Some(END - 1..END));
        assert_eq!(record.take(2), None);
    }

    #[test]
    fn a_counter_remembers_only_so_many_returned_ranges() {
        let mut record = Record::starting_at(10_000);
        let odd: Vec<_> = (0..300_u64).map(|index| 2 * index..2 * index + 1).collect();
        record.give_back(&odd);
        assert_eq!(record.returned.len(), RETURNED_MAX);
        assert!(to_bytes(&record).expect("small").len() < 16 * 1024);
    }
}
