//! What hangs: waiters that wait for too long, holders whose lease is over or who never had one.

use std::time::Duration;

use coact::{
    KvHandle, Realm, Result,
    lock::{Contender, Inspection, Kind, inspect},
};

use super::{Finding, Report};
use crate::cmd::lock::kind_name;

/// Who waits longer than this probably waits for somebody who forgot.
const LONG: Duration = Duration::from_secs(3600);
const LOCKS_MAX: usize = 1_000;
/// How many are named.
const NAMED_MAX: usize = 5;

pub(super) async fn examine(kv: &KvHandle, realm: &Realm, report: &mut Report) {
    let locks = match read(kv, realm).await {
        Ok(locks) => locks,
        Err(error) => return report.add(Finding::of_error("locks", &error, "the entries of locks could not be read")),
    };
    let now_ms = kv.env().wall_ms();
    report.add(long_waits(&locks, now_ms));
    report.add(without_lease(&locks));
}

async fn read(kv: &KvHandle, realm: &Realm) -> Result<Vec<Inspection>> {
    let mut locks = Vec::new();
    for kind in [Kind::Lock, Kind::RwLock, Kind::Semaphore, Kind::Election] {
        locks.extend(inspect(kv, realm, kind, "", LOCKS_MAX).await?);
    }
    Ok(locks)
}

fn long_waits(locks: &[Inspection], now_ms: u64) -> Finding {
    // Candidates of an election wait for as long as their leader is well.
    let queues = locks.iter().filter(|lock| lock.kind != Kind::Election);
    let waits = |lock: &Inspection| {
        let oldest = lock.waiters.iter().map(|waiter| age(waiter, now_ms)).max().filter(|age| *age > LONG)?;
        let holder = lock.holders.first().map_or("nobody", |holder| holder.label.as_str());
        let (kind, name) = (kind_name(lock.kind), &lock.name);
        Some(format!("{kind} {name}: held by {holder}, waited for since {} min", oldest.as_secs() / 60))
    };
    let found: Vec<String> = queues.filter_map(waits).collect();
    let advice = "look at the holders; `coact lock ls` shows them with their tokens";
    finding("long waits", found, &format!("nobody waits longer than {} min", LONG.as_secs() / 60), advice)
}

/// By the waiter's own clock, which may be wrong.
fn age(contender: &Contender, now_ms: u64) -> Duration {
    Duration::from_millis(now_ms.saturating_sub(contender.since_ms))
}

fn without_lease(locks: &[Inspection]) -> Finding {
    let orphans = |lock: &Inspection| {
        let orphan = lock.holders.iter().chain(&lock.waiters).find(|one| one.lease_left_ms.is_none())?;
        Some(format!("{} {}: {} (token {})", kind_name(lock.kind), lock.name, orphan.label, orphan.token))
    };
    let found: Vec<String> = locks.iter().filter_map(orphans).collect();
    let advice = "if they stay when you look again, nothing ends them: delete their entries with `coact kv del`";
    finding("entries without a lease", found, "every holder and waiter hangs on a live lease", advice)
}

fn finding(check: &'static str, found: Vec<String>, good: &str, advice: &str) -> Finding {
    if found.is_empty() {
        return Finding::ok(check, good);
    }
    let more = found.len().saturating_sub(NAMED_MAX);
    let mut detail = found[..found.len() - more].join("; ");
    if more > 0 {
        detail += &format!("; and {more} more");
    }
    Finding::warn(check, detail, advice)
}

#[cfg(test)]
mod tests {
    use coact::lock::TicketKind;

    use super::{super::Status, *};

    const NOW_MS: u64 = 10_000_000;

    fn contender(label: &str, age: Duration) -> Contender {
        Contender {
            label: label.to_owned(),
            pid: None,
            token: 7,
            since_ms: NOW_MS - age.as_millis() as u64,
            kind: TicketKind::Mutex,
            value: None,
            lease_left_ms: Some(1),
        }
    }

    fn lock(kind: Kind, waited: Duration) -> Inspection {
        let (holders, waiters) = (vec![contender("holder", waited)], vec![contender("waiter", waited)]);
        Inspection { kind, name: "x".to_owned(), permits: None, holders, waiters }
    }

    #[test]
    fn who_waits_for_too_long_is_named_with_whom_it_waits_for() {
        let long = LONG + Duration::from_secs(60);
        let found = long_waits(&[lock(Kind::Lock, long)], NOW_MS);
        assert_eq!(
            (found.status, found.detail.as_str()),
            (Status::Warn, "lock x: held by holder, waited for since 61 min")
        );
        for fine in [lock(Kind::Lock, LONG), lock(Kind::Election, long)] {
            assert_eq!(long_waits(&[fine], NOW_MS).status, Status::Ok);
        }
    }

    #[test]
    fn entries_that_nothing_ends_are_named_and_counted() {
        let mut orphan = lock(Kind::Semaphore, LONG);
        assert_eq!(without_lease(std::slice::from_ref(&orphan)).status, Status::Ok);
        orphan.waiters[0].lease_left_ms = None;
        let found = without_lease(&vec![orphan; NAMED_MAX + 2]);
        assert_eq!(found.status, Status::Warn);
        assert!(found.detail.starts_with("sem x: waiter (token 7); sem x"), "{}", found.detail);
        assert!(found.detail.ends_with("; and 2 more"), "{}", found.detail);
    }
}
