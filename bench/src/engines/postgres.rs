//! One PostgreSQL, which syncs every commit.

use std::time::Duration;

use tokio_postgres::{Client, NoTls, Statement};

use super::{Locker, Rows};
use crate::peer;

const BARE: &str = "a row with a unique key";

pub(crate) async fn run(time: Duration) {
    let bed = peer::postgres().await;
    let url = bed.url("bench").await;
    let server = bed.driver_settings().await;
    let mut rows = Rows::default();
    connect(&server).await.batch_execute("create table bare (name text primary key)").await.expect("a table");
    rows.measure(BARE, time, async |lock| Row::new(connect(&server).await, lock).await).await;
    let store = coact::open_store(&url).await.expect("it opens");
    rows.measure_coact(store.kv(), time).await;
    rows.measure("advisory lock (not durable, no token)", time, async |lock| {
        Advisory::new(connect(&server).await, &lock).await
    })
    .await;
    rows.show("postgres, synchronous_commit on", BARE);
}

/// A connection to these settings of the driver.
pub(crate) async fn connect(settings: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(settings, NoTls).await.expect("it answers");
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// Whoever inserts the row has the lock; the others look again after a pause.
struct Row {
    client: Client,
    insert: Statement,
    delete: Statement,
    lock: String,
}

impl Row {
    async fn new(client: Client, lock: String) -> Self {
        let insert = "insert into bare values ($1) on conflict do nothing";
        let insert = client.prepare(insert).await.expect("valid");
        let delete = client.prepare("delete from bare where name = $1").await.expect("valid");
        Self { client, insert, delete, lock }
    }
}

impl Locker for Row {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        while self.client.execute(&self.insert, &[&self.lock]).await.expect("it answers") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        held();
        assert_eq!(self.client.execute(&self.delete, &[&self.lock]).await.expect("it answers"), 1, "it was held");
    }
}

/// Lives as long as the connection, and nowhere else.
struct Advisory {
    client: Client,
    lock: Statement,
    unlock: Statement,
    number: i64,
}

impl Advisory {
    async fn new(client: Client, lock: &str) -> Self {
        let number = lock.bytes().fold(7_i64, |sum, byte| sum * 31 + i64::from(byte));
        let lock = client.prepare("select pg_advisory_lock($1)").await.expect("valid");
        let unlock = client.prepare("select pg_advisory_unlock($1)").await.expect("valid");
        Self { client, lock, unlock, number }
    }
}

impl Locker for Advisory {
    async fn pair(&mut self, held: &(dyn Fn() + Sync)) {
        self.client.query(&self.lock, &[&self.number]).await.expect("granted");
        held();
        self.client.query(&self.unlock, &[&self.number]).await.expect("held");
    }
}
