//! What a server says about itself, and so what it promises.

use std::{collections::HashMap, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    guarantees::{
        Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp, WatchFrom,
    },
};

/// The oldest version that has all that the scripts use.
const OLDEST: (u32, u32) = (6, 2);
/// Redis syncs every second, and lets a sync that is late hold up nothing for one more.
const EVERYSEC: Duration = Duration::from_secs(2);

/// What `INFO` answers.
#[derive(Clone, Debug)]
pub(crate) struct Info(HashMap<String, String>);

impl Info {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim().split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// This run of this server in this line of replication: whenever it is another, writes may have been lost.
    pub(crate) fn server(&self) -> String {
        format!("{}:{}", self.get("run_id"), self.get("master_replid"))
    }

    pub(crate) fn is_sentinel(&self) -> bool {
        self.get("redis_mode") == "sentinel"
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.get("cluster_enabled") == "1"
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.get("role") == "master"
    }

    /// Refuses a server that the engine cannot work on.
    pub(crate) fn check(&self) -> Result<()> {
        let version = self.get("redis_version");
        let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
        if let (Some(major), Some(minor)) = (numbers.next(), numbers.next())
            && (major, minor) < OLDEST
        {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the server is Redis {version}: {}.{} or newer is needed", OLDEST.0, OLDEST.1),
            ));
        }
        let policy = self.get("maxmemory_policy");
        if policy.starts_with("allkeys") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the server may evict what it acknowledged (maxmemory-policy {policy}): set noeviction"),
            ));
        }
        Ok(())
    }
}

/// What the server promises; `appendfsync` is `None` if we may not ask for it.
pub(crate) fn guarantees(info: &Info, appendfsync: Option<&str>, sentinel: bool) -> Guarantees {
    let writes = match (info.get("aof_enabled"), appendfsync) {
        ("1", Some("always")) => Durability::Sync,
        ("1", Some("everysec")) => Durability::Interval(EVERYSEC),
        // It may be `no`: nobody says when.
        ("1", _) => Durability::Os,
        _ => Durability::Memory,
    };
    let replicated = sentinel || info.is_cluster() || !matches!(info.get("connected_slaves"), "" | "0");
    let fence = match writes {
        Durability::Memory => Fence::PerProcess,
        Durability::Sync if !replicated => Fence::Strong,
        _ => Fence::Epoch,
    };
    Guarantees {
        reads: Consistency::Linearizable,
        writes,
        on_partition: if replicated { OnPartition::MayDiverge } else { OnPartition::SingleNode },
        failover: if replicated { Failover::MayLoseWrites } else { Failover::KeepsWrites },
        fence,
        watch: WatchFrom::Revision,
        wake: WakeUp::Told,
        increment: Increment::Native,
        limits: Limits::PORTABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> Info {
        Info::parse(&text.replace(' ', "\r\n"))
    }

    #[test]
    fn durability_is_what_the_append_only_file_gives() {
        let writes = |text: &str, fsync| guarantees(&info(text), fsync, false).writes;
        assert_eq!(writes("aof_enabled:1", Some("always")), Durability::Sync);
        assert_eq!(writes("aof_enabled:1", Some("everysec")), Durability::Interval(EVERYSEC));
        assert_eq!(writes("aof_enabled:1", Some("no")), Durability::Os);
        assert_eq!(writes("aof_enabled:1", None), Durability::Os);
        assert_eq!(writes("aof_enabled:0", Some("always")), Durability::Memory);
    }

    #[test]
    fn whoever_has_replicas_may_lose_writes() {
        let of = |text: &str, sentinel| guarantees(&info(text), Some("always"), sentinel);
        let alone = of("aof_enabled:1 connected_slaves:0 cluster_enabled:0", false);
        assert_eq!((alone.failover, alone.fence), (Failover::KeepsWrites, Fence::Strong));
        for (text, sentinel) in [
            ("aof_enabled:1 connected_slaves:1", false),
            ("aof_enabled:1 cluster_enabled:1", false),
            ("aof_enabled:1", true),
        ] {
            let weak = of(text, sentinel);
            assert_eq!((weak.failover, weak.fence), (Failover::MayLoseWrites, Fence::Epoch), "{text}");
            assert_eq!(weak.on_partition, OnPartition::MayDiverge, "{text}");
        }
    }

    #[test]
    fn refuses_old_servers_and_those_that_evict() {
        info("redis_version:6.2.0 maxmemory_policy:noeviction").check().expect("new enough");
        info("redis_version:8.0.1 maxmemory_policy:volatile-lru").check().expect("our keys have no TTL");
        let old = info("redis_version:6.0.16").check().expect_err("old").to_string();
        assert_eq!(old, "the server is Redis 6.0.16: 6.2 or newer is needed");
        let evicts = info("redis_version:7.0.0 maxmemory_policy:allkeys-lru").check().expect_err("evicts").to_string();
        assert!(evicts.contains("maxmemory-policy allkeys-lru"), "{evicts}");
    }
}
