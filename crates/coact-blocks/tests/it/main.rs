//! The blocks against an honest model of the Kv contract, with seeded randomness, steppable clocks and injected faults.

mod barrier;
mod directory;
mod directory_protect;
mod election;
mod id;
mod latch;
mod lock;
mod lock_chaos;
mod lock_faults;
mod model;
mod mq_group;
mod mq_lag;
mod mq_producer;
mod mq_retry;
mod multi;
mod pick;
mod rate;
mod rwlock;
mod segment;
mod semaphore;
mod session;
mod settings;
mod sortable;
mod streams;
mod ticket;
mod world;
