//! One client process on one host: it drives coact's blocks, and writes down each call and each answer.

mod add;
mod ids;
mod locks;
mod registers;
mod services;
mod watching;

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use coact::{
    Env, Error,
    guarantees::{Consistency, Failover, OnPartition, WatchFrom},
    kv::{KvHandle, Order},
};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::watch,
};

use crate::{
    history::{Recorder, Row},
    plant::Plant,
};

/// How long every lease of the workloads lives. etcd has no shorter one with the lab's elections.
pub(crate) const TTL: Duration = Duration::from_secs(2);
/// The key that the final reader writes last, so that watches know when they have seen everything.
pub(crate) const END: &str = "end";

/// What a worker is told to do.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Job {
    /// Where the store is.
    #[arg(long)]
    pub(crate) url: String,
    /// The host's name.
    #[arg(long)]
    pub(crate) node: String,
    /// Seeds what it chooses.
    #[arg(long)]
    pub(crate) seed: u64,
    /// Where the protected resource is.
    #[arg(long)]
    pub(crate) resource: PathBuf,
    /// A defect of this client.
    #[arg(long)]
    pub(crate) plant: Option<Plant>,
}

/// How far a run is. The lab says when to go on to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Everything is opened.
    #[default]
    Open,
    /// The workloads run.
    Run,
    /// They have stopped; what is under way ends.
    Stop,
    /// Everything is closed.
    Close,
}

/// What the engine of a run declares, as far as the lab can check it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Declared {
    /// For people: each guarantee by name.
    pub(crate) all: Vec<(String, String)>,
    pub(crate) linearizable: bool,
    pub(crate) minority_stops: bool,
    pub(crate) serves_stale: bool,
    pub(crate) may_diverge: bool,
    pub(crate) keeps_writes: bool,
    /// Whether a watch tells every change.
    pub(crate) tells_all: bool,
}

/// What the workloads of one worker share.
#[derive(Clone)]
struct Context {
    kv: KvHandle,
    recorder: Recorder,
    job: Job,
    stage: watch::Receiver<Stage>,
}

/// Runs as a process of its own: the history goes to standard output, and what to do next comes by standard input.
pub(crate) async fn main(job: Job) -> Result<()> {
    let recorder = Recorder::new(&job.node, |event| {
        if let Ok(line) = serde_json::to_string(&event) {
            // Nobody listens any more: the lab ended, and this process ends with it.
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
    });
    let (stage, seen) = watch::channel(Stage::Open);
    let reader = recorder.clone();
    let kv = open(&job.url).await?;
    let store = kv.clone();
    Env::real().spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match line.as_str() {
                "run" => drop(stage.send_replace(Stage::Run)),
                "stop" => drop(stage.send_replace(Stage::Stop)),
                "close" => drop(stage.send_replace(Stage::Close)),
                "final" => read_all(&store, &reader).await,
                _ => {}
            }
        }
    });
    run(kv, recorder, job, seen).await
}

/// Opens the store, with patience for one that has just begun to serve.
async fn open(url: &str) -> Result<KvHandle> {
    let env = Env::real();
    let end = env.now() + Duration::from_secs(10);
    loop {
        match coact::open(url).await {
            Ok(kv) => return Ok(kv),
            Err(error) if env.now() > end => return Err(error).context("opening the store"),
            Err(_) => env.sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Opens everything, and runs the workloads as the stages say.
pub(crate) async fn run(kv: KvHandle, recorder: Recorder, job: Job, stage: watch::Receiver<Stage>) -> Result<()> {
    recorder.note("declared", json!(declared(&kv)));
    let context = Context { kv, recorder, job, stage };
    let registers = [0, 1].map(|number| registers::open(&context, number));
    let reads = registers::open_reads(&context);
    let add = add::open(&context);
    let watching = watching::open(&context).await?;
    let locks = locks::open(&context).await?;
    let ids = ids::open(&context).await?;
    let services = services::open(&context).await?;
    context.recorder.note("ready", json!(null));
    let workloads: [futures::future::BoxFuture<'_, Result<()>>; 7] = [
        Box::pin(async { try_join_all(registers.map(|register| Box::pin(register.run()))).await.map(drop) }),
        Box::pin(reads.run()),
        Box::pin(add.run()),
        Box::pin(locks.run()),
        Box::pin(ids.run()),
        Box::pin(services.run()),
        Box::pin(watching.run()),
    ];
    try_join_all(workloads).await?;
    context.recorder.note("closed", json!(null));
    Ok(())
}

/// Reads everything once the workloads have stopped, until that succeeds.
pub(crate) async fn read_all(kv: &KvHandle, recorder: &Recorder) {
    loop {
        match try_read_all(kv, recorder).await {
            Ok(()) => return recorder.note("final", json!(null)),
            Err(error) => recorder.note("final-retry", json!(error.to_string())),
        }
        Env::real().sleep(Duration::from_millis(100)).await;
    }
}

async fn try_read_all(kv: &KvHandle, recorder: &Recorder) -> Result<(), Error> {
    let end = registers::dir()?.key(END)?;
    kv.put(&end, "0", None).await?;
    let (revision, rows) = list(kv, &registers::dir()?).await?;
    recorder.note("final-registers", json!({ "revision": revision, "rows": rows }));
    let (_, rows) = list(kv, &add::dir()?).await?;
    let names: Vec<_> = rows.iter().map(|row| &row.name).collect();
    recorder.note("final-set", json!(names));
    Ok(())
}

/// Lists a dir to its end, and the revision of its first page.
async fn list(kv: &KvHandle, dir: &coact::Dir) -> Result<(u64, Vec<Row>), Error> {
    let (mut rows, mut after, mut revision) = (Vec::new(), String::new(), None);
    loop {
        let page = kv.list(dir, Order::Name { after }, 500).await?;
        revision.get_or_insert(page.revision.0);
        rows.extend(page.entries.iter().map(row));
        match page.entries.last() {
            Some(last) if page.more => after = last.key.name().to_owned(),
            _ => return Ok((revision.unwrap_or_default(), rows)),
        }
    }
}

fn row(entry: &coact::kv::Entry) -> Row {
    Row {
        name: entry.key.name().to_owned(),
        value: String::from_utf8_lossy(&entry.value).into_owned(),
        created: entry.created.0,
        modified: entry.modified.0,
    }
}

fn declared(kv: &KvHandle) -> Declared {
    let guarantees = kv.guarantees();
    let all = [
        ("reads", format!("{:?}", guarantees.reads)),
        ("writes", format!("{:?}", guarantees.writes)),
        ("on a partition", format!("{:?}", guarantees.on_partition)),
        ("failover", format!("{:?}", guarantees.failover)),
        ("fence", format!("{:?}", guarantees.fence)),
        ("watch from", format!("{:?}", guarantees.watch)),
        ("wake-up", format!("{:?}", guarantees.wake)),
        ("increment", format!("{:?}", guarantees.increment)),
    ];
    Declared {
        all: all.map(|(name, value)| (name.to_owned(), value)).into(),
        linearizable: guarantees.reads == Consistency::Linearizable,
        minority_stops: guarantees.on_partition == OnPartition::MinorityStops,
        serves_stale: guarantees.on_partition == OnPartition::ServesStale,
        may_diverge: guarantees.on_partition == OnPartition::MayDiverge,
        keeps_writes: guarantees.failover == Failover::KeepsWrites,
        tells_all: guarantees.watch == WatchFrom::Revision,
    }
}

impl Context {
    /// Waits until the lab has gone on to this stage.
    async fn reached(&self, stage: Stage) {
        // The lab is gone: every stage is reached.
        let _ = self.stage.clone().wait_for(|now| *now >= stage).await;
    }

    /// Whether the workloads run.
    fn is_running(&self) -> bool {
        *self.stage.borrow() < Stage::Stop
    }

    fn planted(&self, plant: Plant) -> bool {
        self.job.plant == Some(plant)
    }

    async fn rest(&self, milliseconds: u64) {
        self.kv.env().sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// Seeded choices.
struct Choices(u64);

impl Choices {
    fn new(context: &Context, salt: u64) -> Self {
        Self(context.job.seed.wrapping_mul(31).wrapping_add(salt))
    }

    /// One of `0..count` (splitmix64).
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % count
    }
}
