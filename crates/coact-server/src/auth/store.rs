//! Tokens and roles on disk: entries of the node's own engine, in a namespace that no surface shows.

use std::collections::HashSet;

use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::{Change, Check, Entry, Feed, KvHandle, Order, Page, Revision, Scope, Txn, TxnOutcome, Write},
    name::{Dir, Key, Realm},
};
use futures::StreamExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tracing::{error, warn};

use super::{
    role::{Permission, Role},
    table::{StoredToken, Table},
    token::TokenDigest,
};
use crate::lifecycle::Signal;

const TOKENS: &str = "auth/token";
const ROLES: &str = "auth/role";
/// Digests of configuration files that were imported already.
const IMPORTED: &str = "auth/bootstrap";

const PAGE_ENTRIES: usize = 1000;

/// Which of the two dirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tokens,
    Roles,
}

/// The entries.
#[derive(Clone, Debug)]
pub(super) struct Store {
    kv: KvHandle,
}

impl Store {
    pub(super) fn new(kv: KvHandle) -> Self {
        Self { kv }
    }

    /// Adds a token; `false` if its id is taken.
    pub(super) async fn add_token(&self, token: &StoredToken) -> Result<Option<Revision>> {
        let key = key(TOKENS, &token.digest.id())?;
        let txn = Txn { checks: vec![Check::Absent(key.clone())], writes: vec![put(key, token)?], ..Txn::default() };
        self.commit(txn).await
    }

    /// Adds the token of a configuration file, once for ever: a token that was revoked does not come back.
    pub(super) async fn import_token(&self, token: &StoredToken) -> Result<bool> {
        let imported = key(IMPORTED, &token.digest.to_hex())?;
        let own = key(TOKENS, &token.digest.id())?;
        let txn = Txn {
            checks: vec![Check::Absent(imported.clone())],
            writes: vec![put(imported, &token.created_ms)?, put(own, token)?],
            ..Txn::default()
        };
        Ok(self.commit(txn).await?.is_some())
    }

    pub(super) async fn put_role(&self, role: &Role) -> Result<Revision> {
        let value = encode(&role.permissions)?;
        self.kv.put(&key(ROLES, &role.name)?, value, None).await
    }

    pub(super) async fn remove(&self, kind: Kind, name: &str) -> Result<Revision> {
        self.kv.delete(&key(kind.dir(), name)?).await
    }

    /// Fills the table and keeps it so until the node ends. The first filling is done when this returns.
    pub(super) async fn follow(&self, kind: Kind, table: std::sync::Arc<Table>, mut signal: Signal) -> Result<()> {
        let dir = Dir::new(&Realm::default(), kind.dir())?;
        let revision = self.fill(kind, &dir, &table).await?;
        let mut feed = self.kv.watch(Scope::Dir(dir.clone()), Some(revision)).await?;
        let store = self.clone();
        self.kv.env().spawn(async move {
            tokio::select! {
                ended = store.pump(kind, &dir, &table, &mut feed) => if let Err(error) = ended
                    && error.kind() != ErrorKind::Closed
                {
                    error!(%error, "tokens and roles are no longer followed");
                },
                () = signal.ended() => {}
            }
        });
        Ok(())
    }

    async fn pump(&self, kind: Kind, dir: &Dir, table: &Table, feed: &mut Feed) -> Result<()> {
        while let Some(change) = feed.next().await {
            let revision = match change? {
                Change::Put(entry) => {
                    kind.apply(table, &entry);
                    entry.modified
                }
                Change::Gone { key, at, .. } => {
                    kind.forget(table, key.name());
                    at
                }
                Change::Progress(revision) => revision,
                Change::Resync { .. } => self.fill(kind, dir, table).await?,
            };
            kind.reached(table, revision);
        }
        Ok(())
    }

    async fn fill(&self, kind: Kind, dir: &Dir, table: &Table) -> Result<Revision> {
        let mut seen = HashSet::new();
        let mut after = String::new();
        loop {
            let Page { entries, more, revision } = self.kv.list(dir, Order::Name { after }, PAGE_ENTRIES).await?;
            after = entries.last().map(|entry| entry.key.name().to_owned()).unwrap_or_default();
            for entry in &entries {
                kind.apply(table, entry);
                seen.insert(entry.key.name().to_owned());
            }
            if !more {
                kind.keep(table, &seen);
                kind.reached(table, revision);
                return Ok(revision);
            }
        }
    }

    async fn commit(&self, txn: Txn) -> Result<Option<Revision>> {
        match self.kv.txn(&Realm::default(), txn).await? {
            TxnOutcome::Committed { revision, .. } => Ok(Some(revision)),
            TxnOutcome::Refused { .. } => Ok(None),
        }
    }
}

impl Kind {
    fn dir(self) -> &'static str {
        match self {
            Self::Tokens => TOKENS,
            Self::Roles => ROLES,
        }
    }

    fn apply(self, table: &Table, entry: &Entry) {
        let name = entry.key.name();
        match self {
            Self::Tokens => {
                let fits = |token: &StoredToken| token.digest.id() == name;
                table.set_token(name, decode::<StoredToken>(entry).filter(fits));
            }
            Self::Roles => table.set_role(name, decode::<Vec<Permission>>(entry)),
        }
    }

    fn forget(self, table: &Table, name: &str) {
        match self {
            Self::Tokens => table.set_token(name, None),
            Self::Roles => table.set_role(name, None),
        }
    }

    fn keep(self, table: &Table, seen: &HashSet<String>) {
        match self {
            Self::Tokens => table.keep_tokens(|id| seen.contains(id)),
            Self::Roles => table.keep_roles(|name| seen.contains(name)),
        }
    }

    fn reached(self, table: &Table, revision: Revision) {
        table.reached(|progress| match self {
            Self::Tokens => progress.tokens = progress.tokens.max(revision.0),
            Self::Roles => progress.roles = progress.roles.max(revision.0),
        });
    }
}

fn key(dir: &str, name: &str) -> Result<Key> {
    Key::new(&Realm::default(), dir, name)
}

fn put(key: Key, value: &impl Serialize) -> Result<Write> {
    Ok(Write::Put { key, value: encode(value)?.into(), lease: None })
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Internal, "a token or role cannot be written").with_source(error))
}

/// What cannot be read counts as absent, and so allows nothing.
fn decode<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let read = serde_json::from_slice(&entry.value);
    if let Err(error) = &read {
        warn!(entry = %entry.key, %error, "a token or role cannot be read and is ignored");
    }
    read.ok()
}

/// The token of a configuration file: it may do everything, and does not end by itself.
pub(super) fn first_admin(digest: TokenDigest, now_ms: u64) -> StoredToken {
    StoredToken {
        digest,
        label: "first admin".to_owned(),
        roles: vec!["admin".to_owned()],
        created_ms: now_ms,
        expires_ms: None,
        created_by: "configuration".to_owned(),
    }
}
