//! Histories: of one client, as a model says; of many, as the checker allows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use coact_core::{
    contract::queue::{Claim, Claimed, Enqueued, JobState, NewJob, QueueHandle, Settled, Verdict},
    env::Env,
    name::Queue,
};

use super::{
    Context,
    context::{LONG, job, keyed, kill, nack, settle_with},
};
use crate::{check::queue::Jobs, model::check_queue};

const PRODUCERS: usize = 2;
const WORKERS: usize = 6;
const EACH: usize = 80;

cases! {
    async fn a_client_alone_sees_what_the_model_says(cx: &Context) {
        for run in 0..4 {
            let queue = format!("{}-{run}", cx.unique);
            let checked = check_queue(&cx.queues, &queue, cx.env.random(), 300).await;
            checked.unwrap_or_else(|differs| panic!("{differs}"));
        }
    }

    async fn concurrent_workers_lose_no_job_and_do_none_twice(cx: &Context) {
        cx.create_with_attempts(20).await;
        let clients = [cx.queues.clone(), cx.another_client().await];
        let (jobs, fenced) = (Arc::<Jobs>::default(), Arc::<AtomicU64>::default());
        cx.parallel(PRODUCERS + WORKERS, |client| {
            let worker = Worker {
                queues: clients[client % 2].clone(),
                queue: cx.queue.clone(),
                env: cx.env.clone(),
                jobs: jobs.clone(),
                fenced: fenced.clone(),
            };
            async move {
                if client < PRODUCERS { worker.produce(client).await } else { worker.work(client).await }
            }
        }).await;
        let mut left = Vec::new();
        for state in JobState::ALL {
            left.extend(cx.in_state(state).await);
        }
        assert_eq!(jobs.violations(&left), [""; 0]);
        let stats = cx.stats().await;
        assert_eq!(stats.enqueued, (PRODUCERS * EACH) as u64);
        assert_eq!((stats.ready, stats.claimed, stats.blocked), (0, 0, 0), "what is left: {stats:?}");
        assert!(fenced.load(SeqCst) > 0, "no worker was late: the history shows little");
    }
}

/// One client, which notes what it does.
struct Worker {
    queues: QueueHandle,
    queue: Queue,
    env: Env,
    jobs: Arc<Jobs>,
    /// How often a worker came too late.
    fenced: Arc<AtomicU64>,
}

impl Worker {
    async fn produce(&self, producer: usize) {
        for number in 0..EACH {
            let body = format!("{producer}.{number}");
            let new = if number % 2 == 0 { keyed(&body, &format!("k{}", number % 3)) } else { job(&body) };
            let new = NewJob { priority: (self.env.random() % 10) as u8, ..new };
            let enqueued = self.queues.enqueue(&self.queue, vec![new.clone()]).await.expect("enqueued");
            let Enqueued::Created(id) = enqueued[0] else { panic!("{enqueued:?}") };
            self.jobs.enqueued(id, &new);
        }
    }

    /// Works until nothing has come for a while, and until no lease can be out.
    async fn work(&self, worker: usize) {
        loop {
            let is_hasty = self.env.random().is_multiple_of(6);
            let lease = if is_hasty { Duration::from_millis(60) } else { LONG };
            let claim = Claim {
                queue: self.queue.clone(),
                worker: worker.to_string(),
                limit: 1 + worker % 3,
                lease,
                wait: Duration::from_secs(2),
            };
            let asked = self.jobs.claiming(self.env.now());
            let claimed = self.queues.claim(claim).await.expect("answers");
            if claimed.is_empty() {
                return;
            }
            // All before the first is settled: the checker has to know what is out.
            for claimed in &claimed {
                self.jobs.claimed(asked, claimed, self.env.now());
            }
            for claimed in claimed {
                self.settle(&claimed, is_hasty).await;
            }
        }
    }

    async fn settle(&self, claimed: &Claimed, is_hasty: bool) {
        if is_hasty {
            self.env.sleep(Duration::from_millis(self.env.random() % 150)).await;
        }
        let verdict = match self.env.random() % 12 {
            0 | 1 => nack("x"),
            2 => Verdict::Release,
            3 => kill("x"),
            _ => Verdict::Ack,
        };
        let settling = self.jobs.settling(claimed.receipt(), &verdict);
        let settled = settle_with(&self.queues, &self.queue, claimed.receipt(), verdict.clone()).await;
        self.jobs.settled(settling, &verdict, settled);
        if settled == Settled::Fenced {
            self.fenced.fetch_add(1, SeqCst);
        }
    }
}
