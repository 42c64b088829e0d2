//! The engine against real PostgreSQL servers: what it declares and refuses, what it does in other people's
//! transactions, and what survives a lost connection.

mod access;
mod faults;
mod guarantees;
mod order;
mod pooler;
mod server;
mod sql;
mod tls;
