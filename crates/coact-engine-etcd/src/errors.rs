//! From a gRPC status to coact's error: what went wrong, whether another server may do better, and whether the request
//! may have taken effect.

use std::{error::Error as StdError, fmt, io, time::Duration};

use coact_core::{Error, ErrorKind, Retry};
use tonic::{Code, ConnectError, Status};

use crate::{config::Flavour, messages};

/// The server that was asked, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) flavour: Flavour,
    /// `host:port`, or several of them.
    pub(crate) address: String,
    pub(crate) connect_timeout: Duration,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.flavour, self.address)
    }
}

/// What a request may change, and so what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Read,
    /// Something, but not more when it happens twice.
    Idempotent,
    /// Something.
    Write,
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// This server or the way to it is at fault: use another connection.
    pub(crate) elsewhere: bool,
    /// No connection was made, so the request was not sent.
    pub(crate) unreachable: bool,
}

impl Failure {
    /// The server understood the request and refuses it. Nothing was changed.
    fn refused(kind: ErrorKind, message: String) -> Self {
        Self { error: Error::new(kind, message), elsewhere: false, unreachable: false }
    }

    /// The request may have arrived, and the answer is lost.
    fn lost(message: String, access: Access) -> Self {
        let error = Error::new(ErrorKind::Unavailable, message);
        let error = if access == Access::Read { error } else { error.effect_unknown() };
        Self { error, elsewhere: true, unreachable: false }
    }

    /// What a coact node says in its own words: the error as its engine gave it.
    pub(crate) fn told(error: Error) -> Self {
        Self { elsewhere: error.kind() == ErrorKind::Unavailable, error, unreachable: false }
    }

    pub(crate) fn of(status: &Status, peer: &Peer, access: Access) -> Self {
        if let Some(cause) = connect_cause(status) {
            return Self { error: unreachable(peer, &cause), elsewhere: true, unreachable: true };
        }
        if let Some(error) = messages::failure::error(status) {
            return Self::told(error);
        }
        let message = status.message();
        let text = message.trim_start_matches("etcdserver: ").trim_start_matches("mvcc: ");
        // The texts are part of etcd's API: its own clients compare them.
        match text {
            "requested lease not found" => return Self::refused(ErrorKind::Fenced, "the lease has ended".to_owned()),
            "required revision has been compacted" => {
                return Self::refused(ErrorKind::Compacted, "the history asked for was compacted".to_owned());
            }
            "user name is empty" | "invalid auth token" => {
                let how = peer.flavour.how_to_log_in();
                return Self::refused(ErrorKind::Denied, format!("{peer} asks who we are: {how}"));
            }
            "authentication failed, invalid user ID or password" => {
                return Self::refused(ErrorKind::Denied, format!("{peer} does not accept this user and password"));
            }
            // Also the end of the text by which a watch is refused, which comes without a code.
            _ if text.ends_with("permission denied") => {
                return Self::refused(ErrorKind::Denied, format!("{peer} refused the request: permission denied"));
            }
            // This member was not yet allowed to touch the request.
            "rpc not supported for learner" => {
                let error = Error::new(ErrorKind::Unavailable, format!("{peer} is a learner and does not serve"));
                return Self { error, elsewhere: true, unreachable: false };
            }
            "too many requests" => {
                let mut failure = Self::refused(ErrorKind::Exhausted, format!("{peer} has too many requests"));
                failure.error = failure.error.with_retry(Retry::After(Duration::from_millis(100)));
                return failure;
            }
            _ => {}
        }
        let refused = |kind| Self::refused(kind, format!("{peer} refused the request: {text}"));
        match status.code() {
            Code::NotFound => refused(ErrorKind::NotFound),
            Code::AlreadyExists => refused(ErrorKind::AlreadyExists),
            Code::OutOfRange if text.contains("message length too large") => Self::refused(
                ErrorKind::Exhausted,
                format!("the answer of {peer} is too long: ask for fewer entries at a time ({text})"),
            ),
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => refused(ErrorKind::Invalid),
            Code::PermissionDenied | Code::Unauthenticated => refused(ErrorKind::Denied),
            Code::ResourceExhausted => refused(ErrorKind::Exhausted),
            Code::Unimplemented => refused(ErrorKind::Unsupported),
            Code::DataLoss => refused(ErrorKind::Corrupt),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable => Self::lost(format!("{peer} did not complete the request: {text}"), access),
        }
    }

    /// No answer within the time of a request.
    pub(crate) fn timeout(peer: &Peer, limit: Duration, access: Access) -> Self {
        Self::lost(format!("no answer from {peer} within {limit:?}"), access)
    }
}

/// Nobody accepts a connection.
pub(crate) fn unreachable(peer: &Peer, cause: &Cause) -> Error {
    let advice = peer.flavour.advice();
    let message = match cause {
        Cause::Timeout => format!("cannot reach {peer} within {:?}; {advice}", peer.connect_timeout),
        Cause::Other(cause) => format!("cannot reach {peer}: {cause}; {advice}"),
    };
    Error::new(ErrorKind::Unavailable, message)
}

/// The answer does not have the shape that the request asks for.
pub(crate) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the server answered {what} in a shape that the protocol does not have"))
}

/// The handle was closed.
pub(crate) fn closed(description: &str) -> Error {
    Error::new(ErrorKind::Closed, format!("the handle of {description} is closed"))
}

/// Why no connection was made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Timeout,
    Other(String),
}

/// `Some` if the status stands for a connection that was not made, so that nothing was sent.
pub(crate) fn connect_cause(status: &Status) -> Option<Cause> {
    let mut found = false;
    let mut cause = Cause::Other(String::new());
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            found = true;
            cause = Cause::Other(connect.0.to_string());
            next = Some(&*connect.0);
            continue;
        }
        if found {
            let timed_out =
                error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if timed_out {
                return Some(Cause::Timeout);
            }
            cause = Cause::Other(plain(error));
        }
        next = error.source();
    }
    found.then_some(cause)
}

/// `Connection refused (os error 111)` as `connection refused`.
fn plain(error: &(dyn StdError + 'static)) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use coact_core::error::Effect;

    use super::*;

    fn peer() -> Peer {
        Peer { flavour: Flavour::Etcd, address: "127.0.0.1:2379".to_owned(), connect_timeout: Duration::from_secs(2) }
    }

    #[test]
    fn every_refusal_of_etcd_has_its_kind_and_changed_nothing() {
        for (code, message, kind) in [
            (Code::NotFound, "etcdserver: requested lease not found", ErrorKind::Fenced),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", ErrorKind::Compacted),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", ErrorKind::Invalid),
            (Code::InvalidArgument, "etcdserver: user name is empty", ErrorKind::Denied),
            (Code::InvalidArgument, "etcdserver: request is too large", ErrorKind::Invalid),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request", ErrorKind::Invalid),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", ErrorKind::Invalid),
            (Code::PermissionDenied, "etcdserver: permission denied", ErrorKind::Denied),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", ErrorKind::Exhausted),
            (Code::ResourceExhausted, "etcdserver: too many requests", ErrorKind::Exhausted),
            (Code::DataLoss, "etcdserver: corrupt cluster", ErrorKind::Corrupt),
            (Code::Unimplemented, "unknown service", ErrorKind::Unsupported),
            (Code::OutOfRange, "Error, decoded message length too large: found 9 bytes", ErrorKind::Exhausted),
        ] {
            let failure = Failure::of(&Status::new(code, message), &peer(), Access::Write);
            assert_eq!(failure.error.kind(), kind, "{message}");
            assert_eq!(failure.error.effect(), Effect::NotApplied, "{message}");
            assert!(!failure.elsewhere, "{message}");
        }
    }

    #[test]
    fn a_lost_answer_leaves_the_effect_of_a_write_unknown_but_not_of_a_read() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unavailable, "error reading a body from connection"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Unknown, "transport error"),
            (Code::Internal, "h2 protocol error"),
            (Code::Cancelled, "operation was canceled"),
        ] {
            for (access, effect) in [
                (Access::Write, Effect::Unknown),
                (Access::Idempotent, Effect::Unknown),
                (Access::Read, Effect::NotApplied),
            ] {
                let failure = Failure::of(&Status::new(code, message), &peer(), access);
                assert_eq!(
                    (failure.error.kind(), failure.error.effect()),
                    (ErrorKind::Unavailable, effect),
                    "{message}"
                );
                assert!(matches!(failure.error.retry(), Retry::After(_)), "{message}");
                assert!(failure.elsewhere && !failure.unreachable, "{message}");
            }
        }
    }

    #[test]
    fn a_connection_that_was_not_made_sent_nothing() {
        let refused = io::Error::from_raw_os_error(111);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        let failure = Failure::of(&status, &peer(), Access::Write);
        assert_eq!(failure.error.effect(), Effect::NotApplied);
        assert!(failure.elsewhere && failure.unreachable);
        assert_eq!(
            failure.error.to_string(),
            "cannot reach etcd at 127.0.0.1:2379: connection refused; is it running?"
        );
        let late = io::Error::new(io::ErrorKind::TimedOut, "late");
        let status = Status::from_error(Box::new(ConnectError(Box::new(late))));
        let node = Peer { flavour: Flavour::Node, ..peer() };
        assert_eq!(
            Failure::of(&status, &node, Access::Read).error.to_string(),
            "cannot reach a coact node at 127.0.0.1:2379 within 2s; start one with `coact serve`"
        );
    }

    #[test]
    fn a_learner_is_left_for_another_server() {
        let status = Status::unavailable("etcdserver: rpc not supported for learner");
        let failure = Failure::of(&status, &peer(), Access::Write);
        assert!(failure.elsewhere && failure.error.effect() == Effect::NotApplied);
    }
}
