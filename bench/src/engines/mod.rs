//! A lock on each engine beside what a user would pick on that very server: the bare primitive, and full-featured peers.

mod etcd;
mod postgres;
mod python;
mod redis;
mod zookeeper;

pub(crate) use postgres::connect as postgres_client;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum;
use coact::{KvHandle, Session, SessionOptions, lock::Mutex};

use crate::load::{Measured, closed_loop, measured, print};

/// Whose server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// `SET NX PX` with compare-and-delete; rslock; Python's redis.
    Redis,
    /// The lock that etcd's server brings, as its clients use it.
    Etcd,
    /// Advisory locks; a row with a unique key.
    Postgres,
    /// kazoo.
    Zookeeper,
}

/// How many clients want one lock.
pub(crate) const CROWD: usize = 16;
const COACT: &str = "coact mutex";
const COACT_BARGING: &str = "coact mutex, barging";

/// The rows of one engine: each client with its own lock, alone and as a crowd; and one lock that a crowd wants.
#[derive(Default)]
pub(crate) struct Rows {
    alone: Vec<Measured>,
    apart: Vec<Measured>,
    /// Of hand-overs: from the call that releases to the next holder.
    together: Vec<Measured>,
}

pub(crate) async fn run(engine: Engine, time: Duration) {
    match engine {
        Engine::Redis => redis::run(time).await,
        Engine::Etcd => etcd::run(time).await,
        Engine::Postgres => postgres::run(time).await,
        Engine::Zookeeper => zookeeper::run(time).await,
    }
}

impl Rows {
    /// Shows them, with ratios to the bare primitive.
    fn show(&self, engine: &str, bare: &str) {
        print(&format!("{engine}: acquire + release, 1 client"), bare, &self.alone);
        print(&format!("{engine}: acquire + release, {CROWD} clients, each its own lock"), bare, &self.apart);
        print(
            &format!("{engine}: one lock for {CROWD} clients; µs from a release to the next holder"),
            bare,
            &self.together,
        );
    }

    /// Measures one way to lock. `client` makes a locker for a lock.
    pub(crate) async fn measure<C, L>(&mut self, name: &str, time: Duration, client: impl Fn(String) -> C)
    where
        C: Future<Output = L>,
        L: Locker,
    {
        for (clients, rows) in [(1, &mut self.alone), (CROWD, &mut self.apart)] {
            let mut lockers = Vec::new();
            for index in 0..clients {
                lockers.push(client(format!("own-{index}")).await);
            }
            rows.push(pairs(name, lockers, time).await);
        }
        let mut lockers = Vec::new();
        for _ in 0..CROWD {
            lockers.push(client("one".to_owned()).await);
        }
        self.together.push(hand_overs(name, lockers, time).await);
    }

    async fn measure_coact(&mut self, kv: &KvHandle, time: Duration) {
        for (name, barging) in [(COACT, false), (COACT_BARGING, true)] {
            let session = Session::open(kv, SessionOptions::default()).await.expect("a session");
            self.measure(name, time, async |lock| {
                let options = coact::lock::MutexOptions {
                    mode: if barging { coact::lock::Mode::Barging } else { coact::lock::Mode::Fair },
                    ..Default::default()
                };
                Coact(Mutex::with_options(&session, &format!("{barging}/{lock}"), options).expect("a lock"))
            })
            .await;
            session.close().await.expect("it ends");
        }
    }
}

/// One client of one lock.
pub(crate) trait Locker: Send + 'static {
    /// Acquires the lock, tells that it is held, and releases it.
    fn pair(&mut self, held: &(dyn Fn() + Sync)) -> impl Future<Output = ()> + Send;
}

struct Coact(Mutex);

impl Locker for Coact {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        let guard = self.0.acquire().await.expect("granted");
        held();
        guard.release().await.expect("held");
    }
}

async fn pairs<L: Locker>(name: &str, lockers: Vec<L>, time: Duration) -> Measured {
    let clients = lockers.len();
    let lockers: Vec<_> = lockers.into_iter().map(|locker| Arc::new(tokio::sync::Mutex::new(locker))).collect();
    closed_loop(name, clients, time, |index| {
        let locker = lockers[index].clone();
        move || {
            let locker = locker.clone();
            async move { locker.lock().await.pair(&|| ()).await }
        }
    })
    .await
}

/// How long from each release until the next client holds the lock.
async fn hand_overs<L: Locker>(name: &str, lockers: Vec<L>, time: Duration) -> Measured {
    let began = Instant::now();
    let end = began + time;
    let released = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = lockers
        .into_iter()
        .map(|mut locker| {
            let released = released.clone();
            tokio::spawn(async move {
                let took = std::sync::Mutex::new(Vec::new());
                let now = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                while Instant::now() < end {
                    locker
                        .pair(&|| {
                            // Whoever holds it is alone here; the release follows at once.
                            let last = released.swap(now(), Ordering::SeqCst);
                            if last != 0 {
                                took.lock().expect("no panic").push(Duration::from_nanos(now().saturating_sub(last)));
                            }
                        })
                        .await;
                }
                took.into_inner().expect("no panic")
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a client that does not fail"));
    }
    measured(name, took, began.elapsed())
}
