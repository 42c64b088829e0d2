//! The scripts: each request is one, and each is atomic on the server.

use redis::Script;

/// Every script of the engine, with its hash.
pub(crate) struct Scripts {
    pub(crate) txn: Script,
    pub(crate) get: Script,
    pub(crate) list: Script,
    pub(crate) dirs: Script,
    pub(crate) history: Script,
    pub(crate) await_gone: Script,
    pub(crate) grant: Script,
    pub(crate) renew: Script,
    pub(crate) revoke: Script,
    pub(crate) left: Script,
    pub(crate) reap: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        let script = |body: &str| Script::new(&[include_str!("common.lua"), body].concat());
        Self {
            txn: script(include_str!("txn.lua")),
            get: script(include_str!("get.lua")),
            list: script(include_str!("list.lua")),
            dirs: script(include_str!("dirs.lua")),
            history: script(include_str!("history.lua")),
            await_gone: script(include_str!("await.lua")),
            grant: script(include_str!("grant.lua")),
            renew: script(include_str!("renew.lua")),
            revoke: script(include_str!("revoke.lua")),
            left: script(include_str!("left.lua")),
            reap: script(include_str!("reap.lua")),
        }
    }
}
