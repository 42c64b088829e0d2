//! Faults between real processes. Those of simulated ones are in [`sim`](crate::sim).

mod frames;
mod proxy;

pub use frames::Frames;
pub use proxy::{Direction, Proxy, Traffic};
