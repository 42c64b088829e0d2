//! Transactions: one call of a function in the database, with arrays for what is checked, read and written.

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, LeaseId, Read, Revision, Txn, TxnOutcome, Write},
    name::{Key, Realm},
};
use tokio_postgres::{Row, types::Type};

use crate::{
    config::Config,
    connection::{Executor, Params},
    errors::{Access, malformed},
};

/// How often leases that ended may be swept out of the way of one transaction.
const SWEEPS_MAX: usize = 100;

/// Runs a transaction; what ended leases have left in its way is swept first.
pub(crate) async fn run(
    executor: &(impl Executor + Sync),
    config: &Config,
    realm: &Realm,
    txn: &Txn,
) -> Result<Outcome> {
    let call = Call::new(txn);
    let mut swept = false;
    for _ in 0..SWEEPS_MAX {
        match answer(config, realm, txn, &call.send(executor, config, realm).await?)? {
            Answer::Outcome(outcome) => {
                let changed = swept || (call.writes() && matches!(outcome, TxnOutcome::Committed { .. }));
                return Ok(Outcome { outcome, changed });
            }
            Answer::Over(leases) => swept |= sweep(executor, config, realm, &leases).await?,
        }
    }
    Err(Error::new(ErrorKind::Unavailable, format!("leases of realm {realm} end faster than they can be swept")))
}

/// How a transaction ended, and whether there may be something for watchers.
pub(crate) struct Outcome {
    pub(crate) outcome: TxnOutcome,
    pub(crate) changed: bool,
}

/// Deletes what these and other ended leases have left in a realm. Whether there was something.
pub(crate) async fn sweep(
    executor: &(impl Executor + Sync),
    config: &Config,
    realm: &Realm,
    leases: &[i64],
) -> Result<bool> {
    let sql = format!("SELECT {}.sweep($1, $2, $3)", config.schema);
    let params: Params<'_> =
        &[(&config.namespace.as_str(), Type::TEXT), (&realm.as_str(), Type::TEXT), (&leases, Type::INT8_ARRAY)];
    let rows = executor.query(Access::Idempotent, &sql, params).await?;
    Ok(rows.first().is_some_and(|row| row.get::<_, Option<i64>>(0).is_some()))
}

/// The arguments of the function.
#[derive(Default)]
struct Call<'a> {
    check_kinds: Vec<i32>,
    check_dirs: Vec<Option<&'a str>>,
    check_names: Vec<Option<&'a str>>,
    check_numbers: Vec<Option<i64>>,
    read_kinds: Vec<i32>,
    read_dirs: Vec<&'a str>,
    read_names: Vec<Option<&'a str>>,
    write_kinds: Vec<i32>,
    write_dirs: Vec<&'a str>,
    write_names: Vec<&'a str>,
    write_values: Vec<Option<&'a [u8]>>,
    write_leases: Vec<Option<i64>>,
    write_numbers: Vec<Option<i64>>,
}

impl<'a> Call<'a> {
    fn new(txn: &'a Txn) -> Self {
        let mut call = Self::default();
        txn.checks.iter().for_each(|check| call.check(check));
        txn.reads.iter().for_each(|read| call.read(read));
        txn.writes.iter().for_each(|write| call.write(write));
        call
    }

    fn check(&mut self, check: &'a Check) {
        let (kind, key, number) = match check {
            Check::Absent(key) => (0, Some(key), None),
            Check::CreatedAt(key, at) => (1, Some(key), Some(signed(*at))),
            Check::ModifiedAt(key, at) => (2, Some(key), Some(signed(*at))),
            Check::LeaseAlive(lease) => (3, None, Some(lease.0)),
        };
        self.check_kinds.push(kind);
        self.check_dirs.push(key.map(|key| key.dir().path()));
        self.check_names.push(key.map(Key::name));
        self.check_numbers.push(number);
    }

    fn read(&mut self, read: &'a Read) {
        let (kind, dir, name) = match read {
            Read::Get(key) => (0, key.dir(), Some(key.name())),
            Read::First(dir) => (1, dir, None),
            Read::Last(dir) => (2, dir, None),
            Read::Count(dir) => (3, dir, None),
        };
        self.read_kinds.push(kind);
        self.read_dirs.push(dir.path());
        self.read_names.push(name);
    }

    fn write(&mut self, write: &'a Write) {
        let (kind, value, lease, number) = match write {
            Write::Put { value, lease, .. } => (0, Some(&value[..]), lease.map(|lease| lease.0), None),
            Write::Delete(_) => (1, None, None, None),
            Write::Incr { by, .. } => (2, None, None, Some(*by)),
        };
        self.write_kinds.push(kind);
        self.write_dirs.push(write.key().dir().path());
        self.write_names.push(write.key().name());
        self.write_values.push(value);
        self.write_leases.push(lease);
        self.write_numbers.push(number);
    }

    fn writes(&self) -> bool {
        !self.write_kinds.is_empty()
    }

    async fn send(&self, executor: &(impl Executor + Sync), config: &Config, realm: &Realm) -> Result<Vec<Row>> {
        let (namespace, realm) = (config.namespace.as_str(), realm.as_str());
        let looks: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 9] = [
            (&namespace, Type::TEXT),
            (&realm, Type::TEXT),
            (&self.check_kinds, Type::INT4_ARRAY),
            (&self.check_dirs, Type::TEXT_ARRAY),
            (&self.check_names, Type::TEXT_ARRAY),
            (&self.check_numbers, Type::INT8_ARRAY),
            (&self.read_kinds, Type::INT4_ARRAY),
            (&self.read_dirs, Type::TEXT_ARRAY),
            (&self.read_names, Type::TEXT_ARRAY),
        ];
        if !self.writes() {
            let sql = format!("SELECT * FROM {}.look($1, $2, $3, $4, $5, $6, $7, $8, $9)", config.schema);
            return executor.query(Access::Read, &sql, &looks).await;
        }
        let mut params = looks.to_vec();
        params.extend([
            (&self.write_kinds as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT4_ARRAY),
            (&self.write_dirs, Type::TEXT_ARRAY),
            (&self.write_names, Type::TEXT_ARRAY),
            (&self.write_values, Type::BYTEA_ARRAY),
            (&self.write_leases, Type::INT8_ARRAY),
            (&self.write_numbers, Type::INT8_ARRAY),
        ]);
        let sql = format!(
            "SELECT * FROM {}.txn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            config.schema
        );
        executor.query(Access::Write, &sql, &params).await
    }
}

enum Answer {
    Outcome(TxnOutcome),
    /// These leases are over, and their entries are in the way.
    Over(Vec<i64>),
}

fn answer(config: &Config, realm: &Realm, txn: &Txn, rows: &[Row]) -> Result<Answer> {
    let bad = || malformed(config, "a transaction");
    let mut over = Vec::new();
    let mut found: Vec<Option<Found>> = vec![None; txn.reads.len()];
    let mut revision = None;
    let mut refusal = None;
    for row in rows {
        let place = usize::try_from(row.get::<_, Option<i32>>("place").unwrap_or_default()).map_err(|_| bad())?;
        let number = row.get::<_, Option<i64>>("number");
        match row.get::<_, Option<i32>>("kind") {
            Some(0) => revision = Some(unsigned(number.ok_or_else(bad)?)),
            Some(1) => refusal = Some(TxnOutcome::Refused { check: place, found: entry(realm, row) }),
            Some(2) => {
                return Err(Error::new(ErrorKind::Fenced, "the lease has ended"));
            }
            Some(3) => {
                let key = txn.writes.get(place).ok_or_else(bad)?.key();
                return Err(Error::invalid(format!(
                    "the value of {key} cannot be added to: it is not a decimal number of 64 bits"
                )));
            }
            Some(4) => {
                let Some(Write::Incr { key, by }) = txn.writes.get(place) else { return Err(bad()) };
                let number = number.unwrap_or_default();
                return Err(Error::invalid(format!(
                    "adding {by} to the {number} of {key} goes past the bounds of 64 bits"
                )));
            }
            Some(5) => over.push(number.ok_or_else(bad)?),
            Some(6) => *found.get_mut(place).ok_or_else(bad)? = Some(Found::Entry(entry(realm, row))),
            Some(7) => {
                let count = number.and_then(|count| u64::try_from(count).ok()).ok_or_else(bad)?;
                *found.get_mut(place).ok_or_else(bad)? = Some(Found::Count(count));
            }
            _ => return Err(bad()),
        }
    }
    if !over.is_empty() {
        return Ok(Answer::Over(over));
    }
    if let Some(refusal) = refusal {
        return Ok(Answer::Outcome(refusal));
    }
    let reads = found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    Ok(Answer::Outcome(TxnOutcome::Committed { revision: revision.ok_or_else(bad)?, reads }))
}

/// The entry of a row with the columns `dir, name, value, created, modified, lease`; `None` without one, and for a name
/// that the contract does not have.
pub(crate) fn entry(realm: &Realm, row: &Row) -> Option<Entry> {
    let created = row.get::<_, Option<i64>>("created")?;
    Some(Entry {
        key: Key::new(realm, row.get("dir"), row.get("name")).ok()?,
        value: Bytes::copy_from_slice(row.get("value")),
        created: unsigned(created),
        modified: unsigned(row.get("modified")),
        lease: row.get::<_, Option<i64>>("lease").map(LeaseId),
    })
}

pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}
