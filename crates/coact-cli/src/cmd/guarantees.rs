//! `coact guarantees`: what engines promise, and which blocks that is enough for.

use clap::Args;
use coact::{
    Result, Store, directory,
    guarantees::{Needs, Weakness},
    id, lock, mq, queue,
};
use serde_json::{Value, json};

use crate::{Target, exit::Exit, output};

/// Arguments of `coact guarantees`.
#[derive(Debug, Args)]
pub(crate) struct Guarantees {
    /// The engines; without one, that of --at.
    urls: Vec<String>,
    /// Say what each word means.
    #[arg(long)]
    legend: bool,
    #[command(flatten)]
    target: Target,
}

const LEGEND: &str = "\
reads      linearizable: sees every acknowledged write while the servers can reach each other; sequential: never goes
           back for one caller; eventual: may
writes     what an acknowledged write survives: quorum: the loss of a minority of machines; sync: a power cut;
           interval:N: a power cut but for the last N; os: a crash of the process; memory: nothing
partition  single-node: who cannot reach the server gets no answer; minority-stops (CP); serves-stale;
           may-diverge (AP): both sides accept writes, those of one are lost
failover   whether one may lose acknowledged writes
fence      strong: tokens grow over crashes and failovers; epoch: they grow, though the writes they belong to may
           vanish; per-process: they start anew
watch      revision: goes on from any revision that is kept; now: only from now
wake       told: the store tells a waiter; polls:N: it looks every N
incr       native: in one step; emulated: by compare-and-set
commits    what one commit of topics and queues can span: everything (entries too), streams (records and the offsets
           of groups), single
compacts   whether topics can keep the newest record of each key only
lock …     yes, or what opens it: accept=NAME in the URL; - if the engine does not have it";

impl Guarantees {
    pub(crate) async fn run(self) -> Result<Exit> {
        if self.legend {
            output::write_line(LEGEND);
            return Ok(Exit::SUCCESS);
        }
        let urls = if self.urls.is_empty() { vec![self.target.url()?] } else { self.urls.clone() };
        let mut out = self.target.output();
        let mut exit = Exit::SUCCESS;
        for url in urls {
            match coact::open_store(&url).await {
                Ok(store) => {
                    out.row(row(&store));
                    store.close().await?;
                }
                Err(error) => {
                    output::complain_about(&error);
                    exit = Exit::from(&error);
                }
            }
        }
        out.finish();
        Ok(exit)
    }
}

fn row(store: &Store) -> Value {
    let kv = store.kv();
    let declared = kv.guarantees();
    let streams = store.streams().ok().map(|streams| streams.guarantees());
    let queues = store.queues().ok().map(|queues| queues.guarantees());
    let opens = |needs: &Needs| opened(&declared.to_accept(needs));
    json!({
        "engine": kv.describe(),
        "reads": declared.reads.name(),
        "writes": declared.writes.name(),
        "partition": declared.on_partition.name(),
        "failover": declared.failover.name(),
        "fence": declared.fence.name(),
        "watch": declared.watch.name(),
        "wake": declared.wake.name(),
        "incr": declared.increment.name(),
        "commits": streams.map(|declared| declared.atomicity.name()),
        "compacts": streams.map(|declared| declared.compaction),
        "lock": opens(&lock::NEEDS),
        "id": opens(&id::NEEDS),
        "directory": opens(&directory::NEEDS),
        "config": opens(&directory::PERSISTENT_NEEDS),
        "mq": streams.map(|declared| opened(&declared.to_accept(&mq::NEEDS))),
        "queue": queues.map(|declared| opened(&declared.to_accept(&queue::NEEDS))),
    })
}

/// `yes`, or the option that opens the block all the same.
fn opened(to_accept: &[Weakness]) -> String {
    let names: Vec<_> = to_accept.iter().map(|weakness| weakness.name()).collect();
    if names.is_empty() { "yes".to_owned() } else { format!("accept={}", names.join(",")) }
}
