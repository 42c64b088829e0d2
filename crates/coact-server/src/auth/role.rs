//! Roles: named lists of what their bearers may do. What no permission names is denied.

use std::{fmt, str::FromStr};

use coact_core::{
    Error, Result,
    name::{NAME_BYTES_MAX, Namespace},
};
use serde::{Deserialize, Serialize};

/// Where a node keeps tokens and roles. No surface reads or writes it, whoever asks.
pub const RESERVED_NAMESPACE: &str = "_coact";

/// The most permissions of a role.
const PERMISSIONS_MAX: usize = 256;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Look, list, watch.
    Read,
    /// Create, change, delete, take, release.
    Write,
    /// What affects other people's work.
    Admin,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The name, as in permissions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// What it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// Entries that belong to no block.
    Kv,
    /// Locks of every kind: mutex, rw, semaphore, election, latch, barrier, rate.
    Lock,
    /// The directory of services.
    Directory,
    /// Configuration.
    Config,
    /// Ids.
    Id,
    /// Sessions.
    Session,
    /// Topics and groups, by their names.
    Mq,
    /// Queues, by their names.
    Queue,
    /// The page of metrics.
    Metrics,
    /// All of them. As the target of an access, it is allowed only by a permission for all of them.
    Every,
}

impl Block {
    /// Every block that entries can be of.
    pub(super) const OF_ENTRIES: [Self; 6] =
        [Self::Kv, Self::Lock, Self::Directory, Self::Config, Self::Id, Self::Session];
    const ALL: [Self; 10] = [
        Self::Kv,
        Self::Lock,
        Self::Directory,
        Self::Config,
        Self::Id,
        Self::Session,
        Self::Mq,
        Self::Queue,
        Self::Metrics,
        Self::Every,
    ];

    /// The name, as in permissions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Lock => "lock",
            Self::Directory => "directory",
            Self::Config => "config",
            Self::Id => "id",
            Self::Session => "session",
            Self::Mq => "mq",
            Self::Queue => "queue",
            Self::Metrics => "metrics",
            Self::Every => "*",
        }
    }
}

/// A set of verbs. None includes another: who may write need not be allowed to read.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Verbs(u8);

impl Verbs {
    /// Exactly these.
    pub fn of(verbs: &[Verb]) -> Self {
        Self(verbs.iter().fold(0, |set, verb| set | 1 << *verb as u8))
    }

    /// Whether this verb is among them.
    pub fn contains(self, verb: Verb) -> bool {
        self.0 & 1 << verb as u8 != 0
    }
}

impl fmt::Display for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Verb::ALL.into_iter().filter(|verb| self.contains(*verb)).map(Verb::name).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Verbs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let verb = |name: &str| {
            Verb::ALL.into_iter().find(|verb| verb.name() == name).ok_or_else(|| {
                Error::invalid(format!("verb {name:?} is not known: use read, write, admin, joined by commas"))
            })
        };
        Ok(Self::of(&text.split(',').map(verb).collect::<Result<Vec<_>>>()?))
    }
}

/// One thing that a role allows: verbs, on resources of a block whose names start with a prefix, in a namespace.
///
/// Written `NAMESPACE BLOCK VERBS [PREFIX]`, for example `shop lock read,write deploy/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "PermissionParts", into = "PermissionParts")]
pub struct Permission {
    /// `None` for every namespace.
    namespace: Option<Namespace>,
    block: Block,
    verbs: Verbs,
    prefix: String,
}

impl Permission {
    /// Checks the parts: `namespace` and `block` may be `*`; an empty prefix allows every name.
    ///
    /// # Errors
    /// `Invalid`, naming the part and what is allowed.
    pub fn new(namespace: &str, block: &str, verbs: &str, prefix: &str) -> Result<Self> {
        if namespace == RESERVED_NAMESPACE {
            return Err(Error::invalid(format!("namespace {namespace} is the node's own: no role can reach it")));
        }
        if prefix.len() > 2 * NAME_BYTES_MAX || prefix.contains("//") || prefix.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "prefix {prefix:?} is not allowed: use at most {} bytes without // and control characters",
                2 * NAME_BYTES_MAX
            )));
        }
        Ok(Self {
            namespace: if namespace == "*" { None } else { Some(Namespace::new(namespace)?) },
            block: block.parse()?,
            verbs: verbs.parse()?,
            prefix: prefix.to_owned(),
        })
    }

    fn everywhere(block: Block, verbs: &[Verb]) -> Self {
        Self { namespace: None, block, verbs: Verbs::of(verbs), prefix: String::new() }
    }

    /// Whether it allows this verb on every resource of this block whose name starts with `resource`, in the namespace;
    /// `None` stands for all namespaces at once.
    pub(super) fn allows(&self, namespace: Option<&str>, block: Block, verb: Verb, resource: &[u8]) -> bool {
        let namespace_fits = self.namespace.as_ref().is_none_or(|own| namespace == Some(own.as_str()));
        let block_fits = self.block == Block::Every || self.block == block;
        let verb_fits = self.verbs.contains(verb);
        namespace_fits && block_fits && verb_fits && resource.starts_with(self.prefix.as_bytes())
    }

    /// Whether it allows this verb on anything in the namespace.
    pub(super) fn allows_some(&self, namespace: Option<&str>, verb: Verb) -> bool {
        let namespace_fits = match (&self.namespace, namespace) {
            (Some(own), Some(asked)) => own.as_str() == asked,
            _ => true,
        };
        namespace_fits && self.verbs.contains(verb)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_ref().map_or("*", Namespace::as_str);
        write!(f, "{namespace} {} {}", self.block.name(), self.verbs)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, " {}", self.prefix) }
    }
}

impl FromStr for Permission {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.splitn(4, ' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(block), Some(verbs)) => {
                Self::new(namespace, block, verbs, parts.next().unwrap_or_default())
            }
            _ => Err(Error::invalid(format!(
                "permission {text:?} is not allowed: write NAMESPACE BLOCK VERBS [PREFIX], as in \
                 \"shop lock read,write deploy/\""
            ))),
        }
    }
}

impl FromStr for Block {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|block| block.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.into_iter().map(Self::name).collect();
            Error::invalid(format!("block {text:?} is not known: choose from {}", names.join(", ")))
        })
    }
}

/// A permission as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PermissionParts {
    namespace: String,
    block: String,
    verbs: String,
    #[serde(default)]
    prefix: String,
}

impl TryFrom<PermissionParts> for Permission {
    type Error = Error;

    fn try_from(parts: PermissionParts) -> Result<Self> {
        Self::new(&parts.namespace, &parts.block, &parts.verbs, &parts.prefix)
    }
}

impl From<Permission> for PermissionParts {
    fn from(permission: Permission) -> Self {
        Self {
            namespace: permission.namespace.map_or("*".to_owned(), |namespace| namespace.to_string()),
            block: permission.block.name().to_owned(),
            verbs: permission.verbs.to_string(),
            prefix: permission.prefix,
        }
    }
}

/// A named list of permissions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Role {
    /// What tokens call it.
    pub name: String,
    /// Any of them suffices.
    pub permissions: Vec<Permission>,
}

impl Role {
    /// Checks the name, as of a namespace, and the number of permissions.
    ///
    /// # Errors
    /// `Invalid`, naming the rule; also for the name of a built-in role.
    pub fn new(name: &str, permissions: Vec<Permission>) -> Result<Self> {
        check_role_name(name)?;
        if built_in(name).is_some() {
            return Err(Error::invalid(format!("role {name} is built in and cannot be changed: choose another name")));
        }
        if permissions.is_empty() || permissions.len() > PERMISSIONS_MAX {
            return Err(Error::invalid(format!(
                "role {name} has {} permissions: from 1 to {PERMISSIONS_MAX} are allowed",
                permissions.len()
            )));
        }
        Ok(Self { name: name.to_owned(), permissions })
    }
}

/// Role names follow the rule of namespaces.
impl Role {
    /// Whether this is the name of a role that cannot be changed.
    pub(crate) fn is_built_in(name: &str) -> bool {
        built_in(name).is_some()
    }
}

pub(super) fn check_role_name(name: &str) -> Result<()> {
    match Namespace::new(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::invalid(format!(
            "role {name:?} is not allowed: use 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot"
        ))),
    }
}

/// The roles that every node has: `admin` (everything), `read-only` (look at everything), `metrics` (that page).
pub(super) fn built_in_roles() -> [Role; 3] {
    let role = |name: &str, permission| Role { name: name.to_owned(), permissions: vec![permission] };
    [
        role("admin", Permission::everywhere(Block::Every, &Verb::ALL)),
        role("read-only", Permission::everywhere(Block::Every, &[Verb::Read])),
        role("metrics", Permission::everywhere(Block::Metrics, &[Verb::Read])),
    ]
}

pub(super) fn built_in(name: &str) -> Option<Role> {
    built_in_roles().into_iter().find(|role| role.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(text: &str) -> Permission {
        text.parse().expect(text)
    }

    #[test]
    fn allows_what_it_names_and_nothing_else() {
        let deploy = permission("shop lock read,write deploy/");
        assert!(deploy.allows(Some("shop"), Block::Lock, Verb::Write, b"deploy/eu"));
        for (namespace, block, verb, resource) in [
            (Some("other"), Block::Lock, Verb::Write, "deploy/eu"),
            (None, Block::Lock, Verb::Write, "deploy/eu"),
            (Some("shop"), Block::Kv, Verb::Write, "deploy/eu"),
            (Some("shop"), Block::Every, Verb::Write, "deploy/eu"),
            (Some("shop"), Block::Lock, Verb::Admin, "deploy/eu"),
            (Some("shop"), Block::Lock, Verb::Write, "deploy"),
            (Some("shop"), Block::Lock, Verb::Write, ""),
        ] {
            assert!(!deploy.allows(namespace, block, verb, resource.as_bytes()), "{namespace:?} {block:?} {resource}");
        }
        let [admin, read_only, metrics] = built_in_roles().map(|role| role.permissions[0].clone());
        assert!(admin.allows(None, Block::Every, Verb::Admin, b""));
        assert!(read_only.allows(Some("a"), Block::Metrics, Verb::Read, b""));
        assert!(!read_only.allows(Some("a"), Block::Kv, Verb::Write, b"x"));
        assert!(
            metrics.allows(None, Block::Metrics, Verb::Read, b"") && !metrics.allows(None, Block::Kv, Verb::Read, b"")
        );
    }

    #[test]
    fn reads_back_as_text_and_as_json() {
        for text in ["shop lock read,write deploy/", "* * read,write,admin", "a kv write name with spaces"] {
            assert_eq!(permission(text).to_string(), text);
            let json = serde_json::to_string(&permission(text)).expect("JSON");
            assert_eq!(serde_json::from_str::<Permission>(&json).expect("a permission"), permission(text));
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("shop lock", "write NAMESPACE BLOCK VERBS [PREFIX]"),
            ("a/b lock read", "namespace \"a/b\" is not allowed"),
            ("shop mutex read", "block \"mutex\" is not known: choose from kv, lock"),
            ("shop lock see", "verb \"see\" is not known: use read, write, admin"),
            ("shop kv read a//b", "prefix \"a//b\" is not allowed"),
            ("_coact kv read", "is the node's own"),
        ] {
            let error = text.parse::<Permission>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = Role::new("admin", vec![permission("a kv read")]).expect_err("built in").to_string();
        assert!(error.contains("cannot be changed"), "{error}");
        assert!(Role::new("empty", Vec::new()).is_err() && Role::new("a/b", vec![permission("a kv read")]).is_err());
    }
}
