//! The Kv contract as a real PostgreSQL server holds it.

use std::process::ExitCode;

use coact_core::{
    Result,
    env::Env,
    registry::{Registry, Store},
};
use coact_testkit::{bed::PostgresBed, suite};

fn main() -> ExitCode {
    suite::main(vec![Box::new(PostgresBed::new(|url| Box::pin(open(url))))], [suite::kv::suite])
}

async fn open(url: String) -> Result<Store> {
    Registry::default().with(coact_engine_postgres::driver()).open(url.parse()?, Env::real()).await
}
