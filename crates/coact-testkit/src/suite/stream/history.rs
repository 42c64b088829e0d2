//! Histories: of one client, as a model says; of many, as the checkers allow.

use std::sync::Arc;

use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Offset, Record, Stamp, StreamHandle},
    env::Env,
    name::Topic,
};

use super::{
    Context, TOGETHER,
    context::{batch, came_to, later},
};
use crate::{
    check::stream::{Fences, Ledger},
    model::check_streams,
};

const CLIENTS: usize = 6;
const ROUNDS: u64 = 60;

cases! {
    async fn a_client_alone_sees_what_the_model_says(cx: &Context) {
        for run in 0..4 {
            let prefix = format!("{}-{run}", cx.unique);
            let checked = check_streams(&cx.streams, &prefix, cx.env.random(), 300).await;
            checked.unwrap_or_else(|differs| panic!("{differs}"));
        }
    }

    async fn concurrent_clients_leave_partitions_in_order_and_lose_nothing(cx: &Context) {
        let topic = cx.create("t", 2).await;
        let clients = [cx.streams.clone(), cx.another_client().await];
        let ledger = Arc::<Ledger>::default();
        cx.parallel(CLIENTS, |client| {
            let (streams, ledger, env) = (clients[client % 2].clone(), ledger.clone(), cx.env.clone());
            Client { streams, ledger, env, topic: topic.clone(), client: client as u64, sequences: [0; 2] }.run()
        }).await;
        cx.until("no delayed record waits", async || cx.pending(&topic).await.is_empty()).await;
        for partition in 0..2 {
            let records = cx.records(&topic, partition).await;
            assert!(records.len() > 50, "{} records show little", records.len());
            assert_eq!(ledger.violations(&topic, partition, Offset(0), &records), [""; 0]);
        }
    }

    #[needs(TOGETHER)]
    async fn no_generation_commits_after_it_was_fenced(cx: &Context) {
        let (topic, group) = (cx.create("t", 1).await, cx.group("g"));
        let clients = [cx.streams.clone(), cx.another_client().await];
        let fences = Arc::<Fences>::default();
        let accepted = cx.parallel(CLIENTS, |client| {
            let (streams, fences) = (clients[client % 2].clone(), fences.clone());
            let (topic, group) = (topic.clone(), group.clone());
            async move {
                let mut accepted = 0;
                for round in 0..ROUNDS {
                    let generation = round / 4 + 1;
                    if client == 0 && round % 4 == 3 {
                        match streams.fence_group(&group, generation).await {
                            Ok(()) => fences.fenced(&group, generation),
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error}"),
                        }
                    }
                    let seen = fences.committing(&group);
                    match streams.commit_offsets(came_to(&group, generation, &topic, round)).await {
                        Ok(()) => {
                            fences.committed(&group, generation, seen);
                            accepted += 1;
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced, "{error}"),
                    }
                }
                accepted
            }
        }).await;
        assert!(accepted.iter().sum::<u64>() > ROUNDS / 2, "{accepted:?} commits show little");
        assert_eq!(fences.violations(), [""; 0]);
    }
}

/// One client, which notes what it does.
struct Client {
    streams: StreamHandle,
    ledger: Arc<Ledger>,
    env: Env,
    topic: Topic,
    client: u64,
    /// What comes next in each partition.
    sequences: [u64; 2],
}

impl Client {
    async fn run(mut self) {
        for round in 0..ROUNDS {
            let value = format!("{}.{round}", self.client);
            match self.env.random() % 8 {
                0 => self.schedule(&value).await,
                1 => self.schedule_and_cancel(&value).await,
                2 => self.append_nothing(&value).await,
                _ => self.append(&value).await,
            }
        }
    }

    /// Appends with a stamp, often twice, as after an answer that was lost.
    async fn append(&mut self, value: &str) {
        let partition = (self.env.random() % 2) as u32;
        // A key stays in its partition.
        let record = Record::new(value.to_owned()).with_key(format!("k{partition}"));
        let sequence = &mut self.sequences[partition as usize];
        let is_known = self.streams.guarantees().dedup.is_some();
        let stamp = is_known.then_some(Stamp { producer: self.client, epoch: 0, sequence: *sequence });
        *sequence += 1;
        let append = Append { batch: Batch::new([&record]), stamp, ..batch(&self.topic, partition, &[]) };
        let ticket = self.ledger.appending(&self.topic, partition, &record);
        if is_known && self.env.random().is_multiple_of(2) {
            self.streams.append(append.clone()).await.expect("taken");
        }
        let appended = self.streams.append(append).await.expect("taken, or known");
        self.ledger.appended(ticket, appended.first);
    }

    /// Expects an end that no partition has.
    async fn append_nothing(&mut self, value: &str) {
        let ticket = self.ledger.appending(&self.topic, 0, &Record::new(value.to_owned()));
        let append = Append { expect: Some(Offset(u64::MAX)), ..batch(&self.topic, 0, &[value]) };
        let error = self.streams.append(append).await.expect_err("it does not end there");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        self.ledger.refused(ticket);
    }

    async fn schedule(&mut self, value: &str) {
        let delayed = later(&self.topic, value, self.env.wall_ms() + self.env.random() % 60);
        let ticket = self.ledger.scheduling(&self.topic, 0, &delayed.record, delayed.due_ms);
        self.streams.schedule(vec![delayed]).await.expect("scheduled");
        self.ledger.scheduled(ticket);
    }

    async fn schedule_and_cancel(&mut self, value: &str) {
        let delayed = later(&self.topic, value, self.env.wall_ms() + self.env.random() % 4);
        let ticket = self.ledger.scheduling(&self.topic, 0, &delayed.record, delayed.due_ms);
        let id = self.streams.schedule(vec![delayed]).await.expect("scheduled")[0];
        if self.streams.cancel(&self.topic, id).await.expect("answers") {
            self.ledger.refused(ticket);
        } else {
            self.ledger.scheduled(ticket);
        }
    }
}
