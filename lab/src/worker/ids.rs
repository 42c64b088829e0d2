//! A generator of ids on each host, all in one space.

use std::time::Duration;

use anyhow::Result;
use coact::{ErrorKind, Session, id};
use serde_json::{Value, json};

use super::{Context, Stage, locks::open_session};
use crate::{
    history::{Answer, Process},
    plant::Plant,
};

const BATCH: usize = 20;
const REST_MS: u64 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// One generator.
pub(super) struct Ids {
    context: Context,
    process: Process,
    session: Session,
    generator: id::Generator,
    issued: u64,
}

pub(super) async fn open(context: &Context) -> Result<Ids> {
    let (session, generator) = open_generator(context).await?;
    let process = context.recorder.process("id");
    Ok(Ids { context: context.clone(), process, session, generator, issued: 0 })
}

async fn open_generator(context: &Context) -> Result<(Session, id::Generator)> {
    let session = open_session(context).await?;
    let options = id::IdOptions { window: WINDOW, ..id::IdOptions::default() };
    let generator = id::Generator::open(&session, options).await?;
    Ok((session, generator))
}

impl Ids {
    pub(super) async fn run(mut self) -> Result<()> {
        self.context.reached(Stage::Run).await;
        while self.context.is_running() {
            self.issue().await;
            self.context.rest(REST_MS).await;
        }
        self.context.reached(Stage::Close).await;
        // The number is free again when the session ends, if the store cannot be told.
        let _ = self.generator.close().await;
        let _ = self.session.close().await;
        Ok(())
    }

    async fn issue(&mut self) {
        let mut final_error = false;
        let planted = self.context.planted(Plant::IdTwice).then_some(self.issued);
        let call = async {
            let ids = self.generator.next_n(BATCH).await.inspect_err(|error| {
                final_error = error.kind() != ErrorKind::Unavailable;
            })?;
            Ok(ids.map(id::Id::get).collect::<Vec<_>>())
        };
        let answer = |ids: &Vec<u64>| {
            let ids = planted.map_or_else(|| ids.clone(), |from| (from + 1..=from + BATCH as u64).collect());
            Answer { value: json!(ids), ..Answer::default() }
        };
        self.process.call(("ids", None, Value::Null), Box::pin(call), answer).await;
        self.issued += BATCH as u64;
        if final_error && let Ok((session, generator)) = open_generator(&self.context).await {
            (self.session, self.generator) = (session, generator);
        }
    }
}
