//! The Kv contract as a real PostgreSQL server holds it.

use std::process::ExitCode;

use coact_core::{Result, contract::kv::KvHandle, env::Env, registry::Registry};
use coact_testkit::{bed::PostgresBed, suite};

fn main() -> ExitCode {
    suite::kv::main(vec![Box::new(PostgresBed::new(|url| Box::pin(open(url))))])
}

async fn open(url: String) -> Result<KvHandle> {
    Registry::default().with(coact_engine_postgres::driver()).open(url.parse()?, Env::real()).await
}
