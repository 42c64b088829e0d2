//! The transaction of the Kv contract that a commit can carry: its realm is said once, the keys within it as strings.

use coact_core::{
    Error, Result,
    contract::kv::{Check, Entry, Found, LeaseId, Read, Revision, Txn, Write},
    name::{Dir, Key, Realm},
};

use super::{all, part};
use crate::wire::coact_v1::{
    KvCheck, KvEntry, KvFound, KvKey, KvRead, KvTxn, KvWrite, kv_check, kv_found, kv_read, kv_write,
};

impl From<(Realm, Txn)> for KvTxn {
    fn from((realm, txn): (Realm, Txn)) -> Self {
        Self { realm: realm.to_string(), checks: all(txn.checks), reads: all(txn.reads), writes: all(txn.writes) }
    }
}

impl TryFrom<KvTxn> for (Realm, Txn) {
    type Error = Error;

    fn try_from(message: KvTxn) -> Result<Self> {
        let realm = Realm::new(&message.realm)?;
        let txn = Txn {
            checks: message.checks.into_iter().map(|message| check(&realm, message)).collect::<Result<_>>()?,
            reads: message.reads.into_iter().map(|message| read(&realm, message)).collect::<Result<_>>()?,
            writes: message.writes.into_iter().map(|message| write(&realm, message)).collect::<Result<_>>()?,
        };
        Ok((realm, txn))
    }
}

impl From<&Key> for KvKey {
    fn from(key: &Key) -> Self {
        Self { dir: key.dir().path().to_owned(), name: key.name().to_owned() }
    }
}

impl From<Check> for KvCheck {
    fn from(check: Check) -> Self {
        let at = |key: &Key, Revision(revision)| kv_check::At { key: Some(key.into()), revision };
        let check = match check {
            Check::Absent(key) => kv_check::Check::Absent((&key).into()),
            Check::CreatedAt(key, revision) => kv_check::Check::CreatedAt(at(&key, revision)),
            Check::ModifiedAt(key, revision) => kv_check::Check::ModifiedAt(at(&key, revision)),
            Check::LeaseAlive(LeaseId(lease)) => kv_check::Check::LeaseAlive(lease),
        };
        Self { check: Some(check) }
    }
}

impl From<Read> for KvRead {
    fn from(read: Read) -> Self {
        let read = match read {
            Read::Get(key) => kv_read::Read::Get((&key).into()),
            Read::First(dir) => kv_read::Read::First(dir.path().to_owned()),
            Read::Last(dir) => kv_read::Read::Last(dir.path().to_owned()),
            Read::Count(dir) => kv_read::Read::Count(dir.path().to_owned()),
        };
        Self { read: Some(read) }
    }
}

impl From<Write> for KvWrite {
    fn from(write: Write) -> Self {
        let write = match write {
            Write::Put { key, value, lease } => {
                let lease = lease.map(|LeaseId(lease)| lease);
                kv_write::Write::Put(kv_write::Put { key: Some((&key).into()), value, lease })
            }
            Write::Delete(key) => kv_write::Write::Delete((&key).into()),
            Write::Incr { key, by } => kv_write::Write::Incr(kv_write::Incr { key: Some((&key).into()), by }),
        };
        Self { write: Some(write) }
    }
}

impl From<Entry> for KvEntry {
    fn from(entry: Entry) -> Self {
        Self {
            key: Some((&entry.key).into()),
            value: entry.value,
            created: entry.created.0,
            modified: entry.modified.0,
            lease: entry.lease.map(|LeaseId(lease)| lease),
        }
    }
}

impl From<Found> for KvFound {
    fn from(found: Found) -> Self {
        let found = match found {
            Found::Entry(entry) => kv_found::Found::Entry(kv_found::Entry { entry: entry.map(Into::into) }),
            Found::Count(count) => kv_found::Found::Count(count),
        };
        Self { found: Some(found) }
    }
}

pub(super) fn entry(realm: &Realm, message: KvEntry) -> Result<Entry> {
    Ok(Entry {
        key: key(realm, message.key)?,
        value: message.value,
        created: Revision(message.created),
        modified: Revision(message.modified),
        lease: message.lease.map(LeaseId),
    })
}

pub(super) fn found(realm: &Realm, message: KvFound) -> Result<Found> {
    Ok(match part(message.found, "answer to a read")? {
        kv_found::Found::Entry(found) => Found::Entry(found.entry.map(|message| entry(realm, message)).transpose()?),
        kv_found::Found::Count(count) => Found::Count(count),
    })
}

fn key(realm: &Realm, message: Option<KvKey>) -> Result<Key> {
    let KvKey { dir, name } = part(message, "key")?;
    Key::new(realm, &dir, &name)
}

fn check(realm: &Realm, message: KvCheck) -> Result<Check> {
    Ok(match part(message.check, "check")? {
        kv_check::Check::Absent(message) => Check::Absent(key(realm, Some(message))?),
        kv_check::Check::CreatedAt(at) => Check::CreatedAt(key(realm, at.key)?, Revision(at.revision)),
        kv_check::Check::ModifiedAt(at) => Check::ModifiedAt(key(realm, at.key)?, Revision(at.revision)),
        kv_check::Check::LeaseAlive(lease) => Check::LeaseAlive(LeaseId(lease)),
    })
}

fn read(realm: &Realm, message: KvRead) -> Result<Read> {
    Ok(match part(message.read, "read")? {
        kv_read::Read::Get(message) => Read::Get(key(realm, Some(message))?),
        kv_read::Read::First(dir) => Read::First(Dir::new(realm, &dir)?),
        kv_read::Read::Last(dir) => Read::Last(Dir::new(realm, &dir)?),
        kv_read::Read::Count(dir) => Read::Count(Dir::new(realm, &dir)?),
    })
}

fn write(realm: &Realm, message: KvWrite) -> Result<Write> {
    Ok(match part(message.write, "write")? {
        kv_write::Write::Put(put) => {
            Write::Put { key: key(realm, put.key)?, value: put.value, lease: put.lease.map(LeaseId) }
        }
        kv_write::Write::Delete(message) => Write::Delete(key(realm, Some(message))?),
        kv_write::Write::Incr(incr) => Write::Incr { key: key(realm, incr.key)?, by: incr.by },
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_transaction_reads_back() {
        let realm = Realm::new("eu").expect("a realm");
        let key = |name: &str| Key::new(&realm, "shop/carts", name).expect("a key");
        let dir = Dir::new(&realm, "shop/carts").expect("a dir");
        let txn = Txn {
            checks: vec![
                Check::Absent(key("a")),
                Check::CreatedAt(key("b"), Revision(7)),
                Check::ModifiedAt(key("c"), Revision(8)),
                Check::LeaseAlive(LeaseId(-9)),
            ],
            reads: vec![Read::Get(key("d")), Read::First(dir.clone()), Read::Last(dir.clone()), Read::Count(dir)],
            writes: vec![
                Write::Put { key: key("e"), value: Bytes::from_static(b"x"), lease: Some(LeaseId(0)) },
                Write::Put { key: key("f"), value: Bytes::new(), lease: None },
                Write::Delete(key("g")),
                Write::Incr { key: key("h"), by: i64::MIN },
            ],
        };
        let sent = (realm.clone(), txn);
        assert_eq!(<(Realm, Txn)>::try_from(KvTxn::from(sent.clone())).expect("the same"), sent);
        for answer in [Found::Count(3), Found::Entry(None)] {
            assert_eq!(found(&realm, answer.clone().into()).expect("the same"), answer);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = KvTxn { realm: "main".to_owned(), checks: vec![KvCheck::default()], ..KvTxn::default() };
        let error = <(Realm, Txn)>::try_from(message).expect_err("no check").to_string();
        assert_eq!(error, "the message has no check");
        assert!(<(Realm, Txn)>::try_from(KvTxn::default()).is_err(), "no realm");
    }
}
