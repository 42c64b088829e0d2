//! Whether the caller may do what a request asks, every part of it.
//!
//! What returns values is a read, what changes keys is a write, and what does both needs both. Nothing in a request is
//! looked at by the engine before all of it was allowed.

use std::future::Future;

use coact_engine_etcd::wire::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use tonic::{Request, Status};

use super::errors::{ACCESS_CHANGED, DENIED, NO_TOKEN};
use crate::auth::{Caller, Keys, Verb};

/// Who calls. The layer around every route has found out; without it nobody is let in.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().filter(|caller| !caller.is_nobody());
    caller.cloned().ok_or_else(|| NO_TOKEN.into())
}

pub(super) fn keys(caller: &Caller, keys: Keys<'_>, verbs: &[Verb]) -> Result<(), Status> {
    verbs.iter().try_for_each(|verb| caller.allow_keys(keys, *verb)).map_err(|_| DENIED.into())
}

pub(super) fn range(caller: &Caller, request: &RangeRequest) -> Result<(), Status> {
    keys(caller, Keys::range(&request.key, &request.range_end), &[Verb::Read])
}

pub(super) fn put(caller: &Caller, request: &PutRequest) -> Result<(), Status> {
    keys(caller, Keys::one(&request.key), changes(request.prev_kv))
}

pub(super) fn delete(caller: &Caller, request: &DeleteRangeRequest) -> Result<(), Status> {
    keys(caller, Keys::range(&request.key, &request.range_end), changes(request.prev_kv))
}

/// A transaction with all that is in it, whichever branch will run.
pub(super) fn txn(caller: &Caller, request: &TxnRequest) -> Result<(), Status> {
    request.compare.iter().try_for_each(|compare| compared(caller, compare))?;
    request.success.iter().chain(&request.failure).try_for_each(|op| step(caller, op))
}

/// The keys under a name of etcd's lock and election services: they are looked at and changed.
pub(super) fn line(caller: &Caller, name: &[u8], verbs: &[Verb]) -> Result<(), Status> {
    let (start, end) = ([name, b"/"].concat(), [name, b"0"].concat());
    keys(caller, Keys::range(&start, &end), verbs)
}

/// For who may change anything at all.
pub(super) fn some_write(caller: &Caller) -> Result<(), Status> {
    caller.allow_some(Verb::Write).map_err(|_| DENIED.into())
}

/// For who may do everything; goes into the audit log.
pub(super) fn admin(caller: &Caller, what: &str) -> Result<(), Status> {
    caller.allow_admin(what).map_err(|_| DENIED.into())
}

/// Ends a stream when what its caller may do has changed: a client that goes on opens it anew, and is checked anew.
pub(super) fn while_unchanged<T: Send + 'static>(
    caller: Caller,
    responses: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    let changed = async move { caller.until_changed().await }.boxed();
    let open = Some((responses.boxed(), changed));
    stream::unfold(open, |open| async move {
        let (mut responses, mut changed) = open?;
        tokio::select! {
            response = responses.next() => Some((response?, Some((responses, changed)))),
            () = &mut changed => Some((Err(ACCESS_CHANGED.into()), None)),
        }
    })
    .boxed()
}

/// As [`while_unchanged`], for one answer that may be long in coming.
pub(super) async fn wait_unchanged<T>(
    caller: &Caller,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::select! {
        answer = answer => answer,
        () = caller.until_changed() => Err(ACCESS_CHANGED.into()),
    }
}

fn changes(shows_previous: bool) -> &'static [Verb] {
    if shows_previous { &[Verb::Write, Verb::Read] } else { &[Verb::Write] }
}

fn compared(caller: &Caller, compare: &Compare) -> Result<(), Status> {
    keys(caller, Keys::range(&compare.key, &compare.range_end), &[Verb::Read])
}

fn step(caller: &Caller, op: &RequestOp) -> Result<(), Status> {
    match &op.request {
        Some(request_op::Request::RequestRange(request)) => range(caller, request),
        Some(request_op::Request::RequestPut(request)) => put(caller, request),
        Some(request_op::Request::RequestDeleteRange(request)) => delete(caller, request),
        Some(request_op::Request::RequestTxn(request)) => txn(caller, request),
        None => Ok(()),
    }
}
