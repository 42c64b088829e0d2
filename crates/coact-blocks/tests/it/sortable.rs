//! ULIDs and UUIDs of version 7: their text, their time, and that they grow whatever the clock does.

use std::sync::Arc;

use coact_blocks::id::{Ulid, UlidGenerator, Uuid7, Uuid7Generator};
use coact_core::{
    ErrorKind,
    env::{Disk, Env, PlantedBug, RealDisk, Source},
};
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::{
    model::Model,
    world::{Process, pass},
};

#[tokio::test(start_paused = true)]
async fn they_grow_though_the_clock_steps_back_and_follow_it_forwards() {
    let process = Process::start(&Model::new(), 1);
    let (ulids, uuids) = (UlidGenerator::new(process.env()), Uuid7Generator::new(process.env()));
    let (mut last_ulid, mut last_uuid) = (ulids.next(), uuids.next());
    for step in [0, -3_600_000, 3_600_000, 7_200_000, -1] {
        process.step_wall(step);
        let wall = process.env().wall_ms();
        for _ in 0..1_000 {
            let (ulid, uuid) = (ulids.next(), uuids.next());
            assert!(ulid > last_ulid && ulid.to_string() > last_ulid.to_string(), "after a step of {step} ms");
            assert!(uuid > last_uuid && uuid.to_string() > last_uuid.to_string(), "after a step of {step} ms");
            (last_ulid, last_uuid) = (ulid, uuid);
        }
        if step > 0 {
            assert!(last_ulid.timestamp_ms() >= wall && last_uuid.timestamp_ms() >= wall);
        }
        pass(0.01).await;
    }
    assert!(last_ulid.timestamp_ms().abs_diff(process.env().wall_ms()) < 1_000);
}

/// A clock that stands still, and randomness that is all ones: the first increment overflows.
struct Ones(Mutex<u64>);

impl Source for Ones {
    fn wall_ms(&self) -> u64 {
        *self.0.lock()
    }
    fn random(&self) -> u64 {
        u64::MAX
    }
    fn spawn(&self, _task: BoxFuture<'static, ()>) {}
    fn spawn_thread(
        &self,
        _name: &str,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<Option<Box<dyn FnOnce() + Send>>> {
        Ok(Some(work))
    }
    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk)
    }
    fn planted(&self, _bug: PlantedBug) -> bool {
        false
    }
}

#[test]
fn a_random_part_that_is_used_up_begins_the_next_millisecond() {
    let env = Env::new(Ones(Mutex::new(1_000)));
    let (ulids, uuids) = (UlidGenerator::new(&env), Uuid7Generator::new(&env));
    for ms in 1_000..1_005 {
        let (ulid, uuid) = (ulids.next(), uuids.next());
        assert_eq!((ulid.timestamp_ms(), ulid.random()), (ms, (1 << 80) - 1));
        assert_eq!((uuid.timestamp_ms(), uuid.random()), (ms, (1 << 74) - 1));
    }
}

#[test]
fn they_are_read_back_from_text() {
    // The examples of the ULID specification and of RFC 9562, appendix A.6.
    let ulid: Ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("valid");
    assert_eq!((ulid.timestamp_ms(), ulid.to_string().as_str()), (1_469_922_850_259, "01ARZ3NDEKTSV4RRFFQ69G5FAV"));
    assert_eq!("01arz3ndektsv4rrffq69g5fav".parse::<Ulid>().expect("lower case"), ulid);
    let uuid: Uuid7 = "017F22E2-79B0-7CC3-98C4-DC0C0C07398F".parse().expect("valid");
    assert_eq!(uuid.timestamp_ms(), 0x017F_22E2_79B0);
    assert_eq!(uuid.random(), 0xcc3 << 62 | 0x18C4_DC0C_0C07_398F);
    assert_eq!(uuid.to_string(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    assert_eq!(Uuid7::new(uuid.get()).expect("valid"), uuid);
    assert_eq!(Ulid::new(ulid.get()), ulid);
    assert_eq!(serde_json::to_string(&ulid).expect("serializes"), "\"01ARZ3NDEKTSV4RRFFQ69G5FAV\"");
    assert_eq!(serde_json::from_str::<Uuid7>(&format!("\"{uuid}\"")).expect("parses"), uuid);
    let long = "8ZZZZZZZZZZZZZZZZZZZZZZZZZ";
    for text in ["", "01ARZ3NDEKTSV4RRFFQ69G5FA", "01ARZ3NDEKTSV4RRFFQ69G5FAU", "01ARZ3NDEKTSV4RRFFQ69G5FAé", long] {
        let error = text.parse::<Ulid>().expect_err("no ULID");
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("use 26 characters"), "{error}");
    }
    let error = "017f22e2-79b0-4cc3-98c4-dc0c0c07398f".parse::<Uuid7>().expect_err("version 4").to_string();
    assert_eq!(error, "017f22e2-79b0-4cc3-98c4-dc0c0c07398f is no UUID of version 7: it has no time to sort by");
    assert!("017f22e2".parse::<Uuid7>().expect_err("short").to_string().contains("8-4-4-4-12"));
}

#[test]
fn threads_share_a_generator() {
    let ulids = UlidGenerator::new(&Env::real());
    let mut all: Vec<Ulid> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..5_000).map(|_| ulids.next()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 20_000);
}
