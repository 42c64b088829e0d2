//! The latch: closed until it was counted down, then open.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result, Retry,
    contract::kv::{Check, Entry, Found, Order, Read, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key},
};
use serde::{Deserialize, Serialize};

use super::{
    NEEDS,
    request::{answer, look, new_operation, parse, wait_gone},
};
use crate::{Session, json::to_bytes, session::Core};

/// Lets everybody pass once it was counted down `count` times. Cheap to clone.
///
/// An open latch stays open, also for who comes later and after all sessions have ended, until [`reset`](Self::reset).
/// An arrival is persistent: one that counted down and died has counted.
///
/// In the store, `latch/<name>` holds the agreed count and, while the latch is closed, one entry that all waiters wait for;
/// `latch-arrival/<name>/<generation>` holds the arrivals. So an arrival wakes nobody, except the one that opens.
#[derive(Clone)]
pub struct Latch(Arc<Inner>);

const COUNT_MAX: u64 = 100_000;

impl Latch {
    /// The latch of this name in the realm `main`, which is created if there is none.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir or a count that is not 1 to 100,000; `Conflict` if the latch has another count;
    /// `Unsupported` if the engine promises less than a lock [needs](NEEDS); `Fenced` or `Closed` if the session is over.
    ///
    /// # Cancel safety
    /// The latch may have been created.
    pub async fn open(session: &Session, name: &str, count: u64) -> Result<Self> {
        session.kv().require(&NEEDS)?;
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(Error::invalid(format!("a latch cannot count {count}: use 1 to {COUNT_MAX}")));
        }
        let dir = Dir::new(&Default::default(), &format!("latch/{name}"))?;
        let state_key = dir.key("state")?;
        let inner = Inner { session: session.clone(), name: name.to_owned(), count, dir, state_key };
        // The longest of its dirs, so that no arrival finds the name too long.
        inner.arrivals(u64::MAX)?;
        session.core().unless_lost(inner.create()).await?;
        Ok(Self(Arc::new(inner)))
    }

    /// Counts down by one; no effect on an open latch. An engine that does not answer is asked again for as long as the
    /// session lives, and counts once.
    ///
    /// # Errors
    /// `Fenced` or `Closed` if the session is over; `Corrupt` if an entry is not what the block wrote; what the engine
    /// answers, if it is final.
    ///
    /// # Cancel safety
    /// It may have counted.
    pub async fn count_down(&self) -> Result<()> {
        self.core().unless_lost(self.0.count_down()).await
    }

    /// Waits until the latch is open. Who waits while it is reset waits for the new count.
    ///
    /// # Errors
    /// As [`count_down`](Self::count_down).
    ///
    /// # Cancel safety
    /// Safe: a waiter leaves no trace.
    pub async fn wait(&self) -> Result<()> {
        self.core().unless_lost(self.0.wait()).await
    }

    /// Waits until the latch is open, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it was not open in time; otherwise as [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_within(&self, limit: Duration) -> Result<()> {
        match self.core().env().timeout(limit, self.wait()).await {
            Some(result) => result,
            None => Err(Error::new(ErrorKind::Conflict, format!("latch {} is still closed", self.0.name))
                .with("waited", format!("{limit:?}"))
                .with_retry(Retry::After(Duration::from_secs(1)))),
        }
    }

    /// How many arrivals are missing; zero if it is open.
    ///
    /// # Errors
    /// As [`count_down`](Self::count_down).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn remaining(&self) -> Result<u64> {
        let remaining = async {
            let view = self.0.view().await?;
            self.0.open_if_complete(&view).await?;
            Ok(if view.closed.is_some() { self.0.count.saturating_sub(view.arrived) } else { 0 })
        };
        self.core().unless_lost(remaining).await
    }

    /// Closes the latch and begins to count anew. A reset that comes between the last arrival and the opening wins.
    ///
    /// # Errors
    /// As [`count_down`](Self::count_down).
    ///
    /// # Cancel safety
    /// It may have been reset.
    pub async fn reset(&self) -> Result<()> {
        self.core().unless_lost(self.0.reset()).await
    }

    fn core(&self) -> &Arc<Core> {
        self.0.session.core()
    }
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latch({}, {})", self.0.name, self.0.count)
    }
}

struct Inner {
    session: Session,
    name: String,
    count: u64,
    dir: Dir,
    state_key: Key,
}

/// What a latch is, as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    count: u64,
    /// How often it was created or reset: arrivals of one generation do not count in another.
    generation: u64,
    /// The last generation that was open when it was reset; zero if none was.
    last_open: u64,
}

/// A latch at one moment.
struct View {
    state: State,
    modified: Revision,
    /// The entry that waiters wait for; none if the latch is open.
    closed: Option<Entry>,
    arrived: u64,
}

impl Inner {
    async fn create(&self) -> Result<()> {
        let state = State { count: self.count, generation: 1, last_open: 0 };
        let txn = Txn {
            checks: vec![Check::Absent(self.state_key.clone())],
            reads: Vec::new(),
            writes: vec![self.put_state(&state)?, self.put_closed(1)?],
        };
        match answer(self.core(), self.dir.realm(), &txn).await?.outcome {
            TxnOutcome::Refused { found: Some(found), .. } => self.read_state(&found).map(drop),
            _ => Ok(()),
        }
    }

    async fn count_down(&self) -> Result<()> {
        let operation = new_operation(self.core().env());
        loop {
            let view = self.view().await?;
            let Some(closed) = &view.closed else { return Ok(()) };
            let arrivals = self.arrivals(view.state.generation)?;
            let key = arrivals.key(&operation)?;
            let txn = Txn {
                // The closed entry goes away when the latch opens and when it is reset.
                checks: vec![Check::Absent(key.clone()), Check::CreatedAt(closed.key.clone(), closed.created)],
                reads: vec![Read::Count(arrivals)],
                writes: vec![Write::Put { key, value: to_bytes(&self.session.name())?, lease: None }],
            };
            let answer = answer(self.core(), self.dir.realm(), &txn).await?;
            match answer.outcome {
                TxnOutcome::Committed { reads, .. } => {
                    let arrived = count(reads.first()) + 1;
                    return self.open_if_complete(&View { arrived, ..view }).await;
                }
                // An earlier try took effect though its answer was lost.
                TxnOutcome::Refused { check: 0, .. } => return self.open_if_complete(&self.view().await?).await,
                // It has opened or was reset since. If a try is in doubt it may have been part of that: it is not repeated.
                TxnOutcome::Refused { .. } if answer.in_doubt => return Ok(()),
                TxnOutcome::Refused { .. } => {}
            }
        }
    }

    async fn wait(&self) -> Result<()> {
        let mut backoff = self.core().backoff();
        let mut first = None;
        loop {
            let view = self.view().await?;
            // It was open since we came, and somebody has reset it.
            if view.state.last_open >= *first.get_or_insert(view.state.generation) {
                return Ok(());
            }
            self.open_if_complete(&view).await?;
            match view.closed {
                None => return Ok(()),
                Some(_) if view.arrived >= self.count => {}
                Some(closed) => wait_gone(self.core(), &closed.key, closed.created, &mut backoff).await?,
            }
        }
    }

    /// Opens a latch that has its count: the last arrival does, or whoever comes by if it died before.
    async fn open_if_complete(&self, view: &View) -> Result<()> {
        let Some(closed) = view.closed.as_ref().filter(|_| view.arrived >= self.count) else {
            return Ok(());
        };
        let txn = Txn {
            checks: vec![Check::CreatedAt(closed.key.clone(), closed.created)],
            reads: Vec::new(),
            writes: vec![Write::Delete(closed.key.clone())],
        };
        // A refusal says that another was faster.
        answer(self.core(), self.dir.realm(), &txn).await.map(drop)
    }

    async fn reset(&self) -> Result<()> {
        loop {
            let view = self.view().await?;
            let generation = view.state.generation;
            let closed_key = self.closed_key(generation)?;
            let (check, last_open) = match &view.closed {
                Some(closed) if view.arrived < self.count => {
                    (Check::CreatedAt(closed_key.clone(), closed.created), view.state.last_open)
                }
                Some(_) => {
                    self.open_if_complete(&view).await?;
                    continue;
                }
                None => (Check::Absent(closed_key.clone()), generation),
            };
            let next = State { count: self.count, generation: generation + 1, last_open };
            let txn = Txn {
                checks: vec![Check::ModifiedAt(self.state_key.clone(), view.modified), check],
                reads: Vec::new(),
                writes: vec![self.put_state(&next)?, self.put_closed(next.generation)?, Write::Delete(closed_key)],
            };
            let answer = answer(self.core(), self.dir.realm(), &txn).await?;
            // In doubt: our try took effect, or somebody else's reset did while we asked for one. Both are a reset.
            let state_changed = matches!(answer.outcome, TxnOutcome::Refused { check: 0, .. });
            if matches!(answer.outcome, TxnOutcome::Committed { .. }) || (answer.in_doubt && state_changed) {
                return self.delete_arrivals(next.generation).await;
            }
        }
    }

    /// Deletes the arrivals of generations before this one, which nobody counts any more.
    async fn delete_arrivals(&self, before: u64) -> Result<()> {
        let prefix = format!("latch-arrival/{}/", self.name);
        let kv = self.core().kv();
        for dir in kv.dirs(self.dir.realm(), &prefix, "", DIRS_AT_ONCE).await? {
            // Another latch may have ours as the beginning of its name.
            let generation = dir.path().strip_prefix(&prefix).and_then(|generation| generation.parse::<u64>().ok());
            if generation.is_none_or(|generation| generation >= before) {
                continue;
            }
            loop {
                let order = Order::Name { after: String::new() };
                let page = kv.list(&dir, order, DELETED_AT_ONCE).await?;
                let writes = page.entries.into_iter().map(|entry| Write::Delete(entry.key)).collect();
                answer(self.core(), dir.realm(), &Txn { writes, ..Txn::default() }).await?;
                if !page.more {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn view(&self) -> Result<View> {
        let mut guess = 1;
        loop {
            let reads = vec![
                Read::Get(self.state_key.clone()),
                Read::Get(self.closed_key(guess)?),
                Read::Count(self.arrivals(guess)?),
            ];
            let found = look(self.core(), self.dir.realm(), reads).await?;
            let Some(entry) = found.first().and_then(Found::entry) else {
                let message = format!("latch {} is gone: somebody deleted its state", self.name);
                return Err(Error::new(ErrorKind::NotFound, message));
            };
            let state = self.read_state(entry)?;
            if state.generation == guess {
                let closed = found.get(1).and_then(Found::entry).cloned();
                return Ok(View { state, modified: entry.modified, closed, arrived: count(found.get(2)) });
            }
            guess = state.generation;
        }
    }

    fn read_state(&self, entry: &Entry) -> Result<State> {
        let state: State = parse(entry)?;
        if state.count != self.count {
            let message = format!(
                "latch {} counts {}, not {}: everybody must choose the same",
                self.name, state.count, self.count
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(state)
    }

    fn put_state(&self, state: &State) -> Result<Write> {
        Ok(Write::Put { key: self.state_key.clone(), value: to_bytes(state)?, lease: None })
    }

    fn put_closed(&self, generation: u64) -> Result<Write> {
        Ok(Write::Put { key: self.closed_key(generation)?, value: Default::default(), lease: None })
    }

    fn closed_key(&self, generation: u64) -> Result<Key> {
        self.dir.key(&format!("closed-{generation}"))
    }

    fn arrivals(&self, generation: u64) -> Result<Dir> {
        Dir::new(self.dir.realm(), &format!("latch-arrival/{}/{generation}", self.name))
    }

    fn core(&self) -> &Arc<Core> {
        self.session.core()
    }
}

const DIRS_AT_ONCE: usize = 1_000;
const DELETED_AT_ONCE: usize = 16;

fn count(found: Option<&Found>) -> u64 {
    match found {
        Some(Found::Count(count)) => *count,
        _ => 0,
    }
}
