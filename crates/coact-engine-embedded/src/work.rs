//! Work for the writer: what streams and queues ask of it, as closures that run where the state is. Each runs between two
//! others, writes its changes as one frame, and is answered when the batch is durable.

use std::{fmt, time::Instant};

use bytes::Bytes;
use coact_core::{Result, env::Env};
use tokio::sync::oneshot;

use crate::{
    claims::WaitingClaims,
    flat::FlatError,
    frame::BatchEncoder,
    kv::error,
    message::{MessageChange, Messages},
    state::State,
};

/// One piece of work.
pub(crate) struct Task(Box<dyn FnOnce(&mut Work<'_>) + Send>);

/// An answer that waits for its batch: told whether the batch is durable.
pub(crate) struct Late(Box<dyn FnOnce(Durable<'_>) + Send>);

/// Whether a batch is durable; otherwise why the engine stopped.
pub(crate) type Durable<'a> = Result<(), &'a FlatError>;

/// What a piece of work has before it.
pub(crate) struct Work<'a> {
    pub(crate) env: &'a Env,
    pub(crate) now: Instant,
    pub(crate) time_ms: u64,
    pub(crate) state: &'a mut State,
    pub(crate) messages: &'a mut Messages,
    pub(crate) encoder: &'a mut BatchEncoder,
    pub(crate) waiting: &'a mut WaitingClaims,
    pub(crate) late: &'a mut Vec<Late>,
}

impl Task {
    pub(crate) fn new(work: impl FnOnce(&mut Work<'_>) + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Work with an answer, and where that comes.
    pub(crate) fn question<T: Send + 'static>(
        ask: impl FnOnce(&mut Work<'_>) -> Result<T> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<T>>) {
        let (to, answer) = oneshot::channel();
        let task = Self::new(move |work| {
            let result = ask(work);
            work.answer(to, result);
        });
        (task, answer)
    }

    pub(crate) fn run(self, work: &mut Work<'_>) {
        (self.0)(work);
        // One that ends amid a frame has written all of it.
        work.finish();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}

impl Late {
    pub(crate) fn new(answer: impl FnOnce(Durable<'_>) + Send + 'static) -> Self {
        Self(Box::new(answer))
    }

    pub(crate) fn send(self, durable: Durable<'_>) {
        (self.0)(durable);
    }
}

impl Work<'_> {
    /// Writes a change without a body into the frame, and applies it.
    pub(crate) fn write(&mut self, change: MessageChange) {
        self.write_body(change, Bytes::new());
    }

    /// Writes a change with its body, and applies it.
    pub(crate) fn write_body(&mut self, change: MessageChange, body: Bytes) {
        let place = self.encoder.message(&change, &body);
        if change.has_body() {
            self.messages.bodies.add(place, body);
        }
        if let Err(why) = self.messages.apply(change, place, self.now) {
            // Whoever writes a change has looked before that it can be applied.
            tracing::error!(why, "a change could not be applied");
            debug_assert!(false, "{why}");
        }
    }

    /// Ends the frame.
    pub(crate) fn finish(&mut self) {
        self.encoder.finish_frame(self.time_ms, 0);
    }

    /// Answers when the batch is durable.
    pub(crate) fn answer<T: Send + 'static>(&mut self, to: oneshot::Sender<Result<T>>, result: Result<T>) {
        self.late.push(Late::new(move |durable| {
            // Whoever asked may have gone.
            let _ = to.send(durable.map_err(|stopped| error(stopped.clone())).and(result));
        }));
    }
}
