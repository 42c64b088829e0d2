//! Conformance suites: one for each contract, run against every engine that claims to hold it.

pub mod kv;
