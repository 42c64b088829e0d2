//! The node as its users meet it: against a real etcd, through etcdctl, at its limits, and at its end.

mod bed;
mod client;
mod differential;
mod etcdctl;
mod limits;
mod pages;
mod shutdown;
mod turns;
