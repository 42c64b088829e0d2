//! Real stores for tests that run on each of them.

use std::any::Any;

use coact_testkit::bed::{Bed, EtcdBed, OpenUrl, PostgresBed, RedisBed, RedisMode, ZookeeperBed};

use crate::node::Node;

/// A store that runs until this is dropped, and its URL.
pub(crate) struct Store {
    pub(crate) url: String,
    _up: Box<dyn Any + Send>,
}

const OPEN: OpenUrl = |url| Box::pin(async move { coact::open_store(&url).await });

async fn started<B: Bed>(bed: B) -> B {
    bed.start().await.unwrap_or_else(|error| panic!("{}: {error}", bed.name()));
    bed
}

pub(crate) async fn etcd() -> Store {
    let bed = started(EtcdBed::new(OPEN)).await;
    Store { url: bed.url("main").await, _up: Box::new(bed) }
}

pub(crate) async fn node() -> Store {
    let node = Node::start().await;
    Store { url: node.url("main"), _up: Box::new(node) }
}

pub(crate) async fn redis() -> Store {
    of_redis(RedisMode::Single).await
}

pub(crate) async fn redis_sentinel() -> Store {
    of_redis(RedisMode::Sentinel).await
}

pub(crate) async fn redis_cluster() -> Store {
    of_redis(RedisMode::Cluster).await
}

async fn of_redis(mode: RedisMode) -> Store {
    let bed = started(RedisBed::new(mode, OPEN)).await;
    Store { url: bed.url("main").await, _up: Box::new(bed) }
}

pub(crate) async fn zookeeper() -> Store {
    let bed = started(ZookeeperBed::new(OPEN)).await;
    Store { url: bed.url("main").await, _up: Box::new(bed) }
}

pub(crate) async fn postgres() -> Store {
    let bed = started(PostgresBed::new(OPEN)).await;
    Store { url: bed.url("main").await, _up: Box::new(bed) }
}
