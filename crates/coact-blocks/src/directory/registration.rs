//! A registration: an instance that its owner keeps in the store, with what it says now and for as long as it wants.

use std::{fmt, sync::Arc};

use coact_core::{
    Effect, Error, ErrorKind, Result, Retry,
    contract::kv::{Check, Entry, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key},
};
use tokio::sync::watch;

use super::{
    Directory, Instance, PERSISTENT_NEEDS,
    keeper::Keeper,
    names::{self, Kind},
    record::{self, Record},
};
use crate::{
    Session,
    backoff::{Backoff, is_retryable},
    json,
};

/// How long a registration lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// As long as its process lives, and a ttl.
    #[default]
    Ephemeral,
    /// Until somebody deregisters it, also beyond its process.
    Persistent,
}

/// An instance in the directory. It is written again, with what it says **now**, whenever the store loses it; so to take
/// traffic away from a live one, drain it rather than remove its entry.
///
/// Dropping it deregisters in the background, also a persistent one; [`keep`](Self::keep) leaves that in the store.
pub struct Registration {
    id: String,
    goal: watch::Sender<Goal>,
    status: watch::Receiver<Status>,
}

/// How a registration stands.
#[derive(Clone, Debug)]
pub enum RegistrationState {
    /// The store has what the owner says.
    Registered,
    /// It does not, or not for sure; the registration keeps trying.
    Retrying {
        /// Why the last try failed.
        why: Error,
    },
}

impl Directory {
    /// Registers an instance and keeps it registered. An empty id becomes a random one.
    ///
    /// # Errors
    /// `Invalid` for an instance against the rules; `AlreadyExists`, naming the holder, if another registration has the id
    /// (that of a process that died goes within its ttl); `Unsupported` for a persistent one in a store that
    /// [forgets](PERSISTENT_NEEDS); `Unavailable` if the store does not answer.
    ///
    /// # Cancel safety
    /// Safe: what was registered is deregistered in the background.
    pub async fn register(&self, mut instance: Instance, mode: Mode) -> Result<Registration> {
        if mode == Mode::Persistent {
            self.0.kv.require(&PERSISTENT_NEEDS)?;
        }
        let env = self.0.kv.env();
        if instance.id.is_empty() {
            instance.id = format!("{:016x}", env.random());
        }
        instance.validate()?;
        let dir = names::dir_of(&self.0.options.realm, &instance.service)?;
        let id = instance.id.clone();
        let (goal, wanted) = watch::channel(Goal { instance, draining: false, version: 1, purpose: Purpose::Stay });
        let (status, seen) = watch::channel(Status::Trying { tried: 0, why: None });
        let owner = Owner {
            key: names::key_of(&dir, Kind::Instance, &id)?,
            id: id.clone(),
            dir,
            keeper: self.0.keeper.clone(),
            owner: format!("{:016x}{:016x}", env.random(), env.random()),
            mode,
            unanswered: false,
            written: false,
        };
        env.spawn(owner.run(wanted, status));
        let registration = Registration { id, goal, status: seen };
        registration.settled(1).await?;
        Ok(registration)
    }
}

impl Registration {
    /// The id of the instance.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it says now.
    pub fn instance(&self) -> Instance {
        self.goal.borrow().instance.clone()
    }

    /// How it stands.
    pub fn state(&self) -> RegistrationState {
        match &*self.status.borrow() {
            Status::Written { .. } => RegistrationState::Registered,
            Status::Trying { why: Some(why), .. } => RegistrationState::Retrying { why: why.clone() },
            Status::Trying { why: None, .. } => RegistrationState::Retrying {
                why: Error::new(ErrorKind::Unavailable, format!("instance {} is being written", self.id)),
            },
            Status::Ended(_) => RegistrationState::Retrying { why: self.closed_error() },
        }
    }

    /// Says something else from now on: in the store once this returns, and whenever it is written again.
    ///
    /// # Errors
    /// `Invalid` for an instance against the rules, or of another service or id. Otherwise why the first try failed; the
    /// registration keeps trying.
    ///
    /// # Cancel safety
    /// It is said all the same.
    pub async fn update(&self, instance: Instance) -> Result<()> {
        instance.validate()?;
        let (id, service) = {
            let goal = self.goal.borrow();
            (goal.instance.id.clone(), goal.instance.service.clone())
        };
        if instance.id != id || instance.service != service {
            return Err(Error::invalid(format!(
                "instance {} of service {} cannot become {} of {}: register that instead",
                id, service, instance.id, instance.service
            )));
        }
        self.say(|goal| goal.instance = instance).await
    }

    /// Asks for no more traffic, or for traffic again. An operator's drain marker is another thing and stays.
    ///
    /// # Errors
    /// Why the first try failed; the registration keeps trying.
    ///
    /// # Cancel safety
    /// It is asked all the same.
    pub async fn drain(&self, draining: bool) -> Result<()> {
        self.say(|goal| goal.draining = draining).await
    }

    /// Deletes the instance, its health and its drain marker. It is not written again.
    ///
    /// # Errors
    /// Why the first try to delete it failed; the registration keeps trying in the background.
    ///
    /// # Cancel safety
    /// It is deregistered all the same.
    pub async fn deregister(self) -> Result<()> {
        self.goal.send_modify(|goal| goal.purpose = Purpose::Leave);
        let mut status = self.status.clone();
        match status.wait_for(|status| matches!(status, Status::Ended(_))).await.as_deref() {
            Ok(Status::Ended(result)) => result.clone(),
            _ => Err(self.closed_error()),
        }
    }

    /// Lets go of the instance without deregistering it: a persistent one stays, an ephemeral one until the directory's
    /// session ends.
    pub fn keep(self) {
        self.goal.send_modify(|goal| goal.purpose = Purpose::Forget);
    }

    async fn say(&self, change: impl FnOnce(&mut Goal)) -> Result<()> {
        let mut version = 0;
        self.goal.send_modify(|goal| {
            change(goal);
            goal.version += 1;
            version = goal.version;
        });
        self.settled(version).await
    }

    /// Waits until this version is written or a try to write it failed.
    async fn settled(&self, version: u64) -> Result<()> {
        let mut status = self.status.clone();
        let settled = status
            .wait_for(|status| match status {
                Status::Written { version: written } => *written >= version,
                Status::Trying { tried, why } => *tried >= version && why.is_some(),
                Status::Ended(_) => true,
            })
            .await;
        match settled.as_deref() {
            Ok(Status::Written { .. }) => Ok(()),
            Ok(Status::Trying { why: Some(why), .. }) => Err(why.clone()),
            _ => Err(self.closed_error()),
        }
    }

    fn closed_error(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("the registration of instance {} has ended", self.id))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.goal.send_if_modified(|goal| {
            let leaves = goal.purpose == Purpose::Stay;
            if leaves {
                goal.purpose = Purpose::Leave;
            }
            leaves
        });
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration({} of {}, {:?})", self.id, self.goal.borrow().instance.service, self.state())
    }
}

/// What the owner wants.
#[derive(Clone)]
struct Goal {
    instance: Instance,
    draining: bool,
    version: u64,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Stay,
    Leave,
    Forget,
}

/// How far the task has come.
enum Status {
    Written { version: u64 },
    Trying { tried: u64, why: Option<Error> },
    Ended(Result<()>),
}

/// The task of one registration: it alone writes and deletes the entry, one request at a time.
struct Owner {
    dir: Dir,
    key: Key,
    id: String,
    keeper: Arc<Keeper>,
    /// Tells our entry from those of others.
    owner: String,
    mode: Mode,
    /// Whether a request to create the entry got no answer: it may still arrive.
    unanswered: bool,
    /// Whether the entry was ever ours.
    written: bool,
}

impl Owner {
    async fn run(mut self, mut wanted: watch::Receiver<Goal>, status: watch::Sender<Status>) {
        let mut backoff = self.keeper.backoff();
        loop {
            let goal = wanted.borrow_and_update().clone();
            match goal.purpose {
                Purpose::Stay => {}
                Purpose::Leave => return self.leave(&status).await,
                Purpose::Forget => {
                    status.send_replace(Status::Ended(Ok(())));
                    return;
                }
            }
            match self.write(&goal).await {
                Ok((session, created)) => {
                    backoff.reset();
                    status.send_replace(Status::Written { version: goal.version });
                    tokio::select! {
                        biased;
                        _ = wanted.changed() => {}
                        why = self.missing(session, created) => {
                            status.send_replace(Status::Trying { tried: 0, why: Some(why) });
                        }
                    }
                }
                Err(why) => {
                    status.send_replace(Status::Trying { tried: goal.version, why: Some(why) });
                    let pause = self.keeper.kv().env().sleep(backoff.next_pause());
                    tokio::select! {
                        biased;
                        _ = wanted.changed() => {}
                        () = pause => {}
                    }
                }
            }
        }
    }

    /// Puts what the owner says now, in place of what we wrote before. Returns what the entry hangs on.
    async fn write(&mut self, goal: &Goal) -> Result<(Option<Session>, Revision)> {
        let session = match self.mode {
            Mode::Ephemeral => Some(self.keeper.session().await?),
            Mode::Persistent => None,
        };
        let record = Record {
            instance: goal.instance.clone(),
            owner: self.owner.clone(),
            label: self.keeper.label().to_owned(),
            draining: goal.draining,
        };
        let put = Write::Put {
            key: self.key.clone(),
            value: json::to_bytes(&record)?,
            lease: session.as_ref().map(Session::lease),
        };
        let mut found: Option<Entry> = None;
        for _ in 0..ROUNDS {
            let check = match &found {
                Some(found) => Check::ModifiedAt(self.key.clone(), found.modified),
                None => Check::Absent(self.key.clone()),
            };
            let txn = Txn { checks: vec![check], reads: Vec::new(), writes: vec![put.clone()] };
            match self.send(txn).await {
                Ok(TxnOutcome::Committed { revision, .. }) => {
                    self.written = true;
                    return Ok((session, found.map_or(revision, |found| found.created)));
                }
                Ok(TxnOutcome::Refused { found: holder, .. }) => {
                    holder.as_ref().map_or(Ok(()), |holder| self.ensure_ours(holder))?;
                    found = holder;
                }
                Err(error) => {
                    self.unanswered |= found.is_none() && error.effect() == Effect::Unknown;
                    return Err(error);
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{} changes faster than it can be written", self.key)))
    }

    fn ensure_ours(&self, found: &Entry) -> Result<()> {
        let record: Option<Record> = json::read(found);
        if record.as_ref().is_some_and(|record| record.owner == self.owner) {
            return Ok(());
        }
        let label = record.map_or_else(|| "somebody else".to_owned(), |record| record.label);
        let message = format!(
            "instance {} exists in {} and is registered by {label}: choose another id, or wait until that is gone",
            self.id, self.dir
        );
        Err(Error::new(ErrorKind::AlreadyExists, message).with_retry(Retry::After(self.keeper.ttl())))
    }

    /// Returns when the entry is no longer in the store, or will not be for long, and says why.
    async fn missing(&self, session: Option<Session>, created: Revision) -> Error {
        // The lost session itself is not kept: its lease should end.
        let lost = session.map(|session| session.core().lost());
        let lost = async {
            match lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = lost => why,
            why = self.gone(created) => why,
        }
    }

    async fn gone(&self, created: Revision) -> Error {
        let (kv, ttl) = (self.keeper.kv(), self.keeper.ttl());
        let mut backoff = self.keeper.backoff();
        loop {
            // Wake-ups are hints; without one we look now and then on our own account.
            let limit = ttl * 6 + kv.env().random_duration(ttl);
            let _ = kv.env().timeout(limit, kv.await_gone(&self.key, created)).await;
            match kv.env().timeout(ttl, kv.get(&self.key)).await {
                Some(Ok(Some(entry))) if entry.created == created => {}
                Some(Ok(_)) => {
                    return Error::new(ErrorKind::Unavailable, format!("{} is gone and is written again", self.key));
                }
                Some(Err(_)) | None => {}
            }
            backoff.pause().await;
        }
    }

    /// Deletes the entry until that is certain, and looks again if a request to create it may still arrive.
    async fn leave(self, status: &watch::Sender<Status>) {
        let mut backoff = self.keeper.backoff();
        self.remove_surely(&mut backoff, Some(status)).await;
        if self.unanswered {
            for _ in 0..LOOKS {
                self.keeper.kv().env().sleep(self.keeper.ttl() / LOOKS).await;
                self.remove_surely(&mut backoff, None).await;
            }
        }
    }

    async fn remove_surely(&self, backoff: &mut Backoff, status: Option<&watch::Sender<Status>>) {
        backoff.reset();
        loop {
            let result = self.remove().await;
            if let Some(status) = status {
                status.send_replace(Status::Ended(result.clone()));
            }
            match result {
                Err(error) if is_retryable(&error) => backoff.pause().await,
                Err(error) => {
                    tracing::warn!(key = %self.key, %error, "an instance stays in the directory");
                    return;
                }
                Ok(()) => return,
            }
        }
    }

    async fn remove(&self) -> Result<()> {
        if !self.written && !self.unanswered {
            return Ok(());
        }
        for _ in 0..ROUNDS {
            let found = self.keeper.kv().get(&self.key).await?;
            let check = match &found {
                Some(found) if self.ensure_ours(found).is_ok() => {
                    let check = Check::ModifiedAt(self.key.clone(), found.modified);
                    if let Some(farewell) = record::farewell(found)? {
                        let txn = Txn { checks: vec![check], reads: Vec::new(), writes: vec![farewell] };
                        let _ = self.send(txn).await?;
                        continue;
                    }
                    check
                }
                // Somebody else has the id by now.
                Some(_) => return Ok(()),
                None => Check::Absent(self.key.clone()),
            };
            let mut writes = Vec::new();
            for kind in [Kind::Instance, Kind::Health, Kind::Drain] {
                writes.push(Write::Delete(names::key_of(&self.dir, kind, &self.id)?));
            }
            let txn = Txn { checks: vec![check], reads: Vec::new(), writes };
            if let TxnOutcome::Committed { .. } = self.send(txn).await? {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{} changes faster than it can be deleted", self.key)))
    }

    /// One request, not waiting longer than a lease lives.
    async fn send(&self, txn: Txn) -> Result<TxnOutcome> {
        let kv = self.keeper.kv();
        let sent = kv.txn(self.dir.realm(), txn);
        kv.env().timeout(self.keeper.ttl(), sent).await.unwrap_or_else(|| {
            let message = format!("the store did not answer about {} in time", self.key);
            Err(Error::new(ErrorKind::Unavailable, message).effect_unknown())
        })
    }
}

/// How often an entry may change under our hands before a request fails.
const ROUNDS: u32 = 16;
/// How often, within a ttl, we look for what a late request created.
const LOOKS: u32 = 3;
