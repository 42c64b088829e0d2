//! The node as its users meet it: against a real etcd, through etcdctl, at its limits, and at its end.
#![allow(clippy::large_futures, reason = "a script of hundreds of calls is one large future, made once")]

mod api;
mod api_directory;
mod api_lock;
mod api_mq;
mod api_queue;
mod auth;
mod bed;
mod checks;
mod client;
mod differential;
mod dns;
mod etcdctl;
mod failure;
mod limits;
mod matrix;
mod messaging;
mod pages;
mod shutdown;
mod slow;
mod tls;
mod turns;
mod watches;
mod web;
