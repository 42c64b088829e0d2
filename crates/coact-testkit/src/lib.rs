//! coact's test kit: a simulator that replays any failure from a seed, and checkers that say what may happen.
//!
//! Development only: nothing here is part of a release.

pub mod bed;
pub mod check;
pub mod fault;
pub mod model;
pub mod sim;
pub mod suite;
