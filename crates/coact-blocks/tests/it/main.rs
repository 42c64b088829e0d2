//! The blocks against an honest model of the Kv contract, with seeded randomness, steppable clocks and injected faults.

mod barrier;
mod id;
mod latch;
mod lock;
mod lock_chaos;
mod lock_faults;
mod model;
mod rate;
mod segment;
mod session;
mod sortable;
mod world;
