//! Closed-loop load: each client does one operation after the other until the time is over.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// What one row measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) per_second: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// Runs `client(index)` in a loop in `clients` tasks. An operation that fails ends the measurement loudly.
pub(crate) async fn closed_loop<C, F>(
    name: &str,
    clients: usize,
    time: Duration,
    client: impl Fn(usize) -> C,
) -> Measured
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let end = Instant::now() + time;
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|index| {
            let mut operation = client(index);
            tokio::spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < end {
                    let began = Instant::now();
                    operation().await;
                    took.push(began.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a client that does not fail"));
    }
    measured(name, took, began.elapsed())
}

pub(crate) fn measured(name: &str, mut took: Vec<Duration>, time: Duration) -> Measured {
    took.sort_unstable();
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied().unwrap_or_default();
    Measured { name: name.to_owned(), per_second: took.len() as f64 / time.as_secs_f64(), p50: at(0.5), p99: at(0.99) }
}

/// Prints rows of which only the times count.
pub(crate) fn print_times(title: &str, rows: &[Measured]) {
    println!("\n{title}");
    println!("  {:<44} {:>10} {:>10}", "", "p50 µs", "p99 µs");
    for row in rows {
        println!("  {:<44} {:>10.0} {:>10.0}", row.name, row.p50.as_secs_f64() * 1e6, row.p99.as_secs_f64() * 1e6);
    }
}

/// Prints rows, each with its ratio to the row named `base`.
pub(crate) fn print(title: &str, base: &str, rows: &[Measured]) {
    let reference = rows.iter().find(|row| row.name == base).map_or(f64::NAN, |row| row.per_second);
    println!("\n{title}");
    println!("  {:<44} {:>12} {:>10} {:>10} {:>9}", "", "per second", "p50 µs", "p99 µs", "ratio");
    for row in rows {
        println!(
            "  {:<44} {:>12.0} {:>10.0} {:>10.0} {:>9.2}",
            row.name,
            row.per_second,
            row.p50.as_secs_f64() * 1e6,
            row.p99.as_secs_f64() * 1e6,
            row.per_second / reference
        );
    }
    println!("  (ratio: to {base})");
}
