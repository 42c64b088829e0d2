//! Histories of concurrent clients, explained by one order of their operations.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use coact_core::{
    contract::kv::{Check, Entry, KvHandle, TxnOutcome, Write},
    env::Env,
    name::Key,
};

use super::{
    Context,
    context::{guarded, put},
};
use crate::check::linearizable::{Action, Operation, Returned, check};

const TASKS: usize = 6;
const ROUNDS: usize = 40;

cases! {
    async fn concurrent_clients_leave_a_linearizable_history(cx: &Context) {
        let clients = [cx.kv.clone(), cx.another_client().await];
        let keys = [cx.key("a/x"), cx.key("a/y")];
        let clock = Arc::<AtomicU64>::default();
        let history = cx.parallel(TASKS, |task| {
            let recorder = Recorder {
                kv: clients[task % 2].clone(),
                env: cx.env.clone(),
                clock: clock.clone(),
                operations: Vec::new(),
            };
            recorder.run(keys.clone(), task as u64)
        }).await.concat();
        let is_swap = |operation: &&Operation| matches!(operation.action, Action::Cas { succeeded: true, .. });
        assert!(history.iter().any(|operation| is_swap(&operation)), "nothing was swapped: the history shows little");
        check(&history).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// One client, which notes what it does.
struct Recorder {
    kv: KvHandle,
    env: Env,
    /// Shared by all clients; it only has to grow.
    clock: Arc<AtomicU64>,
    operations: Vec<Operation>,
}

impl Recorder {
    async fn run(mut self, keys: [Key; 2], task: u64) -> Vec<Operation> {
        for round in 0..ROUNDS as u64 {
            let draw = self.env.random();
            let key = &keys[(draw % 2) as usize];
            // No value is written twice, so that a version is known by its value.
            let new = task * 1_000 + round;
            match draw / 2 % 8 {
                0 | 1 => self.set(key, new).await,
                2 => self.delete(key).await,
                3 | 4 => drop(self.read(key).await),
                _ => self.swap(key, new).await,
            }
        }
        self.operations
    }

    async fn set(&mut self, key: &Key, new: u64) {
        let called = self.tick();
        self.kv.put(key, new.to_string(), None).await.expect("commits");
        self.note(key, called, Action::Put(Some(new)));
    }

    async fn delete(&mut self, key: &Key) {
        let called = self.tick();
        self.kv.delete(key).await.expect("commits");
        self.note(key, called, Action::Put(None));
    }

    async fn read(&mut self, key: &Key) -> Option<Entry> {
        let called = self.tick();
        let entry = self.kv.get(key).await.expect("answers");
        self.note(key, called, Action::Get(entry.as_ref().map(value)));
        entry
    }

    /// Replaces, or now and then deletes, the version that it reads first.
    async fn swap(&mut self, key: &Key, new: u64) {
        let found = self.read(key).await;
        let check = match &found {
            Some(entry) => Check::ModifiedAt(key.clone(), entry.modified),
            None => Check::Absent(key.clone()),
        };
        let new = (found.is_none() || !new.is_multiple_of(4)).then_some(new);
        let write = new.map_or_else(|| Write::Delete(key.clone()), |new| put(key, new.to_string()));
        let called = self.tick();
        let outcome = self.kv.txn(key.realm(), guarded(check, write)).await.expect("answers");
        let succeeded = matches!(outcome, TxnOutcome::Committed { .. });
        self.note(key, called, Action::Cas { expected: found.as_ref().map(value), new, succeeded });
    }

    fn note(&mut self, key: &Key, called: u64, action: Action) {
        let returned = Returned::At(self.tick());
        self.operations.push(Operation { key: key.to_string(), action, called, returned });
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }
}

fn value(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value).expect("text").parse().expect("a number")
}
