//! Processes that are killed, power that is cut, syncs that fail: what was synced, or shown after a recovery, stays.

use std::{
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use coact_testkit::sim::{self, Random};

use super::{
    super::{PREPARED, SnapshotWriter},
    SEGMENT, directory, expected,
    machine::{Change, Machine, on_real_disk},
    open, open_in, payload, read_snapshot_in,
};
use crate::log::{Log, Result};

const DIR: &str = "/log";
const BATCHES: u64 = 14;

/// What a process knows for certain: the newest batch that was synced.
#[derive(Clone, Copy, Debug, Default)]
struct Synced(u64);

/// Writes batches over a few segments, one of them larger than a segment; takes a snapshot, and drops what it has.
fn work(env: &coact_core::env::Env, synced: &mut Synced) -> Result<()> {
    let dir = Path::new(DIR);
    let after = read_snapshot_in(env, dir)?.map_or(0, |(sequence, _)| sequence);
    let (mut log, _) = open_in(env, dir, after)?;
    while log.last_sequence() < BATCHES {
        let sequence = log.append(&large_or_small(log.last_sequence() + 1))?;
        log.sync()?;
        synced.0 = sequence;
        if sequence == 9 {
            let mut snapshot = SnapshotWriter::create(env, dir, sequence)?;
            snapshot.write_block(b"state")?;
            snapshot.finish()?;
            log.drop_through(sequence, &[])?;
        }
    }
    Ok(())
}

fn large_or_small(sequence: u64) -> Vec<u8> {
    if sequence == 7 { vec![7; 2 * SEGMENT as usize] } else { payload(sequence) }
}

/// Opens the log after the newest snapshot and checks that nothing is missing in between; returns it.
fn reopen(env: &coact_core::env::Env, synced: Synced, context: &str) -> Log {
    let dir = Path::new(DIR);
    let snapshot = read_snapshot_in(env, dir).unwrap_or_else(|error| panic!("{context}: {error}"));
    let after = snapshot.map_or(0, |(sequence, _)| sequence);
    let (log, batches) = open_in(env, dir, after).unwrap_or_else(|error| panic!("{context}: {error}"));
    let last = log.last_sequence();
    assert!(last >= synced.0, "{context}: the log ends at {last}, {} was synced", synced.0);
    let all: Vec<_> = (after + 1..=last).map(|sequence| (sequence, large_or_small(sequence).into())).collect();
    assert_eq!(batches, all, "{context}");
    log
}

/// Killed at every change of the disk; the process after it goes on with what the first one left in the page cache; then
/// the power is cut.
#[test]
fn a_kill_at_any_step_and_then_a_power_cut_lose_nothing_synced() {
    let mut finished = false;
    let mut n = 1;
    while !finished {
        sim::run(n, |world| {
            let machine = Machine::new(world);
            let mut synced = Synced::default();
            finished = work(&machine.process_killed_at(n), &mut synced).is_ok();
            let context = format!("killed at change {n}");
            let mut log = reopen(&machine.process(), synced, &context);
            let next = log.append(&large_or_small(log.last_sequence() + 1)).expect("written");
            log.sync().expect("synced");
            drop(log);
            machine.cut_power();
            let context = format!("{context}, then the power cut");
            drop(reopen(&machine.process(), Synced(next), &context));
            async {}
        });
        n += 1;
    }
    assert!(n > 60, "only {n} changes");
}

/// As above, but the process that recovers is killed as well, at every change of its own.
#[test]
fn a_kill_during_recovery_loses_nothing_synced() {
    for seed in 0..40 {
        for n in 1..8 {
            sim::run(seed, |world| {
                let machine = Machine::new(world);
                let mut synced = Synced::default();
                // The power goes in the middle of a batch.
                machine.world().disk("node").crash_after_ops(20 + seed * 2);
                let _ = work(&machine.process(), &mut synced);
                machine.cut_power();
                let _ = open_in(&machine.process_killed_at(n), Path::new(DIR), 0);
                machine.cut_power();
                drop(reopen(&machine.process(), synced, &format!("recovery killed at change {n}")));
                async {}
            });
        }
    }
}

/// Syncs only now and then: the power cut tears several batches, in any order of their sectors.
#[test]
fn a_power_cut_tears_only_what_was_not_synced() {
    let mut lost = 0;
    for seed in sim::seeds(150) {
        sim::run(seed, |world| {
            let machine = Machine::new(world);
            let mut random = Random::new(seed, "log");
            let mut synced = Synced::default();
            for life in 0..4 {
                let mut log = reopen(&machine.process(), synced, &format!("life {life}"));
                synced = Synced(log.last_sequence());
                machine.world().disk("node").crash_after_ops(1 + random.below(40));
                while let Ok(sequence) = log.append(&large_or_small(log.last_sequence() + 1)) {
                    if random.one_in(4) && log.sync().is_ok() {
                        synced = Synced(sequence);
                    }
                }
                lost += log.last_sequence() - synced.0;
                drop(log);
                machine.cut_power();
            }
            drop(reopen(&machine.process(), synced, "the last life"));
            async {}
        });
    }
    assert!(lost > 50, "only {lost} batches were at risk");
}

/// After a failed sync the system shows what is on no disk, and takes it for written (fsyncgate).
#[test]
fn what_is_shown_after_a_failed_sync_survives_a_power_cut() {
    sim::run(1, |world| {
        let machine = Machine::new(world);
        let (mut log, _) = open_in(&machine.process(), Path::new(DIR), 0).expect("it opens");
        log.append(&payload(1)).expect("written");
        log.sync().expect("synced");
        drop(log);
        // The file's own first sync is that of the recovery: it must be another process's that fails.
        let fail = Arc::new(Mutex::new(false));
        let armed = fail.clone();
        let env = machine.process_with(Arc::new(move |change, _| match change {
            Change::Sync if *armed.lock().expect("a lock") => Err(std::io::Error::other("EIO")),
            _ => Ok(()),
        }));
        let (mut log, _) = open_in(&env, Path::new(DIR), 0).expect("it opens");
        for sequence in 2..4 {
            log.append(&payload(sequence)).expect("written");
        }
        *fail.lock().expect("a lock") = true;
        log.sync().expect_err("the disk fails");
        drop(log);
        let log = reopen(&machine.process(), Synced(1), "after the failed sync");
        let shown = Synced(log.last_sequence());
        assert_eq!(shown.0, 3, "the page cache has them");
        drop(log);
        machine.cut_power();
        drop(reopen(&machine.process(), shown, "after the power cut"));
        async {}
    });
}

#[test]
fn a_finished_snapshot_survives_a_power_cut() {
    sim::run(1, |world| {
        let machine = Machine::new(world);
        for sequence in 1..20 {
            let env = machine.process();
            SnapshotWriter::create(&env, Path::new(DIR), sequence).expect("it begins").finish().expect("finished");
            machine.cut_power();
            let found = read_snapshot_in(&machine.process(), Path::new(DIR)).expect("valid").expect("a snapshot");
            assert_eq!(found.0, sequence);
        }
        async {}
    });
}

#[test]
fn a_recovery_that_cannot_sync_is_refused() {
    sim::run(1, |world| {
        let machine = Machine::new(world);
        let (mut log, _) = open_in(&machine.process(), Path::new(DIR), 0).expect("it opens");
        log.append(&payload(1)).expect("written");
        log.sync().expect("synced");
        drop(log);
        let error = open_in(&machine.process_with_failing_sync(), Path::new(DIR), 0).err().expect("refused");
        assert_eq!(error.kind(), coact_core::ErrorKind::Unavailable, "{error}");
        async {}
    });
}

/// The thread that fills the next segment with zeros is slow, and a batch needs a larger one right now.
#[test]
fn a_large_batch_is_safe_from_the_thread_that_prepares_a_segment() {
    let place = directory();
    let (_gate, closed) = mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let env = on_real_disk(Arc::new(move |change, path| {
        let background = std::thread::current().name() == Some("coact-segment");
        if background && change == Change::Write && path.ends_with(PREPARED) {
            let _ = closed.lock().expect("a lock").recv_timeout(Duration::from_millis(100));
        }
        Ok(())
    }));
    let (mut log, _) = open_in(&env, place.path(), 0).expect("it opens");
    let large = vec![7; 3 * SEGMENT as usize];
    log.append(&large).expect("written");
    log.append(b"small").expect("written");
    log.sync().expect("synced");
    drop(log);
    let (_, batches) = open(place.path(), 0).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(batches, [(1, large.into()), (2, bytes::Bytes::from_static(b"small"))]);
}

/// Preparing fails on a full disk; by the time that the segment is needed, there is room again.
#[test]
fn a_preparation_that_failed_is_made_up_for() {
    sim::run(1, |world| {
        let machine = Machine::new(world);
        let disk = machine.world().disk("node");
        drop(open_in(&machine.process(), Path::new(DIR), 0).expect("it opens"));
        disk.set_full(true);
        let (mut log, _) = open_in(&machine.process(), Path::new(DIR), 0).expect("it opens");
        disk.set_full(false);
        for sequence in 1..=BATCHES {
            assert_eq!(log.append(&payload(sequence)).expect("there is room"), sequence);
        }
        log.sync().expect("synced");
        disk.set_full(true);
        let error = std::iter::repeat_with(|| log.append(&[1; 1000])).find_map(Result::err).expect("no room any more");
        assert_eq!(error.kind(), coact_core::ErrorKind::Exhausted, "{error}");
        drop(log);
        let (_, batches) = open_in(&machine.process(), Path::new(DIR), 0).expect("it opens");
        assert_eq!(batches[..BATCHES as usize], expected(BATCHES));
        async {}
    });
}
