//! The Kv contract as real servers hold it: one, Sentinels, a Cluster.

use std::process::ExitCode;

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};
use coact_testkit::{
    bed::{Bed, RedisBed, RedisMode},
    suite,
};

fn main() -> ExitCode {
    let bed = |mode| Box::new(RedisBed::new(mode, |url| Box::pin(open(url)))) as Box<dyn Bed>;
    suite::kv::main([RedisMode::Single, RedisMode::Sentinel, RedisMode::Cluster].map(bed).into())
}

async fn open(url: String) -> Result<KvHandle> {
    Registry::default().with(coact_engine_redis::driver()).open(url.parse()?, Env::real()).await
}
