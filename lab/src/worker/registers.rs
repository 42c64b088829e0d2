//! Reads, writes and compare-and-sets of a few registers.

use std::collections::BTreeMap;

use anyhow::Result;
use coact::{
    Dir, Error, Key, Realm,
    kv::{Check, Entry, ReadAt, Revision, Txn, TxnOutcome, Write},
};
use serde_json::{Value, json};

use super::{Choices, Context, Stage};
use crate::{
    history::{Answer, Process},
    plant::Plant,
};

const KEYS: u64 = 10;
const REST_MS: u64 = 15;

/// Where the registers are.
pub(super) fn dir() -> Result<Dir, Error> {
    Dir::new(&Realm::default(), "registers")
}

/// One client of the registers.
pub(super) struct Registers {
    context: Context,
    process: Process,
    choices: Choices,
    /// The next value that nobody writes twice.
    next: u64,
    /// What this client saw last.
    known: BTreeMap<u64, Option<(Revision, u64)>>,
    /// What it saw first, for the planted stale read.
    first: BTreeMap<u64, Option<Entry>>,
    reads: u64,
}

pub(super) fn open(context: &Context, number: u64) -> Registers {
    let process = context.recorder.process(&format!("register-{number}"));
    let next = (context.job.seed * 2 + number) << 32;
    let choices = Choices::new(context, number);
    Registers {
        context: context.clone(),
        process,
        choices,
        next,
        known: BTreeMap::new(),
        first: BTreeMap::new(),
        reads: 0,
    }
}

impl Registers {
    pub(super) async fn run(mut self) -> Result<()> {
        self.context.reached(Stage::Run).await;
        while self.context.is_running() {
            let register = self.choices.below(KEYS);
            let key = dir()?.key(&format!("r{register}"))?;
            match self.choices.below(10) {
                0..4 => self.get(register, &key).await,
                4..7 => self.put(register, &key).await,
                _ => self.compare_and_set(register, &key).await,
            }
            self.context.rest(REST_MS).await;
        }
        Ok(())
    }

    async fn get(&mut self, register: u64, key: &Key) {
        let kv = self.context.kv.clone();
        self.reads += 1;
        let planted = self.context.planted(Plant::StaleRead) && self.reads.is_multiple_of(10);
        let old = self.first.get(&register).cloned().filter(|_| planted);
        let call = async {
            match old {
                Some(entry) => Ok(entry),
                None => kv.get(key).await,
            }
        };
        if let Some(entry) = self.process.call(("get", Some(key.name()), Value::Null), call, read).await {
            self.known.insert(register, entry.as_ref().and_then(seen));
            self.first.entry(register).or_insert(entry);
        }
    }

    async fn put(&mut self, register: u64, key: &Key) {
        let value = self.value();
        let call = self.context.kv.put(key, value.to_string(), None);
        let written = self.process.call(("put", Some(key.name()), json!(value)), call, |revision| at(*revision)).await;
        self.remember(register, written.map(|revision| (revision, value)));
    }

    /// Sets a register if it is as this client last saw it. No value is written twice, so its revision stands for it.
    async fn compare_and_set(&mut self, register: u64, key: &Key) {
        let Some(known) = self.known.get(&register).copied() else { return };
        let value = self.value();
        let check = match known {
            Some((modified, _)) => Check::ModifiedAt(key.clone(), modified),
            None => Check::Absent(key.clone()),
        };
        let write = Write::Put { key: key.clone(), value: value.to_string().into(), lease: None };
        let txn = Txn { checks: vec![check], writes: vec![write], ..Txn::default() };
        let asked = json!([known.map(|(_, value)| value), value]);
        let call = self.context.kv.txn(key.realm(), txn);
        let outcome = self.process.call(("cas", Some(key.name()), asked), call, done).await;
        let committed = match outcome {
            Some(TxnOutcome::Committed { revision, .. }) => Some((revision, value)),
            _ => None,
        };
        self.remember(register, committed);
    }

    /// After a write that was not acknowledged, this client does not know what is there.
    fn remember(&mut self, register: u64, written: Option<(Revision, u64)>) {
        match written {
            Some(written) => drop(self.known.insert(register, Some(written))),
            None => drop(self.known.remove(&register)),
        }
    }

    fn value(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// One client that only reads, so that no write of its own holds it up; alternately as fresh as can be, and from any server.
pub(super) struct Reads {
    context: Context,
    fresh: Process,
    any: Process,
    choices: Choices,
}

pub(super) fn open_reads(context: &Context) -> Reads {
    let (fresh, any) = (context.recorder.process("read"), context.recorder.process("any"));
    Reads { context: context.clone(), fresh, any, choices: Choices::new(context, 7) }
}

impl Reads {
    pub(super) async fn run(mut self) -> Result<()> {
        self.context.reached(Stage::Run).await;
        while self.context.is_running() {
            let key = dir()?.key(&format!("r{}", self.choices.below(KEYS)))?;
            let kv = &self.context.kv;
            let what = |f| (f, Some(key.name()), Value::Null);
            self.fresh.call(what("get"), kv.get_at(&key, ReadAt::Linearizable), read).await;
            self.any.call(what("get-any"), kv.get_at(&key, ReadAt::Any), read).await;
            self.context.rest(3 * REST_MS).await;
        }
        Ok(())
    }
}

fn seen(entry: &Entry) -> Option<(Revision, u64)> {
    Some((entry.modified, number(entry)?))
}

fn number(entry: &Entry) -> Option<u64> {
    std::str::from_utf8(&entry.value).ok()?.parse().ok()
}

fn read(entry: &Option<Entry>) -> Answer {
    let rev = Some(entry.as_ref().map_or(0, |entry| entry.modified.0));
    Answer { value: json!(entry.as_ref().and_then(number)), rev, token: None }
}

fn at(revision: Revision) -> Answer {
    Answer { rev: Some(revision.0), ..Answer::default() }
}

fn done(outcome: &TxnOutcome) -> Answer {
    match outcome {
        TxnOutcome::Committed { revision, .. } => Answer { value: json!(true), ..at(*revision) },
        TxnOutcome::Refused { .. } => Answer { value: json!(false), ..Answer::default() },
    }
}
