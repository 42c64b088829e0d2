//! Limits: what is just allowed works, one more is refused.

use std::time::Duration;

use coact_core::{
    ErrorKind,
    contract::kv::{Check, Read, Txn, Write},
    guarantees::Limits,
    name::Key,
};

use super::{
    Context,
    context::{assert_kind, names, put, writes},
};

cases! {
    async fn limits_are_at_least_the_portable_ones(cx: &Context) {
        let (limits, portable) = (cx.kv.guarantees().limits, Limits::PORTABLE);
        assert!(limits.value_bytes >= portable.value_bytes);
        assert!(limits.checks >= portable.checks && limits.writes >= portable.writes);
        assert!(limits.ttl_min <= portable.ttl_min && limits.ttl_max >= portable.ttl_max);
    }

    async fn a_value_of_the_longest_length_is_kept_and_one_byte_more_refused(cx: &Context) {
        let max = cx.kv.guarantees().limits.value_bytes;
        let value: Vec<u8> = (0..max).map(|index| index as u8).collect();
        cx.kv.put(&cx.key("a/x"), value.clone(), None).await.expect("fits");
        assert_eq!(cx.entry("a/x").await.value, value);
        assert_kind(cx.kv.put(&cx.key("a/y"), vec![0; max + 1], None).await, ErrorKind::Invalid);
        assert_eq!(cx.get("a/y").await, None);
    }

    async fn the_largest_txn_commits_and_one_more_of_anything_is_refused(cx: &Context) {
        let limits = cx.kv.guarantees().limits;
        let key = |index: usize| cx.key(&format!("{}/{index:0>128}", "d".repeat(128)));
        let of = |checks: usize, count: usize, reads: usize| Txn {
            checks: (0..checks).map(|index| Check::Absent(key(index))).collect(),
            writes: (0..count).map(|index| put(&key(index), vec![b'x'; limits.value_bytes])).collect(),
            reads: (0..reads).map(|index| Read::Get(key(index))).collect(),
        };
        assert_kind(cx.txn(of(limits.checks + 1, 1, 0)).await, ErrorKind::Invalid);
        assert_kind(cx.txn(of(0, limits.writes + 1, 0)).await, ErrorKind::Invalid);
        assert_kind(cx.txn(of(0, 1, limits.writes + 1)).await, ErrorKind::Invalid);
        let (revision, _) = cx.commit(of(limits.checks, limits.writes, limits.writes)).await;
        let page = cx.list(&"d".repeat(128)).await;
        assert_eq!(page.entries.len(), limits.writes);
        assert!(page.entries.iter().all(|entry| entry.created == revision));
        // Reads may return as much as writes may write.
        let (_, found) = cx.commit(of(0, 0, limits.writes)).await;
        assert!(found.iter().all(|found| found.entry().is_some_and(|entry| entry.value.len() == limits.value_bytes)));
        let deletes = (0..limits.writes).map(|index| Write::Delete(key(index))).collect();
        cx.commit(writes(deletes)).await;
        assert!(cx.list(&"d".repeat(128)).await.entries.is_empty());
    }

    async fn names_of_the_longest_length_work_in_any_script(cx: &Context) {
        for letter in ["x", "é", "漢字か", "🦀", " ", "%", "\\", "\"", "*", "{"] {
            let text: String = letter
                .chars()
                .cycle()
                .scan(0, |bytes, char| {
                    *bytes += char.len_utf8();
                    (*bytes <= 128).then_some(char)
                })
                .collect();
            let key = Key::new(&cx.realm, &text, &text).expect("valid");
            cx.kv.put(&key, "1", None).await.expect("commits");
            assert_eq!(cx.kv.get(&key).await.expect("answers").expect("is there").key, key);
            assert_eq!(names(&cx.list(&text).await), [text.as_str()]);
        }
        assert_kind(Key::new(&cx.realm, &"é".repeat(65), "x"), ErrorKind::Invalid);
        assert_kind(Key::new(&cx.realm, "x", &"x".repeat(129)), ErrorKind::Invalid);
    }

    async fn values_are_bytes_of_any_kind(cx: &Context) {
        let all: Vec<u8> = (0..=255).collect();
        for value in [&all[..], b"", b"\0", b"\r\n", &[0xff; 3], "é🦀".as_bytes()] {
            cx.kv.put(&cx.key("a/x"), value.to_vec(), None).await.expect("commits");
            assert_eq!(cx.entry("a/x").await.value, value);
        }
    }

    async fn a_lease_outside_the_limits_is_invalid(cx: &Context) {
        let limits = cx.kv.guarantees().limits;
        let beside = [
            Duration::ZERO,
            limits.ttl_min - Duration::from_millis(1),
            limits.ttl_max + Duration::from_millis(1),
            Duration::MAX,
        ];
        for ttl in beside {
            assert_kind(cx.kv.lease_grant(ttl).await, ErrorKind::Invalid);
        }
        for ttl in [limits.ttl_min, limits.ttl_max] {
            let lease = cx.kv.lease_grant(ttl).await.expect("granted");
            assert!(lease.ttl >= ttl, "{:?} granted for {ttl:?}", lease.ttl);
            cx.revoke(lease.id).await;
        }
    }
}
