//! The generator: what users call, and the task that keeps a window open.

use std::{fmt, ops::Range, sync::Arc, time::Duration, vec};

use coact_core::{Error, ErrorKind, Result, env::PlantedBug, name::Realm};
use tokio::sync::{Notify, watch};

use super::{
    EPOCH_MS, Id, Layout, NEEDS,
    clock::Clock,
    space::{Claim, Names, Space},
    window::{Wait, Window},
};
use crate::{Session, backoff::is_retryable};

/// Issues unique ids that grow. Cheap to clone; clones share the worker number.
///
/// Ids of one generator strictly increase. Ids of different generators are ordered by time as well as their clocks agree.
/// If the wall clock steps back, the generator goes on by the monotonic clock; if it is unable to reserve a window, because
/// the store does not answer, it stops issuing when its window ends.
///
/// It goes on without its session, whose lease only keeps others from choosing the same number.
///
/// Not covered: a process that forks, or a machine that is cloned, inside a window. The generator stops when it finds
/// itself in another process, at the next renewal; until then, for at most one and a half windows, both may issue the
/// same. Open a new generator after a fork.
///
/// Dropping the last clone gives the worker number back in the background; [`close`](Self::close) does so and reports.
#[derive(Clone)]
pub struct Generator(Arc<Handle>);

/// How a generator is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdOptions {
    /// The realm of the space; `main` by default.
    pub realm: Realm,
    /// Ids are unique within a space; `main` by default.
    pub space: String,
    /// How the bits are divided. Everybody who uses the space must choose the same.
    pub layout: Layout,
    /// How much time is reserved at once: 100 ms to 30 s, 3 s by default. It is written once a window, and the store may
    /// be away for half a window before ids stop.
    pub window: Duration,
    /// How far ahead of the clock the first window may begin, which the first id then waits for: up to 60 s, 3 s by
    /// default. It happens where every other number is taken and the last owner ended a moment ago.
    pub max_ahead: Duration,
}

impl Default for IdOptions {
    fn default() -> Self {
        Self {
            realm: Realm::default(),
            space: "main".to_owned(),
            layout: Layout::STD,
            window: Duration::from_secs(3),
            max_ahead: Duration::from_secs(3),
        }
    }
}

impl Generator {
    /// Claims a worker number and starts to keep a window open.
    ///
    /// # Errors
    /// `Unsupported` if the engine promises less than unique ids [need](NEEDS); `Invalid` for an option out of bounds;
    /// `Conflict` if the space is used with another layout; `Exhausted` if no worker number is free; `Fenced` or `Closed`
    /// if the session is over; `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// A number claimed by a dropped future is free again when the session ends.
    pub async fn open(session: &Session, options: IdOptions) -> Result<Self> {
        check_options(&options)?;
        session.kv().require(&NEEDS)?;
        session.core().ensure_alive()?;
        let env = session.kv().env();
        if env.wall_ms() < EPOCH_MS {
            return Err(Error::invalid("the wall clock is before 2024, where every id layout begins: set it"));
        }
        let space = Space {
            kv: session.kv().clone(),
            names: Names::new(&options.realm, &options.space)?,
            layout: options.layout,
            window_ms: options.window.as_millis() as u64,
            max_ahead_ms: options.max_ahead.as_millis() as u64,
            lease: session.lease(),
            label: session.name().to_owned(),
        };
        let clock = Clock::new(env);
        let claim = space.claim(&clock, 0).await?;
        let inner = Arc::new(Inner {
            session: session.clone(),
            window: Window::new(options.layout),
            clock,
            space,
            wanted: Notify::new(),
            status: watch::Sender::new(Status::Renewed),
            stop: watch::Sender::new(false),
            closed: watch::Sender::new(None),
        });
        inner.open_window(&claim);
        env.spawn(keep_window(inner.clone(), claim));
        Ok(Self(Arc::new(Handle(inner))))
    }

    /// The next id. Waits for the next millisecond if the sequence of this one is used up, and for the store if no window
    /// is open.
    ///
    /// # Errors
    /// `Unavailable` if no window is open and the store did not answer; `Exhausted`, `Conflict` or `Fenced` if the worker
    /// number was lost and no other could be claimed; `Closed` after [`close`](Self::close). Nothing was issued.
    ///
    /// # Cancel safety
    /// Safe: no id is lost.
    pub async fn next(&self) -> Result<Id> {
        let run = self.inner().take(1).await?;
        Ok(Id::new(run.start))
    }

    /// The next id if there is one now. Lock-free; it reads one clock and never waits.
    #[inline]
    pub fn try_next(&self) -> Option<Id> {
        let inner = self.inner();
        inner.window.take(inner.clock.now(), 1).ok().map(|run| Id::new(run.start))
    }

    /// The next `count` ids, in order: one step of the generator for each millisecond they come from.
    ///
    /// # Errors
    /// As [`next`](Self::next); ids taken before the failure are lost.
    ///
    /// # Cancel safety
    /// Ids taken by a dropped future are lost: never issued again.
    pub async fn next_n(&self, count: usize) -> Result<Ids> {
        let mut runs = Vec::new();
        let mut left = count as u64;
        while left > 0 {
            let run = self.inner().take(left).await?;
            left -= run.end - run.start;
            runs.push(run);
        }
        Ok(Ids { run: 0..0, later: runs.into_iter() })
    }

    /// How its ids are divided.
    pub fn layout(&self) -> Layout {
        self.inner().space.layout
    }

    /// The worker number it issues for. It changes if the number was lost.
    pub fn worker(&self) -> u32 {
        self.inner().window.worker()
    }

    /// Stops issuing and gives the worker number back.
    ///
    /// # Errors
    /// `Unavailable` if the store could not be told; the number is then free when the session ends.
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        let mut closed = self.inner().closed.subscribe();
        self.inner().stop.send_replace(true);
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(self.inner().closed_error()),
        }
    }

    fn inner(&self) -> &Inner {
        &self.0.0
    }
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generator({}, {}, worker {})", self.inner().space.names.space, self.layout(), self.worker())
    }
}

/// Ids taken at once, in order.
#[derive(Clone, Debug)]
pub struct Ids {
    run: Range<u64>,
    later: vec::IntoIter<Range<u64>>,
}

impl Iterator for Ids {
    type Item = Id;

    #[inline]
    fn next(&mut self) -> Option<Id> {
        loop {
            if let Some(number) = self.run.next() {
                return Some(Id::new(number));
            }
            self.run = self.later.next()?;
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let later = self.later.as_slice().iter();
        let left = later.chain([&self.run]).map(|run| run.end - run.start).sum::<u64>() as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Ids {}
impl std::iter::FusedIterator for Ids {}

/// What users hold; the background task holds the [`Inner`], so that it does not keep the generator open.
struct Handle(Arc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
    }
}

struct Inner {
    window: Window,
    clock: Clock,
    space: Space,
    /// Kept open: the hint hangs on its lease.
    session: Session,
    /// Somebody waits for a window.
    wanted: Notify,
    status: watch::Sender<Status>,
    stop: watch::Sender<bool>,
    closed: watch::Sender<Option<Result<()>>>,
}

/// How the last attempt to keep a window open went.
enum Status {
    Renewed,
    /// It is tried again.
    Failed(Error),
    /// It is not tried again.
    Ended(Error),
}

impl Inner {
    async fn take(&self, count: u64) -> Result<Range<u64>> {
        let mut status = None;
        loop {
            match self.window.take(self.clock.now(), count) {
                Ok(run) => return Ok(run),
                Err(Wait::Tick(tick)) => self.clock.wait_until(tick).await,
                Err(Wait::Renewal) => match &mut status {
                    // Listen first and look again, or a renewal in between would go unheard.
                    None => status = Some(self.listen()?),
                    Some(status) => self.wait_for_renewal(status).await?,
                },
            }
        }
    }

    fn listen(&self) -> Result<watch::Receiver<Status>> {
        let mut status = self.status.subscribe();
        match &*status.borrow_and_update() {
            Status::Ended(error) => return Err(error.clone()),
            Status::Renewed | Status::Failed(_) => {}
        }
        Ok(status)
    }

    async fn wait_for_renewal(&self, status: &mut watch::Receiver<Status>) -> Result<()> {
        self.wanted.notify_one();
        if status.changed().await.is_err() {
            return Err(self.closed_error());
        }
        match &*status.borrow_and_update() {
            Status::Renewed => Ok(()),
            Status::Failed(error) | Status::Ended(error) => Err(error.clone()),
        }
    }

    fn open_window(&self, claim: &Claim) {
        // The planted defect: for as long as the lease lives, whatever was reserved.
        let until = if self.trusts_lease() { u64::MAX } else { claim.reserved.end };
        self.window.open(claim.worker, claim.reserved.start, until);
    }

    /// Keeps a window open until that fails for good, and says why.
    async fn renew_until_lost(&self, claim: &mut Claim) -> Error {
        if self.trusts_lease() {
            return self.session.lost().await;
        }
        let process = std::process::id();
        let mut backoff = self.space.backoff();
        loop {
            self.wait_until_due(claim).await;
            if std::process::id() != process {
                return Error::new(ErrorKind::Fenced, "the process was forked: open a generator in each");
            }
            self.clock.follow_wall();
            match self.space.renew(claim, self.clock.now()).await {
                Ok(true) => {
                    self.window.extend(claim.reserved.end);
                    self.status.send_replace(Status::Renewed);
                    backoff.reset();
                }
                Ok(false) => match self.claim_again().await {
                    Ok(again) => *claim = again,
                    Err(error) => return error,
                },
                Err(error) if is_retryable(&error) => {
                    self.status.send_replace(Status::Failed(error));
                    backoff.pause().await;
                }
                Err(error) => return error,
            }
        }
    }

    /// Returns when half a window is left, or when somebody waits for more.
    async fn wait_until_due(&self, claim: &Claim) {
        let due = claim.reserved.end.saturating_sub(self.space.window_ms / 2);
        let pause = Duration::from_millis(due.saturating_sub(self.clock.now()));
        tokio::select! {
            biased;
            () = self.wanted.notified() => {}
            () = self.space.kv.env().sleep(pause) => {}
        }
    }

    /// Somebody else has taken the number: stops, and claims another.
    async fn claim_again(&self) -> Result<Claim> {
        // One millisecond more than was used, so that the window's position never returns to an earlier value.
        let floor = self.window.stop().map_or(0, |unused| unused + 1);
        let mut backoff = self.space.backoff();
        loop {
            match self.space.claim(&self.clock, floor).await {
                Ok(claim) => {
                    self.open_window(&claim);
                    self.status.send_replace(Status::Renewed);
                    return Ok(claim);
                }
                Err(error) if is_retryable(&error) => {
                    self.status.send_replace(Status::Failed(error));
                    backoff.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn trusts_lease(&self) -> bool {
        self.space.kv.env().planted(PlantedBug::TrustLeaseForId)
    }

    fn closed_error(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("the generator of id space {} is closed", self.space.names.space))
    }
}

/// The generator's task.
async fn keep_window(inner: Arc<Inner>, mut claim: Claim) {
    let mut stop = inner.stop.subscribe();
    let lost = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        why = inner.renew_until_lost(&mut claim) => Some(why),
    };
    let unused_from = inner.window.stop();
    let ours = lost.is_none();
    inner.status.send_replace(Status::Ended(lost.unwrap_or_else(|| inner.closed_error())));
    let _ = stop.wait_for(|stop| *stop).await;
    let result = match unused_from {
        Some(unused_from) if ours => inner.space.release(&mut claim, unused_from).await,
        // The number was lost before, or belongs to the process that we were forked from.
        _ => Ok(()),
    };
    inner.closed.send_replace(Some(result));
}

fn check_options(options: &IdOptions) -> Result<()> {
    let within = |what: &str, value: Duration, min: Duration, max: Duration| {
        if value < min || value > max {
            return Err(Error::invalid(format!("{what} of {value:?} is not allowed: use {min:?} to {max:?}")));
        }
        Ok(())
    };
    within("an id window", options.window, Duration::from_millis(100), Duration::from_secs(30))?;
    within("max_ahead", options.max_ahead, Duration::ZERO, Duration::from_secs(60))
}
