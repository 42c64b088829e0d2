//! The Kv contract as a real ZooKeeper holds it.

use std::process::ExitCode;

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};
use coact_testkit::{bed::ZookeeperBed, suite};

fn main() -> ExitCode {
    suite::kv::main(vec![Box::new(ZookeeperBed::new(|url| Box::pin(open(url))))])
}

async fn open(url: String) -> Result<KvHandle> {
    Registry::default().with(coact_engine_zookeeper::driver()).open(url.parse()?, Env::real()).await
}
