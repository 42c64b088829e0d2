//! coact's engine over ZooKeeper 3.6 or newer.
//!
//! ```text
//! zookeeper://[user:password@]host[:2181][,host…]/namespace[?option=value…]
//! ```
//!
//! * `user:password` is a digest user, whom everything then belongs to; the password may be `env:NAME` or `file:PATH`.
//! * `root` (`/coact`): where the namespaces lie. It is made if it is not there.
//! * `session` (10s): how long ZooKeeper keeps the connection's session when nobody is heard.
//! * `timeout` (5s): how long one request may take, with every repetition that the engine makes on its own. Only reads,
//!   and writes that ZooKeeper refused untouched, are repeated.
//!   A write whose answer did not come in time may still be sent when the connection comes back within the session.
//! * `connect_timeout` (2s): how long one server may take to accept a connection.
//! * `history` (1000): how many transactions of a realm are kept for watches that come back.
//! * `max_request` (1000000 bytes): a larger transaction is refused, since ZooKeeper would end the connection. Raise it
//!   together with `jute.maxbuffer` of the servers; a value is written twice, to its entry and to the history.
//!
//! There is no TLS. Servers must be trusted with what is sent.
//!
//! **What lies where**, under `/coact/namespace`, with `%2F` for a slash in names:
//!
//! ```text
//! r/REALM/e/DIR/NAME    an entry: the lease, a line's end, the value; the zxid that created it is its fencing token
//! r/REALM/log/c-NNN     the changes of one transaction
//! l/LEASE/PLACE         a lease, its length in ms, and the entries under it
//! reaper                who ends leases, and trims histories: one client, by an ephemeral node
//! now                   written to before a linearizable read
//! ```
//!
//! **Transactions** are one `multi` each, which checks the version of every dir that the outcome depends on and raises the
//! version of every dir that it writes in. What a dir holds is remembered from transaction to transaction, so one that
//! nobody else has touched meanwhile costs one round trip; otherwise the dir is read again. Revisions are zxids.
//!
//! **Leases** are nodes that a renewal writes to. One client, the reaper, ends a lease when it has not seen it change for
//! its whole length on the reaper's monotonic clock: never too early, and about two seconds late at most while a client
//! is there; a reaper that dies is replaced when its session ends. `decisions/0013-zookeeper.md` says why they are not
//! sessions, and why a linearizable read writes first. A lease with more than a few hundred entries ends in several
//! revisions.

mod config;
mod connection;
mod dirs;
mod errors;
mod kv;
mod lease;
mod log;
mod paths;
mod txn;

/// The driver for the scheme `zookeeper`.
pub fn driver() -> coact_core::registry::Driver {
    coact_core::registry::Driver {
        schemes: &["zookeeper"],
        open: |url, env| Box::pin(async move { Ok(kv::open(url, env).await?.into()) }),
    }
}
