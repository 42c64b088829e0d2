//! The barrier: parties wait for each other, and then pass together; again and again.

use std::{collections::BTreeSet, fmt, sync::Arc};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, Order, Read, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key},
};
use serde::{Deserialize, Serialize};

use super::{
    NEEDS,
    request::{answer, look, new_operation, parse, wait_gone},
};
use crate::{Session, backoff::is_retryable, json::to_bytes, session::Core};

/// Lets parties pass when all of them wait: each time so many, in generations. Cheap to clone.
///
/// A party is an entry on its session's lease: one that dies while it waits drops out, and the others wait for another. Each
/// arrival and each withdrawal is a compare-and-set on the barrier's state, and the arrival that completes the parties also
/// begins the next generation, in the same transaction: so exactly as many as agreed pass in each, and between the last
/// arrival and the opening there is no moment in which anybody could die. `n` arriving at the same instant cost up to n²/2
/// requests.
///
/// In the store, `barrier/<name>` holds the state and the gate that the parties of this generation wait for;
/// `barrier-party/<name>/<generation>` holds the parties.
#[derive(Clone)]
pub struct Barrier(Arc<Inner>);

/// That all parties have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Arrival {
    /// Which time this was; grows with each.
    pub generation: u64,
    /// A number from 0 to below the number of parties, which no other party of the generation has.
    pub index: u64,
    /// Whether this party came last. Exactly one did.
    pub leader: bool,
}

const PARTIES_MAX: u64 = 1_000;

impl Barrier {
    /// The barrier of this name in the realm `main`, which is created if there is none.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir or a number of parties that is not 1 to 1,000; `Conflict` if the barrier has
    /// another; `Unsupported` if the engine promises less than a lock [needs](NEEDS); `Fenced` or `Closed` if the session
    /// is over.
    ///
    /// # Cancel safety
    /// The barrier may have been created.
    pub async fn open(session: &Session, name: &str, parties: u64) -> Result<Self> {
        session.kv().require(&NEEDS)?;
        if !(1..=PARTIES_MAX).contains(&parties) {
            return Err(Error::invalid(format!("a barrier cannot have {parties} parties: use 1 to {PARTIES_MAX}")));
        }
        let dir = Dir::new(&Default::default(), &format!("barrier/{name}"))?;
        let state_key = dir.key("state")?;
        let inner = Inner { session: session.clone(), name: name.to_owned(), parties, dir, state_key };
        inner.party_dir(u64::MAX)?;
        session.core().unless_lost(inner.create()).await?;
        Ok(Self(Arc::new(inner)))
    }

    /// Arrives, and waits until all parties have. An engine that does not answer is asked again for as long as the session
    /// lives.
    ///
    /// # Errors
    /// `Fenced` if the session is lost or the party's entry was deleted; `Closed` if the session is closed; `Corrupt` if an
    /// entry is not what the block wrote; what the engine answers, if it is final.
    ///
    /// # Cancel safety
    /// The session's task withdraws the party, unless the barrier opened before: then it has passed without knowing.
    pub async fn wait(&self) -> Result<Arrival> {
        let core = self.0.session.core();
        let party = Party { barrier: self.0.clone(), operation: new_operation(core.env()), generation: None };
        core.unless_lost(party.wait()).await
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Barrier({}, {} parties)", self.0.name, self.0.parties)
    }
}

struct Inner {
    session: Session,
    name: String,
    parties: u64,
    dir: Dir,
    state_key: Key,
}

/// What a barrier is, as stored. Arrivals and withdrawals write it again, which changes its revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    parties: u64,
    generation: u64,
}

/// A waiting party, as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Waiting {
    label: String,
    index: u64,
    leader: bool,
}

impl Inner {
    async fn create(&self) -> Result<()> {
        let txn = Txn {
            checks: vec![Check::Absent(self.state_key.clone())],
            reads: Vec::new(),
            writes: vec![self.put_state(1)?, self.put_gate(1)?],
        };
        match answer(self.core(), self.dir.realm(), &txn).await?.outcome {
            TxnOutcome::Refused { found: Some(found), .. } => self.read_state(&found).map(drop),
            _ => Ok(()),
        }
    }

    async fn state(&self) -> Result<(State, Revision)> {
        let found = look(self.core(), self.dir.realm(), vec![Read::Get(self.state_key.clone())]).await?;
        self.find_state(found.first())
    }

    fn find_state(&self, found: Option<&Found>) -> Result<(State, Revision)> {
        let Some(entry) = found.and_then(Found::entry) else {
            let message = format!("barrier {} is gone: somebody deleted its state", self.name);
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        Ok((self.read_state(entry)?, entry.modified))
    }

    fn read_state(&self, entry: &Entry) -> Result<State> {
        let state: State = parse(entry)?;
        if state.parties != self.parties {
            let message = format!(
                "barrier {} has {} parties, not {}: everybody must choose the same",
                self.name, state.parties, self.parties
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Ok(state)
    }

    /// Who waits in this generation. Read after the state: whoever comes or goes later breaks the check of its revision.
    async fn waiting(&self, generation: u64) -> Result<Vec<Entry>> {
        let mut backoff = self.core().backoff();
        let dir = self.party_dir(generation)?;
        loop {
            let order = Order::Name { after: String::new() };
            match self.core().kv().list(&dir, order, PARTIES_MAX as usize).await {
                Ok(page) => return Ok(page.entries),
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => return Err(error),
            }
        }
    }

    fn put_state(&self, generation: u64) -> Result<Write> {
        let value = to_bytes(&State { parties: self.parties, generation })?;
        Ok(Write::Put { key: self.state_key.clone(), value, lease: None })
    }

    fn put_gate(&self, generation: u64) -> Result<Write> {
        Ok(Write::Put { key: self.gate_key(generation)?, value: Default::default(), lease: None })
    }

    fn gate_key(&self, generation: u64) -> Result<Key> {
        self.dir.key(&format!("gate-{generation}"))
    }

    fn party_dir(&self, generation: u64) -> Result<Dir> {
        Dir::new(self.dir.realm(), &format!("barrier-party/{}/{generation}", self.name))
    }

    fn core(&self) -> &Arc<Core> {
        self.session.core()
    }
}

/// One wait on its way. Dropping it withdraws.
struct Party {
    barrier: Arc<Inner>,
    operation: String,
    /// The generation that it has arrived in, or has tried to.
    generation: Option<u64>,
}

impl Party {
    async fn wait(mut self) -> Result<Arrival> {
        let barrier = self.barrier.clone();
        let (generation, waiting) = self.arrive().await?;
        let key = self.key(generation)?;
        let gate = barrier.gate_key(generation)?;
        let mut backoff = barrier.core().backoff();
        loop {
            let reads = vec![Read::Get(barrier.state_key.clone()), Read::Get(key.clone()), Read::Get(gate.clone())];
            let found = look(barrier.core(), barrier.dir.realm(), reads).await?;
            if found.get(1).and_then(Found::entry).is_none() {
                let message = format!("{key} is gone: its lease ended or somebody deleted it");
                return Err(Error::new(ErrorKind::Fenced, message));
            }
            // Our entry is still here, so it was when the generation ended.
            if barrier.find_state(found.first())?.0.generation > generation {
                barrier.core().ensure_alive()?;
                return Ok(Arrival { generation, index: waiting.index, leader: waiting.leader });
            }
            match found.get(2).and_then(Found::entry) {
                Some(gate) => wait_gone(barrier.core(), &gate.key, gate.created, &mut backoff).await?,
                // Somebody deleted it: what is left is to look from time to time.
                None => backoff.pause().await,
            }
        }
    }

    /// Takes a place, and opens the gate if it is the last one.
    async fn arrive(&mut self) -> Result<(u64, Waiting)> {
        let barrier = self.barrier.clone();
        let mut backoff = barrier.core().backoff();
        loop {
            let (state, modified) = barrier.state().await?;
            let others = barrier.waiting(state.generation).await?;
            let waiting = self.place_among(&others)?;
            let key = self.key(state.generation)?;
            // Before the request leaves, since this future may be dropped while it is on its way.
            self.generation = Some(state.generation);
            let txn = self.arrival(&key, modified, state.generation, &waiting)?;
            let answer = match answer(barrier.core(), barrier.dir.realm(), &txn).await {
                Err(error) if error.kind() == ErrorKind::Fenced => {
                    barrier.core().mark_fenced(&error);
                    return Err(error);
                }
                answer => answer?,
            };
            match answer.outcome {
                TxnOutcome::Committed { .. } => return Ok((state.generation, waiting)),
                // An earlier try took effect though its answer was lost.
                TxnOutcome::Refused { check: 0, .. } => return Ok((state.generation, waiting)),
                // Somebody came or went. Our tries cannot take effect any more: the state never has that revision again.
                TxnOutcome::Refused { .. } => backoff.pause().await,
            }
        }
    }

    fn place_among(&self, others: &[Entry]) -> Result<Waiting> {
        let taken = others.iter().map(|entry| Ok(parse::<Waiting>(entry)?.index)).collect::<Result<BTreeSet<_>>>()?;
        let index = (0..).find(|index| !taken.contains(index)).unwrap_or_default();
        let leader = others.len() as u64 + 1 >= self.barrier.parties;
        Ok(Waiting { label: self.barrier.session.name().to_owned(), index, leader })
    }

    fn arrival(&self, key: &Key, modified: Revision, generation: u64, waiting: &Waiting) -> Result<Txn> {
        let barrier = &self.barrier;
        let lease = Some(barrier.session.lease());
        let mut writes = vec![Write::Put { key: key.clone(), value: to_bytes(waiting)?, lease }];
        if waiting.leader {
            writes.push(barrier.put_state(generation + 1)?);
            writes.push(barrier.put_gate(generation + 1)?);
            writes.push(Write::Delete(barrier.gate_key(generation)?));
        } else {
            writes.push(barrier.put_state(generation)?);
        }
        let checks = vec![Check::Absent(key.clone()), Check::ModifiedAt(barrier.state_key.clone(), modified)];
        Ok(Txn { checks, reads: Vec::new(), writes })
    }

    fn key(&self, generation: u64) -> Result<Key> {
        self.barrier.party_dir(generation)?.key(&self.operation)
    }
}

/// Takes the party away. Writing the state again makes sure that an arrival still on its way cannot come later, and that
/// nobody opens the gate on a count with us in it. In a generation that is over there is only the entry left to remove.
async fn withdraw(barrier: &Inner, key: &Key, generation: u64) -> Result<()> {
    loop {
        let (state, modified) = barrier.state().await?;
        let (mut checks, mut writes) = (Vec::new(), vec![Write::Delete(key.clone())]);
        if state.generation == generation {
            checks.push(Check::ModifiedAt(barrier.state_key.clone(), modified));
            writes.push(barrier.put_state(generation)?);
        }
        let txn = Txn { checks, reads: Vec::new(), writes };
        if let TxnOutcome::Committed { .. } = answer(barrier.core(), barrier.dir.realm(), &txn).await?.outcome {
            return Ok(());
        }
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        let Some(generation) = self.generation else { return };
        let Ok(key) = self.key(generation) else { return };
        let barrier = self.barrier.clone();
        self.barrier.core().defer(async move {
            if let Err(error) = withdraw(&barrier, &key, generation).await {
                tracing::debug!(%key, %error, "a party of a barrier stays until its session ends");
            }
        });
    }
}
