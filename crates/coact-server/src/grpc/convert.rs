//! Between etcd's messages and the engine's requests: names change, nothing else.

use bytes::Bytes;
use coact_engine_embedded::flat::{
    Answer, Compare, DeleteRequest, Event, KeyRange, Op, PutRequest, RangeRequest, RangeResponse, Record, Relation,
    Sort, SortBy, Target, TxnRequest, TxnResponse,
};
use coact_engine_etcd::wire::{
    etcdserverpb::{
        self as wire, ResponseHeader,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op, response_op,
    },
    mvccpb::{self, event::EventType},
};

pub(super) fn keys(start: Bytes, end: Bytes) -> KeyRange {
    KeyRange { start, end }
}

pub(super) fn range(request: wire::RangeRequest) -> RangeRequest {
    RangeRequest {
        sort: sort(&request),
        keys: keys(request.key, request.range_end),
        // Zero or less: the newest, and everything.
        revision: positive(request.revision),
        limit: usize::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        skip_count: false,
        modified: (positive(request.min_mod_revision), bound(request.max_mod_revision)),
        created: (positive(request.min_create_revision), bound(request.max_create_revision)),
    }
}

pub(super) fn put(request: wire::PutRequest) -> PutRequest {
    PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        previous: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(super) fn delete(request: wire::DeleteRangeRequest) -> DeleteRequest {
    DeleteRequest { keys: keys(request.key, request.range_end), previous: request.prev_kv }
}

pub(super) fn txn(request: wire::TxnRequest) -> TxnRequest {
    TxnRequest {
        compare: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().filter_map(op).collect(),
        failure: request.failure.into_iter().filter_map(op).collect(),
    }
}

pub(super) fn range_response(found: RangeResponse, header: Option<ResponseHeader>) -> wire::RangeResponse {
    wire::RangeResponse {
        header,
        kvs: found.records.iter().map(|record| key_value(record)).collect(),
        more: found.more,
        count: found.count as i64,
    }
}

pub(super) fn txn_response(response: TxnResponse, header: Option<ResponseHeader>) -> wire::TxnResponse {
    let mut revisions = Revisions::of(&response);
    wire::TxnResponse {
        header,
        succeeded: response.failed.is_none(),
        responses: response.answers.into_iter().map(|answer| answered(answer, &mut revisions)).collect(),
    }
}

pub(super) fn key_value(record: &Record) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: Bytes::copy_from_slice(&record.key),
        create_revision: record.created as i64,
        mod_revision: record.modified as i64,
        version: record.version as i64,
        value: record.value.clone(),
        lease: record.lease,
    }
}

pub(super) fn event(event: &Event, with_previous: bool) -> mvccpb::Event {
    let kind = if event.record.is_tombstone() { EventType::Delete } else { EventType::Put };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(key_value(&event.record)),
        prev_kv: event.previous.as_deref().filter(|_| with_previous).map(key_value),
    }
}

fn sort(request: &wire::RangeRequest) -> Sort {
    let by = match request.sort_target() {
        SortTarget::Key => SortBy::Key,
        SortTarget::Version => SortBy::Version,
        SortTarget::Create => SortBy::Created,
        SortTarget::Mod => SortBy::Modified,
        SortTarget::Value => SortBy::Value,
    };
    Sort { by, descending: request.sort_order() == SortOrder::Descend }
}

fn positive(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// An upper bound: zero is none, and nothing is at or below a negative one. Revisions begin with 1, so no key is
/// created or modified at zero, but zero has a meaning here; the least that can be said is "up to 1", the revision of
/// the empty store.
fn bound(number: i64) -> u64 {
    if number < 0 { 1 } else { number as u64 }
}

fn op(op: wire::RequestOp) -> Option<Op> {
    Some(match op.request? {
        request_op::Request::RequestRange(request) => Op::Range(range(request)),
        request_op::Request::RequestPut(request) => Op::Put(put(request)),
        request_op::Request::RequestDeleteRange(request) => Op::Delete(delete(request)),
        request_op::Request::RequestTxn(request) => Op::Txn(txn(request)),
    })
}

fn compare(compare: wire::Compare) -> Compare {
    let relation = match compare.result() {
        CompareResult::Equal => Relation::Equal,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
        CompareResult::NotEqual => Relation::NotEqual,
    };
    // An operand of another kind than the target counts as none, which is zero or empty.
    let number = |number: Option<i64>, target: fn(u64) -> Target| match u64::try_from(number.unwrap_or(0)) {
        Ok(number) => (relation, target(number)),
        Err(_) => (beside_negative(relation), target(u64::MAX)),
    };
    let (relation, target) = match (compare.target(), compare.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(version))) => number(Some(version), Target::Version),
        (CompareTarget::Version, _) => number(None, Target::Version),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(revision))) => number(Some(revision), Target::Created),
        (CompareTarget::Create, _) => number(None, Target::Created),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(revision))) => number(Some(revision), Target::Modified),
        (CompareTarget::Mod, _) => number(None, Target::Modified),
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => (relation, Target::Value(value)),
        (CompareTarget::Value, _) => (relation, Target::Value(Bytes::new())),
        (CompareTarget::Lease, Some(TargetUnion::Lease(lease))) => (relation, Target::Lease(lease)),
        (CompareTarget::Lease, _) => (relation, Target::Lease(0)),
    };
    Compare { keys: keys(compare.key, compare.range_end), relation, target }
}

/// The relation to the greatest number that holds exactly if `relation` to a negative one holds: always, or never.
fn beside_negative(relation: Relation) -> Relation {
    match relation {
        Relation::Greater | Relation::NotEqual => Relation::Less,
        Relation::Equal | Relation::Less => Relation::Greater,
    }
}

fn answered(answer: Answer, revisions: &mut Revisions) -> wire::ResponseOp {
    let response = match answer {
        Answer::Range(found) => response_op::Response::ResponseRange(range_response(found, revisions.header())),
        Answer::Put(previous) => {
            revisions.written = true;
            response_op::Response::ResponsePut(wire::PutResponse {
                header: revisions.header(),
                prev_kv: previous.as_deref().map(key_value),
            })
        }
        Answer::Delete { deleted, previous } => {
            revisions.written |= deleted > 0;
            response_op::Response::ResponseDeleteRange(wire::DeleteRangeResponse {
                header: revisions.header(),
                deleted: deleted as i64,
                prev_kvs: previous.iter().map(|record| key_value(record)).collect(),
            })
        }
        Answer::Txn(inner) => response_op::Response::ResponseTxn(wire::TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: inner.failed.is_none(),
            responses: inner.answers.into_iter().map(|answer| answered(answer, revisions)).collect(),
        }),
    };
    wire::ResponseOp { response: Some(response) }
}

/// The revision that each step of a transaction saw: etcd puts it, and nothing else, into the headers inside.
struct Revisions {
    before: u64,
    after: u64,
    written: bool,
}

impl Revisions {
    fn of(response: &TxnResponse) -> Self {
        let before = response.revision.saturating_sub(u64::from(response.answers.iter().any(writes)));
        Self { before, after: response.revision, written: false }
    }

    fn header(&self) -> Option<ResponseHeader> {
        let revision = if self.written { self.after } else { self.before };
        Some(ResponseHeader { revision: revision as i64, ..ResponseHeader::default() })
    }
}

fn writes(answer: &Answer) -> bool {
    match answer {
        Answer::Range(_) => false,
        Answer::Put(_) => true,
        Answer::Delete { deleted, .. } => *deleted > 0,
        Answer::Txn(inner) => inner.answers.iter().any(writes),
    }
}
