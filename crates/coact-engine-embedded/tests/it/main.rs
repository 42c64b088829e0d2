//! The embedded engine as a whole: on real files, killed, failed and full; in simulation; and its requests, watches and
//! leases.

mod checked;
mod clock;
mod compaction;
mod crash;
mod engine;
mod faults;
mod message_lives;
mod messages;
mod scale;
mod simulation;
