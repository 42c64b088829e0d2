//! The embedded engine as a whole: on real files, killed, failed and full; and its requests, watches and leases.

mod crash;
mod engine;
mod faults;
