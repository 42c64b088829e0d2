//! Where the directory keeps what: one dir for each service, so that one watch sees everything about it in order.

use coact_core::{
    Error, Result,
    name::{Dir, Key, Realm},
};

pub(super) const DIR_PREFIX: &str = "directory/";

const BYTES_MAX: usize = 100;

/// What an entry tells about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The instance itself, written by its owner.
    Instance,
    /// Its health, written by the node that checks it.
    Health,
    /// An operator's wish that it gets no traffic.
    Drain,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Instance, Self::Health, Self::Drain];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Instance => "i:",
            Self::Health => "h:",
            Self::Drain => "d:",
        }
    }

    /// What the name of an entry says: the kind and the id. `None` for a foreign entry.
    pub(super) fn of(name: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|kind| Some((kind, name.strip_prefix(kind.prefix())?)))
    }
}

pub(super) fn dir_of(realm: &Realm, service: &str) -> Result<Dir> {
    check_service(service)?;
    Dir::new(realm, &format!("{DIR_PREFIX}{service}"))
}

pub(super) fn key_of(dir: &Dir, kind: Kind, id: &str) -> Result<Key> {
    check_id(id)?;
    dir.key(&format!("{}{id}", kind.prefix()))
}

pub(super) fn check_service(service: &str) -> Result<()> {
    check_bytes("service", service)?;
    if service.split('/').any(str::is_empty) {
        return Err(Error::invalid(format!(
            "service {service:?} is not allowed: it has an empty segment between slashes"
        )));
    }
    Ok(())
}

pub(super) fn check_id(id: &str) -> Result<()> {
    check_bytes("instance id", id)?;
    if id.contains('/') {
        return Err(Error::invalid(format!("instance id {id:?} is not allowed: it contains a slash")));
    }
    Ok(())
}

fn check_bytes(what: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > BYTES_MAX {
        return Err(Error::invalid(format!("{what} has {} bytes: use 1 to {BYTES_MAX} bytes", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{what} {text:?} is not allowed: it contains a control character")));
    }
    Ok(())
}
