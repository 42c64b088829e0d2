//! One etcd, which syncs every write.

use std::time::Duration;

use coact_engine_etcd::wire::{
    etcdserverpb::{LeaseGrantRequest, lease_client::LeaseClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use coact_testkit::bed::{Bed as _, EtcdBed};
use tonic::transport::{Channel, Endpoint};

use super::{Locker, Rows};

const BARE: &str = "etcd's own Lock and Unlock";

pub(crate) async fn run(time: Duration) {
    let bed = EtcdBed::new(|url| Box::pin(async move { coact::open_store(&url).await }));
    bed.start().await.expect("etcd is installed by `cargo xtask test`");
    let url = bed.url("bench").await;
    let address = url.replacen("etcd://", "http://", 1).trim_end_matches("/bench").to_owned();
    let mut rows = Rows::default();
    let channel = Endpoint::from_shared(address).expect("a URL").connect().await.expect("it answers");
    rows.measure(BARE, time, async |lock| Own::new(channel.clone(), &lock).await).await;
    let store = coact::open_store(&url).await.expect("it opens");
    rows.measure_coact(store.kv(), time).await;
    rows.show("etcd", BARE);
}

struct Own {
    client: LockClient<Channel>,
    lease: i64,
    name: String,
}

impl Own {
    /// With a lease for each client: under one lease, etcd gives a lock twice.
    async fn new(channel: Channel, lock: &str) -> Self {
        let grant = LeaseGrantRequest { ttl: 300, ..LeaseGrantRequest::default() };
        let lease = LeaseClient::new(channel.clone()).lease_grant(grant).await.expect("granted").get_ref().id;
        Self { client: LockClient::new(channel), lease, name: format!("own/{lock}") }
    }
}

impl Locker for Own {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        let request = LockRequest { name: self.name.clone().into(), lease: self.lease };
        let key = self.client.lock(request).await.expect("granted").into_inner().key;
        held();
        self.client.unlock(UnlockRequest { key }).await.expect("held");
    }
}
