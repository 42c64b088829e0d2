//! The Kv contract as a real ZooKeeper holds it.

use std::process::ExitCode;

use coact_core::{
    Result,
    env::Env,
    registry::{Registry, Store},
};
use coact_testkit::{bed::ZookeeperBed, suite};

fn main() -> ExitCode {
    suite::main(vec![Box::new(ZookeeperBed::new(|url| Box::pin(open(url))))], [suite::kv::suite])
}

async fn open(url: String) -> Result<Store> {
    Registry::default().with(coact_engine_zookeeper::driver()).open(url.parse()?, Env::real()).await
}
