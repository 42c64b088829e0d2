//! Services and their instances: register, watch, pick; and [`Settings`], versioned configuration entries.
//!
//! An instance is one entry in the dir `directory/<service>`, written by its owner under the lease of the directory's
//! session (or without a lease, if it is persistent). Beside it lie its health, written by the node that checks it, and
//! the drain marker of an operator. Since one dir holds all three, one watch sees everything about a service, in order.
//!
//! A [`Watch`] answers from memory. It never takes silence for an empty list: while the store does not answer, the last
//! list stays and says that it is [stale](State::Stale). And it doubts too much bad news at once: when most instances
//! vanish without deregistering, they are held for a while, marked as such and never shown as healthy, and the state says
//! [degraded](State::Degraded). (A registry that then shows *all* as healthy, as some do, sends traffic to the dead.)

mod config;
mod feed;
mod instance;
mod keeper;
mod names;
mod ops;
mod pick;
mod pulse;
mod record;
mod registration;
mod ring;
mod snapshot;
mod table;
mod watch;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use coact_core::{
    Error, Result,
    contract::kv::KvHandle,
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
    name::Realm,
};
use parking_lot::Mutex;

pub use config::{Changes, Setting, SettingChange, Settings, Version};
pub use instance::{Check, CheckKind, Health, Instance, WEIGHT_MAX};
pub use ops::Listing;
pub use pick::{PickOptions, Picked, Picker, Strategy};
pub use registration::{Mode, Registration, RegistrationState};
pub use snapshot::{Seen, Snapshot, State};
pub use watch::Watch;

use keeper::Keeper;
use pulse::Pulse;
use watch::Service;

/// What ephemeral registrations and watches need from an engine: hardly anything. What the store forgets, its owner
/// writes again, and what a watcher sees late it would have learnt late anyway.
pub const NEEDS: Needs = Needs {
    block: "directory",
    reads: Consistency::Eventual,
    writes: Durability::Memory,
    failover: Failover::MayLoseWrites,
    fence: Fence::PerProcess,
};

/// What persistent registrations and [`Settings`] need: nobody writes those again.
pub const PERSISTENT_NEEDS: Needs = Needs {
    block: "directory (persistent entries)",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::PerProcess,
};

/// The services of one realm. Cheap to clone.
///
/// All its registrations share one [`Session`](crate::Session), opened at the first one and opened again when it is lost;
/// all its watchers of one service share one feed from the store.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

/// How a directory is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectoryOptions {
    /// The realm it is in; `main` by default.
    pub realm: Realm,
    /// How long an ephemeral instance stays when its process dies; 10 s by default.
    pub ttl: Duration,
    /// For how long suspicious losses are held; 30 s by default.
    pub hold: Duration,
    /// Losses are suspicious if less than this part of the list would remain, or nothing; 0.5 by default, zero to believe
    /// every loss.
    pub protect: f64,
    /// Who this is, as shown to people; by default the process number and a random suffix.
    pub label: Option<String>,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            realm: Realm::default(),
            ttl: Duration::from_secs(10),
            hold: Duration::from_secs(30),
            protect: 0.5,
            label: None,
        }
    }
}

impl Directory {
    /// The directory of a store. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` for a `ttl` outside the engine's limits or a `protect` outside 0 to 1; `Unsupported` if the engine
    /// promises less than a directory [needs](NEEDS).
    pub fn open(kv: &KvHandle, options: DirectoryOptions) -> Result<Self> {
        kv.require(&NEEDS)?;
        if !(0.0..=1.0).contains(&options.protect) {
            return Err(Error::invalid(format!("protect {} is not allowed: use 0 to 1", options.protect)));
        }
        let limits = kv.guarantees().limits;
        if options.ttl < limits.ttl_min || options.ttl > limits.ttl_max {
            return Err(Error::invalid(format!(
                "ttl {:?} is not allowed: use {:?} to {:?}",
                options.ttl, limits.ttl_min, limits.ttl_max
            )));
        }
        let random = kv.env().random() as u32;
        let label = options.label.clone().unwrap_or_else(|| format!("{}-{random:08x}", std::process::id()));
        let keeper = Arc::new(Keeper::new(kv, options.ttl, label));
        Ok(Self(Arc::new(Inner {
            kv: kv.clone(),
            options,
            keeper,
            watches: Mutex::default(),
            pulse: Mutex::default(),
        })))
    }

    /// The store that it is kept in.
    pub fn kv(&self) -> &KvHandle {
        &self.0.kv
    }

    /// The realm it is in.
    pub fn realm(&self) -> &Realm {
        &self.0.options.realm
    }

    /// Who this is, as shown to people.
    pub fn label(&self) -> &str {
        self.0.keeper.label()
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Directory({} in realm {})", self.0.kv.describe(), self.0.options.realm)
    }
}

struct Inner {
    kv: KvHandle,
    options: DirectoryOptions,
    keeper: Arc<Keeper>,
    watches: Mutex<HashMap<String, Weak<Service>>>,
    /// Shared by the watches, and gone with the last of them.
    pulse: Mutex<Weak<Pulse>>,
}
