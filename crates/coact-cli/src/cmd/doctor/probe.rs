//! What can only be found by trying: reads, writes, leases, watches. All that is written hangs on one lease, which is
//! revoked at the end, and ends by itself if this process dies before.

use std::time::Duration;

use coact::{
    Dir, Error, ErrorKind, Key, KvHandle, Realm, Result,
    kv::{Change, LeaseId, Scope},
};
use futures::StreamExt;

use super::{Finding, Report, in_time};

/// How often a read or a write is timed.
const SAMPLES: usize = 15;
/// Long enough for all that is tried, short enough that nobody meets what a killed doctor left.
const LEASE: Duration = Duration::from_secs(60);
/// A round trip beyond this makes waiting for locks unpleasant.
const SLOW: Duration = Duration::from_millis(250);

pub(super) async fn examine(kv: &KvHandle, realm: &Realm, report: &mut Report) {
    let key = match probe_key(kv, realm) {
        Ok(key) => key,
        Err(error) => return report.add(Finding::of_error("realm", &error, "choose another with --realm")),
    };
    let reads = in_time(timed(kv, async || kv.get(&key).await.map(drop))).await;
    report.add(round_trip("read", reads, "look at the network, and at what else the engine has to do"));

    match in_time(kv.lease_grant(LEASE)).await {
        Ok(lease) => examine_with(kv, &key, lease.id, report).await,
        // A token that may do anything at all may do this.
        Err(error) => report.add(Finding::failure("lease", &error, LEASES_MATTER)),
    }
}

/// What needs a lease to hang on.
async fn examine_with(kv: &KvHandle, key: &Key, lease: LeaseId, report: &mut Report) {
    let writes = in_time(timed(kv, async || kv.put(key, "doctor", Some(lease)).await.map(drop))).await;
    let is_written = writes.is_ok();
    let mut finding = round_trip("write", writes, "look at the disk: an acknowledged write waits for it");
    if is_written {
        finding.detail += &format!("; {}", kv.guarantees().writes);
    }
    report.add(finding);
    if is_written {
        report.add(match in_time(watch(kv, key, lease)).await {
            Ok(()) => Finding::ok("watch", "a write was seen"),
            Err(error) => Finding::of_error("watch", &error, "without watches a waiter only looks now and then"),
        });
    }
    report.add(match in_time(end(kv, lease)).await {
        Ok(()) => Finding::ok("lease", "granted, renewed and revoked"),
        Err(error) => Finding::failure("lease", &error, LEASES_MATTER),
    });
    if is_written {
        report.add(match in_time(kv.get(key)).await {
            Ok(None) => Finding::ok("end of a lease", "what hung on it is gone"),
            Ok(Some(_)) => Finding::failure("end of a lease", &still_there(key), LEASES_MATTER),
            Err(error) => Finding::of_error("end of a lease", &error, LEASES_MATTER),
        });
    }
}

const LEASES_MATTER: &str = "without leases nothing that the dead held is given back";

/// A name of this run's own, in a dir that is gone with its last entry.
fn probe_key(kv: &KvHandle, realm: &Realm) -> Result<Key> {
    Dir::new(realm, "doctor")?.key(&format!("{:016x}", kv.env().random()))
}

/// The median and the longest of some calls.
async fn timed(kv: &KvHandle, mut call: impl AsyncFnMut() -> Result<()>) -> Result<(Duration, Duration)> {
    let mut times = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        let began = kv.env().now();
        call().await?;
        times.push(kv.env().now() - began);
    }
    times.sort();
    Ok((times[SAMPLES / 2], times[SAMPLES - 1]))
}

fn round_trip(check: &'static str, timed: Result<(Duration, Duration)>, advice: &str) -> Finding {
    let (median, longest) = match timed {
        Ok(times) => times,
        Err(error) => return Finding::of_error(check, &error, advice),
    };
    let detail = format!("{median:.1?} in the median of {SAMPLES}, {longest:.1?} at most");
    if median <= SLOW {
        return Finding::ok(check, detail);
    }
    Finding::warn(check, format!("slow: {detail}"), advice)
}

/// Writes under a watch until the watch tells.
async fn watch(kv: &KvHandle, key: &Key, lease: LeaseId) -> Result<()> {
    let mut feed = kv.watch(Scope::Key(key.clone()), None).await?;
    let written = kv.put(key, "watched", Some(lease)).await?;
    while let Some(change) = feed.next().await {
        if matches!(change?, Change::Put(entry) if entry.modified >= written) {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "the watch ended before it told of a write"))
}

/// Renews the lease and revokes it in any case.
async fn end(kv: &KvHandle, lease: LeaseId) -> Result<()> {
    let renewed = kv.lease_renew(lease).await;
    kv.lease_revoke(lease).await?;
    renewed.map(drop)
}

fn still_there(key: &Key) -> Error {
    Error::new(ErrorKind::Internal, format!("{key} is there after its lease was revoked"))
}
