//! The Kv contract in terms of statements.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    consumer::Wake,
    contract::kv::{
        Entry, Feed, KvHandle, KvStore, Lease, LeaseId, Order, Page, ReadAt, Revision, Scope, Txn, TxnOutcome,
    },
    env::Env,
    guarantees::{Guarantees, WakeUp},
    name::{Dir, Key, Realm},
    url::Url,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_postgres::{Row, Transaction, types::Type};

use crate::{
    config::Config,
    connection::{Connections, Inside, Params},
    errors::{Access, closed, malformed},
    lease::{self, Changed},
    listen, probe, schema,
    txn::{self, entry, signed, sweep, unsigned},
    watch::Watches,
};

/// How often watches look by themselves where they are told of changes, in case a hint was lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often they look where nobody can tell them.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How often ended leases may be swept out of the way of one read.
const SWEEPS_MAX: usize = 100;

/// A store in PostgreSQL that can take part in your own SQL transactions.
///
/// ```no_run
/// # async fn example(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use coact_core::{contract::kv::{Txn, Write}, env::Env, name::{Key, Realm}};
/// use coact_engine_postgres::PostgresKv;
///
/// let kv = PostgresKv::open("postgres://shop:env:PW@db/shop".parse()?, Env::real()).await?;
/// let realm = Realm::default();
/// let write = Write::Put { key: Key::parse(&realm, "order/17")?, value: "paid".into(), lease: None };
///
/// let transaction = client.transaction().await?;
/// transaction.execute("UPDATE orders SET paid = true WHERE id = 17", &[]).await?;
/// let outcome = kv.txn_in(&transaction, &realm, Txn { writes: vec![write], ..Txn::default() }).await?;
/// transaction.commit().await?;
/// kv.changed(&realm);
/// # drop(outcome);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresKv {
    store: Arc<Store>,
    handle: KvHandle,
}

impl std::fmt::Debug for PostgresKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgresKv({})", self.store.connections.config.description)
    }
}

impl PostgresKv {
    /// Opens a store by its URL, and makes its schema if there is none.
    ///
    /// # Errors
    /// `Invalid` for a URL that says something wrong; `Denied` if the user is not let in or lacks rights (the message
    /// says what to grant); `Unsupported` for a server or a schema that cannot be used; `Unavailable` if there is no
    /// server, or none that takes writes.
    ///
    /// # Cancel safety
    /// Safe: the schema is made as a whole or not at all.
    pub async fn open(url: Url, env: Env) -> Result<Self> {
        let config = Config::from_url(&url)?;
        let accepted = url.accepted()?;
        let connections = Arc::new(Connections::new(config, env.clone())?);
        // First, since it knows an old server, which could not make the schema.
        let mut guarantees = probe::probe(&connections, WakeUp::Told).await?;
        schema::prepare(&connections).await?;
        let listener = listen::start(&connections).await?;
        let every = if listener.is_some() { LOOK_EVERY } else { POLL_EVERY };
        if listener.is_none() {
            guarantees.wake = WakeUp::Polls(POLL_EVERY);
        }
        let watches = Watches::start(connections.clone(), every);
        let (tell, to_tell) = mpsc::unbounded_channel();
        let changed = Changed { hints: watches.hints(), tell };
        let (alive, lives) = watch::channel(());
        if let Some(listener) = listener {
            env.spawn(listen::run(listener, connections.clone(), watches.hints(), lives.clone()));
        }
        env.spawn(listen::tell(connections.clone(), to_tell));
        env.spawn(lease::reap(connections.clone(), changed.clone(), lives));
        let store = Arc::new(Store { guarantees, connections, watches, changed, alive: Mutex::new(Some(alive)) });
        let handle = KvHandle::new(Shared(store.clone()), env, accepted);
        Ok(Self { store, handle })
    }

    /// The same store for blocks.
    pub fn handle(&self) -> KvHandle {
        self.handle.clone()
    }

    /// Runs a transaction of coact as a part of your own: what it writes is there when yours commits, and not at all
    /// when yours does not. The transaction must be on the same database, with rights on coact's schema.
    ///
    /// Until your transaction ends, nobody else can write in this realm: keep it short. With an isolation stricter than
    /// `READ COMMITTED`, whatever was written in the realm since your transaction began is a `Conflict`. After your commit, call
    /// [`changed`](Self::changed), or whoever waits learns of it within a second.
    ///
    /// # Errors
    /// As [`KvHandle::txn`]. `Conflict` says that PostgreSQL gave up your transaction for another: begin it anew. Where
    /// the outcome is a refusal or the error `Fenced` or `Invalid`, your transaction stands and can go on.
    ///
    /// # Cancel safety
    /// Nothing is applied before your commit.
    pub async fn txn_in(&self, transaction: &Transaction<'_>, realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        txn.check(realm, &self.store.guarantees.limits)?;
        self.store.open()?;
        let config = &self.store.connections.config;
        Ok(txn::run(&Inside { transaction, config }, config, realm, &txn).await?.outcome)
    }

    /// Says that a transaction which wrote in this realm was committed, so that whoever waits looks at once.
    pub fn changed(&self, realm: &Realm) {
        self.store.changed.in_realm(realm);
    }

    /// The statement that guards your own tables: run it in your transaction with the name of what you write and the
    /// fencing token of your lock (`$1` text, `$2` bigint). It fails with SQLSTATE `CF001` if a later token was seen.
    pub fn fence_statement(&self) -> String {
        format!("SELECT {}.fence($1, $2)", self.store.connections.config.schema)
    }
}

/// Opens a store for the registry.
pub(crate) async fn open(url: Url, env: Env) -> Result<KvHandle> {
    Ok(PostgresKv::open(url, env).await?.handle)
}

struct Store {
    guarantees: Guarantees,
    connections: Arc<Connections>,
    watches: Watches,
    changed: Changed,
    /// Tasks end when it is dropped.
    alive: Mutex<Option<watch::Sender<()>>>,
}

struct Shared(Arc<Store>);

impl Store {
    fn open(&self) -> Result<()> {
        if self.connections.is_closed() {
            return Err(closed(&self.connections.config.description));
        }
        Ok(())
    }

    /// Runs a statement of reads, whose rows say in `over` which entries belong to a lease that is over. Those are
    /// swept, and then it is read again: an entry goes away with its lease, whoever looks first.
    async fn read(&self, realm: &Realm, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        for _ in 0..SWEEPS_MAX {
            let rows = self.connections.query(Access::Read, sql, params).await?;
            let over = |row: &Row| row.get::<_, Option<bool>>("over") == Some(true);
            let leases: Vec<i64> = rows.iter().filter(|row| over(row)).map(|row| row.get("lease")).collect();
            if leases.is_empty() {
                return Ok(rows);
            }
            if sweep(&*self.connections, &self.connections.config, realm, &leases).await? {
                self.changed.in_realm(realm);
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("leases of realm {realm} end faster than they can be swept")))
    }

    fn namespace(&self) -> &str {
        self.connections.config.namespace.as_str()
    }

    fn schema(&self) -> &str {
        &self.connections.config.schema
    }
}

/// The columns of an entry `e` with its lease `l`.
const ENTRY: &str = "e.dir, e.name, e.value, e.created, e.modified, e.lease, \
    e.lease IS NOT NULL AND (l.expires_at > clock_timestamp()) IS NOT TRUE AS over";

impl KvStore for Shared {
    fn guarantees(&self) -> &Guarantees {
        &self.0.guarantees
    }

    fn describe(&self) -> String {
        self.0.connections.config.description.clone()
    }

    async fn txn(&self, realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        self.0.open()?;
        let connections = &*self.0.connections;
        let txn::Outcome { outcome, changed } = txn::run(connections, &connections.config, realm, &txn).await?;
        if changed {
            self.0.changed.in_realm(realm);
        }
        Ok(outcome)
    }

    async fn get(&self, key: &Key, _at: ReadAt) -> Result<Option<Entry>> {
        self.0.open()?;
        let schema = self.0.schema();
        let sql = format!(
            "SELECT {ENTRY} FROM {schema}.entry e LEFT JOIN {schema}.lease l ON l.id = e.lease
                WHERE e.namespace = $1 AND e.realm = $2 AND e.dir = $3 AND e.name = $4"
        );
        let params: Params<'_> = &[
            (&self.0.namespace(), Type::TEXT),
            (&key.realm().as_str(), Type::TEXT),
            (&key.dir().path(), Type::TEXT),
            (&key.name(), Type::TEXT),
        ];
        let rows = self.0.read(key.realm(), &sql, params).await?;
        Ok(rows.first().and_then(|row| entry(key.realm(), row)))
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, _at: ReadAt) -> Result<Page> {
        self.0.open()?;
        // One more than asked, which tells whether there is more.
        let rows_max = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let (name, created, by) = match &order {
            Order::Name { after } => (after.as_str(), 0, "e.name > $4 AND e.created > $5 ORDER BY e.name"),
            Order::Created { after } => {
                ("", signed(*after), "e.name > $4 AND e.created > $5 ORDER BY e.created, e.name")
            }
        };
        let schema = self.0.schema();
        let sql = format!(
            "SELECT r.revision AS head, e.* FROM (
                SELECT coalesce(max(revision), 0) AS revision FROM {schema}.realm WHERE namespace = $1 AND realm = $2) r
            LEFT JOIN LATERAL (
                SELECT {ENTRY}
                FROM (SELECT * FROM {schema}.entry e
                    WHERE e.namespace = $1 AND e.realm = $2 AND e.dir = $3 AND {by} LIMIT $6) e
                LEFT JOIN {schema}.lease l ON l.id = e.lease
            ) e ON true"
        );
        let params: Params<'_> = &[
            (&self.0.namespace(), Type::TEXT),
            (&dir.realm().as_str(), Type::TEXT),
            (&dir.path(), Type::TEXT),
            (&name, Type::TEXT),
            (&created, Type::INT8),
            (&rows_max, Type::INT8),
        ];
        let rows = self.0.read(dir.realm(), &sql, params).await?;
        let head = rows.first().ok_or_else(|| malformed(&self.0.connections.config, "a listing"))?.get("head");
        let mut entries: Vec<_> = rows.iter().filter_map(|row| entry(dir.realm(), row)).collect();
        let more = entries.len() > limit;
        match order {
            Order::Name { .. } => {
                // A join keeps no order.
                entries.sort_by(|a, b| a.key.name().cmp(b.key.name()));
                entries.truncate(limit);
            }
            Order::Created { .. } => {
                entries.sort_by(|a, b| (a.created, a.key.name()).cmp(&(b.created, b.key.name())));
                cut_by_creation(&mut entries, limit);
            }
        }
        Ok(Page { entries, more, revision: unsigned(head) })
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        self.0.open()?;
        let schema = self.0.schema();
        // From dir to dir, however many entries each has.
        let sql = format!(
            "WITH RECURSIVE d AS (
                (SELECT e.dir FROM {schema}.entry e WHERE e.namespace = $1 AND e.realm = $2
                    AND e.dir >= $3 AND e.dir > $4 ORDER BY e.dir LIMIT 1)
                UNION ALL
                SELECT (SELECT e.dir FROM {schema}.entry e WHERE e.namespace = $1 AND e.realm = $2
                    AND e.dir > d.dir ORDER BY e.dir LIMIT 1) FROM d
                WHERE d.dir IS NOT NULL AND starts_with(d.dir, $3)
            ) SELECT d.dir FROM d WHERE starts_with(d.dir, $3) AND EXISTS (
                SELECT FROM {schema}.entry e LEFT JOIN {schema}.lease l ON l.id = e.lease
                WHERE e.namespace = $1 AND e.realm = $2 AND e.dir = d.dir
                    AND (e.lease IS NULL OR l.expires_at > clock_timestamp())
            ) LIMIT $5"
        );
        let params: Params<'_> = &[
            (&self.0.namespace(), Type::TEXT),
            (&realm.as_str(), Type::TEXT),
            (&prefix, Type::TEXT),
            (&after, Type::TEXT),
            (&i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8),
        ];
        let rows = self.0.connections.query(Access::Read, &sql, params).await?;
        Ok(rows.iter().filter_map(|row| Dir::new(realm, row.get(0)).ok()).collect())
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        self.0.open()?;
        self.0.watches.feed(&scope, after).await
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        loop {
            self.0.open()?;
            // First the watch, then the look: what goes away after the look is seen by the watch.
            let waiter = self.0.watches.waiter(key).await?;
            match self.get(key, ReadAt::Linearizable).await? {
                Some(entry) if entry.created == created => {}
                _ => return Ok(()),
            }
            match waiter.woken().await {
                Some(Wake::Gone) => return Ok(()),
                Some(Wake::Lost) => {}
                Some(Wake::Failed(error)) => return Err(error),
                None => return Err(closed(&self.describe())),
            }
        }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<Lease> {
        self.0.open()?;
        lease::grant(&self.0.connections, ttl).await
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.0.open()?;
        lease::renew(&self.0.connections, lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        self.0.open()?;
        lease::revoke(&self.0.connections, &self.0.changed, lease).await
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        self.0.open()?;
        lease::left(&self.0.connections, lease).await
    }

    async fn close(&self) -> Result<()> {
        self.0.watches.close();
        self.0.connections.close();
        drop(self.0.alive.lock().take());
        Ok(())
    }
}

/// Cuts a listing by creation to the limit, where the next page can go on: entries that one transaction created share a
/// revision, and "after this revision" cannot divide them.
fn cut_by_creation(entries: &mut Vec<Entry>, limit: usize) {
    if let Some(beyond) = entries.get(limit).map(|entry| entry.created) {
        let whole = entries.partition_point(|entry| entry.created < beyond);
        // More of one transaction than fit: the caller gets what fits.
        entries.truncate(if whole > 0 { whole.min(limit) } else { limit });
    }
}
