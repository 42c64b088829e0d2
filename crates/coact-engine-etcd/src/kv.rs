//! The Kv contract in terms of etcd's requests.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coact_core::{
    Error, ErrorKind, Result, Retry,
    consumer::Wake,
    contract::kv::{
        Check, Entry, Feed, Found, KvHandle, KvStore, Lease, LeaseId, Order, Page, Read, ReadAt, Revision, Scope, Txn,
        TxnOutcome, Write,
    },
    guarantees::{
        Accepted, Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp,
        WatchFrom,
    },
    name::{Dir, Key, Namespace, Realm},
};
use tonic::metadata::MetadataMap;

use crate::{
    connection::{ANSWER_BYTES_MAX, Connections},
    credentials::Wire,
    errors::{Access, closed, malformed},
    lease::{Renewals, granted, seconds},
    messages::durability,
    watch::{Range, Watches},
    wire::{
        etcdserverpb::{
            Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
            MemberListRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp,
            StatusRequest, TxnRequest, TxnResponse,
            cluster_client::ClusterClient,
            compare::{CompareResult, CompareTarget, TargetUnion},
            kv_client::KvClient,
            lease_client::LeaseClient,
            maintenance_client::MaintenanceClient,
            range_request::{SortOrder, SortTarget},
            request_op::Request,
            response_op::Response,
        },
        mvccpb::KeyValue,
    },
};

/// How many keys one step of the search for dirs reads: few, since a step passes over a dir however long it is.
const DIRS_STEP: i64 = 32;
/// How often an increment is repeated at once, with what the failed attempt found, before it backs off.
const EAGER_TRIES: u32 = 4;
/// The longest pause of an increment that keeps failing.
const INCREMENT_PAUSE_MAX: Duration = Duration::from_millis(50);

pub(crate) async fn open(connections: Arc<Connections>, accepted: Accepted) -> Result<KvHandle> {
    let env = connections.env.clone();
    let guarantees = probe(&connections).await?;
    let store = EtcdKv {
        guarantees,
        watches: Watches::start(connections.clone()),
        renewals: Renewals::start(connections.clone()),
        connections,
    };
    Ok(KvHandle::new(store, env, accepted))
}

struct EtcdKv {
    guarantees: Guarantees,
    connections: Arc<Connections>,
    watches: Watches,
    renewals: Renewals,
}

pub(crate) fn kv_client(channel: Wire) -> KvClient<Wire> {
    KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// Asks the server what it is, and so what it promises.
async fn probe(connections: &Connections) -> Result<Guarantees> {
    let status = connections
        .call(Access::Read, StatusRequest {}, |channel, request| async move {
            MaintenanceClient::new(channel).status(request).await
        })
        .await?;
    check_version(connections, &status.get_ref().version)?;
    let members = connections
        .call(Access::Read, MemberListRequest { linearizable: true }, |channel, request| async move {
            ClusterClient::new(channel).member_list(request).await
        })
        .await;
    let voters = match members {
        Ok(members) => members.get_ref().members.iter().filter(|member| !member.is_learner).count(),
        Err(error) if error.kind() == ErrorKind::Unsupported => 1,
        Err(error) => return Err(error),
    };
    let reported = reported_durability(status.metadata())?;
    Ok(guarantees(voters, reported))
}

fn check_version(connections: &Connections, version: &str) -> Result<()> {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (3, 4) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is version {version}: at least 3.4 is needed", connections.peers()),
        )),
        _ => Ok(()),
    }
}

/// What a coact node says about its engine; etcd says nothing.
fn reported_durability(metadata: &MetadataMap) -> Result<Option<Durability>> {
    let Some(value) = metadata.get("coact-durability") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    durability(text).map(Some).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the node declares durability {text:?}, which this client does not know: use a newer client"),
        )
    })
}

fn guarantees(voters: usize, reported: Option<Durability>) -> Guarantees {
    let alone = if voters >= 2 { Durability::Quorum } else { Durability::Sync };
    let writes = reported.unwrap_or(alone);
    Guarantees {
        reads: Consistency::Linearizable,
        writes,
        on_partition: if voters >= 2 { OnPartition::MinorityStops } else { OnPartition::SingleNode },
        failover: Failover::KeepsWrites,
        fence: if writes == Durability::Memory { Fence::PerProcess } else { Fence::Strong },
        watch: WatchFrom::Revision,
        wake: WakeUp::Told,
        increment: Increment::Emulated,
        limits: Limits::PORTABLE,
    }
}

impl KvStore for EtcdKv {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn describe(&self) -> String {
        self.connections.config.description.clone()
    }

    async fn txn(&self, _realm: &Realm, txn: Txn) -> Result<TxnOutcome> {
        if txn.writes.iter().any(|write| matches!(write, Write::Incr { .. })) {
            return self.increment(txn).await;
        }
        let writes = txn.writes.into_iter().map(|write| match write {
            Write::Put { key, value, lease } => self.put(&key, value, lease),
            Write::Delete(key) | Write::Incr { key, .. } => self.delete(&key),
        });
        // Operations run in order, so the reads see what was there before the writes.
        let mut success: Vec<_> = txn.reads.iter().map(|read| range(self.read(read))).chain(writes).collect();
        if success.is_empty() {
            // Without any operation etcd would answer from what this server happens to know.
            success.push(range(RangeRequest { count_only: true, ..self.one(self.prefix()) }));
        }
        let request = TxnRequest {
            compare: txn.checks.iter().map(|check| self.compare(check)).collect(),
            success,
            failure: txn.checks.iter().map(|check| range(self.one(self.checked_key(check)))).collect(),
        };
        let access = if request.success.len() > txn.reads.len() { Access::Write } else { Access::Read };
        let response = self.send(access, request).await?;
        if response.succeeded {
            return self.committed(&txn.reads, &response);
        }
        self.refused(&txn.checks, &response.responses)?.ok_or_else(|| malformed("a refused transaction"))
    }

    async fn get(&self, key: &Key, at: ReadAt) -> Result<Option<Entry>> {
        let response = self.range(RangeRequest { serializable: at == ReadAt::Any, ..self.one(self.flat(key)) }).await?;
        Ok(response.kvs.first().and_then(|kv| self.entry(kv)))
    }

    async fn list(&self, dir: &Dir, order: Order, limit: usize, at: ReadAt) -> Result<Page> {
        let mut request = self.dir(dir);
        request.serializable = at == ReadAt::Any;
        // One more than asked, which tells whether there is more.
        request.limit = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let by_created = match order {
            Order::Name { after } => {
                if !after.is_empty() {
                    let mut start = request.key.to_vec();
                    start.extend_from_slice(after.as_bytes());
                    start.push(0);
                    request.key = start.into();
                }
                false
            }
            Order::Created { after } => {
                request.sort_target = SortTarget::Create as i32;
                request.sort_order = SortOrder::Ascend as i32;
                request.min_create_revision = signed(after).saturating_add(1);
                true
            }
        };
        let response = self.range(request).await?;
        let revision = revision(response.header.as_ref())?;
        let more = response.more || response.kvs.len() > limit;
        let mut kvs = response.kvs;
        if by_created {
            cut_by_creation(&mut kvs, limit);
        } else {
            kvs.truncate(limit);
        }
        Ok(Page { entries: kvs.iter().filter_map(|kv| self.entry(kv)).collect(), more, revision })
    }

    async fn dirs(&self, realm: &Realm, prefix: &str, after: &str, limit: usize) -> Result<Vec<Dir>> {
        let base = format!("{}/{realm}/", self.namespace());
        let first = Bytes::from(format!("{base}{prefix}"));
        let end = prefix_end(&first);
        let mut key = first;
        if !after.is_empty() {
            key = key.max(prefix_end(format!("{base}{after}//").as_bytes()));
        }
        let mut dirs: Vec<Dir> = Vec::new();
        while key < end && dirs.len() < limit {
            let request = RangeRequest {
                key: key.clone(),
                range_end: end.clone(),
                limit: DIRS_STEP,
                keys_only: true,
                ..RangeRequest::default()
            };
            let response = self.range(request).await?;
            let Some(last) = response.kvs.last() else { break };
            for dir in response.kvs.iter().filter_map(|kv| self.key(&kv.key)).map(|key| key.dir().clone()) {
                // The dir `a` has the keys `a//…`, which the prefix `a/` finds too.
                if dir.path().starts_with(prefix) && dirs.last() != Some(&dir) {
                    dirs.push(dir);
                }
            }
            // On behind the dir of the last key, or behind that key if it is of foreign making.
            key = match self.key(&last.key) {
                Some(key) => prefix_end(key.dir().to_flat(self.namespace()).as_bytes()),
                None => [&last.key[..], &[0]].concat().into(),
            };
        }
        dirs.truncate(limit);
        Ok(dirs)
    }

    async fn watch(&self, scope: Scope, after: Option<Revision>) -> Result<Feed> {
        let range = match &scope {
            Scope::Key(key) => Range { key: self.flat(key), end: Bytes::new() },
            Scope::Dir(dir) => {
                let request = self.dir(dir);
                Range { key: request.key, end: request.range_end }
            }
        };
        let start = after.map_or(0, |after| signed(after).saturating_add(1));
        self.watches.feed(range, start).await
    }

    async fn await_gone(&self, key: &Key, created: Revision) -> Result<()> {
        loop {
            // First the watch, then the look: what goes away after the look is seen by the watch.
            let waiter = self.watches.waiter(self.flat(key)).await?;
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
        let request = LeaseGrantRequest { ttl: seconds(ttl), id: 0 };
        let grant = self
            .connections
            .call(Access::Write, request, |channel, request| async move {
                LeaseClient::new(channel).lease_grant(request).await
            })
            .await?
            .into_inner();
        if !grant.error.is_empty() {
            return Err(Error::new(ErrorKind::Internal, format!("no lease was granted: {}", grant.error)));
        }
        let lease = Lease { id: LeaseId(grant.id), ttl: granted(grant.ttl)? };
        // Its presence is what `Check::LeaseAlive` looks at. Twice is as good as once; without it the lease is not used.
        let sentinel = PutRequest { key: self.sentinel(lease.id), lease: lease.id.0, ..PutRequest::default() };
        self.connections
            .call(Access::Idempotent, sentinel, |channel, request| async move { kv_client(channel).put(request).await })
            .await?;
        Ok(lease)
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<Duration> {
        self.renewals.renew(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<()> {
        let request = LeaseRevokeRequest { id: lease.0 };
        let revoked = self
            .connections
            .call(Access::Idempotent, request, |channel, request| async move {
                LeaseClient::new(channel).lease_revoke(request).await
            })
            .await;
        match revoked {
            Err(error) if error.kind() != ErrorKind::Fenced => Err(error),
            _ => Ok(()),
        }
    }

    async fn lease_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        let request = LeaseTimeToLiveRequest { id: lease.0, keys: false };
        let left = self
            .connections
            .call(Access::Read, request, |channel, request| async move {
                LeaseClient::new(channel).lease_time_to_live(request).await
            })
            .await;
        match left {
            Ok(left) => Ok(u64::try_from(left.get_ref().ttl).ok().map(Duration::from_secs)),
            Err(error) if error.kind() == ErrorKind::Fenced => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn close(&self) -> Result<()> {
        self.connections.close();
        self.watches.close();
        self.renewals.close();
        Ok(())
    }
}

impl EtcdKv {
    fn namespace(&self) -> &Namespace {
        &self.connections.config.namespace
    }

    fn prefix(&self) -> Bytes {
        format!("{}/", self.namespace()).into()
    }

    fn flat(&self, key: &Key) -> Bytes {
        key.to_flat(self.namespace()).into()
    }

    /// The key that a lease holds from its grant to its end. It is outside every realm: realms do not start with a dot.
    fn sentinel(&self, lease: LeaseId) -> Bytes {
        format!("{}/.lease//{:016x}", self.namespace(), lease.0).into()
    }

    fn key(&self, flat: &[u8]) -> Option<Key> {
        Key::from_flat(self.namespace(), flat)
    }

    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        entry(self.namespace(), kv)
    }

    fn one(&self, key: Bytes) -> RangeRequest {
        RangeRequest { key, ..RangeRequest::default() }
    }

    fn dir(&self, dir: &Dir) -> RangeRequest {
        let key = Bytes::from(dir.to_flat(self.namespace()));
        RangeRequest { range_end: prefix_end(&key), key, ..RangeRequest::default() }
    }

    fn read(&self, read: &Read) -> RangeRequest {
        let edge = |dir, order: SortOrder| RangeRequest {
            limit: 1,
            sort_target: SortTarget::Create as i32,
            sort_order: order as i32,
            ..self.dir(dir)
        };
        match read {
            Read::Get(key) => self.one(self.flat(key)),
            Read::First(dir) => edge(dir, SortOrder::Ascend),
            Read::Last(dir) => edge(dir, SortOrder::Descend),
            Read::Count(dir) => RangeRequest { count_only: true, ..self.dir(dir) },
        }
    }

    fn checked_key(&self, check: &Check) -> Bytes {
        match check {
            Check::Absent(key) | Check::CreatedAt(key, _) | Check::ModifiedAt(key, _) => self.flat(key),
            Check::LeaseAlive(lease) => self.sentinel(*lease),
        }
    }

    fn compare(&self, check: &Check) -> Compare {
        let (result, target, operand) = match check {
            Check::Absent(_) => (CompareResult::Equal, CompareTarget::Create, TargetUnion::CreateRevision(0)),
            Check::CreatedAt(_, at) => {
                (CompareResult::Equal, CompareTarget::Create, TargetUnion::CreateRevision(signed(*at)))
            }
            Check::ModifiedAt(_, at) => {
                (CompareResult::Equal, CompareTarget::Mod, TargetUnion::ModRevision(signed(*at)))
            }
            Check::LeaseAlive(_) => (CompareResult::Greater, CompareTarget::Create, TargetUnion::CreateRevision(0)),
        };
        Compare {
            result: result as i32,
            target: target as i32,
            key: self.checked_key(check),
            range_end: Bytes::new(),
            target_union: Some(operand),
        }
    }

    fn put(&self, key: &Key, value: Bytes, lease: Option<LeaseId>) -> RequestOp {
        let lease = lease.map_or(0, |lease| lease.0);
        op(Request::RequestPut(PutRequest { key: self.flat(key), value, lease, ..PutRequest::default() }))
    }

    fn delete(&self, key: &Key) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest { key: self.flat(key), ..DeleteRangeRequest::default() }))
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        let response = self
            .connections
            .call(Access::Read, request, |channel, request| async move { kv_client(channel).range(request).await })
            .await?;
        Ok(response.into_inner())
    }

    async fn send(&self, access: Access, request: TxnRequest) -> Result<TxnResponse> {
        let response = self
            .connections
            .call(access, request, |channel, request| async move { kv_client(channel).txn(request).await })
            .await?;
        Ok(response.into_inner())
    }

    fn committed(&self, reads: &[Read], response: &TxnResponse) -> Result<TxnOutcome> {
        let found = |(read, answer): (&Read, &ResponseOp)| {
            let answer = ranged(answer)?;
            Ok(match read {
                Read::Count(_) => Found::Count(answer.count.unsigned_abs()),
                _ => Found::Entry(answer.kvs.first().and_then(|kv| self.entry(kv))),
            })
        };
        if response.responses.len() < reads.len() {
            return Err(malformed("a transaction"));
        }
        let reads = reads.iter().zip(&response.responses).map(found).collect::<Result<_>>()?;
        Ok(TxnOutcome::Committed { revision: revision(response.header.as_ref())?, reads })
    }

    /// The first check that does not hold, given one range for each. All ranges are of one revision, so this agrees with
    /// the server's own comparison at that revision.
    fn refused(&self, checks: &[Check], answers: &[ResponseOp]) -> Result<Option<TxnOutcome>> {
        for (index, (check, answer)) in checks.iter().zip(answers).enumerate() {
            let kv = ranged(answer)?.kvs.first();
            if !holds(check, kv) {
                return Ok(Some(TxnOutcome::Refused { check: index, found: kv.and_then(|kv| self.entry(kv)) }));
            }
        }
        Ok(None)
    }

    /// A transaction with `Incr`, which etcd does not have: read the numbers, then write the sums on condition that
    /// nobody changed them. A failed attempt brings the newer numbers along.
    async fn increment(&self, txn: Txn) -> Result<TxnOutcome> {
        let env = &self.connections.env;
        let deadline = env.now() + self.connections.config.timeout;
        let counters = txn.writes.iter().filter_map(|write| match write {
            Write::Incr { key, .. } => Some(self.flat(key)),
            Write::Put { .. } | Write::Delete(_) => None,
        });
        let keys = txn.checks.iter().map(|check| self.checked_key(check)).chain(counters);
        let look: Vec<_> = keys.map(|key| range(self.one(key))).collect();
        let read = || TxnRequest { success: look.clone(), ..TxnRequest::default() };
        let mut seen = self.send(Access::Read, read()).await?.responses;
        let mut pause = Duration::from_millis(1);
        for tries in 1_u32.. {
            if let Some(refused) = self.refused(&txn.checks, &seen)? {
                return Ok(refused);
            }
            let mut request = TxnRequest {
                compare: txn.checks.iter().map(|check| self.compare(check)).collect(),
                success: txn.reads.iter().map(|read| range(self.read(read))).collect(),
                failure: look.clone(),
            };
            let mut numbers = seen.get(txn.checks.len()..).unwrap_or_default().iter();
            for write in &txn.writes {
                let write = match write {
                    Write::Put { key, value, lease } => self.put(key, value.clone(), *lease),
                    Write::Delete(key) => self.delete(key),
                    Write::Incr { key, by } => {
                        let kv = ranged(numbers.next().ok_or_else(|| malformed("a transaction"))?)?.kvs.first();
                        request.compare.push(self.compare(&unchanged(key, kv)));
                        op(Request::RequestPut(PutRequest {
                            key: self.flat(key),
                            value: sum(key, kv, *by)?,
                            ignore_lease: kv.is_some(),
                            ..PutRequest::default()
                        }))
                    }
                };
                request.success.push(write);
            }
            let response = self.send(Access::Write, request).await?;
            if response.succeeded {
                return self.committed(&txn.reads, &response);
            }
            seen = response.responses;
            if env.now() >= deadline {
                break;
            }
            if tries >= EAGER_TRIES {
                env.sleep(env.random_duration(pause)).await;
                pause = (pause * 2).min(INCREMENT_PAUSE_MAX);
                seen = self.send(Access::Read, read()).await?.responses;
            }
        }
        let limit = self.connections.config.timeout;
        Err(Error::new(ErrorKind::Conflict, format!("others changed the number at every attempt within {limit:?}"))
            .with_retry(Retry::After(INCREMENT_PAUSE_MAX)))
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn range(request: RangeRequest) -> RequestOp {
    op(Request::RequestRange(request))
}

fn ranged(answer: &ResponseOp) -> Result<&RangeResponse> {
    match &answer.response {
        Some(Response::ResponseRange(range)) => Ok(range),
        _ => Err(malformed("a transaction")),
    }
}

fn revision(header: Option<&ResponseHeader>) -> Result<Revision> {
    let revision = header.and_then(|header| u64::try_from(header.revision).ok());
    revision.map(Revision).ok_or_else(|| malformed("a request, without a revision,"))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// `None` for a key of foreign making, which the contract does not see.
pub(crate) fn entry(namespace: &Namespace, kv: &KeyValue) -> Option<Entry> {
    let revision = |revision: i64| Revision(u64::try_from(revision).unwrap_or_default());
    Some(Entry {
        key: Key::from_flat(namespace, &kv.key)?,
        value: kv.value.clone(),
        created: revision(kv.create_revision),
        modified: revision(kv.mod_revision),
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
    })
}

fn holds(check: &Check, kv: Option<&KeyValue>) -> bool {
    match check {
        Check::Absent(_) => kv.is_none(),
        Check::CreatedAt(_, at) => kv.map_or(0, |kv| kv.create_revision) == signed(*at),
        Check::ModifiedAt(_, at) => kv.map_or(0, |kv| kv.mod_revision) == signed(*at),
        Check::LeaseAlive(_) => kv.is_some(),
    }
}

/// That a key is still as it was seen.
fn unchanged(key: &Key, kv: Option<&KeyValue>) -> Check {
    match kv {
        None => Check::Absent(key.clone()),
        Some(kv) => Check::ModifiedAt(key.clone(), Revision(kv.mod_revision.unsigned_abs())),
    }
}

fn sum(key: &Key, kv: Option<&KeyValue>, by: i64) -> Result<Bytes> {
    let Some(kv) = kv else { return Ok(by.to_string().into()) };
    let number = std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse::<i64>().ok()).ok_or_else(|| {
        Error::invalid(format!("the value of {key} cannot be added to: it is not a decimal number of 64 bits"))
    })?;
    let sum = number.checked_add(by).ok_or_else(|| {
        Error::invalid(format!("adding {by} to the {number} of {key} goes past the bounds of 64 bits"))
    })?;
    Ok(sum.to_string().into())
}

/// The first key behind every key with this prefix; one zero byte, etcd's "no end", if there is none.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

/// Cuts a listing by creation to the limit, where the next page can go on: entries that one transaction created share a
/// revision, and "after this revision" cannot divide them. Their own order, which etcd leaves open, becomes that of names.
fn cut_by_creation(kvs: &mut Vec<KeyValue>, limit: usize) {
    if let Some(beyond) = kvs.get(limit).map(|kv| kv.create_revision) {
        let whole = kvs.partition_point(|kv| kv.create_revision < beyond);
        // More of one transaction than fit: the caller gets what fits.
        kvs.truncate(if whole > 0 { whole.min(limit) } else { limit });
    }
    kvs.sort_by(|a, b| (a.create_revision, &a.key).cmp(&(b.create_revision, &b.key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(prefix_end(b"a//"), Bytes::from_static(b"a/0"));
        assert_eq!(prefix_end(b"a\xff"), Bytes::from_static(b"b"));
        assert_eq!(prefix_end(b"\xff"), Bytes::from_static(&[0]));
    }

    #[test]
    fn guarantees_follow_the_cluster_and_what_a_node_reports() {
        let shown = |voters, reported| {
            let guarantees = guarantees(voters, reported);
            (guarantees.writes, guarantees.on_partition, guarantees.fence)
        };
        assert_eq!(shown(1, None), (Durability::Sync, OnPartition::SingleNode, Fence::Strong));
        assert_eq!(shown(3, None), (Durability::Quorum, OnPartition::MinorityStops, Fence::Strong));
        let memory = Some(Durability::Memory);
        assert_eq!(shown(1, memory), (Durability::Memory, OnPartition::SingleNode, Fence::PerProcess));
    }

    #[test]
    fn reads_the_durability_that_a_node_reports() {
        let reported = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("coact-durability", tonic::metadata::MetadataValue::from_static(text));
            reported_durability(&metadata)
        };
        assert_eq!(reported_durability(&MetadataMap::new()).expect("silent"), None);
        assert_eq!(reported("sync").expect("known"), Some(Durability::Sync));
        assert_eq!(reported("os").expect("known"), Some(Durability::Os));
        assert_eq!(reported("memory").expect("known"), Some(Durability::Memory));
        let interval = Durability::Interval(Duration::from_millis(50));
        assert_eq!(reported("interval:50").expect("known"), Some(interval));
        assert_eq!(reported("tape").expect_err("unknown").kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn sums_are_decimal_and_stay_within_64_bits() {
        let key = Key::parse(&Realm::default(), "count/a").expect("valid");
        let kv = |text: &str| KeyValue { value: Bytes::copy_from_slice(text.as_bytes()), ..KeyValue::default() };
        assert_eq!(sum(&key, None, -3).expect("starts at zero"), "-3");
        assert_eq!(sum(&key, Some(&kv("40")), 2).expect("a number"), "42");
        for (text, by) in [("x", 1), ("", 1), ("1.5", 1), ("9223372036854775807", 1), ("-9223372036854775808", -1)] {
            assert_eq!(sum(&key, Some(&kv(text)), by).expect_err(text).kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_page_by_creation_does_not_divide_what_one_transaction_created() {
        let page = |revisions: &[i64], limit| {
            let kv = |&create_revision| KeyValue { create_revision, ..KeyValue::default() };
            let mut kvs: Vec<_> = revisions.iter().map(kv).collect();
            cut_by_creation(&mut kvs, limit);
            kvs.iter().map(|kv| kv.create_revision).collect::<Vec<_>>()
        };
        assert_eq!(page(&[1, 2, 3], 3), [1, 2, 3]);
        assert_eq!(page(&[1, 2, 3, 4], 3), [1, 2, 3]);
        assert_eq!(page(&[1, 2, 3, 3], 3), [1, 2]);
        assert_eq!(page(&[3, 3, 3, 3], 3), [3, 3, 3]);
        assert!(page(&[1], 0).is_empty());
    }
}
