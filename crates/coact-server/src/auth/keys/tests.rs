//! A range is allowed only if every key that it can contain is.

use coact_engine_embedded::flat::KeyRange;
use proptest::prelude::*;

use super::*;
use crate::auth::{Permission, table::Grants};

fn grants(permissions: &[&str]) -> Grants {
    Grants::of(permissions.iter().map(|text| text.parse::<Permission>().expect(text)).collect())
}

fn reads(grants: &Grants, start: &str, end: &str) -> bool {
    Keys::range(start.as_bytes(), end.as_bytes()).allowed_by(grants, Verb::Read)
}

fn reads_prefix(grants: &Grants, prefix: &str) -> bool {
    let range = KeyRange::prefix(prefix.to_owned());
    Keys::range(&range.start, &range.end).allowed_by(grants, Verb::Read)
}

#[test]
fn keys_belong_to_blocks_by_their_first_segment() {
    let cases = [
        ("shop kv read app/", "shop/main/app//colour", true),
        ("shop kv read app/colour", "shop/main/app//colour", true),
        ("shop kv read app/", "shop/other/app//colour", true),
        ("shop kv read app/", "shop/main/apple//colour", false),
        ("shop kv read app/", "other/main/app//colour", false),
        ("shop kv read", "shop/main/lock/deploy//a", false),
        ("shop lock read", "shop/main/lock/deploy//a", true),
        ("shop lock read deploy/", "shop/main/lock/deploy//a", true),
        ("shop lock read deploy/", "shop/main/lock/deployment//a", false),
        // The entry `eu` of the lock `deploy` is not the lock `deploy/eu`.
        ("shop lock read deploy/eu", "shop/main/lock/deploy//eu", false),
        ("shop lock read", "shop/main/semaphore/x//a", true),
        ("shop lock read", "shop/main/election/x//a", true),
        ("shop config read", "shop/main/config-history/x//a", true),
        ("shop id read", "shop/main/id-hint/x//a", true),
        ("shop kv read", "shop/main/identity//a", true),
        ("shop kv read", "shop/main/config-other//a", true),
        ("shop kv read", "shop/main", false),
        ("shop * read", "shop/main", true),
        ("shop * read", "shop", false),
        ("* * read,admin", "shop", true),
        ("* * read", "shop", false),
        ("* * read,admin", "/shop//x", true),
        ("* * read", "/shop//x", false),
        ("* * read,admin", "\u{fffd}/main/a//b", true),
        ("* * read,write,admin", "_coact/main/auth/token//0", false),
        ("* * read,write,admin", "_coact/", false),
        ("* * read,write,admin", "_coact2/main/a//b", true),
    ];
    for (permission, key, expected) in cases {
        assert_eq!(reads(&grants(&[permission]), key, ""), expected, "{permission}: {key}");
    }
}

#[test]
fn the_key_of_a_lease_is_for_whoever_may_write_anything_there() {
    let locker = grants(&["shop lock write deploy/"]);
    let writes = |key: &str| Keys::one(key.as_bytes()).allowed_by(&locker, Verb::Write);
    assert!(writes("shop/.lease//123"));
    assert!(!writes("other/.lease//123") && !writes("shop/.lease//1/2") && !writes("shop/.lease//"));
    assert!(!reads_prefix(&locker, "shop/.lease//"), "nobody lists the leases of others");
    assert!(!reads(&grants(&["shop kv read"]), "shop/.lease//123", ""));
}

#[test]
fn ranges_are_judged_by_what_their_keys_have_in_common() {
    let app = grants(&["shop kv read app/"]);
    for prefix in ["shop/main/app/", "shop/main/app//", "shop/main/app//col", "shop/main/app/x/"] {
        assert!(reads_prefix(&app, prefix), "{prefix}");
    }
    for prefix in ["shop/main/app", "shop/main/", "shop/", "shop", "s", "shop/main/apq"] {
        assert!(!reads_prefix(&app, prefix), "{prefix}");
    }
    assert!(reads(&app, "shop/main/app//a", "shop/main/app//x"));
    assert!(!reads(&app, "shop/main/app//a", "shop/main/b"));
    assert!(!reads(&app, "shop/main/app//a", "\0"), "from a key on is everything");
    let everything_in_kv = grants(&["shop kv read"]);
    assert!(reads_prefix(&everything_in_kv, "shop/main/app"), "no block begins so");
    assert!(!reads_prefix(&everything_in_kv, "shop/main/lo"), "lock does");
    assert!(reads_prefix(&grants(&["shop kv read", "shop lock read"]), "shop/main/lo"));
    let admin = grants(&["* * read,write,admin"]);
    assert!(reads_prefix(&admin, "s") && reads(&admin, "a", "b"));
    for (start, end) in
        [("", "\0"), ("\0", "\0"), ("_", "`"), ("_coact/", "_coact0"), ("_a", "_coact/z"), ("_coact/z", "\0")]
    {
        assert!(!reads(&admin, start, end), "{start:?} {end:?} can show the node's own namespace");
    }
    assert!(reads(&admin, "_coact0", "\0") && reads(&admin, "\0", "_coact/"));
}

#[test]
fn what_is_common_is_found() {
    for (start, end, expected) in [
        ("abc", "", "abc"),
        ("a/b/", "a/b0", "a/b/"),
        ("a/b/c", "a/b/d", "a/b/c"),
        ("a/b/c", "a/b/dx", "a/b/"),
        ("a/b/", "a/b/zz", "a/b/"),
        ("abc", "abd", "abc"),
        ("abcx", "abd", "abc"),
        ("abc", "\0", ""),
        ("b", "a", ""),
    ] {
        let common = Keys::range(start.as_bytes(), end.as_bytes()).common();
        assert_eq!(std::str::from_utf8(common), Ok(expected), "{start} {end}");
    }
}

/// Keys that differ just where decisions are made.
fn key() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "",
        "/",
        "//",
        "main",
        "shop",
        "_coact",
        "_coact/",
        "lock",
        "loc",
        "lock/",
        "app",
        "app/",
        "a",
        "b",
        ".lease//",
        "0",
        "id",
        "config",
        "config-history",
        "\u{7f}",
    ]);
    prop_oneof![
        prop::collection::vec(part.clone(), 0..7).prop_map(|parts| parts.concat()),
        prop::collection::vec(part, 0..4).prop_map(|parts| format!("shop/main/{}", parts.concat())),
    ]
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        (key(), key()).prop_map(|(start, end)| KeyRange { start: start.into(), end: end.into() }),
        key().prop_filter("a prefix", |key| !key.is_empty()).prop_map(KeyRange::prefix),
        key().prop_map(|start| KeyRange { start: start.into(), end: vec![0].into() }),
    ]
}

fn some_grants() -> impl Strategy<Value = Grants> {
    let permission = prop::sample::select(vec![
        "shop kv read",
        "shop kv read app/",
        "shop kv read app/b",
        "shop lock read",
        "shop lock read app",
        "shop * read",
        "shop id read",
        "shop config read a",
        "* kv read",
        "* * read",
        "* * read,admin",
        "shop lock write",
        "* lock read a",
    ]);
    prop::collection::vec(permission, 1..4).prop_map(|permissions| grants(&permissions))
}

/// A key that the range shows and that may not be read, if this way of deciding lets the range through.
fn leak(
    decide: impl Fn(&Grants, Keys<'_>) -> bool,
    grants: &Grants,
    range: &KeyRange,
    keys: &[String],
) -> Option<String> {
    if !decide(grants, Keys::range(&range.start, &range.end)) {
        return None;
    }
    let hidden =
        |key: &&String| !Keys::one(key.as_bytes()).allowed_by(grants, Verb::Read) || key.starts_with("_coact/");
    keys.iter().filter(|key| range.contains(key.as_bytes())).find(hidden).cloned()
}

fn properly(grants: &Grants, keys: Keys<'_>) -> bool {
    keys.allowed_by(grants, Verb::Read)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_range_shows_a_key_that_may_not_be_read(
        grants in some_grants(), range in range(), keys in prop::collection::vec(key(), 12),
    ) {
        prop_assert_eq!(leak(properly, &grants, &range, &keys), None);
        let (start, end) = (String::from_utf8_lossy(&range.start), &range.end);
        let below: Vec<_> = keys.iter().map(|key| format!("{start}{key}")).collect();
        prop_assert_eq!(leak(properly, &grants, &range, &below), None, "{:?}", end);
    }
}

/// The control: deciding by the first key alone, or by the bytes that both ends share without looking where a range
/// ends, is caught.
#[test]
fn a_careless_decision_is_caught() {
    let by_start = |grants: &Grants, keys: Keys<'_>| Keys::one(keys.start).allowed_by(grants, Verb::Read);
    let app = grants(&["shop kv read app/"]);
    let range = KeyRange { start: "shop/main/app//a".into(), end: "shop/main/z".into() };
    let keys = ["shop/main/app//b".to_owned(), "shop/main/lock/x//a".to_owned()];
    assert_eq!(leak(by_start, &app, &range, &keys), Some(keys[1].clone()));
    assert_eq!(leak(properly, &app, &range, &keys), None);
}
