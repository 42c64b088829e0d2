//! An id space in the store: which numbers are free, and the windows reserved for each.
//!
//! Everything that uniqueness rests on is here: a window is reserved by a compare-and-set on the record of its number, and
//! begins no earlier than the last one ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result, Retry,
    contract::kv::{Check, Entry, KvHandle, LeaseId, Order, Revision, Txn, TxnOutcome, Write},
    env::PlantedBug,
    name::{Dir, Key, Realm},
};
use serde::{Deserialize, Serialize};

use super::{EPOCH_MS, Layout, clock::Clock};
use crate::{
    backoff::{Backoff, is_retryable},
    json::to_bytes,
};

/// The dir `id/segment` holds the counters of segments, so no space has this name.
pub(super) const SEGMENT_SPACE: &str = "segment";

/// The names of an id space.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) space: String,
    /// The agreed layout and the records.
    records: Dir,
    /// One leased entry for each number in use.
    hints: Dir,
    layout: Key,
}

impl Names {
    pub(super) fn new(realm: &Realm, space: &str) -> Result<Self> {
        if space == SEGMENT_SPACE {
            return Err(Error::invalid("id space segment is not allowed: segments have their counters there"));
        }
        let records = Dir::new(realm, &format!("id/{space}"))?;
        let hints = Dir::new(realm, &format!("id-hint/{space}"))?;
        let layout = records.key("layout")?;
        Ok(Self { space: space.to_owned(), records, hints, layout })
    }

    fn record(&self, worker: u32) -> Result<Key> {
        self.records.key(&worker_name(worker))
    }

    fn hint(&self, worker: u32) -> Result<Key> {
        self.hints.key(&worker_name(worker))
    }
}

fn worker_name(worker: u32) -> String {
    format!("{worker:05}")
}

/// What a space holds, at about one moment.
pub(super) struct Survey {
    /// The agreed layout and when it was agreed; `None` in a new space.
    pub(super) layout: Option<(Layout, Revision)>,
    /// The record of each number that was ever used, and its last change.
    pub(super) records: BTreeMap<u32, (Record, Revision)>,
    /// The numbers in use and who uses them.
    pub(super) hints: BTreeMap<u32, Hint>,
}

/// The persistent record of a worker number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The end of what was reserved, in milliseconds since 1970.
    pub(super) until: u64,
    /// Who reserved it: 128 random bits for each claim.
    pub(super) owner: String,
    /// How often the number was claimed.
    pub(super) epoch: u64,
}

/// The leased entry of a number in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hint {
    pub(super) label: String,
    pub(super) owner: String,
}

/// The agreed layout, as stored.
#[derive(Serialize, Deserialize)]
struct Agreed {
    layout: Layout,
}

/// Reads a whole space.
pub(super) async fn survey(kv: &KvHandle, names: &Names) -> Result<Survey> {
    // The hints first: a number claimed in between then shows a changed record rather than a missing hint.
    let hints = list_all(kv, &names.hints).await?;
    let records = list_all(kv, &names.records).await?;
    let mut survey = Survey { layout: None, records: BTreeMap::new(), hints: BTreeMap::new() };
    for entry in records {
        if entry.key == names.layout {
            survey.layout = Some((parse::<Agreed>(&entry)?.layout, entry.created));
        } else {
            survey.records.insert(worker_of(&entry)?, (parse(&entry)?, entry.modified));
        }
    }
    for entry in hints {
        survey.hints.insert(worker_of(&entry)?, parse(&entry)?);
    }
    Ok(survey)
}

async fn list_all(kv: &KvHandle, dir: &Dir) -> Result<Vec<Entry>> {
    const PAGE: usize = 1_000;
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map_or(String::new(), |entry| entry.key.name().to_owned());
        let page = kv.list(dir, Order::Name { after }, PAGE).await?;
        entries.extend(page.entries);
        if !page.more {
            return Ok(entries);
        }
    }
}

fn worker_of(entry: &Entry) -> Result<u32> {
    entry.key.name().parse().map_err(|_| {
        let message = format!("{} does not belong into an id space: its name is no worker number", entry.key);
        Error::new(ErrorKind::Corrupt, message)
    })
}

pub(super) fn parse<'a, T: Deserialize<'a>>(entry: &'a Entry) -> Result<T> {
    serde_json::from_slice(&entry.value).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("{} does not hold what the id block wrote", entry.key))
            .with_source(error)
    })
}

/// After a refusal: the number is still ours if the record is what an unanswered request of ours would have written. To
/// find our name in it is not enough: a clone of this machine has the same name.
fn adopt(claim: &mut Claim, found: Option<Entry>) -> Result<bool> {
    let Some(found) = found else {
        return Ok(false);
    };
    let record: Record = parse(&found)?;
    let until = record.until.saturating_sub(EPOCH_MS);
    if record.owner != claim.owner || !claim.in_doubt.contains(&until) {
        return Ok(false);
    }
    claim.settle(until, found.modified);
    Ok(true)
}

/// One generator's way to its space.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) kv: KvHandle,
    pub(super) names: Names,
    pub(super) layout: Layout,
    /// The length of a window.
    pub(super) window_ms: u64,
    /// How far ahead of the clock a window may begin.
    pub(super) max_ahead_ms: u64,
    pub(super) lease: LeaseId,
    pub(super) label: String,
}

/// A worker number that is ours, and how far.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) worker: u32,
    /// What was reserved by the claim, in milliseconds since [`EPOCH_MS`].
    pub(super) reserved: Range<u64>,
    owner: String,
    epoch: u64,
    modified: Revision,
    /// The ends that were asked for without an answer: any of them may have taken effect.
    in_doubt: Vec<u64>,
}

impl Claim {
    fn settle(&mut self, until: u64, modified: Revision) {
        self.reserved.end = until;
        self.modified = modified;
        self.in_doubt.clear();
    }
}

/// A record further ahead of the clock than this was written by a clock that had jumped, or is read by one that is behind.
const POISONED_MS: u64 = 60_000;

impl Space {
    /// Claims a free number and reserves a first window, which begins at `floor` or later.
    pub(super) async fn claim(&self, clock: &Clock, floor: u64) -> Result<Claim> {
        loop {
            let survey = survey(&self.kv, &self.names).await?;
            if let Some((agreed, _)) = survey.layout
                && agreed != self.layout
            {
                return Err(self.layout_error(agreed));
            }
            clock.follow_wall();
            let now = clock.now();
            if now + EPOCH_MS + self.window_ms >= self.layout.ends_ms() {
                let message = format!("layout {} cannot express the present: use more time bits", self.layout);
                return Err(Error::new(ErrorKind::Exhausted, message));
            }
            let worker = self.choose(&survey, now)?;
            if let Some(claim) = self.try_claim(&survey, worker, now.max(floor)).await? {
                return Ok(claim);
            }
        }
    }

    /// Reserves the next window of a claimed number. `false` if the number is no longer ours.
    ///
    /// After a failure call it again: if the failed request took effect, the record tells.
    pub(super) async fn renew(&self, claim: &mut Claim, now: u64) -> Result<bool> {
        let until = claim.reserved.end.max(now) + self.window_ms;
        self.set_until(claim, until, Vec::new()).await
    }

    /// Gives the number back: lowers the record to what was used, and removes the hint.
    pub(super) async fn release(&self, claim: &mut Claim, used_until: u64) -> Result<()> {
        let give_up = self.kv.env().now() + Duration::from_millis(self.window_ms);
        let mut backoff = self.backoff();
        loop {
            let hint = Write::Delete(self.names.hint(claim.worker)?);
            match self.set_until(claim, used_until, vec![hint]).await {
                // An earlier renewal may have taken effect without an answer, and now counts as ours: lower it, too.
                Ok(true) if claim.reserved.end != used_until => {}
                Ok(_) => return Ok(()),
                Err(error) if !is_retryable(&error) || self.kv.env().now() >= give_up => return Err(error),
                Err(_) => backoff.pause().await,
            }
        }
    }

    pub(super) fn backoff(&self) -> Backoff {
        let window = Duration::from_millis(self.window_ms);
        Backoff::new(self.kv.env(), window / 60, window / 8)
    }

    async fn set_until(&self, claim: &mut Claim, until: u64, mut writes: Vec<Write>) -> Result<bool> {
        let key = self.names.record(claim.worker)?;
        let record = Record { until: until + EPOCH_MS, owner: claim.owner.clone(), epoch: claim.epoch };
        writes.insert(0, Write::Put { key: key.clone(), value: to_bytes(&record)?, lease: None });
        let txn = Txn { checks: vec![Check::ModifiedAt(key, claim.modified)], reads: Vec::new(), writes };
        // Before the request leaves, since this future may be dropped while it is on its way.
        claim.in_doubt.push(until);
        match self.kv.txn(self.names.records.realm(), txn).await? {
            TxnOutcome::Committed { revision, .. } => {
                claim.settle(until, revision);
                Ok(true)
            }
            TxnOutcome::Refused { found, .. } => adopt(claim, found),
        }
    }

    /// Picks a number: one that was given back or whose windows are over, else one never used, else one whose window ends
    /// soon. Among equals by lot, so that many who start at once do not collide.
    fn choose(&self, survey: &Survey, now: u64) -> Result<u32> {
        let trust_lease = self.kv.env().planted(PlantedBug::TrustLeaseForId);
        let (mut free, mut unused, mut soon, mut poisoned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let hinted: BTreeSet<u32> = survey.hints.keys().copied().collect();
        for worker in (0..self.layout.workers()).filter(|worker| !hinted.contains(worker)) {
            let Some((record, _)) = survey.records.get(&worker) else {
                unused.push(worker);
                continue;
            };
            let ahead = record.until.saturating_sub(EPOCH_MS).saturating_sub(now);
            if ahead == 0 || trust_lease {
                free.push(worker);
            } else if ahead <= self.max_ahead_ms {
                soon.push(worker);
            } else if ahead > POISONED_MS {
                poisoned.push((worker, ahead));
            }
        }
        let candidates = [free, unused, soon].into_iter().find(|candidates| !candidates.is_empty());
        match candidates {
            Some(candidates) => Ok(candidates[(self.kv.env().random() % candidates.len() as u64) as usize]),
            None => Err(self.exhausted_error(&poisoned)),
        }
    }

    /// `None` if somebody else was faster.
    async fn try_claim(&self, survey: &Survey, worker: u32, earliest: u64) -> Result<Option<Claim>> {
        let env = self.kv.env();
        let owner = format!("{:016x}{:016x}", env.random(), env.random());
        let record_key = self.names.record(worker)?;
        let hint_key = self.names.hint(worker)?;
        let (record_check, ended, epoch) = match survey.records.get(&worker) {
            Some((old, modified)) => {
                let ended = old.until.saturating_sub(EPOCH_MS);
                (Check::ModifiedAt(record_key.clone(), *modified), ended, old.epoch + 1)
            }
            None => (Check::Absent(record_key.clone()), 0, 1),
        };
        let from = if env.planted(PlantedBug::TrustLeaseForId) { earliest } else { earliest.max(ended) };
        let reserved = from..from + self.window_ms;
        let record = Record { until: reserved.end + EPOCH_MS, owner: owner.clone(), epoch };
        let hint = Hint { label: self.label.clone(), owner: owner.clone() };
        let mut txn = Txn {
            checks: vec![record_check, Check::Absent(hint_key.clone())],
            reads: Vec::new(),
            writes: vec![
                Write::Put { key: record_key.clone(), value: to_bytes(&record)?, lease: None },
                Write::Put { key: hint_key, value: to_bytes(&hint)?, lease: Some(self.lease) },
            ],
        };
        self.agree_on_layout(survey, &mut txn)?;

        let mut backoff = self.backoff();
        loop {
            let claim = |modified| Claim {
                worker,
                reserved: reserved.clone(),
                owner: owner.clone(),
                epoch,
                modified,
                in_doubt: Vec::new(),
            };
            match self.kv.txn(self.names.records.realm(), txn.clone()).await {
                Ok(TxnOutcome::Committed { revision, .. }) => return Ok(Some(claim(revision))),
                Ok(TxnOutcome::Refused { found: Some(found), .. }) if found.key == record_key => {
                    // Ours if an earlier try took effect though its answer was lost.
                    let found_record: Record = parse(&found)?;
                    return Ok((found_record.owner == owner).then(|| claim(found.modified)));
                }
                Ok(TxnOutcome::Refused { .. }) => return Ok(None),
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the claim depend on the layout that was read, or writes ours into a new space.
    fn agree_on_layout(&self, survey: &Survey, txn: &mut Txn) -> Result<()> {
        let key = self.names.layout.clone();
        match survey.layout {
            Some((_, created)) => txn.checks.push(Check::CreatedAt(key, created)),
            None => {
                let value = to_bytes(&Agreed { layout: self.layout })?;
                txn.checks.push(Check::Absent(key.clone()));
                txn.writes.push(Write::Put { key, value, lease: None });
            }
        }
        Ok(())
    }

    fn layout_error(&self, agreed: Layout) -> Error {
        let message = format!(
            "id space {} is used with layout {agreed}, not {}: its ids would collide; use the same layout or another space",
            self.names.space, self.layout
        );
        Error::new(ErrorKind::Conflict, message)
    }

    fn exhausted_error(&self, poisoned: &[(u32, u64)]) -> Error {
        let (space, workers) = (&self.names.space, self.layout.workers());
        let message = match poisoned.first() {
            None => {
                format!("id space {space} has no free worker number: all {workers} are in use or were a moment ago")
            }
            Some((worker, ahead)) => format!(
                "id space {space} has no free worker number: {} of {workers} are reserved into the future, worker {worker} \
                 for {} s; a clock there had jumped ahead, or this one is behind: set the clocks and wait, or use another \
                 space",
                poisoned.len(),
                ahead / 1_000
            ),
        };
        Error::new(ErrorKind::Exhausted, message).with_retry(Retry::After(Duration::from_secs(1)))
    }
}
