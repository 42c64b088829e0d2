//! Peers that are written in Python: a process for each client, which prints how long each round took.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use super::{CROWD, Rows};
use crate::load::{Measured, measured};

const SCRIPT: &str = include_str!("peers.py");

/// Measures the peer of this server that is written in Python, and gives the name of its rows.
pub(crate) async fn measure(rows: &mut Rows, server: &str, url: &str, time: Duration) -> &'static str {
    let name = if server == "redis" { "Python's redis lock" } else { "kazoo (Python)" };
    rows.alone.push(run(name, server, url, "own", 1, time).await);
    rows.apart.push(run(name, server, url, "own", CROWD, time).await);
    rows.together.push(run(name, server, url, "one", CROWD, time).await);
    name
}

async fn run(name: &str, server: &str, url: &str, which: &str, clients: usize, time: Duration) -> Measured {
    let python =
        std::env::var("COACT_BENCH_PYTHON").expect("run this by `cargo xtask bench`, which installs the peers");
    let output = Command::new(python)
        .args(["-c", SCRIPT, server, url, which, &clients.to_string(), &time.as_secs_f64().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .expect("python3 runs");
    assert!(output.status.success(), "{name} failed");
    let nanoseconds: Vec<u64> = serde_json::from_slice(&output.stdout).expect("a list of nanoseconds");
    measured(name, nanoseconds.into_iter().map(Duration::from_nanos).collect(), time)
}
