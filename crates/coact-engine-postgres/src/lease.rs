//! Leases, by the database's clock; and the task that ends those whose time is over.

use std::{sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Lease, LeaseId},
    name::Realm,
};
use tokio::sync::watch;
use tokio_postgres::types::Type;

use crate::{
    connection::{Connections, Params},
    errors::{Access, malformed},
    txn::sweep,
    watch::Hints,
};

/// The longest that a lease may outlive its time, before somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far apart handles that wait for the same end look.
const JITTER: Duration = Duration::from_millis(100);
/// How often history that may be forgotten is looked for.
const TRIM_EVERY: Duration = Duration::from_secs(60);
/// How long history is kept.
const HISTORY_AGE: Duration = Duration::from_secs(600);
/// How many revisions of a realm are kept at most.
const HISTORY_REVISIONS: i64 = 100_000;

/// What a change of a realm sets off: own watches look at once, and other processes are told.
#[derive(Clone)]
pub(crate) struct Changed {
    pub(crate) hints: Hints,
    pub(crate) tell: tokio::sync::mpsc::UnboundedSender<Realm>,
}

impl Changed {
    pub(crate) fn in_realm(&self, realm: &Realm) {
        self.hints.changed(Some(realm));
        let _ = self.tell.send(realm.clone());
    }
}

pub(crate) async fn grant(connections: &Connections, ttl: Duration) -> Result<Lease> {
    let config = &connections.config;
    // A name that nobody else draws, so that a repeated request grants the same lease.
    let id = (connections.env.random() >> 1).cast_signed().max(1);
    let ms = milliseconds(ttl);
    let sql = format!(
        "INSERT INTO {}.lease AS l (id, namespace, ttl, expires_at)
            VALUES ($1, $2, $3 * interval '1 millisecond', clock_timestamp() + $3 * interval '1 millisecond')
            ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at",
        config.schema
    );
    let params: Params<'_> = &[(&id, Type::INT8), (&config.namespace.as_str(), Type::TEXT), (&ms, Type::FLOAT8)];
    connections.query(Access::Idempotent, &sql, params).await?;
    Ok(Lease { id: LeaseId(id), ttl: Duration::from_millis(ms as u64) })
}

pub(crate) async fn renew(connections: &Connections, lease: LeaseId) -> Result<Duration> {
    let config = &connections.config;
    let sql = format!(
        "UPDATE {}.lease SET expires_at = clock_timestamp() + ttl
            WHERE id = $1 AND namespace = $2 AND expires_at > clock_timestamp()
            RETURNING (extract(epoch FROM ttl) * 1000)::bigint",
        config.schema
    );
    let params: Params<'_> = &[(&lease.0, Type::INT8), (&config.namespace.as_str(), Type::TEXT)];
    let rows = connections.query(Access::Idempotent, &sql, params).await?;
    match rows.first() {
        Some(row) => Ok(Duration::from_millis(row.get::<_, i64>(0).unsigned_abs())),
        None => Err(Error::new(ErrorKind::Fenced, "the lease has ended")),
    }
}

pub(crate) async fn left(connections: &Connections, lease: LeaseId) -> Result<Option<Duration>> {
    let config = &connections.config;
    let sql = format!(
        "SELECT expires_at = '-infinity' AS ended, CASE WHEN expires_at > clock_timestamp()
            THEN ceil(extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint END AS ms
            FROM {}.lease WHERE id = $1 AND namespace = $2",
        config.schema
    );
    let params: Params<'_> = &[(&lease.0, Type::INT8), (&config.namespace.as_str(), Type::TEXT)];
    let rows = connections.query(Access::Read, &sql, params).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if let Some(ms) = row.get::<_, Option<i64>>("ms") {
        return Ok(Some(Duration::from_millis(ms.unsigned_abs().max(1))));
    }
    if !row.get::<_, bool>("ended") {
        // It is told as ended only when no transaction that relies on it can commit any more.
        let sql = format!("SELECT {}.finish($1, $2)", config.schema);
        let leases = [lease.0];
        let leases = leases.as_slice();
        let params: Params<'_> = &[(&config.namespace.as_str(), Type::TEXT), (&leases, Type::INT8_ARRAY)];
        connections.query(Access::Idempotent, &sql, params).await?;
    }
    Ok(None)
}

pub(crate) async fn revoke(connections: &Connections, changed: &Changed, lease: LeaseId) -> Result<()> {
    let config = &connections.config;
    let sql = format!("SELECT {}.revoke($1, $2)", config.schema);
    let params: Params<'_> = &[(&config.namespace.as_str(), Type::TEXT), (&lease.0, Type::INT8)];
    let rows = connections.query(Access::Idempotent, &sql, params).await?;
    let row = rows.first().ok_or_else(|| malformed(config, "a revocation"))?;
    sweep_all(connections, changed, &row.get::<_, Vec<String>>(0)).await
}

/// Deletes what ended leases have left in these realms, each in a transaction of its own.
async fn sweep_all(connections: &Connections, changed: &Changed, realms: &[String]) -> Result<()> {
    for realm in realms.iter().filter_map(|realm| Realm::new(realm).ok()) {
        if sweep(connections, &connections.config, &realm, &[]).await? {
            changed.in_realm(&realm);
        }
    }
    Ok(())
}

/// Ends leases soon after their time is over, and forgets old history, until the handle goes away. Each handle does it:
/// whoever comes first does the work, and the others find nothing.
pub(crate) async fn reap(connections: Arc<Connections>, changed: Changed, mut alive: watch::Receiver<()>) {
    let env = connections.env.clone();
    let mut trim_at = env.now() + env.random_duration(TRIM_EVERY);
    loop {
        let pause = match reap_once(&connections, &changed).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::debug!(engine = %connections.config.description, %error, "expired leases were not looked for");
                LOOK_EVERY
            }
        };
        if env.now() >= trim_at {
            if let Err(error) = trim(&connections).await {
                tracing::debug!(engine = %connections.config.description, %error, "old history was not forgotten");
            }
            trim_at = env.now() + TRIM_EVERY / 2 + env.random_duration(TRIM_EVERY);
        }
        tokio::select! {
            biased;
            _ = alive.changed() => return,
            () = env.sleep(pause) => {}
        }
    }
}

/// Returns when to look again.
async fn reap_once(connections: &Connections, changed: &Changed) -> Result<Duration> {
    let config = &connections.config;
    let sql = format!("SELECT realms, next FROM {}.reap($1)", config.schema);
    let rows = connections.query(Access::Idempotent, &sql, &[(&config.namespace.as_str(), Type::TEXT)]).await?;
    let row = rows.first().ok_or_else(|| malformed(config, "a look for expired leases"))?;
    let realms: Vec<String> = row.get("realms");
    sweep_all(connections, changed, &realms).await?;
    let next =
        row.get::<_, Option<i64>>("next").map_or(LOOK_EVERY, |ms| Duration::from_millis(ms.max(0).unsigned_abs()));
    Ok(next.min(LOOK_EVERY) + connections.env.random_duration(JITTER))
}

async fn trim(connections: &Connections) -> Result<()> {
    let config = &connections.config;
    let (schema, namespace) = (&config.schema, config.namespace.as_str());
    let sql = format!("SELECT realm, cut FROM {schema}.overlong($1, $2 * interval '1 second', $3)");
    let age = HISTORY_AGE.as_secs_f64();
    let params: Params<'_> = &[(&namespace, Type::TEXT), (&age, Type::FLOAT8), (&HISTORY_REVISIONS, Type::INT8)];
    for row in connections.query(Access::Read, &sql, params).await? {
        let (realm, cut): (&str, i64) = (row.get("realm"), row.get("cut"));
        let of_realm: Params<'_> = &[(&namespace, Type::TEXT), (&realm, Type::TEXT)];
        let compact = format!("SELECT {schema}.compact($1, $2, $3)");
        let mut params = of_realm.to_vec();
        params.push((&cut, Type::INT8));
        connections.query(Access::Idempotent, &compact, &params).await?;
        let delete = format!("SELECT {schema}.delete_compacted($1, $2)");
        connections.query(Access::Idempotent, &delete, of_realm).await?;
    }
    Ok(())
}

/// Whole milliseconds, rounded up: a lease lives at least as long as asked.
fn milliseconds(ttl: Duration) -> f64 {
    (ttl.as_secs_f64() * 1000.0).ceil()
}
