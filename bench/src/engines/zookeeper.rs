//! One ZooKeeper, which syncs every write.

use std::time::Duration;

use coact_testkit::bed::{Bed as _, ZookeeperBed};

use super::{Rows, python};

pub(crate) async fn run(time: Duration) {
    let bed = ZookeeperBed::new(|url| Box::pin(async move { coact::open_store(&url).await }));
    bed.start().await.expect("ZooKeeper is installed by `cargo xtask test`");
    let url = bed.url("bench").await;
    let mut rows = Rows::default();
    let store = coact::open_store(&url).await.expect("it opens");
    rows.measure_coact(store.kv(), time).await;
    let bare = python::measure(&mut rows, "zookeeper", &url, time).await;
    rows.show("zookeeper", bare);
}
