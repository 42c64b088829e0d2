//! The caller of a handler, as an argument of it.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use coact_core::{ErrorKind, Result};

use super::{Access, Auth, Block, Grants, Keys, Principal, Verb};
use crate::api::problem::Problem;

/// Who called, with the means to ask what they may do. A handler that takes it answers 401 to who is nobody.
///
/// ```ignore
/// async fn take(caller: Caller, Path(name): Path<String>) -> Result<Response> {
///     caller.allow(Block::Lock, Verb::Write, "main", &name)?;
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    auth: Auth,
    principal: Principal,
    /// What they could do when they called.
    grants: Option<Arc<Grants>>,
}

impl Caller {
    pub(super) fn new(auth: Auth, principal: Principal) -> Self {
        let grants = auth.grants(&principal);
        Self { auth, principal, grants }
    }

    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Whether they showed no valid token where one is asked for: only pages that are open to all hear of them.
    pub(crate) fn is_nobody(&self) -> bool {
        matches!(self.principal, Principal::Anonymous)
    }

    /// Whether they may do this to one resource.
    ///
    /// # Errors
    /// `Denied`, naming the permission that is missing.
    pub(crate) fn allow(&self, block: Block, verb: Verb, namespace: &str, resource: &str) -> Result<()> {
        self.auth.check(&self.principal, &Access { namespace: Some(namespace), block, verb, resource })
    }

    /// Whether they may do this to every resource whose name starts with `prefix`: for listings and watches.
    ///
    /// # Errors
    /// `Denied`, naming the permission that is missing.
    pub(crate) fn allow_prefix(&self, block: Block, verb: Verb, namespace: &str, prefix: &str) -> Result<()> {
        let access = Access { namespace: Some(namespace), block, verb, resource: prefix };
        self.auth.check_prefix(&self.principal, &access)
    }

    /// Whether they may do everything. What they are about to do goes into the audit log.
    ///
    /// # Errors
    /// `Denied`.
    pub(crate) fn allow_admin(&self, what: &str) -> Result<()> {
        self.auth.check(&self.principal, &Access::ADMIN)?;
        self.auth.note_admin(&self.principal, what);
        Ok(())
    }

    /// Whether they may do this to all of these keys.
    pub(crate) fn allow_keys(&self, keys: Keys<'_>, verb: Verb) -> Result<()> {
        self.auth.check_keys(&self.principal, keys, verb)
    }

    /// Whether they may do this to anything at all.
    pub(crate) fn allow_some(&self, verb: Verb) -> Result<()> {
        self.auth.check_some(&self.principal, verb)
    }

    /// Returns when what they may do has changed since they called: what goes on for long must end then.
    ///
    /// # Cancel safety
    /// Safe: dropping it stops the waiting.
    pub(crate) async fn until_changed(&self) {
        self.auth.until_changed(&self.principal, &self.grants).await;
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        // Only a route that was mounted outside of the layer has none, and such a route answers nobody.
        let somebody = |caller: &Self| !caller.is_nobody();
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .filter(somebody)
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, ErrorKind::Denied, "a valid token is needed"))
    }
}
