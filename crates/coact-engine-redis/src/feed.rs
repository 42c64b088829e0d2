//! The stream of changes, for the watches of a handle.

use std::sync::Arc;

use coact_core::{
    Result,
    contract::kv::{Change, GoneCause, Revision},
    env::Env,
    follow::{Feeds, History, Past, Place, Step, What},
};
use redis::Value;

use crate::{
    connection::Link,
    errors::{Access, malformed},
    reply::{array, entry, key_of, revision, text},
};

/// How many entries of the stream one request reads.
const AT_ONCE: usize = 256;

/// The history of a namespace.
pub(crate) struct Stream(pub(crate) Arc<Link>);

/// Every watch of a handle.
pub(crate) type Watches = Feeds<Stream>;

impl Past for Stream {
    fn env(&self) -> &Env {
        &self.0.env
    }

    async fn read(&self, after: Option<Place>) -> Result<History> {
        let (revision_after, part, count) = match after {
            Some(place) => (place.revision.to_string(), place.part.to_string(), AT_ONCE.to_string()),
            None => Default::default(),
        };
        let arguments = [revision_after.as_bytes(), part.as_bytes(), count.as_bytes()];
        let answer: Value = self.0.call(Access::Repeatable, &self.0.scripts.history, &arguments).await?;
        let [present, lost, steps] = <[Value; 3]>::try_from(array(answer)?).map_err(|_| malformed("a history"))?;
        let steps: Vec<_> = array(steps)?.into_iter().map(step).collect::<Result<_>>()?;
        Ok(History { present: revision(present)?, lost: lost == Value::Int(1), more: steps.len() == AT_ONCE, steps })
    }

    async fn hear(&self, wanted: bool) {
        self.0.hear_changes(wanted).await;
    }

    async fn changed(&self) {
        self.0.wakes.changed.notified().await;
    }

    async fn until_closed(&self) {
        self.0.until_closed().await;
    }
}

fn step(value: Value) -> Result<Step> {
    let [id, fields] = <[Value; 2]>::try_from(array(value)?).map_err(|_| malformed("the stream of changes"))?;
    let id = text(id)?;
    let at = id
        .split_once('-')
        .and_then(|(revision, part)| Some(Place { revision: revision.parse().ok()?, part: part.parse().ok()? }));
    let at = at.ok_or_else(|| malformed("the stream of changes"))?;
    let mut fields = array(fields)?.into_iter();
    let mut changes = Vec::new();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        let field = text(field)?;
        if field == "E" {
            return Ok(Step { at, what: What::Leap { before: revision(value)?.0 } });
        }
        changes.push(change(&field, value, Revision(at.revision))?);
    }
    Ok(Step { at, what: What::Changes(changes) })
}

fn change(field: &str, value: Value, at: Revision) -> Result<Change> {
    let (kind, place) = field.split_at_checked(1).ok_or_else(|| malformed("the stream of changes"))?;
    let key = key_of(place).ok_or_else(|| malformed("the stream of changes"))?;
    match (kind, value) {
        ("P", Value::BulkString(packed)) => entry(key, packed).map(Change::Put),
        ("D", _) => Ok(Change::Gone { key, at, cause: GoneCause::Deleted }),
        ("X", _) => Ok(Change::Gone { key, at, cause: GoneCause::Expired }),
        _ => Err(malformed("the stream of changes")),
    }
}
