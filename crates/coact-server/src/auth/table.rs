//! Tokens and roles as they are now, in memory: what every request is checked against.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use coact_core::{Error, ErrorKind, Result};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    role::{Block, Permission, Role, Verb, built_in, built_in_roles},
    token::TokenDigest,
};

/// A token as it is stored: everything but its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredToken {
    #[serde(with = "hex")]
    pub(crate) digest: TokenDigest,
    pub(crate) label: String,
    pub(crate) roles: Vec<String>,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: Option<u64>,
    /// The id of the token that made it, or where it came from.
    pub(crate) created_by: String,
}

impl StoredToken {
    pub(crate) fn has_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|end| end <= now_ms)
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::auth::token::TokenDigest;

    pub(super) fn serialize<S: Serializer>(digest: &TokenDigest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&digest.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TokenDigest, D::Error> {
        let text = String::deserialize(from)?;
        TokenDigest::from_hex(&text).ok_or_else(|| D::Error::custom("a digest has 64 hexadecimal digits"))
    }
}

/// What somebody may do: the permissions of all of their roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grants(Vec<Permission>);

impl Grants {
    /// What everybody may do on a node that asks for no tokens.
    pub(super) fn everything() -> Self {
        Self(built_in("admin").map(|role| role.permissions).unwrap_or_default())
    }

    #[cfg(test)]
    pub(super) fn of(permissions: Vec<Permission>) -> Self {
        Self(permissions)
    }

    /// Whether the verb is allowed on everything of the block whose name starts with `resource`; `None` stands for all
    /// namespaces at once.
    pub(crate) fn allow(&self, namespace: Option<&str>, block: Block, verb: Verb, resource: &[u8]) -> bool {
        self.0.iter().any(|permission| permission.allows(namespace, block, verb, resource))
    }

    /// Whether the verb is allowed on anything in the namespace; `None` stands for any of them.
    pub(crate) fn allow_some(&self, namespace: Option<&str>, verb: Verb) -> bool {
        self.0.iter().any(|permission| permission.allows_some(namespace, verb))
    }
}

/// A token that was known when somebody looked, and what it allowed.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) token: Arc<StoredToken>,
    pub(super) grants: Arc<Grants>,
}

/// How far the table has followed the store, by dir.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) tokens: u64,
    pub(super) roles: u64,
}

/// The table. One task for each dir changes it; everybody reads.
#[derive(Debug)]
pub(super) struct Table {
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct State {
    tokens: HashMap<String, Known>,
    roles: BTreeMap<String, Role>,
}

impl Default for Table {
    fn default() -> Self {
        let roles = built_in_roles().into_iter().map(|role| (role.name.clone(), role)).collect();
        Self {
            state: RwLock::new(State { tokens: HashMap::new(), roles }),
            progress: watch::Sender::new(Progress::default()),
        }
    }
}

impl Table {
    /// The token of this id, if there is one.
    pub(super) fn token(&self, id: &str) -> Option<Known> {
        self.state.read().tokens.get(id).cloned()
    }

    /// Every token, by id.
    pub(super) fn tokens(&self) -> BTreeMap<String, Arc<StoredToken>> {
        self.state.read().tokens.iter().map(|(id, known)| (id.clone(), known.token.clone())).collect()
    }

    /// Every role, by name.
    pub(super) fn roles(&self) -> Vec<Role> {
        self.state.read().roles.values().cloned().collect()
    }

    /// Hears of every change.
    pub(super) fn changes(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn set_token(&self, id: &str, token: Option<StoredToken>) {
        let mut state = self.state.write();
        match token {
            Some(token) => {
                let grants = Arc::new(state.grants(&token.roles));
                state.tokens.insert(id.to_owned(), Known { token: Arc::new(token), grants });
            }
            None => drop(state.tokens.remove(id)),
        }
    }

    pub(super) fn set_role(&self, name: &str, permissions: Option<Vec<Permission>>) {
        if built_in(name).is_some() {
            return;
        }
        let mut state = self.state.write();
        match permissions {
            Some(permissions) => drop(state.roles.insert(name.to_owned(), Role { name: name.to_owned(), permissions })),
            None => drop(state.roles.remove(name)),
        }
        let renewed: Vec<_> = state
            .tokens
            .iter()
            .filter(|(_, known)| known.token.roles.iter().any(|role| role == name))
            .map(|(id, known)| (id.clone(), Arc::new(state.grants(&known.token.roles))))
            .collect();
        for (id, grants) in renewed {
            if let Some(known) = state.tokens.get_mut(&id) {
                known.grants = grants;
            }
        }
    }

    /// Forgets the tokens that are not in this list.
    pub(super) fn keep_tokens(&self, keep: impl Fn(&str) -> bool) {
        self.state.write().tokens.retain(|id, _| keep(id));
    }

    /// Forgets the roles that are not in this list.
    pub(super) fn keep_roles(&self, keep: impl Fn(&str) -> bool) {
        let gone: Vec<_> = self.state.read().roles.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.set_role(name, None));
    }

    pub(super) fn reached(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// Returns when everything up to a revision is in the table.
    pub(super) async fn wait_for(&self, reached: impl Fn(&Progress) -> bool) -> Result<()> {
        self.changes()
            .wait_for(reached)
            .await
            .map(drop)
            .map_err(|_| Error::new(ErrorKind::Closed, "the node ended before the change was in effect"))
    }
}

impl State {
    /// A role that does not exist allows nothing.
    fn grants(&self, roles: &[String]) -> Grants {
        Grants(roles.iter().filter_map(|name| self.roles.get(name)).flat_map(|role| role.permissions.clone()).collect())
    }
}
