//! etcd's errors: clients compare them by text, so code and message are part of the protocol.

use coact_engine_embedded::flat::FlatError;
use tonic::{Code, Status};

/// A refusal that is always the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal(Code, &'static str);

impl From<Refusal> for Status {
    fn from(Refusal(code, message): Refusal) -> Self {
        Self::new(code, message)
    }
}

pub(super) const EMPTY_KEY: Refusal = Refusal(Code::InvalidArgument, "etcdserver: key is not provided");
pub(super) const KEY_NOT_FOUND: Refusal = Refusal(Code::InvalidArgument, "etcdserver: key not found");
pub(super) const VALUE_PROVIDED: Refusal = Refusal(Code::InvalidArgument, "etcdserver: value is provided");
pub(super) const LEASE_PROVIDED: Refusal = Refusal(Code::InvalidArgument, "etcdserver: lease is provided");
pub(super) const TOO_MANY_OPS: Refusal =
    Refusal(Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub(super) const DUPLICATE_KEY: Refusal =
    Refusal(Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub(super) const INVALID_SORT: Refusal = Refusal(Code::InvalidArgument, "etcdserver: invalid sort option");
/// Not etcd's, which takes a comparison that it does not know as met.
pub(super) const INVALID_COMPARE: Refusal = Refusal(Code::InvalidArgument, "etcdserver: invalid compare option");
pub(super) const TOO_LARGE: Refusal = Refusal(Code::InvalidArgument, "etcdserver: request is too large");
pub(super) const COMPACTED: Refusal =
    Refusal(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub(super) const FUTURE: Refusal =
    Refusal(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub(super) const LEASE_NOT_FOUND: Refusal = Refusal(Code::NotFound, "etcdserver: requested lease not found");
pub(super) const LEASE_EXISTS: Refusal = Refusal(Code::FailedPrecondition, "etcdserver: lease already exists");
pub(super) const TTL_TOO_LARGE: Refusal = Refusal(Code::OutOfRange, "etcdserver: too large lease TTL");
pub(super) const NO_TOKEN: Refusal = Refusal(Code::Unauthenticated, "etcdserver: invalid auth token");
pub(super) const DENIED: Refusal = Refusal(Code::PermissionDenied, "etcdserver: permission denied");
/// What etcd says in a watch's response.
pub(super) const WATCH_DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
pub(super) const AUTH_OFF: Refusal = Refusal(Code::FailedPrecondition, "etcdserver: authentication is not enabled");
pub(super) const AUTH_FAILED: Refusal =
    Refusal(Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password");
/// Not etcd's, whose streams go on with what they were allowed when they began.
pub(super) const ACCESS_CHANGED: Refusal =
    Refusal(Code::Unavailable, "coact: what this token allows has changed; ask again");
pub(super) const STOPPED: Refusal = Refusal(Code::Unavailable, "etcdserver: server stopped");

// etcd's lock and election services pass on what its Go client says, whose errors have no code.
pub(super) const NO_LOCK_KEY: Refusal = Refusal(Code::Unknown, "etcdserver: key is not provided");
pub(super) const LOCK_EXPIRED: Refusal = Refusal(Code::Unknown, "mutex: session is expired");
pub(super) const ELECTION_EXPIRED: Refusal = Refusal(Code::Unknown, "election: session expired");
pub(super) const NOT_LEADER: Refusal = Refusal(Code::Unknown, "election: not leader");
pub(super) const NO_LEADER: Refusal = Refusal(Code::Unknown, "election: no leader");
pub(super) const LEADER_MISSING: Refusal = Refusal(Code::Unknown, "\"leader\" field must be provided");

/// What the engine's answer is in etcd's words.
pub(super) fn failed(error: FlatError) -> Status {
    match error {
        FlatError::Compacted(_) => COMPACTED.into(),
        FlatError::Future(_) => FUTURE.into(),
        FlatError::LeaseNotFound => LEASE_NOT_FOUND.into(),
        FlatError::LeaseExists => LEASE_EXISTS.into(),
        FlatError::KeyNotFound => KEY_NOT_FOUND.into(),
        FlatError::DuplicateKey => DUPLICATE_KEY.into(),
        FlatError::Closed => STOPPED.into(),
        FlatError::Poisoned(reason) => Status::unavailable(format!(
            "coact: the engine stopped at a failed write ({reason}); the request may have taken effect; \
             restart the node to recover"
        )),
        FlatError::NotANumber(found) => Status::invalid_argument(format!("coact: {found:?} is not a number")),
        other => Status::internal(format!("coact: {other:?}")),
    }
}

/// As [`failed`], in the words of etcd's lock and election services, which lose the code of what their client is told.
pub(super) fn relayed(error: FlatError) -> Status {
    match error {
        FlatError::LeaseNotFound => Status::unknown(failed(error).message()),
        other => failed(other),
    }
}

/// A service that a node of one member has no use for.
pub(super) fn unsupported(what: &str, instead: &str) -> Status {
    Status::unimplemented(format!("etcdserver: {what} is not supported by a coact node: {instead}"))
}

/// An engine that answers something other than what it was asked.
pub(super) fn wrong_answer() -> Status {
    Status::internal("coact: the engine answered another question than was asked")
}
