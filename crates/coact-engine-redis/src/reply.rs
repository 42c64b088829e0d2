//! What the scripts answer, as values of the contract.

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Entry, Found, LeaseId, Read, Revision, TxnOutcome},
    name::{Dir, Key, Realm},
};
use redis::Value;

use crate::errors::malformed;

/// A dir as the scripts name it.
pub(crate) fn dir_place(dir: &Dir) -> String {
    [dir.realm().as_str(), "/", dir.path()].concat()
}

/// An entry as the scripts name it.
pub(crate) fn place(key: &Key) -> String {
    [key.realm().as_str(), "/", key.dir().path(), "//", key.name()].concat()
}

/// Reads back what [`place`] made.
pub(crate) fn key_of(place: &str) -> Option<Key> {
    let (dir, name) = place.rsplit_once("//")?;
    dir_of(dir)?.key(name).ok()
}

/// Reads back what [`dir_place`] made.
pub(crate) fn dir_of(place: &str) -> Option<Dir> {
    let (realm, path) = place.split_once('/')?;
    Dir::new(&Realm::new(realm).ok()?, path).ok()
}

/// `created modified lease\nvalue`.
pub(crate) fn entry(key: Key, packed: Vec<u8>) -> Result<Entry> {
    let parsed = packed.iter().position(|byte| *byte == b'\n').and_then(|end| {
        let mut words = std::str::from_utf8(&packed[..end]).ok()?.split(' ');
        let (created, modified, lease) = (words.next()?, words.next()?, words.next()?);
        let lease = if lease.is_empty() { None } else { Some(LeaseId(lease.parse().ok()?)) };
        Some((end, Revision(created.parse().ok()?), Revision(modified.parse().ok()?), lease))
    });
    let Some((end, created, modified, lease)) = parsed else {
        return Err(malformed(&format!("the entry {key}")));
    };
    Ok(Entry { key, value: Bytes::from(packed).slice(end + 1..), created, modified, lease })
}

/// The entry, if there is one.
pub(crate) fn maybe_entry(key: Key, value: Value) -> Result<Option<Entry>> {
    match value {
        Value::Nil | Value::Boolean(false) => Ok(None),
        Value::BulkString(packed) => entry(key, packed).map(Some),
        _ => Err(malformed("an entry")),
    }
}

pub(crate) fn text(value: Value) -> Result<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| malformed("a text")),
        Value::SimpleString(text) => Ok(text),
        _ => Err(malformed("a text")),
    }
}

pub(crate) fn revision(value: Value) -> Result<Revision> {
    text(value)?.parse().map(Revision).map_err(|_| malformed("a revision"))
}

pub(crate) fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(malformed("a list")),
    }
}

/// A name and what is under it.
pub(crate) fn named_entry(dir: &Dir, value: Value) -> Result<Option<Entry>> {
    let [name, packed] = <[Value; 2]>::try_from(array(value)?).map_err(|_| malformed("an entry"))?;
    if matches!(packed, Value::Nil | Value::Boolean(false)) {
        return Ok(None);
    }
    maybe_entry(dir.key(&text(name)?)?, packed)
}

/// The answer of `txn.lua`. `checked` names the key of each check that has one.
pub(crate) fn outcome(answer: Value, checked: &[Option<&Key>], reads: &[Read]) -> Result<TxnOutcome> {
    let mut parts = array(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    match text(next())?.as_str() {
        "committed" => {
            let revision = revision(next())?;
            let found =
                array(next())?.into_iter().zip(reads).map(|(value, read)| found(read, value)).collect::<Result<_>>()?;
            Ok(TxnOutcome::Committed { revision, reads: found })
        }
        "refused" => {
            let Value::Int(number) = next() else { return Err(malformed("the number of a check")) };
            let check = usize::try_from(number - 1).unwrap_or_default();
            let found = match checked.get(check).copied().flatten() {
                Some(key) => maybe_entry(key.clone(), next())?,
                None => None,
            };
            Ok(TxnOutcome::Refused { check, found })
        }
        "fenced" => Err(Error::new(ErrorKind::Fenced, "the lease has ended")),
        "invalid" => {
            let (why, place) = (text(next())?, text(next())?);
            let key = place.rsplit_once('/').map_or(place.as_str(), |(_, name)| name);
            Err(Error::invalid(format!("{key} cannot be incremented: {}", why.trim_start_matches("ERR "))))
        }
        _ => Err(malformed("the end of a transaction")),
    }
}

fn found(read: &Read, value: Value) -> Result<Found> {
    match (read, value) {
        (Read::Count(_), Value::Int(count)) => Ok(Found::Count(count.unsigned_abs())),
        (Read::Count(_), _) => Err(malformed("a count")),
        (Read::Get(key), value) => named_entry(key.dir(), value).map(Found::Entry),
        (Read::First(dir) | Read::Last(dir), value) => named_entry(dir, value).map(Found::Entry),
    }
}
