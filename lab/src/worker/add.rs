//! Entries that are only ever added: what was acknowledged and is not there at the end is lost.

use anyhow::Result;
use coact::{Dir, Error, Realm, kv::Revision};
use serde_json::Value;

use super::{Context, Stage};
use crate::{
    history::{Answer, Process},
    plant::Plant,
};

const REST_MS: u64 = 15;

/// Where they are.
pub(super) fn dir() -> Result<Dir, Error> {
    Dir::new(&Realm::default(), "set")
}

/// One client that adds.
pub(super) struct Add {
    context: Context,
    process: Process,
}

pub(super) fn open(context: &Context) -> Add {
    Add { context: context.clone(), process: context.recorder.process("add") }
}

impl Add {
    pub(super) async fn run(mut self) -> Result<()> {
        self.context.reached(Stage::Run).await;
        let mut number: u64 = 0;
        while self.context.is_running() {
            number += 1;
            let key = dir()?.key(&format!("{}-{number:06}", self.context.recorder.node()))?;
            let lie = self.context.planted(Plant::LostWrite) && number.is_multiple_of(10);
            let call = async { if lie { Ok(Revision(1)) } else { self.context.kv.put(&key, "1", None).await } };
            let answer = |revision: &Revision| Answer { rev: Some(revision.0), ..Answer::default() };
            self.process.call(("add", Some(key.name()), Value::Null), call, answer).await;
            self.context.rest(REST_MS).await;
        }
        Ok(())
    }
}
