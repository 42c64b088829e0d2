//! Watches for engines that keep a history: one reader follows it for all watches of a handle.
//!
//! The store only tells that something has changed; what, is read from its history, after a place that each watch keeps
//! for itself. A watch that fell behind the reader, or that begins in the past, reads the history on its own until it has
//! caught up. So nothing is skipped or repeated, however slow a consumer is and however often a connection is lost.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    contract::kv::{Change, Feed, Revision, Scope},
    env::Env,
    error::{Error, ErrorKind, Result},
};

/// How many steps of the reader a watch may be behind before it reads on its own.
const BEHIND_MAX: usize = 1024;
/// How often the reader looks though nobody told it to, should all that was told be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a watch pauses when the history cannot be read.
const PAUSE: Duration = Duration::from_millis(200);
/// A watch of what seldom changes says how far it is after so many revisions.
const PROGRESS_EVERY: u64 = 256;

/// A store's history, for the engine that has it to implement.
pub trait Past: Send + Sync + 'static {
    /// Where the handle runs.
    fn env(&self) -> &Env;
    /// Reads what came after a place, oldest first; without one, only where the present is.
    fn read(&self, after: Option<Place>) -> impl Future<Output = Result<History>> + Send;
    /// Asks the store to tell of changes, or to stop.
    fn hear(&self, wanted: bool) -> impl Future<Output = ()> + Send;
    /// Returns when something has changed, or may have.
    fn changed(&self) -> impl Future<Output = ()> + Send;
    /// Returns when the handle is closed.
    fn until_closed(&self) -> impl Future<Output = ()> + Send;
}

/// A place in a history: a revision, and the part of it if one step does not hold it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The revision.
    pub revision: u64,
    /// The part of it, from zero.
    pub part: u64,
}

impl Place {
    /// After everything of a revision.
    pub fn after(revision: Revision) -> Self {
        Self { revision: revision.0, part: u64::MAX }
    }
}

/// Part of a history.
#[derive(Debug)]
pub struct History {
    /// The newest revision.
    pub present: Revision,
    /// Not everything after the place is there.
    pub lost: bool,
    /// What is there, in order.
    pub steps: Vec<Step>,
    /// Whether there may be more.
    pub more: bool,
}

/// One step of a history.
#[derive(Debug)]
pub struct Step {
    /// Where.
    pub at: Place,
    /// What.
    pub what: What,
}

/// What a step is.
#[derive(Debug)]
pub enum What {
    /// Changes of one revision.
    Changes(Vec<Change>),
    /// Revisions leap from `before` to here: who has seen more than that has seen writes that are lost.
    Leap {
        /// The last revision before.
        before: u64,
    },
    /// The reader itself has missed something.
    Lost,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the handle is closed")
}

/// Every watch of one history.
#[derive(Debug)]
pub struct Feeds<P> {
    past: Arc<P>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    steps: broadcast::Sender<Arc<Step>>,
    /// How far the reader is; `None` while nobody watches.
    reader: watch::Sender<Option<Place>>,
    wanted: Notify,
}

impl<P: Past> Feeds<P> {
    /// Starts the reader, which is idle until somebody watches.
    pub fn start(past: Arc<P>) -> Self {
        let shared = Arc::new(Shared {
            steps: broadcast::Sender::new(BEHIND_MAX),
            reader: watch::Sender::new(None),
            wanted: Notify::new(),
        });
        past.env().spawn(follow(past.clone(), shared.clone()));
        Self { past, shared }
    }

    /// Watches from now, or after a revision.
    ///
    /// # Errors
    /// What reading the history answers; `Closed` on a closed handle.
    ///
    /// # Cancel safety
    /// Safe: a read has no effect.
    pub async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        // From here on nothing that the reader reads is missed.
        let steps = self.shared.steps.subscribe();
        self.shared.wanted.notify_one();
        let place = match after {
            Some(after) => Place::after(after),
            None => Place::after(self.past.read(None).await?.present),
        };
        let mut reader = self.shared.reader.subscribe();
        let reads = tokio::select! {
            reads = reader.wait_for(Option::is_some) => reads.is_ok(),
            () = self.past.until_closed() => false,
        };
        if !reads {
            return Err(closed());
        }
        let watching = Watching {
            past: self.past.clone(),
            scope,
            place,
            told: place.revision,
            steps,
            alone: true,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(futures::stream::unfold(watching, |mut watching| async move {
            let change = watching.next().await?;
            Some((change, watching))
        })
        .boxed())
    }
}

/// The reader: follows the stream while somebody watches.
async fn follow<P: Past>(past: Arc<P>, shared: Arc<Shared>) {
    tokio::select! {
        () = past.until_closed() => {}
        () = async {
            loop {
                shared.wanted.notified().await;
                while shared.steps.receiver_count() > 0 {
                    past.hear(true).await;
                    if let Err(error) = follow_while_wanted(&*past, &shared).await {
                        if error.kind() == ErrorKind::Closed {
                            return;
                        }
                        past.env().sleep(PAUSE).await;
                    }
                }
                past.hear(false).await;
            }
        } => {}
    }
}

async fn follow_while_wanted<P: Past>(past: &P, shared: &Shared) -> Result<()> {
    let from = *shared.reader.borrow();
    let mut place = match from {
        Some(place) => place,
        None => Place::after(past.read(None).await?.present),
    };
    shared.reader.send_replace(Some(place));
    loop {
        let history = past.read(Some(place)).await?;
        if history.lost {
            // Each watch finds out by itself what that means for it.
            place = Place::after(history.present);
            let _ = shared.steps.send(Arc::new(Step { at: place, what: What::Lost }));
        }
        let more = history.more;
        for step in history.steps {
            place = place.max(step.at);
            let _ = shared.steps.send(Arc::new(step));
        }
        if shared.steps.receiver_count() == 0 {
            // A watch that comes now waits until there is a reader again.
            shared.reader.send_replace(None);
            if shared.steps.receiver_count() == 0 {
                return Ok(());
            }
        }
        shared.reader.send_replace(Some(place));
        if !more {
            past.env().timeout(LOOK_EVERY, past.changed()).await;
        }
    }
}

/// One watch.
struct Watching<P> {
    past: Arc<P>,
    scope: Scope,
    place: Place,
    /// The revision that the consumer knows of.
    told: u64,
    steps: broadcast::Receiver<Arc<Step>>,
    /// Whether it reads the stream on its own.
    alone: bool,
    ready: VecDeque<Change>,
    ended: bool,
}

impl<P: Past> Watching<P> {
    async fn next(&mut self) -> Option<Result<Change>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            let past = self.past.clone();
            let step = tokio::select! {
                biased;
                () = past.until_closed() => Err(closed()),
                step = self.advance() => step,
            };
            if let Err(error) = step {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    /// Takes what comes next, from the reader or from the stream itself.
    async fn advance(&mut self) -> Result<()> {
        if self.alone {
            return self.catch_up().await;
        }
        match self.steps.recv().await {
            Ok(step) => self.take(&step),
            Err(broadcast::error::RecvError::Lagged(_)) => self.alone = true,
            Err(broadcast::error::RecvError::Closed) => return Err(closed()),
        }
        Ok(())
    }

    async fn catch_up(&mut self) -> Result<()> {
        let history = match self.past.read(Some(self.place)).await {
            Ok(history) => history,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.past.env().sleep(PAUSE).await;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if history.lost {
            self.resync("the history no longer holds what came after the revision asked for", history.present);
            return Ok(());
        }
        // The reader sends whatever comes after this, and did so since before we asked.
        self.alone = history.more;
        for step in &history.steps {
            self.take(step);
        }
        Ok(())
    }

    fn take(&mut self, step: &Step) {
        let lost = matches!(step.what, What::Lost) && step.at != self.place;
        if step.at <= self.place && !lost {
            return;
        }
        match &step.what {
            What::Lost => self.resync("the history no longer holds all that happened", Revision(step.at.revision)),
            What::Leap { before } if self.place.revision > *before => {
                self.resync(
                    "the server lost writes, or its history, in a restart or a failover",
                    Revision(step.at.revision),
                );
            }
            What::Leap { .. } => {}
            What::Changes(changes) => {
                let ours: Vec<_> = changes.iter().filter(|change| self.concerns(change)).cloned().collect();
                if !ours.is_empty() {
                    self.ready.extend(ours);
                    self.told = step.at.revision;
                } else if step.at.revision - self.told >= PROGRESS_EVERY {
                    self.told = step.at.revision;
                    self.ready.push_back(Change::Progress(Revision(step.at.revision)));
                }
            }
        }
        self.place = step.at;
    }

    fn resync(&mut self, why: &str, at: Revision) {
        self.ready.push_back(Change::Resync { why: why.to_owned(), at });
        self.place = Place::after(at);
        self.told = at.0;
    }

    fn concerns(&self, change: &Change) -> bool {
        let key = match change {
            Change::Put(entry) => &entry.key,
            Change::Gone { key, .. } => key,
            Change::Progress(_) | Change::Resync { .. } => return true,
        };
        match &self.scope {
            Scope::Key(scope) => key == scope,
            Scope::Dir(dir) => key.dir() == dir,
        }
    }
}
