//! The Kv contract as `coact serve` holds it, through `coact://`.

use std::process::ExitCode;

use coact_testkit::{bed::NodeBed, suite};

fn main() -> ExitCode {
    let binary = env!("CARGO_BIN_EXE_coact");
    suite::main(
        vec![Box::new(NodeBed::new(binary, |url| Box::pin(async move { coact::open_store(&url).await })))],
        [suite::kv::suite, suite::stream::suite, suite::queue::suite],
    )
}
