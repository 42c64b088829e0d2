//! The one task of a producer: takes records, and keeps one batch of each partition on its way.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use coact_core::{Error, Result};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use super::{
    Core,
    lane::{Landed, Lane, Waiting},
};
use crate::mq::partition::{Sticky, partition_of};

/// What users ask of the task.
#[derive(Debug)]
pub(super) enum Command {
    Send(Waiting),
    Flush(oneshot::Sender<Result<()>>),
}

/// Runs until nobody can send any more and everything is settled.
pub(super) async fn run(core: Arc<Core>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let env = core.streams.env().clone();
    let mut work = Work {
        sticky: Sticky::new(env.random()),
        core: core.clone(),
        lanes: BTreeMap::new(),
        flights: FuturesUnordered::new(),
        next_number: 0,
        flushes: Vec::new(),
        failed: None,
    };
    let mut look = env.now() + LOOK_EVERY;
    let mut open = true;
    while open || !work.flights.is_empty() {
        tokio::select! {
            biased;
            Some(landed) = work.flights.next() => work.land(landed),
            command = commands.recv(), if open => {
                let mut next = command;
                open = next.is_some();
                // Whatever else is there goes into the same batches.
                for _ in 0..BURST_MAX {
                    let Some(command) = next else { break };
                    work.take(command);
                    next = commands.recv().now_or_never().flatten();
                }
                if let Some(command) = next {
                    work.take(command);
                }
                work.take_off();
            }
            () = env.sleep_until(look) => {
                look_at_partitions(&core).await;
                look = env.now() + LOOK_EVERY;
            }
        }
        work.answer_flushes();
    }
}

/// How many commands are taken before batches leave.
const BURST_MAX: usize = 10_000;
/// How often a producer looks whether its topic has got more partitions.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_LIMIT: Duration = Duration::from_secs(1);

struct Work {
    core: Arc<Core>,
    sticky: Sticky,
    lanes: BTreeMap<u32, Lane>,
    flights: FuturesUnordered<BoxFuture<'static, Landed>>,
    next_number: u64,
    flushes: Vec<(u64, oneshot::Sender<Result<()>>)>,
    failed: Option<Error>,
}

impl Work {
    fn take(&mut self, command: Command) {
        match command {
            Command::Flush(answer) => self.flushes.push((self.next_number, answer)),
            Command::Send(waiting) => {
                let partitions = self.core.partitions();
                let partition = match &waiting.record.key {
                    Some(key) => partition_of(key, partitions),
                    None => self.sticky.partition(partitions),
                };
                let number = self.next_number;
                self.lane(partition).gathered.push_back((number, waiting));
                self.next_number += 1;
            }
        }
    }

    fn take_off(&mut self) {
        let partitions: Vec<_> = self.lanes.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.start(partition));
    }

    fn start(&mut self, partition: u32) {
        let core = self.core.clone();
        let Some(flight) = self.lane(partition).take(&core, partition) else {
            return;
        };
        self.sticky.batch_taken(partition, self.core.partitions());
        self.flights.push(flight.fly(self.core.clone()).boxed());
    }

    fn land(&mut self, landed: Landed) {
        self.lane(landed.partition).land(&landed);
        if let Some(error) = landed.failed {
            self.failed.get_or_insert(error);
        }
        self.start(landed.partition);
    }

    fn lane(&mut self, partition: u32) -> &mut Lane {
        let epoch = self.core.identity.epoch();
        self.lanes.entry(partition).or_insert_with(|| Lane::new(epoch))
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let oldest = self.lanes.values().filter_map(Lane::oldest).min().unwrap_or(u64::MAX);
        let (settled, waiting) = self.flushes.drain(..).partition(|(number, _)| *number <= oldest);
        self.flushes = waiting;
        for (_, answer) in settled {
            // Whoever dropped the future does not care.
            let _ = answer.send(self.failed.take().map_or(Ok(()), Err));
        }
    }
}

async fn look_at_partitions(core: &Core) {
    let looked = core.streams.env().timeout(LOOK_LIMIT, core.streams.topic(&core.topic)).await;
    if let Some(Ok(Some(info))) = looked {
        core.partitions.store(info.spec.partitions, Ordering::Relaxed);
    }
}
