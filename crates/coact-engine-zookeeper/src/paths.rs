//! Where things lie, and names as ZooKeeper takes them.

use coact_core::name::{Dir, Key, Realm};

/// The paths of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    base: String,
}

impl Paths {
    pub(crate) fn new(root: &str, namespace: &str) -> Self {
        Self { base: format!("{root}/{namespace}") }
    }

    /// Every node that must be there before anything else, parents first.
    pub(crate) fn skeleton(&self) -> Vec<String> {
        let mut all: Vec<_> =
            self.base.match_indices('/').skip(1).map(|(end, _)| self.base[..end].to_owned()).collect();
        all.push(self.base.clone());
        all.extend(["r", "l", "now"].map(|name| format!("{}/{name}", self.base)));
        all
    }

    /// What a realm needs, parents first.
    pub(crate) fn realm_skeleton(&self, realm: &Realm) -> [String; 3] {
        [self.realm(realm), self.entries(realm), self.log(realm)]
    }

    pub(crate) fn realms(&self) -> String {
        format!("{}/r", self.base)
    }

    fn realm(&self, realm: &Realm) -> String {
        format!("{}/r/{realm}", self.base)
    }

    pub(crate) fn entries(&self, realm: &Realm) -> String {
        format!("{}/r/{realm}/e", self.base)
    }

    pub(crate) fn log(&self, realm: &Realm) -> String {
        format!("{}/r/{realm}/log", self.base)
    }

    pub(crate) fn dir(&self, dir: &Dir) -> String {
        format!("{}/r/{}/e/{}", self.base, dir.realm(), encode(dir.path()))
    }

    pub(crate) fn entry(&self, key: &Key) -> String {
        format!("{}/{}", self.dir(key.dir()), encode(key.name()))
    }

    pub(crate) fn leases(&self) -> String {
        format!("{}/l", self.base)
    }

    pub(crate) fn lease(&self, lease: i64) -> String {
        format!("{}/l/{lease:016x}", self.base)
    }

    /// That an entry is under a lease.
    pub(crate) fn place(&self, lease: i64, key: &Key) -> String {
        format!("{}/{}", self.lease(lease), encode(&place(key)))
    }

    pub(crate) fn reaper(&self) -> String {
        format!("{}/reaper", self.base)
    }

    pub(crate) fn now(&self) -> String {
        format!("{}/now", self.base)
    }
}

/// An entry in one word: the realm, the dir and the name.
pub(crate) fn place(key: &Key) -> String {
    [key.realm().as_str(), "/", key.dir().path(), "//", key.name()].concat()
}

/// Reads back what [`place`] made.
pub(crate) fn key_of(place: &str) -> Option<Key> {
    let (dir, name) = place.rsplit_once("//")?;
    let (realm, path) = dir.split_once('/')?;
    Dir::new(&Realm::new(realm).ok()?, path).ok()?.key(name).ok()
}

/// A name that ZooKeeper takes: it knows slashes, dots alone, and characters of its own dislike.
pub(crate) fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'@') || byte == b'.' && index > 0;
        if plain {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Reads back what [`encode`] made; `None` for what somebody else wrote.
pub(crate) fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were() {
        for name in ["x", ".", "..", "lock/deploy", "a b", "é🦀", "%2F", "a.b", "{"] {
            let encoded = encode(name);
            assert!(!encoded.contains('/') && encoded != "." && encoded != "..", "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
        for foreign in ["%", "%2", "%zz", "%FF"] {
            assert_eq!(decode(foreign), None, "{foreign}");
        }
        let key = Key::new(&Realm::default(), "a/b", "c").expect("valid");
        assert_eq!(key_of(&place(&key)), Some(key));
    }

    #[test]
    fn parents_come_first() {
        let paths = Paths::new("/a/b", "shop").skeleton();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/shop", "/a/b/shop/r", "/a/b/shop/l", "/a/b/shop/now"]);
    }
}
