//! The fence for resources outside the store.

use std::fmt;

use super::{Kind, held::Held};

/// What the user's own transaction of PostgreSQL runs first, so that it commits only if nobody with a younger grant was
/// there before: the function `coact.fence(resource, token)`, which raises an error (`CF001`) for an older token.
///
/// The lock may be on any engine. The function is in every database that coact's `postgres` engine has opened once:
/// `coact doctor --at 'postgres://user:password@host/main?database=NAME'` is enough.
///
/// ```ignore
/// let fence = guard.sql_fence();
/// let mut transaction = client.transaction().await?;
/// transaction.execute(fence.statement, &[&fence.resource, &fence.token]).await?;
/// transaction.execute("UPDATE stock SET count = count - 1 WHERE item = $1", &[&item]).await?;
/// transaction.commit().await?;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlFence {
    /// The statement, with two parameters: [`resource`](Self::resource) and [`token`](Self::token).
    pub statement: &'static str,
    /// What the tokens are compared for: the realm, the kind and the name of the lock.
    pub resource: String,
    /// The guard's fencing token.
    pub token: i64,
}

impl SqlFence {
    pub(super) fn of(held: &Held) -> Self {
        let kind: Kind = held.lock.kind;
        Self {
            statement: "SELECT coact.fence($1, $2)",
            resource: [held.lock.realm.as_str(), "/", kind.prefix(), &held.lock.name].concat(),
            // No engine comes near the end of 63 bits; one past it would be refused as the oldest.
            token: i64::try_from(held.token.0).unwrap_or(i64::MIN),
        }
    }
}

impl fmt::Display for SqlFence {
    /// As one statement without parameters, for `psql`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SELECT coact.fence('{}', {})", self.resource.replace('\'', "''"), self.token)
    }
}

/// Guards that exclude all others, whose tokens therefore divide old from new.
macro_rules! sql_fence {
    ($guard:ident) => {
        impl $guard {
            /// What a transaction of PostgreSQL runs first, so that it commits only under this grant or a younger one.
            pub fn sql_fence(&self) -> crate::lock::SqlFence {
                crate::lock::SqlFence::of(&self.0)
            }
        }
    };
}

pub(super) use sql_fence;
