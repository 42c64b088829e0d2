//! What the server is, and so what it promises.

use std::time::Duration;

use coact_core::{
    Error, ErrorKind, Result,
    guarantees::{
        Consistency, Durability, Failover, Fence, Guarantees, Increment, Limits, OnPartition, WakeUp, WatchFrom,
    },
};

use crate::{
    config::Config,
    connection::Connections,
    errors::{Access, peer},
};

const VERSION_MIN: i32 = 13_00_00;
/// What the server says about itself. Standbys are counted, since only privileged roles see how they are doing.
const QUESTION: &str = "SELECT current_setting('server_version_num')::int AS version, \
    current_setting('server_version') AS version_text, \
    current_setting('server_encoding') AS encoding, \
    current_setting('fsync') = 'on' AS fsync, \
    current_setting('synchronous_commit') AS commit, \
    (extract(epoch FROM current_setting('wal_writer_delay')::interval) * 1000)::int AS delay, \
    current_setting('synchronous_standby_names') AS standbys, \
    current_setting('default_transaction_isolation') AS isolation, \
    pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS replica, \
    (SELECT count(*) FROM pg_stat_replication) AS followers";

/// The answer.
#[derive(Clone, Debug)]
struct Settings {
    fsync: bool,
    synchronous_commit: String,
    wal_writer_delay: Duration,
    synchronous_standbys: bool,
    /// Standbys and backups that read the log.
    followers: bool,
}

/// Asks the server; refuses one that cannot hold the contract.
pub(crate) async fn probe(connections: &Connections, wake: WakeUp) -> Result<Guarantees> {
    let rows = connections.query(Access::Read, QUESTION, &[]).await?;
    let config = &connections.config;
    let Some(row) = rows.first() else { return Err(crate::errors::malformed(config, "a question about itself")) };
    check_version(config, row.get("version"), row.get("version_text"))?;
    let unsupported = |message| Err(Error::new(ErrorKind::Unsupported, message));
    if row.get("replica") {
        let peer = peer(config);
        return unsupported(format!("{peer} takes no writes: it is a replica, or default_transaction_read_only is on"));
    }
    let encoding: &str = row.get("encoding");
    if !matches!(encoding, "UTF8" | "SQL_ASCII") {
        return unsupported(format!(
            "the database has encoding {encoding}, which lacks characters that names may have: use one with UTF8 (URL \
             option database=NAME)"
        ));
    }
    let isolation: &str = row.get("isolation");
    if isolation != "read committed" {
        let role = &config.user;
        return unsupported(format!(
            "default_transaction_isolation is {isolation}, with which transactions that wait for each other fail: as an \
             administrator run: ALTER ROLE \"{role}\" SET default_transaction_isolation = 'read committed'"
        ));
    }
    let settings = Settings {
        fsync: row.get("fsync"),
        synchronous_commit: row.get("commit"),
        wal_writer_delay: Duration::from_millis(row.get::<_, i32>("delay").unsigned_abs().into()),
        synchronous_standbys: !row.get::<_, &str>("standbys").trim().is_empty(),
        followers: row.get::<_, i64>("followers") > 0,
    };
    Ok(guarantees(&settings, wake))
}

/// Refuses a server that lacks what the schema needs.
fn check_version(config: &Config, version: i32, text: &str) -> Result<()> {
    if version >= VERSION_MIN {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, format!("{} is version {text}: at least 13 is needed", peer(config))))
}

fn guarantees(settings: &Settings, wake: WakeUp) -> Guarantees {
    let writes = if !settings.fsync {
        Durability::Os
    } else if settings.synchronous_commit == "off" {
        // The writer of the log is at most this far behind.
        Durability::Interval(settings.wal_writer_delay * 3)
    } else {
        Durability::Sync
    };
    let waits_for_standby = settings.synchronous_standbys
        && matches!(&*settings.synchronous_commit, "on" | "remote_apply" | "remote_write");
    // With nobody to fail over to, nothing is lost that way.
    let followed = settings.followers || settings.synchronous_standbys;
    let loses = !waits_for_standby && followed;
    Guarantees {
        reads: Consistency::Linearizable,
        writes,
        // A primary that was replaced while it was cut off answers reads until it learns of it.
        on_partition: if followed { OnPartition::ServesStale } else { OnPartition::SingleNode },
        failover: if loses { Failover::MayLoseWrites } else { Failover::KeepsWrites },
        // Tokens are revisions: where commits are lost, so are they, and are given again.
        fence: if loses || writes < Durability::Sync { Fence::PerProcess } else { Fence::Strong },
        watch: WatchFrom::Revision,
        wake,
        increment: Increment::Native,
        limits: Limits::PORTABLE,
    }
}

#[cfg(test)]
mod tests {
    use coact_core::url::Url;

    use super::*;

    fn declared(change: impl FnOnce(&mut Settings)) -> (Durability, Failover, Fence) {
        let mut settings = Settings {
            fsync: true,
            synchronous_commit: "on".to_owned(),
            wal_writer_delay: Duration::from_millis(200),
            synchronous_standbys: false,
            followers: false,
        };
        change(&mut settings);
        let Guarantees { writes, failover, fence, .. } = guarantees(&settings, WakeUp::Told);
        (writes, failover, fence)
    }

    #[test]
    fn guarantees_follow_the_settings() {
        let alone = (Durability::Sync, Failover::KeepsWrites, Fence::Strong);
        assert_eq!(declared(|_| {}), alone);
        assert_eq!(declared(|it| it.synchronous_commit = "local".to_owned()), alone);
        assert_eq!(declared(|it| it.fsync = false), (Durability::Os, Failover::KeepsWrites, Fence::PerProcess));
        let interval = Durability::Interval(Duration::from_millis(600));
        let off = |it: &mut Settings| it.synchronous_commit = "off".to_owned();
        assert_eq!(declared(off), (interval, Failover::KeepsWrites, Fence::PerProcess));
        let losing = (Durability::Sync, Failover::MayLoseWrites, Fence::PerProcess);
        assert_eq!(declared(|it| it.followers = true), losing);
        let waiting = |it: &mut Settings| (it.followers, it.synchronous_standbys) = (true, true);
        assert_eq!(declared(waiting), alone);
        let local = |it: &mut Settings| {
            waiting(it);
            it.synchronous_commit = "local".to_owned();
        };
        assert_eq!(declared(local), losing);
    }

    #[test]
    fn an_old_server_is_refused() {
        let config = Config::from_url(&Url::parse("postgres://u@h").expect("a URL")).expect("valid");
        check_version(&config, 13_00_00, "13.0").expect("new enough");
        let error = check_version(&config, 12_00_22, "12.22").expect_err("too old");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "PostgreSQL at h:5432 is version 12.22: at least 13 is needed");
    }
}
