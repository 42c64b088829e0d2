//! The blocks against an honest model of the Kv contract, with seeded randomness, steppable clocks and injected faults.

mod election;
mod id;
mod lock;
mod lock_chaos;
mod lock_faults;
mod model;
mod multi;
mod rwlock;
mod semaphore;
mod session;
mod ticket;
mod world;
