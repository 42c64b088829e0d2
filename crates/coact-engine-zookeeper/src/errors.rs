//! What a failure of ZooKeeper means.

use coact_core::{Error, ErrorKind};
use zookeeper_client::Error as Zk;

/// What a request does, and so what may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It changes nothing, or nothing more when it happens twice.
    Repeatable,
    /// Sent twice, it may happen twice.
    Once,
}

/// Whether the request was lost, or its answer, or the session.
pub(crate) fn is_lost(error: &Zk) -> bool {
    matches!(
        error,
        Zk::ConnectionLoss | Zk::SessionExpired | Zk::SessionMoved | Zk::Timeout | Zk::NoHosts | Zk::ClientClosed
    )
}

/// A failure that another try does not help.
pub(crate) fn translate(error: Zk, access: Access) -> Error {
    match error {
        Zk::NoAuth => Error::new(
            ErrorKind::Denied,
            "ZooKeeper denies it: the nodes belong to another user; write user:password@host in the URL, or set their ACLs",
        ),
        Zk::AuthFailed => Error::new(ErrorKind::Denied, "ZooKeeper does not accept the user or the password"),
        Zk::NotReadOnly => {
            Error::new(ErrorKind::Unavailable, "the ZooKeeper server has lost its ensemble and is read-only")
        }
        Zk::QuotaExceeded => {
            Error::new(ErrorKind::Exhausted, "a quota of ZooKeeper is reached: raise it with setquota")
        }
        Zk::Throttled => Error::new(ErrorKind::Unavailable, "ZooKeeper throttles requests"),
        Zk::Unimplemented => {
            Error::new(ErrorKind::Unsupported, "the ZooKeeper server is too old: 3.6 or newer is needed")
        }
        error if is_lost(&error) => unanswered(access, Some(error)),
        error => Error::new(ErrorKind::Internal, "ZooKeeper does not take a request of coact")
            .with_source(error)
            .effect_unknown(),
    }
}

/// The request was not answered.
pub(crate) fn unanswered(access: Access, source: Option<Zk>) -> Error {
    let error = Error::new(ErrorKind::Unavailable, "ZooKeeper did not answer");
    let error = match source {
        Some(source) => error.with_source(source),
        None => error,
    };
    if access == Access::Once { error.effect_unknown() } else { error }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the handle is closed")
}

pub(crate) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("ZooKeeper holds what coact did not write: {what}"))
}
