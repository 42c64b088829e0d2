//! What etcd refuses before it looks at the store, in etcd's order.

use std::collections::HashSet;

use bytes::Bytes;
use coact_engine_embedded::flat::KeyRange;
use coact_engine_etcd::wire::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget},
    range_request::{SortOrder, SortTarget},
    request_op,
};
use tonic::Status;

use super::errors::{
    DUPLICATE_KEY, EMPTY_KEY, INVALID_COMPARE, INVALID_SORT, KEY_NOT_FOUND, LEASE_PROVIDED, TOO_LARGE, TOO_MANY_OPS,
    VALUE_PROVIDED,
};

pub(super) fn range(request: &RangeRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(INVALID_SORT.into());
    }
    Ok(())
}

pub(super) fn put(request: &PutRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(VALUE_PROVIDED.into());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(LEASE_PROVIDED.into());
    }
    Ok(())
}

pub(super) fn delete(request: &DeleteRangeRequest) -> Result<(), Status> {
    check_key(&request.key)
}

/// Checks a transaction with all that is in it. Keys that are written twice are refused whichever branch runs.
pub(super) fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Status> {
    shape(request, ops_max)?;
    Writes::default().claim(&request.success)?;
    Writes::default().claim(&request.failure)
}

/// Refuses a write that is larger than the log should take in one piece.
pub(super) fn size(request: &impl prost::Message, bytes_max: usize) -> Result<(), Status> {
    if request.encoded_len() > bytes_max {
        return Err(TOO_LARGE.into());
    }
    Ok(())
}

fn check_key(key: &Bytes) -> Result<(), Status> {
    if key.is_empty() { Err(EMPTY_KEY.into()) } else { Ok(()) }
}

fn shape(request: &TxnRequest, ops_max: usize) -> Result<(), Status> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max {
        return Err(TOO_MANY_OPS.into());
    }
    for compare in &request.compare {
        check_key(&compare.key)?;
        if CompareResult::try_from(compare.result).is_err() || CompareTarget::try_from(compare.target).is_err() {
            return Err(INVALID_COMPARE.into());
        }
    }
    // What is nested shares what this level leaves.
    request.success.iter().chain(&request.failure).try_for_each(|op| check_op(op, ops_max - ops))
}

fn check_op(op: &RequestOp, ops_max: usize) -> Result<(), Status> {
    match &op.request {
        Some(request_op::Request::RequestRange(request)) => range(request),
        Some(request_op::Request::RequestPut(request)) => put(request),
        Some(request_op::Request::RequestDeleteRange(request)) => delete(request),
        Some(request_op::Request::RequestTxn(request)) => shape(request, ops_max),
        None => Err(KEY_NOT_FOUND.into()),
    }
}

/// What one branch writes: no key twice, and none that it also deletes.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn claim(&mut self, ops: &[RequestOp]) -> Result<(), Status> {
        for op in ops {
            if let Some(request_op::Request::RequestDeleteRange(delete)) = &op.request {
                self.deletes.push(KeyRange { start: delete.key.clone(), end: delete.range_end.clone() });
            }
        }
        for op in ops {
            if let Some(request_op::Request::RequestTxn(inner)) = &op.request {
                self.claim_nested(inner)?;
            }
        }
        for op in ops {
            if let Some(request_op::Request::RequestPut(put)) = &op.request {
                self.claim_put(&put.key)?;
            }
        }
        Ok(())
    }

    /// Only one branch of a nested transaction runs, so both may put the same key.
    fn claim_nested(&mut self, inner: &TxnRequest) -> Result<(), Status> {
        let mut then = Self::default();
        then.claim(&inner.success)?;
        let mut otherwise = Self::default();
        otherwise.claim(&inner.failure)?;
        for key in &then.puts {
            self.claim_put(key)?;
        }
        for key in otherwise.puts.difference(&then.puts) {
            self.claim_put(key)?;
        }
        self.deletes.extend(then.deletes);
        self.deletes.extend(otherwise.deletes);
        Ok(())
    }

    fn claim_put(&mut self, key: &Bytes) -> Result<(), Status> {
        if self.deletes.iter().any(|range| range.contains(key)) || !self.puts.insert(key.clone()) {
            return Err(DUPLICATE_KEY.into());
        }
        Ok(())
    }
}
