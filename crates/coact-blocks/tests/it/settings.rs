//! Configuration entries: versions without holes, conflicts that name what is there, changes without gaps.

use std::{collections::BTreeSet, time::Duration};

use coact_blocks::directory::{Changes, Setting, SettingChange, Settings};
use coact_core::{ErrorKind, env::Env, name::Realm};

use crate::{
    lock::key,
    model::{Fate, Model, VOLATILE},
    world::{Process, pass, start},
};

fn settings(process: &Process) -> Settings {
    Settings::new(&process.kv, Realm::default()).expect("meets the needs")
}

async fn next(changes: &mut Changes) -> SettingChange {
    let next = Env::real().timeout(Duration::from_secs(300), changes.next()).await;
    next.expect("a change comes").expect("the store answers")
}

async fn next_set(changes: &mut Changes) -> (String, String, u64) {
    match next(changes).await {
        SettingChange::Set(setting) => (setting.key.clone(), setting.text().expect("text").to_owned(), setting.version),
        SettingChange::Deleted { key } => panic!("{key} was deleted"),
    }
}

fn set(key: &str, text: &str, version: u64) -> (String, String, u64) {
    (key.to_owned(), text.to_owned(), version)
}

#[tokio::test(start_paused = true)]
async fn versions_count_up_and_earlier_ones_come_back() {
    let model = Model::new();
    let settings = settings(&Process::start(&model, 1));
    assert_eq!(settings.get("app", "colour").await.expect("answers"), None);
    for (version, value) in [(1, "red"), (2, "green"), (3, "blue")] {
        assert_eq!(settings.put("app", "colour", value, None).await.expect("writes"), version);
    }
    assert_eq!(settings.rollback("app", "colour", 1).await.expect("writes"), 4);
    let now = settings.get("app", "colour").await.expect("answers").expect("exists");
    assert_eq!((now.text(), now.version, now.restores), (Some("red"), 4, Some(1)));

    assert_eq!(settings.delete("app", "colour").await.expect("deletes"), Some(5));
    assert_eq!(settings.delete("app", "colour").await.expect("deletes"), None);
    assert_eq!(settings.get("app", "colour").await.expect("answers"), None);
    assert_eq!(settings.put("app", "colour", "grey", Some(0)).await.expect("writes"), 6, "the count goes on");
    let history = settings.history("app", "colour").await.expect("answers");
    let told: Vec<_> = history.iter().map(|setting| (setting.version, setting.text())).collect();
    let all = [Some("red"), Some("green"), Some("blue"), Some("red"), None, Some("grey")];
    assert_eq!(told, (1..).zip(all).collect::<Vec<_>>());
    for version in [5, 99] {
        let error = settings.rollback("app", "colour", version).await.expect_err("no value");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    settings.put("app", "size", vec![0_u8, 255], None).await.expect("writes bytes");
    let listed: Vec<_> = settings.list("app").await.expect("answers").into_iter().map(|setting| setting.key).collect();
    assert_eq!(listed, ["colour", "size"]);
    assert_eq!(settings.groups("", "", 10).await.expect("answers"), ["app"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_fifty_versions_are_kept() {
    let model = Model::new();
    let settings = settings(&Process::start(&model, 1));
    for version in 1..=120_u64 {
        assert_eq!(settings.put("app", "k", version.to_string(), None).await.expect("writes"), version);
    }
    let history = settings.history("app", "k").await.expect("answers");
    let versions: Vec<_> = history.iter().map(|setting| setting.version).collect();
    assert_eq!(versions, (71..=120).collect::<Vec<_>>());
    assert_eq!(settings.rollback("app", "k", 70).await.expect_err("too old").kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn who_expects_another_version_is_told_the_current_one() {
    let model = Model::new();
    let settings = settings(&Process::start(&model, 1));
    let error = settings.put("app", "k", "x", Some(3)).await.expect_err("absent");
    assert_eq!(error.to_string(), "setting app/k was expected at version 3, but it does not exist: read it again");
    settings.put("app", "k", "one", Some(0)).await.expect("absent, as expected");
    settings.put("app", "k", "two", Some(1)).await.expect("as expected");
    for expected in [0, 1, 3] {
        let error = settings.put("app", "k", "x", Some(expected)).await.expect_err("outdated");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("but it is at 2"), "{error}");
    }
}

/// All read version 0 at once; one writes it.
#[tokio::test(start_paused = true)]
async fn of_writers_who_expect_the_same_one_wins_and_without_expectation_all_do() {
    let model = Model::new();
    let mut racing = Vec::new();
    for seed in 0..10 {
        let process = Process::start(&model, seed);
        process.faults.lock().latency = Duration::from_millis(10);
        let settings = settings(&process);
        racing.push(start(async move {
            let strict = settings.put("app", "strict", seed.to_string(), Some(0)).await;
            let loose = settings.put("app", "loose", seed.to_string(), None).await.expect("tries again");
            (strict.map_err(|error| error.to_string()), loose)
        }));
    }
    let (mut winners, mut versions) = (0, BTreeSet::new());
    for writer in racing {
        let (strict, loose) = writer.await.expect("ends");
        versions.insert(loose);
        match strict {
            Ok(version) => {
                assert_eq!(version, 1);
                winners += 1;
            }
            Err(message) => assert!(message.contains("but it is at 1"), "{message}"),
        }
    }
    assert_eq!((winners, versions), (1, (1..=10).collect()));
}

#[tokio::test(start_paused = true)]
async fn a_group_is_watched_without_gaps_or_repetitions() {
    let model = Model::new();
    let (writer, user) = (Process::start(&model, 1), Process::start(&model, 2));
    let (here, there) = (settings(&writer), settings(&user));
    here.put("app", "a", "1", None).await.expect("writes");
    let mut changes = there.watch("app").expect("valid");
    assert_eq!(next_set(&mut changes).await, set("a", "1", 1));
    here.put("app", "a", "2", None).await.expect("writes");
    here.put("app", "b", "1", None).await.expect("writes");
    here.put("app/inner", "a", "other group", None).await.expect("writes");
    assert_eq!(next_set(&mut changes).await, set("a", "2", 2));
    assert_eq!(next_set(&mut changes).await, set("b", "1", 1));
    here.delete("app", "a").await.expect("deletes");
    assert_eq!(next(&mut changes).await, SettingChange::Deleted { key: "a".to_owned() });

    // What happens during a gap is told once, and what did not change is not told again.
    for cut in [false, true] {
        let version = here.put("app", "c", "in the gap", None).await.expect("writes");
        match cut {
            true => {
                user.cut_off(&model);
                user.reconnect();
            }
            false => user.lose_changes(&model),
        }
        assert_eq!(next_set(&mut changes).await, set("c", "in the gap", version));
    }
    here.delete("app", "b").await.expect("deletes");
    user.lose_changes(&model);
    assert_eq!(next(&mut changes).await, SettingChange::Deleted { key: "b".to_owned() });
    let quiet = Env::real().timeout(Duration::from_secs(60), changes.next()).await;
    assert!(quiet.is_none(), "{quiet:?}");
}

/// Every version that a reader is told is newer than the one before, and the last is the last, whatever feeds do.
#[tokio::test(start_paused = true)]
async fn one_setting_is_watched_through_a_bad_connection() {
    for seed in 0..10 {
        let model = Model::new();
        let (writer, user) = (Process::start(&model, 2 * seed), Process::start(&model, 2 * seed + 1));
        let here = settings(&writer);
        let mut changes = settings(&user).watch_key("app", "k").expect("valid");
        let writes = start(async move {
            for number in 1..=100_u64 {
                here.put("app", "k", number.to_string(), None).await.expect("writes");
                here.put("app", "other", number.to_string(), None).await.expect("writes");
                pass((writer.env().random() % 100) as f64 / 1_000.0).await;
                match writer.env().random() % 10 {
                    0 => user.lose_changes(&model),
                    1 => {
                        user.cut_off(&model);
                        pass((writer.env().random() % 300) as f64 / 1_000.0).await;
                        user.reconnect();
                    }
                    _ => {}
                }
            }
        });
        let mut last = 0;
        while last < 100 {
            let (name, text, version) = next_set(&mut changes).await;
            assert_eq!((name.as_str(), text), ("k", version.to_string()));
            assert!(version > last, "{version} after {last}");
            last = version;
        }
        writes.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_reported_and_not_repeated() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let settings = settings(&process);
    process.faults.lock().fate = Some(Box::new(|request| match request {
        crate::model::Request::Txn(_) => Fate::AnswerLost,
        _ => Fate::Arrives,
    }));
    let error = settings.put("app", "k", "x", None).await.expect_err("no answer");
    assert_eq!(error.effect(), coact_core::Effect::Unknown);
    process.reconnect();
    assert_eq!(settings.history("app", "k").await.expect("answers").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn limits_needs_and_foreign_entries() {
    let model = Model::new();
    let process = Process::start(&model, 1);
    let here = settings(&process);
    let longest = vec![b'x'; 60 * 1024];
    here.put(&"g".repeat(50), &"k".repeat(60), longest.clone(), None).await.expect("fits");
    let found: Setting = here.get(&"g".repeat(50), &"k".repeat(60)).await.expect("answers").expect("exists");
    assert_eq!(found.value.as_deref(), Some(&*longest));
    let invalid = [
        here.put("app", "k", vec![b'x'; 60 * 1024 + 1], None).await,
        here.put(&"g".repeat(51), "k", "", None).await,
        here.put("app", &"k".repeat(61), "", None).await,
        here.put("app", "a/b", "", None).await,
        here.put("a//b", "k", "", None).await,
    ];
    for result in invalid {
        assert_eq!(result.expect_err("against the rules").kind(), ErrorKind::Invalid);
    }
    model.put(&key("config/app/foreign"), "what is this");
    assert_eq!(here.get("app", "foreign").await.expect_err("no setting").kind(), ErrorKind::Corrupt);
    assert_eq!(here.list("app").await.expect("answers"), []);
    process.faults.lock().guarantees = Some(&VOLATILE);
    let error = Settings::new(&process.kv, Realm::default()).expect_err("forgets");
    assert!(error.to_string().starts_with("config needs writes synced"), "{error}");
}
