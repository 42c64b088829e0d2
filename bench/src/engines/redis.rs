//! Redis with an append-only file that is synced at every write.

use std::time::Duration;

use redis::{Script, aio::MultiplexedConnection};

use super::{Locker, Rows, python};
use crate::peer;

const BARE: &str = "SET NX PX, asked every ms; compare and delete";
/// A lock that nobody releases comes back after this.
const TTL_MS: u64 = 30_000;

pub(crate) async fn run(time: Duration) {
    let bed = peer::redis().await;
    let url = bed.url("bench").await;
    let server = url.trim_end_matches("/bench").to_owned();
    let mut rows = Rows::default();
    let client = redis::Client::open(server.as_str()).expect("a URL");
    let connection = client.get_multiplexed_async_connection().await.expect("it answers");
    rows.measure(BARE, time, async |lock| Bare::new(connection.clone(), lock)).await;
    let store = coact::open_store(&url).await.expect("it opens");
    rows.measure_coact(store.kv(), time).await;
    rows.measure("rslock", time, async |lock| Rslock {
        manager: rslock::LockManager::new(vec![server.as_str()]),
        lock,
    })
    .await;
    python::measure(&mut rows, "redis", &server, time).await;
    rows.show("redis, appendfsync always", BARE);
}

/// What the documentation of `SET` shows; a client that does not get it looks again after a pause.
struct Bare {
    connection: MultiplexedConnection,
    release: Script,
    lock: String,
    number: u64,
}

impl Bare {
    fn new(connection: MultiplexedConnection, lock: String) -> Self {
        let release =
            Script::new("if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0");
        Self { connection, release, lock: format!("bare:{lock}"), number: coact::Env::real().random() }
    }
}

impl Locker for Bare {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        loop {
            let mut set = redis::cmd("SET");
            set.arg(&self.lock).arg(self.number).arg("NX").arg("PX").arg(TTL_MS);
            let answer: Option<String> = set.query_async(&mut self.connection).await.expect("it answers");
            if answer.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        held();
        let released: i64 =
            self.release.key(&self.lock).arg(self.number).invoke_async(&mut self.connection).await.expect("it answers");
        assert_eq!(released, 1, "it was held");
    }
}

struct Rslock {
    manager: rslock::LockManager,
    lock: String,
}

impl Locker for Rslock {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        let name = format!("rslock:{}", self.lock);
        let ttl = Duration::from_millis(TTL_MS);
        let lock = self.manager.acquire_no_guard(name.as_bytes(), ttl).await.expect("granted");
        held();
        self.manager.unlock(&lock).await;
    }
}
