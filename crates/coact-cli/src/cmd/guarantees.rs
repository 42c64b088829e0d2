//! `coact guarantees`: what engines promise, and which blocks that is enough for.

use clap::Args;
use coact::{
    KvHandle, Result, directory,
    guarantees::{Guarantees as Declared, Needs},
    id, lock,
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
lock …     yes, or what opens it: accept=NAME in the URL";

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
            match coact::open(&url).await {
                Ok(kv) => {
                    out.row(row(&kv));
                    kv.close().await?;
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

fn row(kv: &KvHandle) -> Value {
    let declared = kv.guarantees();
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
        "lock": opens(declared, &lock::NEEDS),
        "id": opens(declared, &id::NEEDS),
        "directory": opens(declared, &directory::NEEDS),
        "config": opens(declared, &directory::PERSISTENT_NEEDS),
    })
}

/// `yes`, or the option that opens the block all the same.
fn opens(declared: &Declared, needs: &Needs) -> String {
    let names: Vec<_> = declared.to_accept(needs).iter().map(|weakness| weakness.name()).collect();
    if names.is_empty() { "yes".to_owned() } else { format!("accept={}", names.join(",")) }
}
