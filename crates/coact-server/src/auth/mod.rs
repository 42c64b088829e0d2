//! Who may do what: tokens, roles, and the one place that decides.
//!
//! ```text
//!   request ──► layer ──► Principal ──► Caller ──► handler
//!               (401)                     │ allow: namespace × block × verb × name
//!                                         ▼
//!                       Auth::check ──► table ◄── watch ◄── store (namespace _coact)
//!                          (403)          └─► audit: denials, changes, acts of admins
//! ```
//!
//! What must never be: an access that no permission names; an answer that tells an unknown token from a wrong one; a
//! secret in a log, an error, or on disk; a way to the namespace `_coact` from any surface.

mod audit;
mod caller;
mod keys;
mod layer;
mod role;
mod store;
mod table;
mod token;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    env::Env,
    guarantees::Accepted,
    name::{NAME_BYTES_MAX, Namespace},
};
use coact_engine_embedded::{
    Engine,
    flat::{KeyRange, RangeRequest},
};

pub use role::{Block, Permission, RESERVED_NAMESPACE, Role, Verb, Verbs};
pub use token::{Token, TokenDigest};

pub(crate) use caller::Caller;
pub(crate) use keys::Keys;
pub(crate) use layer::authenticate;
pub(crate) use table::{Grants, StoredToken};

use self::{
    audit::Audit,
    role::check_role_name,
    store::{Kind, Store, first_admin},
    table::Table,
};
use crate::lifecycle::Signal;

/// The most tokens of a node.
const TOKENS_MAX: usize = 10_000;
/// The most roles of a node, and of a token.
const ROLES_MAX: usize = 1_000;
/// How often an id that is taken is replaced by another one.
const ID_TRIES: usize = 8;

/// Whether a node asks who is there.
#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    /// Ask every request for a token. Off, everybody who can connect may do everything.
    pub enabled: bool,
    /// A file that every line of the audit log is also written to.
    pub audit_file: Option<PathBuf>,
    /// The digest of a token with the role `admin`. It is taken over once; revoking the token is for good.
    pub bootstrap_admin: Option<TokenDigest>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Principal {
    /// Somebody, on a node that asks for no tokens.
    Everybody,
    /// Somebody without a valid token.
    Anonymous,
    /// The bearer of a token.
    Bearer(Arc<Bearer>),
}

/// The bearer of a token, as known when the token was checked.
#[derive(Debug)]
pub struct Bearer {
    /// The token's id.
    pub id: String,
    /// What its maker called it.
    pub label: String,
    /// The names of its roles.
    pub roles: Vec<String>,
}

impl Principal {
    /// The id of the token, or a word for who has none.
    pub fn id(&self) -> &str {
        match self {
            Self::Everybody => "everybody",
            Self::Anonymous => "anonymous",
            Self::Bearer(bearer) => &bearer.id,
        }
    }

    fn label(&self) -> Option<&str> {
        match self {
            Self::Bearer(bearer) => Some(&bearer.label),
            Self::Everybody | Self::Anonymous => None,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer(bearer) => write!(f, "token {} ({})", bearer.id, bearer.label.escape_debug()),
            Self::Everybody | Self::Anonymous => f.write_str(self.id()),
        }
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// In which namespace; `None` for all of them.
    pub namespace: Option<&'a str>,
    /// To what.
    pub block: Block,
    /// What.
    pub verb: Verb,
    /// The name of one resource. Everything whose name starts with a prefix is asked for with
    /// [`Auth::check_prefix`].
    pub resource: &'a str,
}

impl Access<'_> {
    /// What only an admin of the whole node may do.
    pub const ADMIN: Access<'static> = Access { namespace: None, block: Block::Every, verb: Verb::Admin, resource: "" };
}

impl fmt::Display for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.unwrap_or("*");
        write!(f, "{} {} {}", namespace.escape_debug(), self.block.name(), self.verb.name())?;
        if self.resource.is_empty() { Ok(()) } else { write!(f, " {}", self.resource.escape_debug()) }
    }
}

/// Decides; cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    enabled: bool,
    env: Env,
    store: Store,
    table: Arc<Table>,
    audit: Audit,
    /// Whether there may be tokens and roles, which a range over all namespaces would show.
    reserved_in_use: bool,
    everything: Arc<Grants>,
    /// Held while tokens and roles are changed, so that what was checked still holds.
    changing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth(enabled: {})", self.0.enabled)
    }
}

impl Auth {
    pub(crate) async fn start(config: &AuthConfig, engine: &Engine, signal: Signal) -> Result<Self> {
        let env = engine.env().clone();
        let store = Store::new(engine.kv(Namespace::new(RESERVED_NAMESPACE)?, Accepted::default()));
        let table = Arc::new(Table::default());
        if config.enabled {
            if let Some(digest) = config.bootstrap_admin {
                store.import_token(&first_admin(digest, env.wall_ms())).await?;
            }
            store.follow(Kind::Roles, table.clone(), signal.clone()).await?;
            store.follow(Kind::Tokens, table.clone(), signal).await?;
        }
        Ok(Self(Arc::new(Inner {
            enabled: config.enabled,
            audit: Audit::open(config.audit_file.as_deref(), env.clone())?,
            env,
            store,
            table,
            reserved_in_use: config.enabled || has_records(engine).await?,
            everything: Arc::new(Grants::everything()),
            changing: tokio::sync::Mutex::new(()),
        })))
    }

    /// Whether requests are asked for tokens.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled
    }

    /// Who carries this; `Anonymous` for nothing and for anything but a valid token, without a difference.
    pub fn identify(&self, token: Option<&str>) -> Principal {
        if !self.0.enabled {
            return Principal::Everybody;
        }
        let presented = token.and_then(Token::parse);
        let digest = presented.as_ref().map_or_else(TokenDigest::nobodys, Token::digest);
        let known = self.0.table.token(&digest.id());
        // Compared in any case, so that the time taken does not tell whether the id exists.
        let expected = known.as_ref().map_or_else(TokenDigest::nobodys, |known| known.token.digest);
        let matches = expected.matches(digest);
        match known {
            Some(known) if presented.is_some() && matches && !known.token.has_expired(self.0.env.wall_ms()) => {
                Principal::Bearer(Arc::new(Bearer {
                    id: digest.id(),
                    label: known.token.label.clone(),
                    roles: known.token.roles.clone(),
                }))
            }
            _ => Principal::Anonymous,
        }
    }

    /// Whether this caller may do this, by what tokens and roles are now. A denial is written to the audit log.
    ///
    /// # Errors
    /// `Denied`, naming the permission that is missing, and nothing about what exists.
    pub fn check(&self, who: &Principal, access: &Access<'_>) -> Result<()> {
        // A lock `deploy` is the dir `lock/deploy`, so a permission for `deploy/` is one for it and all below it.
        let closed = access.block != Block::Kv && !access.resource.is_empty() && !access.resource.ends_with('/');
        let name = if closed { format!("{}/", access.resource) } else { access.resource.to_owned() };
        self.decide(who, access, name.as_bytes())
    }

    /// As [`check`](Self::check), for every resource whose name starts with `access.resource`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_prefix(&self, who: &Principal, access: &Access<'_>) -> Result<()> {
        self.decide(who, access, access.resource.as_bytes())
    }

    fn decide(&self, who: &Principal, access: &Access<'_>, name: &[u8]) -> Result<()> {
        let reserved = access.namespace == Some(RESERVED_NAMESPACE);
        let allowed = !reserved
            && self.grants(who).is_some_and(|grants| grants.allow(access.namespace, access.block, access.verb, name));
        if allowed { Ok(()) } else { Err(self.denied(who, &access.to_string())) }
    }

    /// Whether this caller may do this to all of these keys.
    pub(crate) fn check_keys(&self, who: &Principal, keys: Keys<'_>, verb: Verb) -> Result<()> {
        let allowed = match self.grants(who) {
            // A node that never had tokens has nothing to hide, and tools list everything there is.
            Some(_) if !self.0.enabled => !keys.meet_reserved() || (!keys.is_one() && !self.0.reserved_in_use),
            Some(grants) => keys.allowed_by(&grants, verb),
            None => false,
        };
        if allowed { Ok(()) } else { Err(self.denied(who, &format!("{} {keys}", verb.name()))) }
    }

    /// Whether this caller may do this to anything at all.
    pub(crate) fn check_some(&self, who: &Principal, verb: Verb) -> Result<()> {
        let allowed = self.grants(who).is_some_and(|grants| grants.allow_some(None, verb));
        if allowed { Ok(()) } else { Err(self.denied(who, &format!("{} anything", verb.name()))) }
    }

    /// What the caller may do now; `None` for nobody, and for a token that is over.
    pub(crate) fn grants(&self, who: &Principal) -> Option<Arc<Grants>> {
        match who {
            Principal::Everybody => (!self.0.enabled).then(|| self.0.everything.clone()),
            Principal::Anonymous => None,
            Principal::Bearer(bearer) => {
                let known = self.0.table.token(&bearer.id)?;
                (!known.token.has_expired(self.0.env.wall_ms())).then_some(known.grants)
            }
        }
    }

    /// Returns when what the caller may do is no longer `now`: because their token ended, or a role changed.
    pub(crate) async fn until_changed(&self, who: &Principal, now: &Option<Arc<Grants>>) {
        let Principal::Bearer(bearer) = who else { return std::future::pending().await };
        let mut changes = self.0.table.changes();
        while self.grants(who) == *now && now.is_some() {
            let left = self.time_left(&bearer.id);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.0.env.sleep(left) => {}
            }
        }
    }

    /// Until the token ends; at most an hour, since the wall clock may be set meanwhile.
    fn time_left(&self, id: &str) -> Duration {
        const LONGEST: Duration = Duration::from_secs(3600);
        let expires = self.0.table.token(id).and_then(|known| known.token.expires_ms);
        let left = expires.map(|end| Duration::from_millis(end.saturating_sub(self.0.env.wall_ms()).max(1)));
        left.map_or(LONGEST, |left| left.min(LONGEST))
    }

    fn denied(&self, who: &Principal, what: &str) -> Error {
        self.0.audit.write("denied", who, &[("what", what)]);
        match who {
            Principal::Anonymous => Error::new(ErrorKind::Denied, "a valid token is needed"),
            _ => Error::new(ErrorKind::Denied, format!("{who} lacks the permission `{what}`")),
        }
    }

    /// Notes in the audit log that a request came without a valid token.
    pub(crate) fn note_anonymous(&self, what: &str) {
        self.0.audit.write("denied", &Principal::Anonymous, &[("what", what)]);
    }

    /// Notes in the audit log what an admin does, where there are admins.
    pub(crate) fn note_admin(&self, who: &Principal, what: &str) {
        if self.0.enabled {
            self.0.audit.write("admin", who, &[("what", what)]);
        }
    }
}

/// A token to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewToken {
    pub(crate) label: String,
    pub(crate) roles: Vec<String>,
    pub(crate) lives: Option<Duration>,
}

/// Changes of tokens and roles. The callers check that whoever asks is an admin.
impl Auth {
    pub(crate) fn tokens(&self) -> Vec<(String, Arc<StoredToken>)> {
        self.0.table.tokens().into_iter().collect()
    }

    pub(crate) fn roles(&self) -> Vec<Role> {
        self.0.table.roles()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.0.env.wall_ms()
    }

    /// Makes a token. It is valid when this returns.
    pub(crate) async fn create_token(&self, who: &Principal, new: NewToken) -> Result<(Token, StoredToken)> {
        check_label(&new.label)?;
        let _changing = self.0.changing.lock().await;
        self.check_roles_exist(&new.roles)?;
        if self.0.table.tokens().len() >= TOKENS_MAX {
            let message = format!("there are {TOKENS_MAX} tokens, which is the most: revoke some first");
            return Err(Error::new(ErrorKind::Exhausted, message));
        }
        let now = self.now_ms();
        for _ in 0..ID_TRIES {
            let token = Token::generate()?;
            let stored = StoredToken {
                digest: token.digest(),
                label: new.label.clone(),
                roles: new.roles.clone(),
                created_ms: now,
                expires_ms: new.lives.map(|lives| now.saturating_add(lives.as_millis() as u64)),
                created_by: who.id().to_owned(),
            };
            if let Some(revision) = self.0.store.add_token(&stored).await? {
                self.0.table.wait_for(|progress| progress.tokens >= revision.0).await?;
                let roles = stored.roles.join(",");
                self.0.audit.write("token created", who, &[("token", &token.id()), ("roles", &roles)]);
                return Ok((token, stored));
            }
        }
        Err(Error::new(ErrorKind::Internal, "no free token id was found"))
    }

    /// Ends a token. It is over when this returns.
    pub(crate) async fn revoke_token(&self, who: &Principal, id: &str) -> Result<()> {
        let _changing = self.0.changing.lock().await;
        if self.0.table.token(id).is_none() {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no token {id:?}")));
        }
        let revision = self.0.store.remove(Kind::Tokens, id).await?;
        self.0.table.wait_for(|progress| progress.tokens >= revision.0).await?;
        self.0.audit.write("token revoked", who, &[("token", id)]);
        Ok(())
    }

    /// Makes or replaces a role. It is in effect when this returns.
    pub(crate) async fn put_role(&self, who: &Principal, role: Role) -> Result<()> {
        let _changing = self.0.changing.lock().await;
        if self.0.table.roles().len() >= ROLES_MAX {
            let message = format!("there are {ROLES_MAX} roles, which is the most: remove some first");
            return Err(Error::new(ErrorKind::Exhausted, message));
        }
        let revision = self.0.store.put_role(&role).await?;
        self.0.table.wait_for(|progress| progress.roles >= revision.0).await?;
        let permissions: Vec<_> = role.permissions.iter().map(Permission::to_string).collect();
        self.0.audit.write("role put", who, &[("role", &role.name), ("permissions", &permissions.join("; "))]);
        Ok(())
    }

    /// Removes a role that no token has: one of the same name, made later, must not come to somebody unawares.
    pub(crate) async fn remove_role(&self, who: &Principal, name: &str) -> Result<()> {
        check_role_name(name)?;
        let _changing = self.0.changing.lock().await;
        if role::built_in(name).is_some() {
            return Err(Error::invalid(format!("role {name} is built in and cannot be removed")));
        }
        if !self.0.table.roles().iter().any(|role| role.name == name) {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no role {name:?}")));
        }
        let bears = |token: &StoredToken| token.roles.iter().any(|role| role == name);
        let bearers: Vec<_> = self.tokens().into_iter().filter(|(_, token)| bears(token)).map(|(id, _)| id).collect();
        if !bearers.is_empty() {
            let message = format!("role {name} is in use: revoke its tokens first ({})", bearers.join(", "));
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let revision = self.0.store.remove(Kind::Roles, name).await?;
        self.0.table.wait_for(|progress| progress.roles >= revision.0).await?;
        self.0.audit.write("role removed", who, &[("role", name)]);
        Ok(())
    }

    fn check_roles_exist(&self, names: &[String]) -> Result<()> {
        let known: Vec<_> = self.roles().into_iter().map(|role| role.name).collect();
        if names.is_empty() || names.len() > ROLES_MAX {
            return Err(Error::invalid(format!(
                "a token has from 1 to {ROLES_MAX} roles: choose from {}",
                known.join(", ")
            )));
        }
        match names.iter().find(|name| !known.contains(name)) {
            Some(name) => Err(Error::invalid(format!("there is no role {name:?}: choose from {}", known.join(", ")))),
            None => Ok(()),
        }
    }
}

fn check_label(label: &str) -> Result<()> {
    if label.is_empty() || label.len() > NAME_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "label {label:?} is not allowed: use 1 to {NAME_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

/// Whether there are entries in the node's own namespace.
async fn has_records(engine: &Engine) -> Result<bool> {
    let keys = KeyRange::prefix(format!("{RESERVED_NAMESPACE}/"));
    let request = RangeRequest { keys, limit: 1, keys_only: true, skip_count: true, ..RangeRequest::default() };
    match engine.range(request).await {
        Ok((found, _)) => Ok(!found.records.is_empty()),
        Err(error) => Err(Error::new(ErrorKind::Unavailable, format!("tokens and roles cannot be read: {error:?}"))),
    }
}
