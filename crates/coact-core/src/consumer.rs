//! Between the one task that serves the watches of a handle and those who consume them: for engines that have such a
//! task.
//!
//! A feed is a bounded queue. When it is full, the task suspends the watch and goes on from its place once the consumer
//! has made room, so a slow consumer costs no memory and misses nothing. Whoever consumes tells the task by [`Order`]s
//! among the engine's own commands.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst, fence},
    },
    task::{Context, Poll},
};

use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::{
    contract::kv::{Change, Feed},
    error::{Error, Result},
};

/// How many changes wait for a consumer before its watch is suspended.
const QUEUE: usize = 1024;

/// What a consumer asks of the task, for the watch of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nobody consumes it any more.
    Close(u64),
    /// The consumer has made room.
    Continue(u64),
}

/// Why a waiter was woken.
#[derive(Debug)]
pub enum Wake {
    /// What it waited for is gone.
    Gone,
    /// The history that would tell is lost: look at the state.
    Lost,
    /// It cannot be known.
    Failed(Error),
}

/// The task's side of a watch.
#[derive(Debug)]
pub enum Sink {
    /// Somebody consumes every change.
    Feed(Outlet),
    /// Somebody waits for one.
    Waiter(oneshot::Sender<Wake>),
}

impl Sink {
    /// Whether the consumer must make room first.
    pub fn is_suspended(&self) -> bool {
        matches!(self, Self::Feed(outlet) if outlet.state.suspended.load(SeqCst))
    }

    /// Ends the watch.
    pub fn fail(self, error: Error) {
        match self {
            // The end is in place before the queue ends, with the sender that is dropped here.
            Self::Feed(outlet) => *outlet.state.end.lock() = Some(error),
            Self::Waiter(waiter) => drop(waiter.send(Wake::Failed(error))),
        }
    }
}

/// Where the task puts changes.
#[derive(Debug)]
pub struct Outlet {
    changes: mpsc::Sender<Change>,
    state: Arc<State>,
}

/// Shared between the task and the consumer.
#[derive(Debug, Default)]
struct State {
    /// The queue was full: the task waits for the consumer to make room.
    suspended: AtomicBool,
    /// Why the queue ended.
    end: Mutex<Option<Error>>,
}

impl Outlet {
    /// Whether there was room for it.
    pub fn try_send(&self, change: Change) -> bool {
        self.changes.try_send(change).is_ok()
    }

    /// Room for one change, if there is any.
    pub fn try_reserve(&self) -> Option<mpsc::Permit<'_, Change>> {
        self.changes.try_reserve().ok()
    }

    /// Waits for the consumer to make room; `true` if it has done so meanwhile: go on at once.
    pub fn suspend(&self) -> bool {
        self.state.suspended.store(true, SeqCst);
        fence(SeqCst);
        // The consumer may have emptied the queue before it could see the flag.
        self.changes.capacity() >= QUEUE / 2 && self.resume()
    }

    /// Takes it that there is room; `false` if that was known.
    pub fn resume(&self) -> bool {
        self.state.suspended.swap(false, SeqCst)
    }
}

/// The two sides of a feed.
pub fn feed() -> (Sink, Inlet) {
    let (changes, queue) = mpsc::channel(QUEUE);
    let state = Arc::new(State::default());
    (Sink::Feed(Outlet { changes, state: state.clone() }), Inlet { queue, state })
}

/// The two sides of a waiter.
pub fn waiter() -> (Sink, oneshot::Receiver<Wake>) {
    let (wake, woken) = oneshot::channel();
    (Sink::Waiter(wake), woken)
}

/// Ends a watch when dropped.
pub struct Ticket {
    id: u64,
    tell: Box<dyn Fn(Order) + Send + Sync>,
}

impl Ticket {
    /// For the watch of this number; `tell` gives an order to its task.
    pub fn new(id: u64, tell: impl Fn(Order) + Send + Sync + 'static) -> Self {
        Self { id, tell: Box::new(tell) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        (self.tell)(Order::Close(self.id));
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.id)
    }
}

/// A waiter in place.
#[derive(Debug)]
pub struct Waiter {
    woken: oneshot::Receiver<Wake>,
    _ticket: Ticket,
}

impl Waiter {
    /// Waits from now on; dropping it ends that.
    pub fn new(woken: oneshot::Receiver<Wake>, ticket: Ticket) -> Self {
        Self { woken, _ticket: ticket }
    }

    /// `None` if the handle was closed.
    ///
    /// # Cancel safety
    /// It stops to wait.
    pub async fn woken(self) -> Option<Wake> {
        self.woken.await.ok()
    }
}

/// The consumer's side of a feed.
#[derive(Debug)]
pub struct Inlet {
    queue: mpsc::Receiver<Change>,
    state: Arc<State>,
}

impl Inlet {
    /// The feed; it ends with `closed` unless the task says why.
    pub fn into_feed(self, ticket: Ticket, closed: Error) -> Feed {
        Box::pin(Changes { queue: self.queue, state: self.state, ticket, closed, ended: false })
    }
}

struct Changes {
    queue: mpsc::Receiver<Change>,
    state: Arc<State>,
    ticket: Ticket,
    closed: Error,
    ended: bool,
}

impl Stream for Changes {
    type Item = Result<Change>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.queue.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(change)) => {
                // With the fence in `Outlet::suspend`: either this sees the flag, or the task sees the room.
                fence(SeqCst);
                if self.state.suspended.load(SeqCst) && self.queue.len() <= QUEUE / 2 {
                    (self.ticket.tell)(Order::Continue(self.ticket.id));
                }
                Poll::Ready(Some(Ok(change)))
            }
            Poll::Ready(None) => {
                self.ended = true;
                let why = self.state.end.lock().take();
                Poll::Ready(Some(Err(why.unwrap_or_else(|| self.closed.clone()))))
            }
        }
    }
}
