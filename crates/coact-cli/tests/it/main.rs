//! The command as people and scripts use it: real processes, real files, real signals.

mod auth;
mod bad_input;
mod clients;
mod commands;
mod consume;
mod coordination;
mod dir;
mod doctor;
mod engines;
mod faults;
mod guarantees;
mod holders;
mod ids;
mod locks;
mod mq;
mod node;
mod queue;
mod round_trips;
mod running;
mod scale;
mod sql_fence;
mod stores;
mod top;
mod tour;
