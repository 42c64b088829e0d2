//! The state machine against a model: a list of every version that ever was.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    body::Bodies,
    flat::{
        Answer, Compare, DeleteRequest, KeyRange, Op, PutRequest, RangeRequest, Relation, Sort, SortBy, Target,
        TxnRequest,
    },
    frame::{BatchEncoder, decode_batch},
};

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, value: u8 },
    PutIfAbsent { key: u8, value: u8 },
    Delete { from: u8, to: u8 },
    Compact { back: u64 },
    Publish,
    Replay,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..12u8, any::<u8>()).prop_map(|(key, value)| Step::Put { key, value }),
        2 => (0..12u8, any::<u8>()).prop_map(|(key, value)| Step::PutIfAbsent { key, value }),
        3 => (0..12u8, 0..4u8).prop_map(|(from, more)| Step::Delete { from, to: from + more }),
        1 => (0..6u64).prop_map(|back| Step::Compact { back }),
        2 => Just(Step::Publish),
        1 => Just(Step::Replay),
    ]
}

fn key(index: u8) -> Bytes {
    // Three parents, and keys without one.
    Bytes::from(format!("{}{index:02}", ["", "a/", "a//", "b/"][usize::from(index % 4)]))
}

/// What the state must say: for each key, (revision, created, version, value) of every version; version 0 is a deletion.
#[derive(Default)]
struct Model {
    versions: BTreeMap<Bytes, Vec<(u64, u64, u64, u8)>>,
}

impl Model {
    fn at(&self, key: &Bytes, revision: u64) -> Option<(u64, u64, u64, u8)> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|version| version.0 <= revision).copied().filter(|version| version.2 > 0)
    }

    fn put(&mut self, key: Bytes, value: u8, revision: u64) {
        let before = self.at(&key, u64::MAX);
        let (created, version) = before.map_or((revision, 1), |(_, created, version, _)| (created, version + 1));
        self.versions.entry(key).or_default().push((revision, created, version, value));
    }

    fn range(&self, keys: &KeyRange, revision: u64) -> Vec<(Bytes, (u64, u64, u64, u8))> {
        let inside = self.versions.keys().filter(|key| keys.contains(key));
        inside.filter_map(|key| Some((key.clone(), self.at(key, revision)?))).collect()
    }
}

struct Harness {
    state: State,
    model: Model,
    log: Vec<Vec<u8>>,
}

impl Harness {
    fn run(&mut self, request: TxnRequest) -> crate::flat::TxnResponse {
        let mut frame = BatchEncoder::default();
        let response = Transaction::new(&mut self.state, &mut frame, 1).run(&request).expect("valid");
        self.log.push(frame.batch().to_vec());
        response
    }

    fn apply(&mut self, step: &Step) {
        let next = self.state.applied() + 1;
        match step {
            Step::Put { key: index, value } => {
                self.run(one(Op::Put(put(*index, *value))));
                self.model.put(key(*index), *value, next);
            }
            Step::PutIfAbsent { key: index, value } => {
                let compare =
                    Compare { keys: KeyRange::one(key(*index)), relation: Relation::Equal, target: Target::Created(0) };
                let request = TxnRequest { compare: vec![compare], ..one(Op::Put(put(*index, *value))) };
                let absent = self.model.at(&key(*index), u64::MAX).is_none();
                assert_eq!(self.run(request).failed.is_none(), absent);
                if absent {
                    self.model.put(key(*index), *value, next);
                }
            }
            Step::Delete { from, to } => {
                let keys = KeyRange { start: key(*from), end: key(*to) };
                let keys = if from == to { KeyRange::one(key(*from)) } else { keys };
                let doomed = self.model.range(&keys, u64::MAX);
                let response = self.run(one(Op::Delete(DeleteRequest { keys, previous: false })));
                let Answer::Delete { deleted, .. } = response.answers[0] else { panic!("a deletion answers") };
                assert_eq!(deleted, doomed.len() as u64);
                for (key, _) in doomed {
                    self.model.versions.entry(key).or_default().push((next, 0, 0, 0));
                }
            }
            Step::Compact { back } => {
                let revision = self.state.visible().saturating_sub(*back);
                if self.state.check_compact(revision).is_ok() {
                    let mut frame = BatchEncoder::default();
                    self.state.compact(revision);
                    frame.compact(revision);
                    frame.finish_frame(1, 0);
                    self.log.push(frame.batch().to_vec());
                }
            }
            Step::Publish => {
                self.state.publish();
            }
            Step::Replay => self.replay(),
        }
    }

    /// What a restart would do: everything was synced, and is folded from the log again.
    fn replay(&mut self) {
        let mut state = State::new(false);
        let now = coact_core::env::Env::real().now();
        for (sequence, batch) in self.log.iter().enumerate() {
            for frame in decode_batch(sequence as u64, 0, Bytes::copy_from_slice(batch)).expect("valid") {
                state.replay(frame, &mut Messages::new(Arc::new(Bodies::new(None))), now).expect("consistent");
            }
        }
        assert_eq!(
            (state.applied(), state.compacted(), state.live()),
            (self.state.applied(), self.state.compacted(), self.state.live())
        );
        self.state = state;
    }

    fn check(&self) {
        let visible = self.state.visible();
        for revision in self.state.compacted().max(1)..=visible {
            for keys in ranges() {
                self.check_range(&keys, revision);
            }
        }
        self.check_order(visible);
    }

    fn check_range(&self, keys: &KeyRange, revision: u64) {
        let request = RangeRequest { keys: keys.clone(), revision, ..RangeRequest::default() };
        let (response, _) = self.state.range(&request).expect("in the history");
        let found: Vec<_> = response
            .records
            .iter()
            .map(|record| {
                let key = Bytes::copy_from_slice(&record.key);
                (key, (record.modified, record.created, record.version, record.value[0]))
            })
            .collect();
        assert_eq!(found, self.model.range(keys, revision), "{keys:?} at {revision}");
    }

    /// By creation, through the index and without it, for readers and for the writer.
    fn check_order(&self, visible: u64) {
        for keys in ranges() {
            for descending in [false, true] {
                for limit in [0, 1, 2] {
                    let sort = Sort { by: SortBy::Created, descending };
                    let slow = RangeRequest { keys: keys.clone(), sort, limit, ..RangeRequest::default() };
                    let fast = RangeRequest { skip_count: true, ..slow.clone() };
                    for revision in [visible, range::WORKING] {
                        let (slow, fast) = (self.state.range_at(&slow, revision), self.state.range_at(&fast, revision));
                        let names = |response: crate::flat::RangeResponse| {
                            let mut names: Vec<_> =
                                response.records.iter().map(|record| (record.created, record.key.clone())).collect();
                            if limit == 0 {
                                names.sort();
                            }
                            (names.len(), names.first().map(|name| name.0), response.more)
                        };
                        assert_eq!(names(slow), names(fast), "{keys:?} descending {descending} limit {limit}");
                    }
                }
            }
            let count = RangeRequest { keys: keys.clone(), count_only: true, ..RangeRequest::default() };
            let expected = self.model.range(&keys, u64::MAX).len() as u64;
            assert_eq!(self.state.range_at(&count, range::WORKING).count, expected, "{keys:?}");
        }
    }
}

fn ranges() -> Vec<KeyRange> {
    vec![
        KeyRange { start: Bytes::from_static(&[0]), end: Bytes::from_static(&[0]) },
        KeyRange::prefix("a/"),
        KeyRange::prefix("a//"),
        KeyRange::prefix("b/"),
        KeyRange::one("00"),
        KeyRange { start: "b".into(), end: "a".into() },
    ]
}

fn one(op: Op) -> TxnRequest {
    TxnRequest { success: vec![op], ..TxnRequest::default() }
}

fn put(index: u8, value: u8) -> PutRequest {
    PutRequest { key: key(index), value: Bytes::copy_from_slice(&[value]), ..PutRequest::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        let mut harness = Harness { state: State::new(false), model: Model::default(), log: Vec::new() };
        for step in &steps {
            harness.apply(step);
            if matches!(step, Step::Publish | Step::Replay | Step::Compact { .. }) {
                harness.check();
            }
        }
        harness.state.publish();
        harness.check();
    }
}

#[test]
fn what_is_not_visible_is_not_read() {
    let mut harness = Harness { state: State::new(false), model: Model::default(), log: Vec::new() };
    harness.apply(&Step::Put { key: 1, value: 1 });
    let request = RangeRequest { keys: KeyRange::one(key(1)), ..RangeRequest::default() };
    assert_eq!(harness.state.range(&request).expect("valid").0.records.len(), 0);
    harness.state.publish();
    assert_eq!(harness.state.range(&request).expect("valid").0.records.len(), 1);
    harness.apply(&Step::Delete { from: 1, to: 1 });
    assert_eq!(harness.state.range(&request).expect("valid").0.records.len(), 1);
}

#[test]
fn a_failed_transaction_changes_nothing() {
    let mut harness = Harness { state: State::new(false), model: Model::default(), log: Vec::new() };
    let dead = PutRequest { lease: 7, ..put(2, 2) };
    let request = TxnRequest { success: vec![Op::Put(put(1, 1)), Op::Put(dead)], ..TxnRequest::default() };
    let mut frame = BatchEncoder::default();
    let result = Transaction::new(&mut harness.state, &mut frame, 1).run(&request);
    assert_eq!(result.expect_err("the lease is unknown"), FlatError::LeaseNotFound);
    let twice = TxnRequest { success: vec![Op::Put(put(1, 1)), Op::Put(put(1, 2))], ..TxnRequest::default() };
    let result = Transaction::new(&mut harness.state, &mut frame, 1).run(&twice);
    assert_eq!(result.expect_err("one key twice"), FlatError::DuplicateKey);
    assert_eq!((harness.state.live(), harness.state.applied()), (0, FIRST_REVISION));
    assert!(frame.batch().is_empty());
}

#[test]
fn the_end_of_a_lease_deletes_its_keys_in_one_revision() {
    let mut harness = Harness { state: State::new(false), model: Model::default(), log: Vec::new() };
    let mut frame = BatchEncoder::default();
    let now = coact_core::env::Env::real().now();
    Transaction::new(&mut harness.state, &mut frame, 1).grant(7, Duration::from_secs(1), now).expect("new");
    for index in 0..3 {
        harness.run(one(Op::Put(PutRequest { lease: 7, ..put(index, 1) })));
    }
    harness.run(one(Op::Put(put(1, 2))));
    let before = harness.state.applied();
    Transaction::new(&mut harness.state, &mut frame, 1).revoke(7, true, now).expect("alive");
    assert_eq!(harness.state.applied(), before + 1);
    assert_eq!(harness.state.live(), 1, "the key that was put again without the lease stays");
    let again = Transaction::new(&mut harness.state, &mut frame, 1).revoke(7, true, now);
    assert_eq!(again.expect_err("it never comes back"), FlatError::LeaseNotFound);
}

#[test]
fn a_transaction_too_large_for_the_log_is_refused_whole() {
    let mut harness = Harness { state: State::new(false), model: Model::default(), log: Vec::new() };
    let large = PutRequest { value: Bytes::from(vec![7; 33 * 1024 * 1024]), ..put(1, 1) };
    let request = TxnRequest { success: vec![Op::Put(put(2, 2)), Op::Put(large)], ..TxnRequest::default() };
    let mut frame = BatchEncoder::default();
    let result = Transaction::new(&mut harness.state, &mut frame, 1).run(&request);
    assert!(matches!(result, Err(FlatError::TooLarge(_))), "{result:?}");
    assert_eq!((harness.state.live(), frame.batch().len()), (0, 0));
}
