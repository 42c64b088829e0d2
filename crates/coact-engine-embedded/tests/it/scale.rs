//! Messages by the hundred thousand: killed at random moments, and what millions of them cost in memory.

mod kill;
mod memory;
mod power;

use std::time::Duration;

/// How many things a test does: as many as the variable says, or a default that takes seconds.
fn count(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

/// How many things a second.
fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}
