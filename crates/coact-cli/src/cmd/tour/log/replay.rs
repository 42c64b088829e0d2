//! Sends the log: some lines at a time, each of them once, whatever happens to the node.

use std::time::Duration;

use bytes::Bytes;
use coact::{
    Env, Key, KvHandle, Realm, Result, Store, Topic,
    contract::{commit::CommitOutcome, stream::Record},
    kv::{Check, Txn, Write},
    mq::{Producer, ProducerOptions},
};
use tokio::sync::watch;

use super::{TOPIC, input::Input};
use crate::cmd::tour::{failed, passing};

/// The header with a line's number, and the one with the time before which it must not come.
pub(super) const LINE: &str = "line";
pub(super) const DUE: &str = "due";

/// How many lines go in one commit.
const LINES: usize = 500;
/// How much of the log, by its parts, is sent ahead of the consumers: so nobody is killed after everything was sent.
const AHEAD: usize = 5;

pub(super) struct Replay {
    pub(super) env: Env,
    pub(super) input: Input,
    /// How many lines are done.
    pub(super) done: watch::Receiver<usize>,
}

impl Replay {
    /// Sends every line. A commit has lines, delayed lines, and the cursor behind them, and happens only if the cursor is
    /// where it was: one whose answer was lost is found out by the cursor, and never happens twice.
    pub(super) async fn run(mut self, store: &Store) -> Result<()> {
        let producer = Producer::open(store.streams()?, &Topic::new(TOPIC)?, ProducerOptions::default()).await?;
        let cursor = Key::new(&Realm::default(), "tour", "log")?;
        let mut at = read(store.kv(), &cursor).await?;
        while at.0 < self.input.count() {
            let ahead = at.0.saturating_sub(self.input.count() / AHEAD);
            self.done.wait_for(|done| *done >= ahead).await.map_err(|_| failed("nobody counts the lines any more"))?;
            at = match self.send(&producer, &cursor, &at).await {
                Ok(next) => next,
                Err(error) if passing(&error) => {
                    self.env.sleep(Duration::from_millis(20)).await;
                    // Also while the node is away.
                    read(store.kv(), &cursor)
                        .await
                        .or_else(|error| if passing(&error) { Ok(at) } else { Err(error) })?
                }
                Err(error) => return Err(error),
            };
        }
        producer.close().await
    }

    async fn send(&self, producer: &Producer, cursor: &Key, at: &(usize, Check)) -> Result<(usize, Check)> {
        let (from, check) = at;
        let to = self.input.count().min(from + LINES);
        let now_ms = self.env.wall_ms();
        let mut transaction = producer.transaction();
        for number in *from..to {
            let record = self.record(number);
            transaction = match Input::delay_ms(number) {
                None => transaction.append(record),
                Some(delay_ms) => {
                    let due_ms = now_ms + delay_ms;
                    transaction.append_at(record.with_header(DUE, due_ms.to_string()), due_ms)
                }
            };
        }
        let write = Write::Put { key: cursor.clone(), value: to.to_string().into(), lease: None };
        let txn = Txn { checks: vec![check.clone()], writes: vec![write], ..Txn::default() };
        match transaction.kv(cursor.realm(), txn).commit().await? {
            CommitOutcome::Committed(committed) => {
                let (revision, _) = committed.kv.ok_or_else(|| failed("a commit of an entry has no revision"))?;
                Ok((to, Check::ModifiedAt(cursor.clone(), revision)))
            }
            // Only we write it: a commit whose answer was lost happened after all.
            CommitOutcome::Refused { found, .. } => of(cursor, found.as_ref()),
        }
    }

    fn record(&self, number: usize) -> Record {
        let program = &self.input.programs()[self.input.program(number)];
        Record::new(self.input.line(number)).with_key(program.name.clone()).with_header(LINE, number.to_string())
    }
}

/// The next line to send, and what must hold so that nobody has sent it.
async fn read(kv: &KvHandle, cursor: &Key) -> Result<(usize, Check)> {
    of(cursor, kv.get(cursor).await?.as_ref())
}

fn of(cursor: &Key, found: Option<&coact::kv::Entry>) -> Result<(usize, Check)> {
    let Some(entry) = found else { return Ok((0, Check::Absent(cursor.clone()))) };
    Ok((number(&entry.value)?, Check::ModifiedAt(cursor.clone(), entry.modified)))
}

/// A number that the tour wrote.
pub(super) fn number<N: std::str::FromStr>(text: &Bytes) -> Result<N> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| failed(format!("{:?} should be a number", String::from_utf8_lossy(text))))
}
