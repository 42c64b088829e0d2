//! Transactions: what is known of the dirs decides, and one `multi` commits only if it is still so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Check, Entry, Found, GoneCause, LeaseId, Read, Revision, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use futures::future::try_join_all;
use tokio::sync::OwnedMutexGuard;
use zookeeper_client::{CreateMode, Error as Zk, MultiWriteError, MultiWriteResult};

use crate::{
    connection::Shared,
    dirs::{Dirs, View, Wanted, data, load},
    errors::{Access, translate},
    log::{PREFIX, Record, encode},
};

/// The longest pause after a transaction that others came before.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// One step of a `multi`.
pub(crate) enum Op {
    Check(String, i32),
    Create(String, Vec<u8>),
    Set(String, Vec<u8>, Option<i32>),
    Delete(String, Option<i32>),
    /// The next node of a history.
    Append(String, Vec<u8>),
}

impl Op {
    fn bytes(&self) -> usize {
        const AROUND: usize = 64;
        AROUND
            + match self {
                Self::Check(path, _) | Self::Delete(path, _) => path.len(),
                Self::Create(path, data) | Self::Set(path, data, _) | Self::Append(path, data) => {
                    path.len() + data.len()
                }
            }
    }
}

/// How a `multi` ended.
pub(crate) enum Multi {
    /// At this zxid; the new versions of what was set, by path.
    Done { zxid: u64, versions: HashMap<String, i32> },
    /// Something was not as expected; nothing was done.
    Conflict,
}

/// Runs all of these or none. At least one of them sets something.
pub(crate) async fn multi(link: &Shared, ops: &[Op]) -> Result<Multi> {
    let bytes: usize = ops.iter().map(Op::bytes).sum();
    if bytes > link.config.max_request {
        return Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "the transaction needs a request of {bytes} bytes, and {} are allowed: raise jute.maxbuffer of the \
                 servers, then max_request in the URL",
                link.config.max_request
            ),
        ));
    }
    let answer = link
        .call(Access::Once, |client| async move {
            let mut writer = client.new_multi_writer();
            for op in ops {
                match op {
                    Op::Check(path, version) => writer.add_check_version(path, *version)?,
                    Op::Create(path, data) => writer.add_create(path, data, &link.node(CreateMode::Persistent))?,
                    Op::Set(path, data, version) => writer.add_set_data(path, data, *version)?,
                    Op::Delete(path, version) => writer.add_delete(path, *version)?,
                    Op::Append(path, data) => {
                        let options = link.node(CreateMode::PersistentSequential);
                        writer.add_create(&format!("{path}/{PREFIX}"), data, &options)?;
                    }
                }
            }
            match writer.commit().await {
                Ok(results) => Ok(Some(results)),
                Err(MultiWriteError::OperationFailed { source, .. }) if is_conflict(&source) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await?
        .map_err(|error| translate(error, Access::Once))?;
    let Some(results) = answer else { return Ok(Multi::Conflict) };
    let mut done = (0, HashMap::new());
    for (op, result) in ops.iter().zip(results) {
        if let (Op::Set(path, ..), MultiWriteResult::SetData { stat }) = (op, result) {
            done.0 = stat.mzxid.unsigned_abs();
            done.1.insert(path.clone(), stat.version);
        }
    }
    Ok(Multi::Done { zxid: done.0, versions: done.1 })
}

fn is_conflict(error: &Zk) -> bool {
    matches!(error, Zk::BadVersion | Zk::NoNode | Zk::NodeExists | Zk::NotEmpty | Zk::RuntimeInconsistent)
}

/// Runs a transaction.
pub(crate) async fn run(link: &Shared, dirs: &Dirs, realm: &Realm, txn: &Txn) -> Result<TxnOutcome> {
    if txn.writes.is_empty() {
        return look(link, realm, txn).await;
    }
    if let Some(outcome) = create_only(link, realm, txn).await? {
        return Ok(outcome);
    }
    let wanted = wanted(txn);
    let mut slots: Vec<OwnedMutexGuard<Option<View>>> = Vec::new();
    // In the order of the dirs, so that no two wait for each other.
    for dir in wanted.keys() {
        slots.push(dirs.slot(dir).lock_owned().await);
    }
    let end = link.env.now() + link.config.timeout;
    let mut pause = Duration::from_millis(1);
    let mut remembered = true;
    loop {
        let known = if remembered { remember(&wanted, &mut slots) } else { None };
        let ((views, revision), leases) = match known {
            Some(views) => ((views, Revision(0)), None),
            None => {
                remembered = false;
                (load(link, realm, &wanted, true).await?, Some(leases(link, txn).await?))
            }
        };
        let plan = match decide(link, realm, txn, &views, leases.as_ref()) {
            Decision::Commit(plan) => plan,
            // What is remembered may be over; only what is true now is an answer.
            Decision::Refuse(_) | Decision::Fail(_) if remembered => {
                remembered = false;
                continue;
            }
            Decision::Refuse(outcome) => return Ok(outcome),
            Decision::Fail(error) => return Err(error),
        };
        if plan.ops.is_empty() {
            if remembered {
                remembered = false;
                continue;
            }
            return Ok(TxnOutcome::Committed { revision, reads: plan.reads });
        }
        if let Multi::Done { zxid, versions } = multi(link, &plan.ops).await? {
            for ((dir, mut view), slot) in views.into_iter().zip(&mut slots) {
                apply(link, &dir, &mut view, &plan.changed, zxid, &versions);
                **slot = Some(view);
            }
            return Ok(TxnOutcome::Committed { revision: Revision(zxid), reads: plan.reads });
        }
        remembered = false;
        if link.env.now() + pause >= end {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "others change the same dirs without pause: nothing was done",
            ));
        }
        link.env.sleep(link.env.random_duration(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Entries that are checked to be absent and put, and nothing else: creating them is the check, so nothing need be known.
/// `None` if it is another transaction, or something was there.
async fn create_only(link: &Shared, realm: &Realm, txn: &Txn) -> Result<Option<TxnOutcome>> {
    let absent: BTreeSet<&Key> =
        txn.checks.iter().filter_map(|check| if let Check::Absent(key) = check { Some(key) } else { None }).collect();
    let put: BTreeSet<&Key> = txn.writes.iter().map(Write::key).collect();
    let only = txn.reads.is_empty()
        && absent == put
        && txn.checks.iter().all(|check| matches!(check, Check::Absent(_) | Check::LeaseAlive(_)))
        && txn.writes.iter().all(|write| matches!(write, Write::Put { .. }));
    if !only {
        return Ok(None);
    }
    let views = put.iter().map(|key| (key.dir().clone(), View { version: Some(-1), ..View::default() })).collect();
    let Decision::Commit(plan) = decide(link, realm, txn, &views, None) else { return Ok(None) };
    Ok(match multi(link, &plan.ops).await? {
        Multi::Done { zxid, .. } => Some(TxnOutcome::Committed { revision: Revision(zxid), reads: Vec::new() }),
        Multi::Conflict => None,
    })
}

/// A transaction that only reads: everything at one moment.
async fn look(link: &Shared, realm: &Realm, txn: &Txn) -> Result<TxnOutcome> {
    let (views, revision) = load(link, realm, &wanted(txn), true).await?;
    let leases = leases(link, txn).await?;
    match decide(link, realm, txn, &views, Some(&leases)) {
        Decision::Commit(plan) => Ok(TxnOutcome::Committed { revision, reads: plan.reads }),
        Decision::Refuse(outcome) => Ok(outcome),
        Decision::Fail(error) => Err(error),
    }
}

/// What must be known of which dir.
fn wanted(txn: &Txn) -> BTreeMap<Dir, Wanted> {
    let mut wanted: BTreeMap<Dir, Wanted> = BTreeMap::new();
    let checked = txn.checks.iter().filter_map(|check| match check {
        Check::Absent(key) | Check::CreatedAt(key, _) | Check::ModifiedAt(key, _) => Some(key),
        Check::LeaseAlive(_) => None,
    });
    for key in checked.chain(txn.writes.iter().map(Write::key)) {
        wanted.entry(key.dir().clone()).or_default().names.insert(key.name().to_owned());
    }
    for read in &txn.reads {
        match read {
            Read::Get(key) => {
                wanted.entry(key.dir().clone()).or_default().names.insert(key.name().to_owned());
            }
            Read::First(dir) | Read::Last(dir) | Read::Count(dir) => wanted.entry(dir.clone()).or_default().all = true,
        }
    }
    wanted
}

/// What earlier transactions know, if that is enough. It is taken out, and put back only when it was confirmed.
fn remember(
    wanted: &BTreeMap<Dir, Wanted>,
    slots: &mut [OwnedMutexGuard<Option<View>>],
) -> Option<BTreeMap<Dir, View>> {
    let mut views = BTreeMap::new();
    for ((dir, wanted), slot) in wanted.iter().zip(slots) {
        let view = slot.take().filter(|view| view.has(wanted))?;
        views.insert(dir.clone(), view);
    }
    Some(views)
}

/// Which of the leases that matter are alive.
async fn leases(link: &Shared, txn: &Txn) -> Result<HashMap<i64, bool>> {
    let checked =
        txn.checks.iter().filter_map(|check| if let Check::LeaseAlive(lease) = check { Some(lease.0) } else { None });
    let put = txn
        .writes
        .iter()
        .filter_map(|write| if let Write::Put { lease, .. } = write { lease.map(|it| it.0) } else { None });
    let leases: BTreeSet<i64> = checked.chain(put).collect();
    let alive = async |lease| Ok((lease, link.stat(&link.paths.lease(lease)).await?.is_some()));
    try_join_all(leases.into_iter().map(alive)).await.map(HashMap::from_iter)
}

enum Decision {
    Commit(Plan),
    Refuse(TxnOutcome),
    Fail(Error),
}

struct Plan {
    ops: Vec<Op>,
    /// What becomes of entries; a `created` of zero is the zxid to come.
    changed: Vec<(Key, Option<Entry>)>,
    reads: Vec<Found>,
}

/// What a transaction does, if the dirs are like this. Leases that nothing is known of are taken to be alive: the `multi`
/// fails if they are not.
fn decide(
    link: &Shared,
    realm: &Realm,
    txn: &Txn,
    views: &BTreeMap<Dir, View>,
    leases: Option<&HashMap<i64, bool>>,
) -> Decision {
    let alive = |lease: i64| leases.is_none_or(|leases| leases.get(&lease).copied().unwrap_or(false));
    let find = |key: &Key| views.get(key.dir()).and_then(|view| view.entry(key.name()));
    let mut ops = Vec::new();
    for (index, check) in txn.checks.iter().enumerate() {
        let (holds, found) = match check {
            Check::Absent(key) => (find(key).is_none(), find(key)),
            Check::CreatedAt(key, revision) => (find(key).is_some_and(|entry| entry.created == *revision), find(key)),
            Check::ModifiedAt(key, revision) => (find(key).is_some_and(|entry| entry.modified == *revision), find(key)),
            Check::LeaseAlive(lease) => {
                ops.push(Op::Check(link.paths.lease(lease.0), -1));
                (alive(lease.0), None)
            }
        };
        if !holds {
            return Decision::Refuse(TxnOutcome::Refused { check: index, found: found.cloned() });
        }
    }
    let reads = txn.reads.iter().map(|read| answer(read, views)).collect();
    let mut changed = Vec::new();
    let mut records = Vec::new();
    for write in &txn.writes {
        let key = write.key();
        let found = find(key);
        let (value, lease) = match write {
            Write::Put { value, lease, .. } => (value.clone(), lease.map(|lease| lease.0)),
            Write::Delete(_) => {
                if let Some(entry) = found {
                    ops.extend(entry.lease.map(|lease| Op::Delete(link.paths.place(lease.0, key), None)));
                    ops.push(Op::Delete(link.paths.entry(key), None));
                    records.push(Record::Gone { key: key.clone(), cause: GoneCause::Deleted });
                    changed.push((key.clone(), None));
                }
                continue;
            }
            Write::Incr { by, .. } => match sum(found, *by) {
                Ok(sum) => (Bytes::from(sum.to_string()), found.and_then(|entry| entry.lease).map(|lease| lease.0)),
                Err(error) => return Decision::Fail(error),
            },
        };
        if let Some(lease) = lease
            && !alive(lease)
            && matches!(write, Write::Put { .. })
        {
            return Decision::Fail(Error::new(ErrorKind::Fenced, "the lease has ended"));
        }
        attach(link, key, found.and_then(|entry| entry.lease).map(|lease| lease.0), lease, &mut ops);
        let data = data(&value, lease);
        ops.push(match found {
            Some(_) => Op::Set(link.paths.entry(key), data, None),
            None => Op::Create(link.paths.entry(key), data),
        });
        let created = found.map(|entry| entry.created);
        let lease_id = lease.map(LeaseId);
        records.push(Record::Put { key: key.clone(), value: value.clone(), created: created.map(|it| it.0), lease });
        let created = created.unwrap_or_default();
        let entry = Entry { key: key.clone(), value, created, modified: Revision(0), lease: lease_id };
        changed.push((key.clone(), Some(entry)));
    }
    if changed.is_empty() {
        return Decision::Commit(Plan { ops: Vec::new(), changed, reads });
    }
    let mut all = guards(link, views, &changed);
    all.append(&mut ops);
    all.push(Op::Append(link.paths.log(realm), encode(&records)));
    Decision::Commit(Plan { ops: all, changed, reads })
}

fn answer(read: &Read, views: &BTreeMap<Dir, View>) -> Found {
    let sorted = |dir: &Dir| views.get(dir).map(View::by_creation).unwrap_or_default();
    match read {
        Read::Get(key) => Found::Entry(views.get(key.dir()).and_then(|view| view.entry(key.name())).cloned()),
        Read::First(dir) => Found::Entry(sorted(dir).first().map(|entry| (*entry).clone())),
        Read::Last(dir) => Found::Entry(sorted(dir).last().map(|entry| (*entry).clone())),
        Read::Count(dir) => Found::Count(sorted(dir).len() as u64),
    }
}

fn sum(found: Option<&Entry>, by: i64) -> Result<i64> {
    let Some(entry) = found else { return Ok(by) };
    let number = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse::<i64>().ok());
    let Some(number) = number else {
        return Err(Error::invalid(format!("{} cannot be incremented: its value is no decimal number", entry.key)));
    };
    number.checked_add(by).ok_or_else(|| {
        Error::invalid(format!("{} cannot be incremented: {number} and {by} do not fit 64 bits together", entry.key))
    })
}

/// Moves an entry from under one lease to another.
fn attach(link: &Shared, key: &Key, from: Option<i64>, to: Option<i64>, ops: &mut Vec<Op>) {
    if from == to {
        ops.extend(to.map(|lease| Op::Check(link.paths.lease(lease), -1)));
        return;
    }
    ops.extend(from.map(|lease| Op::Delete(link.paths.place(lease, key), None)));
    ops.extend(to.map(|lease| Op::Create(link.paths.place(lease, key), Vec::new())));
}

/// That the dirs are as they were seen, and that they change. A version of -1 is any.
fn guards(link: &Shared, views: &BTreeMap<Dir, View>, changed: &[(Key, Option<Entry>)]) -> Vec<Op> {
    let mut ops = Vec::new();
    for (dir, view) in views {
        let path = link.paths.dir(dir);
        let changes = changed.iter().any(|(key, _)| key.dir() == dir);
        match view.version {
            // Made and then set, since only setting tells the zxid on every server.
            None if changes => {
                ops.push(Op::Create(path.clone(), Vec::new()));
                ops.push(Op::Set(path, Vec::new(), None));
            }
            // A dir that is not there and is not written in: making it is how to check that.
            None => ops.push(Op::Create(path, Vec::new())),
            Some(-1) => ops.push(Op::Set(path, Vec::new(), None)),
            Some(version) if changes => ops.push(Op::Set(path, Vec::new(), Some(version))),
            Some(version) => ops.push(Op::Check(path, version)),
        }
    }
    ops
}

/// What a dir is like afterwards.
fn apply(
    link: &Shared,
    dir: &Dir,
    view: &mut View,
    changed: &[(Key, Option<Entry>)],
    zxid: u64,
    versions: &HashMap<String, i32>,
) {
    match versions.get(&link.paths.dir(dir)) {
        Some(version) => (view.version, view.modified) = (Some(*version), zxid),
        // It was made to check that it was not there.
        None => view.version = view.version.or(Some(0)),
    }
    for (key, entry) in changed.iter().filter(|(key, _)| key.dir() == dir) {
        let entry = entry.clone().map(|mut entry| {
            entry.modified = Revision(zxid);
            if entry.created == Revision(0) {
                entry.created = entry.modified;
            }
            entry
        });
        if entry.is_none() && view.complete {
            view.entries.remove(key.name());
        } else {
            view.entries.insert(key.name().to_owned(), entry);
        }
    }
}
