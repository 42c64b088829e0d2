//! What can only be found by trying: reads, writes, leases, watches. All that is written hangs on one lease, which is
//! revoked at the end, and ends by itself if this process dies before.

use std::time::Duration;

use coact::{
    Dir, Error, ErrorKind, Key, KvHandle, Realm, Result,
    kv::{Change, LeaseId, Scope},
};
use futures::StreamExt;

use super::{Finding, PATIENCE, Report, Status};

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
    let reads = in_time(kv, timed(kv, async || kv.get(&key).await.map(drop))).await;
    report.add(round_trip("read", reads, "look at the network, and at what else the engine has to do"));

    let lease = match in_time(kv, kv.lease_grant(LEASE)).await {
        Ok(lease) => lease.id,
        Err(error) => {
            return report.add(Finding::of_error("lease", &error, "without leases nothing is ever given back"));
        }
    };
    let writes = in_time(kv, timed(kv, async || kv.put(&key, "doctor", Some(lease)).await.map(drop))).await;
    let may_write = !matches!(&writes, Err(error) if error.kind() == ErrorKind::Denied);
    report.add(match writes {
        Err(error) if !may_write => denied(&error),
        writes => {
            let mut finding = round_trip("write", writes, "look at the disk: an acknowledged write waits for it");
            if finding.status != Status::Fail {
                finding.detail += &format!("; {}", kv.guarantees().writes);
            }
            finding
        }
    });
    if may_write {
        let seen = in_time(kv, watch(kv, &key, lease)).await;
        report.add(match seen {
            Ok(()) => Finding::ok("watch", "a write was seen"),
            Err(error) => Finding::of_error("watch", &error, "without watches a waiter only looks now and then"),
        });
    }
    report.add(match in_time(kv, ends(kv, &key, lease)).await {
        Ok(()) => Finding::ok("lease", "granted, renewed and revoked, and what hung on it is gone"),
        Err(error) => Finding::of_error("lease", &error, "without leases nothing is ever given back"),
    });
}

/// A name of this run's own, in a dir that is gone with its last entry.
fn probe_key(kv: &KvHandle, realm: &Realm) -> Result<Key> {
    Dir::new(realm, "doctor")?.key(&format!("{:016x}", kv.env().random()))
}

async fn in_time<T>(kv: &KvHandle, work: impl Future<Output = Result<T>>) -> Result<T> {
    kv.env()
        .timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE:?}"))))
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
    Finding { check, status: Status::Warn, detail: format!("slow: {detail}"), advice: Some(advice.to_owned()) }
}

fn denied(error: &Error) -> Finding {
    Finding {
        check: "write",
        status: Status::Warn,
        detail: format!("not checked, nor are watches: {error}"),
        advice: Some("to check them, use a token that may write to the dir `doctor`".to_owned()),
    }
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

/// Renews and revokes the lease, and sees that what hung on it is gone.
async fn ends(kv: &KvHandle, key: &Key, lease: LeaseId) -> Result<()> {
    let renewed = kv.lease_renew(lease).await;
    kv.lease_revoke(lease).await?;
    renewed?;
    match kv.get(key).await? {
        None => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Internal, format!("{key} is there after its lease was revoked"))),
    }
}
