//! A mutex that protects the resource. The holder trusts the fence alone: it does not ask its guard before it writes, as
//! a program that was paused between the question and the write cannot either.

use std::time::Duration;

use anyhow::Result;
use coact::{Session, SessionOptions, lock};
use serde_json::{Value, json};

use super::{Context, Stage, TTL};
use crate::{
    history::{Answer, Process},
    plant::Plant,
    resource::Client,
};

const NAME: &str = "resource";
/// Not longer than a call may take.
const WITHIN: Duration = Duration::from_millis(1_200);
const WRITES: usize = 6;
const REST_MS: u64 = 15;

/// One contender.
pub(super) struct Locks {
    context: Context,
    process: Process,
    resource: Client,
    session: Session,
    mutex: lock::Mutex,
}

pub(super) async fn open(context: &Context) -> Result<Locks> {
    let resource = Client::connect(&context.job.resource).await?;
    let (session, mutex) = open_mutex(context).await?;
    Ok(Locks { context: context.clone(), process: context.recorder.process("lock"), resource, session, mutex })
}

async fn open_mutex(context: &Context) -> Result<(Session, lock::Mutex)> {
    let session = open_session(context).await?;
    let mutex = lock::Mutex::new(&session, NAME)?;
    Ok((session, mutex))
}

/// A session of the lab's length.
pub(super) async fn open_session(context: &Context) -> Result<Session> {
    let name = Some(context.recorder.node().to_owned());
    Ok(Session::open(&context.kv, SessionOptions { ttl: TTL, name }).await?)
}

impl Locks {
    pub(super) async fn run(mut self) -> Result<()> {
        self.context.reached(Stage::Run).await;
        while self.context.is_running() {
            self.hold_once().await?;
            self.context.rest(REST_MS).await;
        }
        self.context.reached(Stage::Close).await;
        // The lease ends by itself if the store cannot be told.
        let _ = self.session.close().await;
        Ok(())
    }

    async fn hold_once(&mut self) -> Result<()> {
        if !self.session.is_alive() {
            let opened = self.context.kv.env().timeout(WITHIN, Box::pin(open_mutex(&self.context))).await;
            let Some(Ok((session, mutex))) = opened else { return Ok(()) };
            (self.session, self.mutex) = (session, mutex);
        }
        let answer = |guard: &lock::Guard| Answer { token: Some(guard.token()), ..Answer::default() };
        let call = self.mutex.acquire_within(WITHIN);
        let Some(guard) = self.process.call(("acquire", Some(NAME), Value::Null), Box::pin(call), answer).await else {
            return Ok(());
        };
        let token = if self.context.planted(Plant::TokenTwice) { 7 } else { guard.token() };
        self.write_with(token).await?;
        let answer = |(): &()| Answer { token: Some(token), ..Answer::default() };
        self.process.call(("release", Some(NAME), Value::Null), Box::pin(guard.release()), answer).await;
        Ok(())
    }

    async fn write_with(&mut self, token: u64) -> Result<()> {
        let holder = self.context.recorder.node().to_owned();
        self.resource.tell("enter", &holder, token).await?;
        for _ in 0..WRITES {
            let taken = self.resource.tell("write", &holder, token).await?;
            self.process.note("resource", Answer { value: json!(taken), rev: None, token: Some(token) });
            self.context.rest(REST_MS).await;
        }
        self.resource.tell("leave", &holder, token).await?;
        Ok(())
    }
}
