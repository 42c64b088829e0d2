//! What a failure means: whether it happened, and whether another try or another server helps.

use std::time::Duration;

use coact_core::{Error, ErrorKind};
use redis::{RedisError, ServerErrorKind};

/// What a request does, and so what may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It may be sent again whatever became of it.
    Repeatable,
    /// Sent twice, it may happen twice.
    Once,
}

/// What to do about a failed request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The connection is gone, with or without the request.
    Lost(RedisError),
    /// The server did not touch it: it is not, or not now, the one that does.
    Refused(RedisError),
    /// The same answer would come again.
    Final(Error),
}

pub(crate) fn judge(error: RedisError) -> Verdict {
    use redis::ErrorKind as Kind;
    match (error.kind(), error.code().unwrap_or_default()) {
        (Kind::Server(ServerErrorKind::NoPerm), _) | (_, "NOPERM") => Verdict::Final(denied(&error)),
        (Kind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => Verdict::Final(not_logged_in(&error)),
        (_, "OOM") => Verdict::Final(Error::new(
            ErrorKind::Exhausted,
            "Redis is out of memory: raise maxmemory, or delete what is not needed",
        )),
        (_, "MISCONF") => Verdict::Final(
            Error::new(
                ErrorKind::Unavailable,
                "Redis refuses writes because it cannot save: look at its log and its disk",
            )
            .with("redis", text(&error)),
        ),
        (
            Kind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly,
            ),
            _,
        )
        | (_, "READONLY" | "LOADING" | "BUSY" | "NOREPLICAS" | "UNBLOCKED") => Verdict::Refused(error),
        (Kind::Server(_) | Kind::Extension, _) => Verdict::Final(
            Error::new(ErrorKind::Internal, "Redis refuses a script of coact")
                .with("redis", text(&error))
                .effect_unknown(),
        ),
        _ => Verdict::Lost(error),
    }
}

/// Why no connection could be made, if no other server will answer otherwise.
pub(crate) fn final_refusal(error: &RedisError) -> Option<Error> {
    use redis::ErrorKind as Kind;
    match (error.kind(), error.code().unwrap_or_default()) {
        (Kind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => Some(not_logged_in(error)),
        (Kind::RESP3NotSupported, _) => Some(Error::new(
            ErrorKind::Unsupported,
            "the server does not speak RESP3: Redis 6.2 or newer is needed, or Valkey",
        )),
        (_, "NOPERM") => Some(denied(error)),
        _ => None,
    }
}

fn denied(error: &RedisError) -> Error {
    Error::new(
        ErrorKind::Denied,
        "the Redis user may not do this: it needs ~coact:{namespace}* &coact:{namespace}* +@all -@dangerous +info +config|get",
    )
    .with("redis", text(error))
}

fn not_logged_in(error: &RedisError) -> Error {
    Error::new(
        ErrorKind::Denied,
        "Redis does not accept the user or the password: write user:password@host, or :password@host, in the URL",
    )
    .with("redis", text(error))
}

/// What the server said, on one line. It never quotes a password.
fn text(error: &RedisError) -> String {
    format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default()).trim().replace('\n', " ")
}

/// The request was not answered.
pub(crate) fn unanswered(access: Access, why: &str, source: Option<RedisError>) -> Error {
    let error = Error::new(ErrorKind::Unavailable, why.to_owned());
    let error = match source {
        Some(source) => error.with_source(source),
        None => error,
    };
    if access == Access::Once { error.effect_unknown() } else { error }
}

pub(crate) fn too_late(timeout: Duration, source: Option<RedisError>) -> Error {
    let error = Error::new(ErrorKind::Unavailable, format!("no Redis server took the request within {timeout:?}"));
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the handle is closed")
}

/// The server sent something that none of our scripts answers.
pub(crate) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("Redis holds or answers what coact did not write: {what}"))
}
