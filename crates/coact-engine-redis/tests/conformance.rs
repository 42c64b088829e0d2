//! The Kv contract as real servers hold it: one, Sentinels, a Cluster.

use std::process::ExitCode;

use coact_core::{
    Result,
    env::Env,
    registry::{Registry, Store},
};
use coact_testkit::{
    bed::{Bed, RedisBed, RedisMode},
    suite,
};

fn main() -> ExitCode {
    let bed = |mode| Box::new(RedisBed::new(mode, |url| Box::pin(open(url)))) as Box<dyn Bed>;
    suite::main([RedisMode::Single, RedisMode::Sentinel, RedisMode::Cluster].map(bed).into(), [suite::kv::suite])
}

async fn open(url: String) -> Result<Store> {
    Registry::default().with(coact_engine_redis::driver()).open(url.parse()?, Env::real()).await
}
