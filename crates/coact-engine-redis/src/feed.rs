//! Watches: one reader for each handle follows the stream of changes for all of them.
//!
//! The server only tells that something has changed; what, is read from the stream, after a place that each watch keeps
//! for itself. A watch that fell behind the reader, or that begins in the past, reads the stream on its own until it has
//! caught up. So nothing is skipped or repeated, however slow a consumer is and however often the connection is lost.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use coact_core::{
    ErrorKind, Result,
    contract::kv::{Change, Feed, GoneCause, Revision, Scope},
};
use futures::StreamExt;
use redis::Value;
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    connection::Link,
    errors::{Access, closed, malformed},
    reply::{array, entry, key_of, revision, text},
};

/// How many entries of the stream one request reads.
const AT_ONCE: usize = 256;
/// How many steps of the reader a watch may be behind before it reads on its own.
const BEHIND_MAX: usize = 1024;
/// How often the reader looks though nobody told it to, should all that was told be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a watch pauses when the history cannot be read.
const PAUSE: Duration = Duration::from_millis(200);
/// A watch of what seldom changes says how far it is after so many revisions.
const PROGRESS_EVERY: u64 = 256;

/// A place in the stream: a revision, and the part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    revision: u64,
    part: u64,
}

impl Place {
    /// After everything of a revision.
    fn after(revision: Revision) -> Self {
        Self { revision: revision.0, part: u64::MAX }
    }
}

/// One entry of the stream.
#[derive(Debug)]
struct Step {
    at: Place,
    what: What,
}

#[derive(Debug)]
enum What {
    Changes(Vec<Change>),
    /// Revisions leap from `before` to here: who has seen more than that has seen writes that are lost.
    Leap {
        before: u64,
    },
    /// The reader itself has missed something.
    Lost,
}

/// Part of the stream.
struct History {
    present: Revision,
    /// Not everything after the place is there.
    lost: bool,
    steps: Vec<Step>,
}

async fn read(link: &Link, after: Option<Place>) -> Result<History> {
    let (revision_after, part, count) = match after {
        Some(place) => (place.revision.to_string(), place.part.to_string(), AT_ONCE.to_string()),
        None => Default::default(),
    };
    let arguments = [revision_after.as_bytes(), part.as_bytes(), count.as_bytes()];
    let answer: Value = link.call(Access::Repeatable, &link.scripts.history, &arguments).await?;
    let [present, lost, steps] = <[Value; 3]>::try_from(array(answer)?).map_err(|_| malformed("a history"))?;
    let steps = array(steps)?.into_iter().map(step).collect::<Result<_>>()?;
    Ok(History { present: revision(present)?, lost: lost == Value::Int(1), steps })
}

fn step(value: Value) -> Result<Step> {
    let [id, fields] = <[Value; 2]>::try_from(array(value)?).map_err(|_| malformed("the stream of changes"))?;
    let id = text(id)?;
    let at = id
        .split_once('-')
        .and_then(|(revision, part)| Some(Place { revision: revision.parse().ok()?, part: part.parse().ok()? }));
    let at = at.ok_or_else(|| malformed("the stream of changes"))?;
    let mut fields = array(fields)?.into_iter();
    let mut changes = Vec::new();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        let field = text(field)?;
        if field == "E" {
            return Ok(Step { at, what: What::Leap { before: revision(value)?.0 } });
        }
        changes.push(change(&field, value, Revision(at.revision))?);
    }
    Ok(Step { at, what: What::Changes(changes) })
}

fn change(field: &str, value: Value, at: Revision) -> Result<Change> {
    let (kind, place) = field.split_at_checked(1).ok_or_else(|| malformed("the stream of changes"))?;
    let key = key_of(place).ok_or_else(|| malformed("the stream of changes"))?;
    match (kind, value) {
        ("P", Value::BulkString(packed)) => entry(key, packed).map(Change::Put),
        ("D", _) => Ok(Change::Gone { key, at, cause: GoneCause::Deleted }),
        ("X", _) => Ok(Change::Gone { key, at, cause: GoneCause::Expired }),
        _ => Err(malformed("the stream of changes")),
    }
}

/// Every watch of a handle.
pub(crate) struct Feeds {
    link: Arc<Link>,
    shared: Arc<Shared>,
}

struct Shared {
    steps: broadcast::Sender<Arc<Step>>,
    /// How far the reader is; `None` while nobody watches.
    reader: watch::Sender<Option<Place>>,
    wanted: Notify,
}

impl Feeds {
    pub(crate) fn start(link: Arc<Link>) -> Self {
        let shared = Arc::new(Shared {
            steps: broadcast::Sender::new(BEHIND_MAX),
            reader: watch::Sender::new(None),
            wanted: Notify::new(),
        });
        link.env.spawn(follow(link.clone(), shared.clone()));
        Self { link, shared }
    }

    pub(crate) async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        // From here on nothing that the reader reads is missed.
        let steps = self.shared.steps.subscribe();
        self.shared.wanted.notify_one();
        let place = match after {
            Some(after) => Place::after(after),
            None => Place::after(read(&self.link, None).await?.present),
        };
        let mut reader = self.shared.reader.subscribe();
        let reads = tokio::select! {
            reads = reader.wait_for(Option::is_some) => reads.is_ok(),
            () = self.link.until_closed() => false,
        };
        if !reads {
            return Err(closed());
        }
        let watching = Watching {
            link: self.link.clone(),
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
async fn follow(link: Arc<Link>, shared: Arc<Shared>) {
    tokio::select! {
        () = link.until_closed() => {}
        () = async {
            loop {
                shared.wanted.notified().await;
                while shared.steps.receiver_count() > 0 {
                    link.hear_changes(true).await;
                    if let Err(error) = follow_while_wanted(&link, &shared).await {
                        tracing::debug!(%error, "the changes of Redis could not be read");
                        link.env.sleep(PAUSE).await;
                    }
                }
                link.hear_changes(false).await;
            }
        } => {}
    }
}

async fn follow_while_wanted(link: &Link, shared: &Shared) -> Result<()> {
    let from = *shared.reader.borrow();
    let mut place = match from {
        Some(place) => place,
        None => Place::after(read(link, None).await?.present),
    };
    shared.reader.send_replace(Some(place));
    loop {
        let history = read(link, Some(place)).await?;
        if history.lost {
            // Each watch finds out by itself what that means for it.
            place = Place::after(history.present);
            let _ = shared.steps.send(Arc::new(Step { at: place, what: What::Lost }));
        }
        let full = history.steps.len() == AT_ONCE;
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
        if !full {
            link.env.timeout(LOOK_EVERY, link.wakes.changed.notified()).await;
        }
    }
}

/// One watch.
struct Watching {
    link: Arc<Link>,
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

impl Watching {
    async fn next(&mut self) -> Option<Result<Change>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            let link = self.link.clone();
            let step = tokio::select! {
                biased;
                () = link.until_closed() => Err(closed()),
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
        let history = match read(&self.link, Some(self.place)).await {
            Ok(history) => history,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.link.env.sleep(PAUSE).await;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if history.lost {
            self.resync("the history no longer holds what came after the revision asked for", history.present);
            return Ok(());
        }
        // The reader sends whatever comes after this, and did so since before we asked.
        self.alone = history.steps.len() == AT_ONCE;
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
