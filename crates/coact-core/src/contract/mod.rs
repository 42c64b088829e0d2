//! The contracts: small traits that engines implement and blocks use. One file each; the same names stand in every crate.

pub mod kv;
