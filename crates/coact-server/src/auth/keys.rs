//! Which resources a flat key, or a range of them, can be of.
//!
//! A flat key is `namespace/realm/dir//name`, and the first segment of the dir names the block. A range is judged by
//! what all of its keys have in common: a prefix. Whatever could follow that prefix is counted in, so a range is allowed
//! only if every key that it could ever contain is.

use std::fmt;

use coact_core::name::{Namespace, Realm};

use super::{
    Verb,
    role::{Block, RESERVED_NAMESPACE},
    table::Grants,
};

/// The dir in which clients keep one key for each lease: `namespace/.lease//ID`.
const LEASES: &[u8] = b".lease//";

/// First segments of dirs, and the blocks that they belong to.
const SEGMENTS: [(&str, Block); 16] = [
    ("lock", Block::Lock),
    ("rw", Block::Lock),
    ("semaphore", Block::Lock),
    ("election", Block::Lock),
    ("latch", Block::Lock),
    ("latch-arrival", Block::Lock),
    ("barrier", Block::Lock),
    ("barrier-party", Block::Lock),
    ("rate", Block::Lock),
    ("rate-chunk", Block::Lock),
    ("directory", Block::Directory),
    ("config", Block::Config),
    ("config-history", Block::Config),
    ("id", Block::Id),
    ("id-hint", Block::Id),
    ("session", Block::Session),
];

/// Keys of a request: `end` as in etcd's ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    start: &'a [u8],
    end: &'a [u8],
}

impl<'a> Keys<'a> {
    /// An empty end is one key; a zero byte is everything from the start on.
    pub(crate) fn range(start: &'a [u8], end: &'a [u8]) -> Self {
        Self { start, end }
    }

    pub(crate) fn one(key: &'a [u8]) -> Self {
        Self::range(key, &[])
    }

    /// Whether these permissions allow the verb on every key.
    pub(crate) fn allowed_by(self, grants: &Grants, verb: Verb) -> bool {
        if self.meet_reserved() {
            return false;
        }
        let place = Place::of(self.common(), self.is_one());
        match place {
            // Keys of no namespace, or of several: for who may do everything.
            None => grants.allow(None, Block::Every, Verb::Admin, b"") && grants.allow(None, Block::Every, verb, b""),
            Some(place) => place.allowed_by(grants, verb),
        }
    }

    /// Whether one of the keys can be the node's own.
    pub(crate) fn meet_reserved(self) -> bool {
        let first = [RESERVED_NAMESPACE.as_bytes(), b"/"].concat();
        if self.is_one() {
            return self.start.starts_with(&first);
        }
        let after = [RESERVED_NAMESPACE.as_bytes(), b"0"].concat();
        self.start < &after[..] && (self.end == [0] || self.end > &first[..])
    }

    pub(crate) fn is_one(self) -> bool {
        self.end.is_empty()
    }

    /// The longest prefix that all of the keys certainly have.
    fn common(self) -> &'a [u8] {
        if self.is_one() {
            return self.start;
        }
        if self.end == [0] {
            return &[];
        }
        let length = self.start.iter().zip(self.end).take_while(|(one, other)| one == other).count();
        // `a/b/` up to `a/b0` is all that starts with `a/b/`: the end is the start's prefix with its last byte raised.
        let raised =
            self.start.get(length).zip(self.end.get(length)).is_some_and(|(one, end)| one.checked_add(1) == Some(*end));
        let whole = raised && self.end.len() == length + 1;
        &self.start[..length + usize::from(whole)]
    }
}

/// For the audit log: what they have in common.
impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let and_more = if self.is_one() { "" } else { "…" };
        write!(f, "{}{and_more}", self.common().escape_ascii())
    }
}

/// Where keys with a common prefix lie, within one namespace.
struct Place<'a> {
    namespace: &'a str,
    inside: Inside<'a>,
}

enum Inside<'a> {
    /// Of any block, or outside of all realms.
    Anything,
    /// The key of one lease.
    Lease,
    /// After `namespace/realm/`.
    Realm(&'a [u8]),
}

impl<'a> Place<'a> {
    /// `None` if the prefix does not name one namespace.
    fn of(common: &'a [u8], one: bool) -> Option<Self> {
        let (namespace, rest) = split(common)?;
        let namespace = std::str::from_utf8(namespace).ok()?;
        Namespace::new(namespace).ok()?;
        let inside = match split(rest) {
            _ if one && rest.strip_prefix(LEASES).is_some_and(|id| !id.is_empty() && !id.contains(&b'/')) => {
                Inside::Lease
            }
            Some((realm, rest)) if is_realm(realm) => Inside::Realm(rest),
            _ => Inside::Anything,
        };
        Some(Self { namespace, inside })
    }

    fn allowed_by(&self, grants: &Grants, verb: Verb) -> bool {
        let namespace = Some(self.namespace);
        match self.inside {
            Inside::Anything => grants.allow(namespace, Block::Every, verb, b""),
            // Every session has such a key, whatever its owner may otherwise do. The id is a capability.
            Inside::Lease => {
                grants.allow_some(namespace, Verb::Write) || grants.allow(namespace, Block::Every, verb, b"")
            }
            Inside::Realm(rest) => {
                classes(rest).into_iter().all(|(block, resource)| grants.allow(namespace, block, verb, &resource))
            }
        }
    }
}

fn is_realm(realm: &[u8]) -> bool {
    std::str::from_utf8(realm).is_ok_and(|realm| Realm::new(realm).is_ok())
}

/// Every block that a key can be of whose part after the realm starts with this, and how its name then starts.
fn classes(rest: &[u8]) -> Vec<(Block, Vec<u8>)> {
    let Some((first, inner)) = split(rest) else {
        // The first segment is not complete: any word that it can grow into counts.
        let possible =
            |block: &Block| SEGMENTS.iter().any(|(word, of)| of == block && word.as_bytes().starts_with(rest));
        let mut classes: Vec<_> =
            Block::OF_ENTRIES.into_iter().filter(possible).map(|block| (block, Vec::new())).collect();
        classes.push((Block::Kv, rest.to_vec()));
        return classes;
    };
    match SEGMENTS.iter().find(|(word, _)| word.as_bytes() == first) {
        Some((_, block)) => vec![(*block, inner.to_vec())],
        None => vec![(Block::Kv, joined(rest))],
    }
}

/// `dir//name` as `dir/name`, which is what people call an entry.
fn joined(rest: &[u8]) -> Vec<u8> {
    match rest.windows(2).position(|pair| pair == b"//") {
        Some(at) => [&rest[..at], &rest[at + 1..]].concat(),
        None => rest.to_vec(),
    }
}

/// What is before the first slash, and after it.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == b'/')?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
#[path = "keys/tests.rs"]
mod tests;
