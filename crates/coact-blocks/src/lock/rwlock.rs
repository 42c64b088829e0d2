//! The read-write lock: many readers, or one writer.

use std::{fmt, sync::Arc, time::Duration};

use coact_core::{
    Result,
    contract::kv::{Found, Read, Write},
    name::Key,
};

use super::{
    Kind, Lock, LockOptions, Operation,
    attempt::{Attempt, Line},
    claim::{Claim, Creation, Request},
    fence::sql_fence,
    held::{Held, guard, release},
    ticket::{DOWNGRADED_NAME, TicketKind},
};
use crate::Session;

/// A lock that many readers or one writer have, among all sessions of the store. Cheap to clone.
///
/// Grants come in the order of arrival: a reader waits for the writers that came before it, a writer for everybody who
/// did. So neither side starves, and the readers between two writers are granted together.
///
/// A resource that compares tokens takes writes only with those of [`WriteGuard`]; a reader's token shows it at which
/// point in the order it reads. It is not re-entrant: a task that reads and asks to write waits for itself; see
/// [`ReadGuard::try_upgrade`].
#[derive(Clone)]
pub struct RwLock(Arc<Inner>);

impl RwLock {
    /// The read-write lock of this name in the realm `main`. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no dir; `Unsupported` if the engine promises less than a lock [needs](super::NEEDS).
    pub fn new(session: &Session, name: &str) -> Result<Self> {
        Self::with_options(session, name, LockOptions::default())
    }

    /// The read-write lock of this name. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(session: &Session, name: &str, options: LockOptions) -> Result<Self> {
        let lock = Lock::open(session, Kind::RwLock, name, options)?;
        let (readers, writers) = (TicketKind::Read.dir(&lock.realm, name)?, TicketKind::Write.dir(&lock.realm, name)?);
        let downgraded = TicketKind::Downgraded.dir(&lock.realm, name)?.key(DOWNGRADED_NAME)?;
        let read = Line {
            kind: TicketKind::Read,
            own: readers.clone(),
            ahead: vec![writers.clone()],
            gate: None,
            barging: None,
        };
        let write = Line {
            kind: TicketKind::Write,
            own: writers.clone(),
            ahead: vec![writers, readers],
            gate: Some(downgraded.clone()),
            barging: None,
        };
        Ok(Self(Arc::new(Inner { lock, read, write, downgraded })))
    }

    /// The name, without the dir's prefix.
    pub fn name(&self) -> &str {
        &self.0.lock.name
    }

    /// Waits until every writer that came before has left. One round trip if there is none. An engine that does not answer
    /// is asked again for as long as the session lives.
    ///
    /// # Errors
    /// `Fenced` if the session is lost or the entry in the queue was deleted; `Closed` if the session is closed; what the
    /// engine answers, if it is final.
    ///
    /// # Cancel safety
    /// Safe: the session's task withdraws the entry, also when the store's answer had not arrived.
    pub async fn read(&self) -> Result<ReadGuard> {
        self.reads(Request::default(), None).await
    }

    /// Waits for a read grant, but not longer than `limit`.
    ///
    /// # Errors
    /// `Conflict` if it was not granted in time, naming who is in the way; otherwise as [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn read_within(&self, limit: Duration) -> Result<ReadGuard> {
        self.reads(Request::default(), Some(limit)).await
    }

    /// Waits for a read grant to this operation, but not longer than `limit`: calling again in the same session finds the
    /// same grant. See [`Mutex::acquire_as`](super::Mutex::acquire_as).
    ///
    /// # Errors
    /// As [`read_within`](Self::read_within), and `Conflict` if the operation is another session's.
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn read_as(&self, operation: Operation, limit: Option<Duration>) -> Result<ReadGuard> {
        self.reads(Request { operation: Some(operation), value: None }, limit).await
    }

    /// Reads if no writer holds the lock or waits for it; `None` otherwise. It looks before it writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn try_read(&self) -> Result<Option<ReadGuard>> {
        Ok(self.try_line(&self.0.read).await?.map(|held| ReadGuard(held, self.clone())))
    }

    /// Waits until everybody who came before has left. One round trip if there is nobody. Otherwise as
    /// [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard> {
        self.writes(Request::default(), None).await
    }

    /// Waits for the write grant, but not longer than `limit`.
    ///
    /// # Errors
    /// As [`read_within`](Self::read_within).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn write_within(&self, limit: Duration) -> Result<WriteGuard> {
        self.writes(Request::default(), Some(limit)).await
    }

    /// Waits for the write grant to this operation, but not longer than `limit`: calling again in the same session finds
    /// the same grant. See [`Mutex::acquire_as`](super::Mutex::acquire_as).
    ///
    /// # Errors
    /// As [`read_as`](Self::read_as).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn write_as(&self, operation: Operation, limit: Option<Duration>) -> Result<WriteGuard> {
        self.writes(Request { operation: Some(operation), value: None }, limit).await
    }

    /// Writes if nobody holds the lock or waits for it; `None` otherwise. It looks before it writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Cancel safety
    /// As [`read`](Self::read).
    pub async fn try_write(&self) -> Result<Option<WriteGuard>> {
        Ok(self.try_line(&self.0.write).await?.map(|held| WriteGuard(held, self.clone())))
    }

    async fn reads(&self, request: Request, limit: Option<Duration>) -> Result<ReadGuard> {
        let held = self.wait_in(&self.0.read, request, limit).await?;
        Ok(ReadGuard(held, self.clone()))
    }

    async fn writes(&self, request: Request, limit: Option<Duration>) -> Result<WriteGuard> {
        let held = self.wait_in(&self.0.write, request, limit).await?;
        Ok(WriteGuard(held, self.clone()))
    }

    async fn wait_in(&self, line: &Line, request: Request, limit: Option<Duration>) -> Result<Held> {
        let attempt = Attempt::new(&self.0.lock, line, request)?;
        self.0.lock.within(limit, &line.ahead, Box::pin(attempt.wait_for_grant())).await
    }

    async fn try_line(&self, line: &Line) -> Result<Option<Held>> {
        let attempt = Attempt::new(&self.0.lock, line, Request::default())?;
        self.0.lock.core().unless_lost(Box::pin(attempt.grant_or_give_up())).await
    }
}

impl fmt::Debug for RwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RwLock({})", self.name())
    }
}

struct Inner {
    lock: Arc<Lock>,
    read: Line,
    write: Line,
    /// The entry of a writer that reads on.
    downgraded: Key,
}

/// The lock is held for reading, as far as this process can know.
///
/// Dropping it releases the lock in the background; [`release`](Self::release) does so and reports.
#[must_use = "dropping the guard releases the lock"]
pub struct ReadGuard(Held, RwLock);

guard!(ReadGuard, "lock, except that a writer that was downgraded keeps its own");
release!(ReadGuard);

impl ReadGuard {
    /// Becomes the writer if this is the only reader and no writer waits; otherwise the read guard comes back in the inner
    /// `Err`. There is no upgrade that waits: two readers that both did would wait for each other.
    ///
    /// # Errors
    /// `Fenced` if the lock or the session is lost; what the engine answers, if it is final. The lock is released then.
    ///
    /// # Cancel safety
    /// The lock is released, as when the guard is dropped.
    pub async fn try_upgrade(self) -> Result<std::result::Result<WriteGuard, ReadGuard>> {
        let core = self.0.core().clone();
        core.unless_lost(Box::pin(self.upgrade())).await
    }

    async fn upgrade(self) -> Result<std::result::Result<WriteGuard, ReadGuard>> {
        let Inner { lock, read, write, downgraded } = &*self.1.0;
        let mut attempt = Attempt::new(lock, write, Request::default())?;
        let reads = vec![
            Read::First(read.own.clone()),
            Read::Last(read.own.clone()),
            Read::First(write.own.clone()),
            Read::Get(downgraded.clone()),
        ];
        let sole = match attempt.claim.create(vec![self.0.is_ours()], reads, Vec::new()).await? {
            Creation::Now(found) => found.iter().filter_map(Found::entry).all(|entry| entry.created == self.0.created),
            Creation::Earlier => attempt.is_first_but_for(&self.0).await?,
            Creation::Refused(_) => return Err(self.0.lost_error()),
        };
        if !sole {
            attempt.claim.withdraw().await?;
            return Ok(Err(self));
        }
        let writer = WriteGuard(attempt.claim.grant(TicketKind::Write)?, self.1.clone());
        self.0.release().await?;
        Ok(Ok(writer))
    }
}

/// The lock is held for writing, as far as this process can know. See the [module](super) for how to protect what a late
/// write could still reach.
///
/// Dropping it releases the lock in the background; [`release`](Self::release) does so and reports.
#[must_use = "dropping the guard releases the lock"]
pub struct WriteGuard(Held, RwLock);

guard!(WriteGuard, "lock");
sql_fence!(WriteGuard);
release!(WriteGuard);

impl WriteGuard {
    /// Becomes a reader, and lets the readers in that wait next in line. No writer comes between.
    ///
    /// The read guard keeps the writer's token: that is its place in the order, before every writer that waits.
    ///
    /// # Errors
    /// `Fenced` if the lock or the session is lost; what the engine answers, if it is final. The lock is released then.
    ///
    /// # Cancel safety
    /// The lock is released, as when the guard is dropped.
    pub async fn downgrade(self) -> Result<ReadGuard> {
        let core = self.0.core().clone();
        core.unless_lost(Box::pin(self.downgraded())).await
    }

    async fn downgraded(self) -> Result<ReadGuard> {
        let Inner { lock, downgraded, .. } = &*self.1.0;
        let request = Request { operation: Some(self.0.operation), value: None };
        let mut claim = Claim::named(lock, downgraded, request)?;
        let delete = Write::Delete(self.0.entry.key.clone());
        match claim.create(vec![self.0.is_ours()], Vec::new(), vec![delete]).await? {
            Creation::Now(_) | Creation::Earlier => {}
            Creation::Refused(_) => return Err(self.0.lost_error()),
        }
        let mut held = claim.regrant(TicketKind::Downgraded)?;
        held.token = self.0.token;
        let lock = self.1.clone();
        self.0.forget();
        Ok(ReadGuard(held, lock))
    }
}
