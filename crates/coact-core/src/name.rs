//! Names: namespaces, realms and keys, checked once, here, against limits that every engine can hold.
//!
//! A [`Key`] is `(realm, dir, name)`. A realm is the unit of atomicity and ordering; a dir is what is listed and
//! watched. It is not one flat ordered space, because ZooKeeper has no range scan and a Redis Cluster needs one slot.

use std::{fmt, str::FromStr, sync::Arc};

use crate::error::{Error, Result};

/// The most bytes of a dir or a name.
pub const NAME_BYTES_MAX: usize = 128;
/// The most bytes of a realm or a namespace.
pub const REALM_BYTES_MAX: usize = 64;

/// Keeps users of one store apart: the path of an engine URL, `main` by default.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

/// The unit of atomicity and ordering: one transaction, one revision counter, `main` by default.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Realm(Arc<str>);

/// A stream of records in partitions.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// A queue of jobs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Queue(Arc<str>);

/// Consumers that share the partitions of their topics, and remember together how far they came.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Arc<str>);

macro_rules! word {
    ($type:ident, $what:literal) => {
        impl $type {
            #[doc = concat!("Checks a ", $what, ": 1 to 64 of `A-Z a-z 0-9 . _ -`, not starting with a dot.")]
            ///
            /// # Errors
            /// `Invalid`, naming the rule.
            pub fn new(text: &str) -> Result<Self> {
                check_word($what, text)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }
    };
}

impl Default for Namespace {
    fn default() -> Self {
        Self("main".into())
    }
}

impl Default for Realm {
    fn default() -> Self {
        Self("main".into())
    }
}

word!(Namespace, "namespace");
word!(Realm, "realm");
word!(Topic, "topic");
word!(Queue, "queue");
word!(Group, "group");

fn check_word(what: &str, text: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > REALM_BYTES_MAX || text.starts_with('.') || !text.bytes().all(allowed) {
        return Err(Error::invalid(format!(
            "{what} {text:?} is not allowed: use 1 to {REALM_BYTES_MAX} of A-Z a-z 0-9 . _ -, not starting with a dot"
        )));
    }
    Ok(())
}

/// A directory: what is listed and watched together. `lock/deploy` and `lock` are unrelated dirs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dir {
    realm: Realm,
    path: Arc<str>,
}

impl Dir {
    /// Checks a dir: 1 to 128 bytes of UTF-8, segments joined by `/`, no empty segment, no control character.
    ///
    /// # Errors
    /// `Invalid`, naming the rule.
    pub fn new(realm: &Realm, path: &str) -> Result<Self> {
        check_text("dir", path)?;
        if path.split('/').any(str::is_empty) {
            return Err(Error::invalid(format!(
                "dir {path:?} is not allowed: it has an empty segment between slashes"
            )));
        }
        Ok(Self { realm: realm.clone(), path: path.into() })
    }

    /// The realm this dir is in.
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The path, without realm.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The key of the entry `name` in this dir.
    ///
    /// # Errors
    /// `Invalid`, naming the rule: 1 to 128 bytes of UTF-8, no `/`, no control character.
    pub fn key(&self, name: &str) -> Result<Key> {
        check_text("name", name)?;
        if name.contains('/') {
            return Err(Error::invalid(format!("name {name:?} is not allowed: it contains a slash, which ends a dir")));
        }
        Ok(Key { dir: self.clone(), name: name.into() })
    }

    /// This dir's prefix in a flat key space: `namespace/realm/dir//`. Every entry of the dir, and nothing else, starts
    /// with it, since neither dirs nor names contain `//`.
    pub fn to_flat(&self, namespace: &Namespace) -> String {
        self.flat_prefix(namespace, 0)
    }

    fn flat_prefix(&self, namespace: &Namespace, more: usize) -> String {
        let parts = [namespace.as_str(), "/", self.realm.as_str(), "/", &*self.path, "//"];
        let mut flat = String::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + more);
        parts.iter().for_each(|part| flat.push_str(part));
        flat
    }

    /// Reads back what [`to_flat`](Self::to_flat) made; `None` for a foreign key.
    pub fn from_flat(namespace: &Namespace, flat: &str) -> Option<Self> {
        let rest = flat.strip_prefix(namespace.as_str())?.strip_prefix('/')?;
        let (realm, rest) = rest.split_once('/')?;
        Self::new(&Realm::new(realm).ok()?, rest.strip_suffix("//")?).ok()
    }
}

impl fmt::Display for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.realm, self.path)
    }
}

/// The name of one entry: a realm, a dir in it, a name in that.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    dir: Dir,
    name: Arc<str>,
}

impl Key {
    /// Checks the parts and joins them.
    ///
    /// # Errors
    /// `Invalid`, naming the part and its rule.
    pub fn new(realm: &Realm, dir: &str, name: &str) -> Result<Self> {
        Dir::new(realm, dir)?.key(name)
    }

    /// Reads `dir/name` (the last slash divides), the form that people type.
    ///
    /// # Errors
    /// `Invalid` without a slash, or naming the part and its rule.
    pub fn parse(realm: &Realm, text: &str) -> Result<Self> {
        let Some((dir, name)) = text.rsplit_once('/') else {
            return Err(Error::invalid(format!(
                "key {text:?} has no dir: write it as dir/name, for example config/{text}"
            )));
        };
        Self::new(realm, dir, name)
    }

    /// The realm of the entry.
    pub fn realm(&self) -> &Realm {
        &self.dir.realm
    }

    /// The dir of the entry.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The name within the dir.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This key in a flat key space: `namespace/realm/dir//name`.
    pub fn to_flat(&self, namespace: &Namespace) -> String {
        let mut flat = self.dir.flat_prefix(namespace, self.name.len());
        flat.push_str(&self.name);
        flat
    }

    /// Reads back what [`to_flat`](Self::to_flat) made; `None` for a foreign key.
    pub fn from_flat(namespace: &Namespace, flat: &[u8]) -> Option<Self> {
        let flat = std::str::from_utf8(flat).ok()?;
        let cut = flat.rfind("//")? + 2;
        Dir::from_flat(namespace, &flat[..cut])?.key(&flat[cut..]).ok()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.dir.path, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.dir, self.name)
    }
}

fn check_text(what: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::invalid(format!("{what} is empty: use 1 to {NAME_BYTES_MAX} bytes")));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{what} is {} bytes long: at most {NAME_BYTES_MAX} are allowed",
            text.len()
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{what} {text:?} is not allowed: it contains a control character")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_form_reads_back_and_divides_dirs() {
        let namespace = Namespace::default();
        let realm = Realm::default();
        let key = Key::parse(&realm, "lock/deploy/eu/one").expect("valid");
        assert_eq!((key.dir().path(), key.name()), ("lock/deploy/eu", "one"));
        assert_eq!(key.to_flat(&namespace), "main/main/lock/deploy/eu//one");
        assert_eq!(Key::from_flat(&namespace, b"main/main/lock/deploy/eu//one"), Some(key.clone()));
        let outer = Dir::new(&realm, "lock/deploy").expect("valid");
        assert!(!key.to_flat(&namespace).starts_with(&outer.to_flat(&namespace)));
        for foreign in ["", "main", "main/main/x", "other/main/a//b", "main/main/a//b/c", "main//a//b"] {
            assert_eq!(Key::from_flat(&namespace, foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn says_which_rule_a_bad_name_breaks() {
        let realm = Realm::default();
        let message = |text: &str| Key::parse(&realm, text).expect_err("invalid").to_string();
        assert_eq!(message("colour"), "key \"colour\" has no dir: write it as dir/name, for example config/colour");
        assert_eq!(message("a//b"), "dir \"a/\" is not allowed: it has an empty segment between slashes");
        assert_eq!(message("a/"), "name is empty: use 1 to 128 bytes");
        assert_eq!(message("a/\u{7}"), "name \"\\u{7}\" is not allowed: it contains a control character");
        assert_eq!(message(&format!("a/{}", "x".repeat(129))), "name is 129 bytes long: at most 128 are allowed");
        let error = Realm::new("a b").expect_err("invalid").to_string();
        assert!(error.starts_with("realm \"a b\" is not allowed: use 1 to 64 of"), "{error}");
    }
}
