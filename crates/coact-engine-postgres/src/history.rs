//! The history of a realm, as watches read it.

use bytes::Bytes;
use coact_core::{
    Result,
    contract::kv::{LeaseId, Revision},
    name::Realm,
};
use tokio_postgres::types::Type;

use crate::{
    connection::Connections,
    errors::{Access, malformed},
    txn::signed,
};

/// How many changes are read at a time.
const ROWS: i64 = 1000;

/// A point between two changes: behind the change of this name at this revision. The names of one revision are in the
/// order of their bytes, so that a watch can stop and go on anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    revision: i64,
    dir: String,
    name: String,
}

impl Place {
    /// Behind everything.
    pub(crate) const END: Self = Self { revision: i64::MAX, dir: String::new(), name: String::new() };

    /// Behind all changes of this revision.
    pub(crate) fn after(revision: Revision) -> Self {
        Self { revision: signed(revision).saturating_add(1), dir: String::new(), name: String::new() }
    }

    /// Whether changes that come after this may be missing.
    pub(crate) fn is_forgotten(&self, compacted: i64) -> bool {
        self.revision <= compacted
    }

    /// Whether this is further than the store has ever been.
    pub(crate) fn is_ahead_of(&self, head: i64) -> bool {
        self.revision > head.saturating_add(1)
    }
}

/// One change.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) revision: i64,
    pub(crate) dir: String,
    pub(crate) name: String,
    /// As in the schema.
    pub(crate) cause: i16,
    pub(crate) value: Bytes,
    pub(crate) created: i64,
    pub(crate) lease: Option<LeaseId>,
}

impl Row {
    pub(crate) fn place(&self) -> Place {
        Place { revision: self.revision, dir: self.dir.clone(), name: self.name.clone() }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.cause != 0
    }
}

/// Changes in their order, as of one moment.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) rows: Vec<Row>,
    /// The realm's revision.
    pub(crate) head: i64,
    /// Up to where history is forgotten.
    pub(crate) compacted: i64,
    /// Which of the server's timelines this is: each failover begins another. `None` from a server that takes no writes.
    pub(crate) timeline: Option<String>,
    /// All changes up to here are among the rows.
    pub(crate) reached: Place,
    /// There are more.
    pub(crate) more: bool,
}

/// Reads the changes of some dirs that come after a place.
pub(crate) async fn read(connections: &Connections, realm: &Realm, dirs: &[String], from: Place) -> Result<Batch> {
    let config = &connections.config;
    let schema = &config.schema;
    // One statement, so that what it says of the realm and of its history belongs together.
    let sql = format!(
        "SELECT r.revision AS head, r.compacted, CASE WHEN NOT pg_is_in_recovery()
            THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline, c.* FROM (SELECT
            coalesce(max(revision), 0) AS revision, coalesce(max(compacted), 0) AS compacted
            FROM {schema}.realm WHERE namespace = $1 AND realm = $2) r
        LEFT JOIN LATERAL (
            SELECT c.revision, c.dir, c.name, c.cause, c.value, c.created, c.lease FROM {schema}.change c
            WHERE c.namespace = $1 AND c.realm = $2 AND (c.revision, c.dir, c.name) > ($4, $5, $6) AND c.dir = ANY ($3)
            ORDER BY c.revision, c.dir, c.name LIMIT $7
        ) c ON true ORDER BY c.revision, c.dir, c.name"
    );
    let rows = connections
        .query(
            Access::Read,
            &sql,
            &[
                (&config.namespace.as_str(), Type::TEXT),
                (&realm.as_str(), Type::TEXT),
                (&dirs, Type::TEXT_ARRAY),
                (&from.revision, Type::INT8),
                (&from.dir, Type::TEXT),
                (&from.name, Type::TEXT),
                (&ROWS, Type::INT8),
            ],
        )
        .await?;
    let first = rows.first().ok_or_else(|| malformed(config, "a question for history"))?;
    let (head, compacted, timeline) = (first.get("head"), first.get("compacted"), first.get("timeline"));
    let rows: Vec<_> = rows.iter().filter_map(row).collect();
    let more = i64::try_from(rows.len()).is_ok_and(|count| count >= ROWS);
    let end = Place { revision: i64::saturating_add(head, 1), dir: String::new(), name: String::new() };
    let reached = rows.last().filter(|_| more).map_or(end, Row::place);
    Ok(Batch { rows, head, compacted, timeline, reached, more })
}

/// `None` for the row that stands for no change.
fn row(row: &tokio_postgres::Row) -> Option<Row> {
    let revision = row.get::<_, Option<i64>>("revision")?;
    Some(Row {
        revision,
        dir: row.get("dir"),
        name: row.get("name"),
        cause: row.get("cause"),
        value: row.get::<_, Option<&[u8]>>("value").map_or_else(Bytes::new, Bytes::copy_from_slice),
        created: row.get::<_, Option<i64>>("created").unwrap_or_default(),
        lease: row.get::<_, Option<i64>>("lease").map(LeaseId),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_the_order_of_the_history() {
        let at = |revision, dir: &str, name: &str| Place { revision, dir: dir.to_owned(), name: name.to_owned() };
        let order =
            [Place::after(Revision(6)), at(7, "a", "x"), at(7, "a", "y"), at(7, "b", "a"), Place::after(Revision(7))];
        assert!(order.is_sorted() && order.last() < Some(&Place::END));
    }

    #[test]
    fn a_place_knows_what_it_can_not_go_on_from() {
        let place = Place::after(Revision(5));
        // Revision 5 is not needed any more, revision 6 is.
        assert!(!place.is_forgotten(5) && place.is_forgotten(6));
        assert!(!place.is_ahead_of(5) && place.is_ahead_of(4));
        // In the middle of a revision, that one is needed.
        let middle = Place { revision: 6, dir: "a".to_owned(), name: "x".to_owned() };
        assert!(!middle.is_forgotten(5) && middle.is_forgotten(6));
    }
}
