//! The embedded engine: one commit log, and state machines folded from it.

mod log;
