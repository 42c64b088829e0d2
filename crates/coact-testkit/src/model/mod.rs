//! Models of contracts: one client alone does what chance says, and has to see what a simple model in memory says.

mod queue;
mod stream;

use std::fmt;

use coact_core::{Error, ErrorKind, Result, contract::queue::QueueHandle, contract::stream::StreamHandle};

use crate::sim::Random;

/// Compares a store's streams with the model, in topics and groups that begin with `prefix`.
///
/// # Errors
/// Where they differ, in words, with the seed and what was done last.
pub async fn check_streams(streams: &StreamHandle, prefix: &str, seed: u64, steps: usize) -> Result<(), String> {
    let mut run = stream::Run::new(streams, prefix, seed);
    for _ in 0..steps {
        run.step().await.map_err(|differs| run.steps.failure(seed, &differs))?;
    }
    run.compare_all().await.map_err(|differs| run.steps.failure(seed, &differs))
}

/// Compares one queue of a store with the model; it must not exist yet.
///
/// # Errors
/// Where they differ, in words, with the seed and what was done last.
pub async fn check_queue(queues: &QueueHandle, name: &str, seed: u64, steps: usize) -> Result<(), String> {
    let mut run = queue::Run::new(queues, name, seed).await?;
    for _ in 0..steps {
        run.step().await.map_err(|differs| run.steps.failure(seed, &differs))?;
    }
    run.compare().await.map_err(|differs| run.steps.failure(seed, &differs))
}

/// What was done, for messages.
#[derive(Debug, Default)]
struct Steps(Vec<String>);

impl Steps {
    fn note(&mut self, step: impl fmt::Debug) {
        self.0.push(format!("{step:?}"));
    }

    fn failure(&self, seed: u64, differs: &str) -> String {
        const SHOWN: usize = 12;
        let last = self.0[self.0.len().saturating_sub(SHOWN)..].join("\n  ");
        format!("seed {seed}, step {}: {differs}; the last steps were\n  {last}", self.0.len())
    }
}

/// Fails unless both are equal.
fn same<T: PartialEq + fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what}: got {got:?}, the model has {expected:?}")) }
}

/// What was answered, if that is what may be: an error of one of these kinds, or, if there are none, no error.
fn agreed<T: fmt::Debug>(got: Result<T, Error>, kinds: &[ErrorKind]) -> Result<Option<T>, String> {
    match got {
        Ok(got) if kinds.is_empty() => Ok(Some(got)),
        Err(error) if kinds.contains(&error.kind()) => Ok(None),
        got => Err(format!("got {got:?}, the model has {kinds:?}")),
    }
}

/// What is answered without any condition.
fn answered<T>(got: Result<T, Error>) -> Result<T, String> {
    got.map_err(|error| format!("got {error:?}"))
}

/// One of these.
fn pick<'a, T>(random: &mut Random, from: &'a [T]) -> Option<&'a T> {
    (!from.is_empty()).then(|| &from[random.below(from.len() as u64) as usize])
}
