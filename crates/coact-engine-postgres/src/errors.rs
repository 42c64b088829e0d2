//! From an error of the driver to coact's: what went wrong, whether to repeat, and whether it may have taken effect.

use std::{error::Error as StdError, io, time::Duration};

use coact_core::{Error, ErrorKind, Retry};
use tokio_postgres::error::{DbError, SqlState};

use crate::config::Config;

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
    /// A server may do better soon: after a conflict, a lost connection, a failover.
    pub(crate) passing: bool,
    /// The connection is of no use any more.
    pub(crate) broken: bool,
}

impl Failure {
    fn final_of(kind: ErrorKind, message: String) -> Self {
        Self { error: Error::new(kind, message), passing: false, broken: false }
    }

    fn passing(message: String) -> Self {
        Self { error: Error::new(ErrorKind::Unavailable, message), passing: true, broken: true }
    }

    /// A failed request.
    pub(crate) fn of(error: &tokio_postgres::Error, config: &Config, access: Access) -> Self {
        match error.as_db_error() {
            Some(refusal) => refused(refusal, config, access),
            None => lost(format!("{} did not complete the request: {}", peer(config), cause(error)), access),
        }
    }

    /// A failed attempt to connect: nothing was sent.
    pub(crate) fn connecting(error: &tokio_postgres::Error, config: &Config) -> Self {
        let peer = peer(config);
        if let Some(refusal) = error.as_db_error() {
            return refused(refusal, config, Access::Read);
        }
        let io = source::<io::Error>(error);
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return Self::passing(format!(
                "{peer} takes no writes: it is a replica (or default_transaction_read_only is on); name the primary's \
                 host in the URL too, as in postgres://user@host1,host2/namespace"
            ));
        }
        let cause = cause(error);
        if cause.contains("password missing") {
            let message = format!(
                "{peer} asks for a password: write user:password@host, user:env:NAME@host or user:file:PATH@host"
            );
            return Self::final_of(ErrorKind::Denied, message);
        }
        if cause.contains("certificate") || cause.contains("does not support TLS") || cause.contains("TLS") {
            let mut failure = Self::final_of(ErrorKind::Unavailable, format!("no TLS with {peer}: {cause}"));
            failure.broken = true;
            return failure;
        }
        match io {
            Some(io) if io.kind() == io::ErrorKind::TimedOut => {
                Self::passing(format!("cannot reach {peer} within {:?}; is it running?", config.connect_timeout))
            }
            _ => Self::passing(format!("cannot reach {peer}: {cause}; is it running?")),
        }
    }

    /// No connection was to be had within the time of a request: nothing was sent.
    pub(crate) fn no_connection(config: &Config, limit: Duration) -> Self {
        Self::passing(format!(
            "no connection to {} within {limit:?}: it does not answer, or all {} of this handle are busy (URL option pool)",
            peer(config),
            config.pool
        ))
    }

    /// No answer within the time of a request.
    pub(crate) fn timeout(config: &Config, limit: Duration, access: Access) -> Self {
        lost(format!("no answer from {} within {limit:?}", peer(config)), access)
    }
}

/// The request may have arrived, and the answer is lost.
fn lost(message: String, access: Access) -> Failure {
    let failure = Failure::passing(message);
    if access == Access::Read { failure } else { Failure { error: failure.error.effect_unknown(), ..failure } }
}

/// The server said why.
fn refused(refusal: &DbError, config: &Config, access: Access) -> Failure {
    let (peer, text, code) = (peer(config), refusal.message(), refusal.code());
    let final_of = |kind| Failure::final_of(kind, format!("{peer} refused the request: {text} ({})", code.code()));
    let role = &config.user;
    match *code {
        // Undone as a whole, by the server.
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Failure {
            error: Error::new(ErrorKind::Conflict, format!("another transaction was in the way on {peer}: {text}"))
                .with_retry(Retry::After(Duration::from_millis(10))),
            passing: true,
            broken: false,
        },
        // Sessions are ended from outside; with a synchronous standby even after the commit.
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::IDLE_SESSION_TIMEOUT => {
            lost(format!("{peer} ended the session: {text}"), access)
        }
        SqlState::CANNOT_CONNECT_NOW => Failure::passing(format!("{peer} cannot serve now: {text}")),
        SqlState::READ_ONLY_SQL_TRANSACTION => Failure::passing(format!(
            "{peer} takes no writes: it became a replica, or default_transaction_read_only is on; after a failover the \
             next request looks for the primary among the hosts of the URL"
        )),
        SqlState::TOO_MANY_CONNECTIONS => {
            let message = format!(
                "{peer} has no connection left: {text}; lower pool=N in the URLs of its clients, or raise max_connections"
            );
            let mut failure = Failure::final_of(ErrorKind::Exhausted, message);
            failure.error = failure.error.with_retry(Retry::After(Duration::from_millis(200)));
            failure
        }
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Failure::final_of(ErrorKind::Denied, format!("{peer} does not let user {role:?} in: {text}"))
        }
        SqlState::INVALID_CATALOG_NAME => Failure::final_of(
            ErrorKind::NotFound,
            format!("{peer} has no such database: {text}; name one with the URL option database=NAME"),
        ),
        SqlState::INSUFFICIENT_PRIVILEGE => {
            Failure::final_of(ErrorKind::Denied, format!("{peer}: {text}; {}", grants(config)))
        }
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_FUNCTION | SqlState::INVALID_SCHEMA_NAME => Failure::final_of(
            ErrorKind::Corrupt,
            format!("{peer} lacks something of the schema {}, which was changed from outside: {text}", config.schema),
        ),
        SqlState::DISK_FULL | SqlState::OUT_OF_MEMORY | SqlState::INSUFFICIENT_RESOURCES => {
            final_of(ErrorKind::Exhausted)
        }
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => final_of(ErrorKind::Corrupt),
        SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => Failure {
            error: Error::new(ErrorKind::Unavailable, format!("{peer} gave the request up: {text}")),
            passing: false,
            broken: false,
        },
        // A pooler that lost its server, or has no more of them, says so in the class of connections and of syntax.
        _ if code.code().starts_with("08") => lost(format!("{peer} lost its connection: {text}"), access),
        _ if code.code().starts_with("57") => lost(format!("{peer} did not complete the request: {text}"), access),
        _ => final_of(ErrorKind::Internal),
    }
}

/// What an administrator has to run so that a role may use coact's schema.
pub(crate) fn grants(config: &Config) -> String {
    let (schema, role) = (&config.schema, &config.user);
    format!(
        "as an administrator run: GRANT USAGE ON SCHEMA {schema} TO \"{role}\"; GRANT SELECT, INSERT, UPDATE, DELETE ON \
         ALL TABLES IN SCHEMA {schema} TO \"{role}\"; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO \"{role}\""
    )
}

/// The server, for messages.
pub(crate) fn peer(config: &Config) -> String {
    format!("PostgreSQL at {}", config.servers)
}

/// The answer does not have the shape that coact's functions give it.
pub(crate) fn malformed(config: &Config, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} answered {what} in another shape than coact's schema has: was {} changed?",
            peer(config),
            config.schema
        ),
    )
}

/// The handle was closed.
pub(crate) fn closed(description: &str) -> Error {
    Error::new(ErrorKind::Closed, format!("the handle of {description} is closed"))
}

fn source<T: StdError + 'static>(error: &tokio_postgres::Error) -> Option<&T> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The lowest cause, in words: `Connection refused (os error 111)` as `connection refused`.
fn cause(error: &tokio_postgres::Error) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = last.source() {
        last = next;
    }
    let text = last.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        // Not the beginning of an abbreviation.
        Some(first) if !letters.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}
