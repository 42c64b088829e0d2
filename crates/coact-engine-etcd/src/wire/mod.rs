//! The etcd v3 protocol, and coact's own services, as Rust types with gRPC client and server stubs.
//!
//! One module per protobuf package, named after it, because the generated code finds its neighbours by
//! those names. A service `Foo` becomes `foo_client::FooClient` and, to be implemented, the trait
//! `foo_server::Foo` with its wrapper `foo_server::FooServer`. Fields of type `bytes` are
//! [`bytes::Bytes`]; fields of an enum type are `i32`, with a typed getter of the same name.
//!
//! Everything but this page is generated from `crates/coact-engine-etcd/proto` and committed. To change
//! it, edit a `.proto` file and run `cargo xtask codegen`; `cargo xtask codegen --check` says whether the
//! two agree.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::pedantic,
    clippy::disallowed_methods,
    reason = "generated code, which this project's lints are not for"
)]

/// Streams and queues, which a coact node serves beside etcd's protocol.
#[rustfmt::skip]
#[path = "coact.v1.rs"]
pub mod coact_v1;

/// Keys, values, leases, watches, the cluster and its upkeep.
#[rustfmt::skip]
pub mod etcdserverpb;

/// The stored pairs and the events about them.
#[rustfmt::skip]
pub mod mvccpb;

/// Leader elections run by the server.
#[rustfmt::skip]
pub mod v3electionpb;

/// Named locks run by the server.
#[rustfmt::skip]
pub mod v3lockpb;
