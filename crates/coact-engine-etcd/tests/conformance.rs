//! The Kv contract as a real etcd holds it.

use std::process::ExitCode;

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};
use coact_testkit::{bed::EtcdBed, suite};

fn main() -> ExitCode {
    suite::kv::main(vec![Box::new(EtcdBed::new(|url| Box::pin(open(url))))])
}

async fn open(url: String) -> Result<KvHandle> {
    let store = Registry::default().with(coact_engine_etcd::driver()).open(url.parse()?, Env::real()).await?;
    Ok(store.kv().clone())
}
