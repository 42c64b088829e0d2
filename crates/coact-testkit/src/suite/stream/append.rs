//! Appending: in order, whole, to one partition.

use std::collections::BTreeSet;

use bytes::Bytes;
use coact_core::{
    ErrorKind,
    contract::stream::{Append, Batch, Offset, Record},
};

use super::{
    Context, DENSE,
    context::{assert_kind, batch, values},
};

cases! {
    async fn records_come_back_in_the_order_in_which_they_were_appended(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let mut firsts = Vec::new();
        for batch in [&["a"][..], &["b", "c", "d"], &["e", "f"]] {
            firsts.push(cx.append(&topic, batch).await.first);
        }
        let records = cx.records(&topic, 0).await;
        assert_eq!(values(&records), ["a", "b", "c", "d", "e", "f"]);
        assert!(records.is_sorted_by(|one, next| one.offset < next.offset), "{records:?}");
        assert_eq!(firsts, [0, 1, 4].map(|index: usize| records[index].offset), "offsets that appends returned");
        assert!(records[5].offset < cx.bounds(&topic, 0).await.end);
    }

    #[needs(DENSE)]
    async fn dense_offsets_begin_at_zero_and_count(cx: &Context) {
        let topic = cx.create("t", 1).await;
        assert_eq!(cx.append(&topic, &["a", "b"]).await.first, Offset(0));
        assert_eq!(cx.append(&topic, &["c"]).await.first, Offset(2));
        let offsets: Vec<_> = cx.records(&topic, 0).await.iter().map(|record| record.offset.0).collect();
        assert_eq!(offsets, [0, 1, 2]);
        let bounds = cx.bounds(&topic, 0).await;
        assert_eq!((bounds.start, bounds.end), (Offset(0), Offset(3)));
        assert!(bounds.records.is_none_or(|records| records == 3), "{bounds:?}");
    }

    async fn an_append_says_the_time_that_its_records_have(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let mut times = Vec::new();
        for _ in 0..20 {
            times.push(cx.append(&topic, &["x"]).await.time_ms);
        }
        assert!(times[0] > 0 && times.is_sorted(), "times went back: {times:?}");
        let stored: Vec<_> = cx.records(&topic, 0).await.iter().map(|record| record.time_ms).collect();
        assert_eq!(stored, times);
        assert_eq!(cx.bounds(&topic, 0).await.oldest_ms, times[0]);
    }

    async fn partitions_are_independent(cx: &Context) {
        let topic = cx.create("t", 3).await;
        for round in 0..5 {
            for partition in [2, 0] {
                cx.append_to(&topic, partition, &[&format!("{partition}.{round}")]).await;
            }
        }
        assert_eq!(cx.values_of(&topic, 0).await, ["0.0", "0.1", "0.2", "0.3", "0.4"]);
        assert!(cx.values_of(&topic, 1).await.is_empty());
        assert_eq!(cx.values_of(&topic, 2).await, ["2.0", "2.1", "2.2", "2.3", "2.4"]);
    }

    async fn a_record_comes_back_as_it_was(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let all: Vec<u8> = (0..=255).collect();
        let records = [
            Record::new(""),
            Record::new("value").with_key(""),
            Record::new(all.clone()).with_key(all.clone()).with_header("", all.clone()),
            Record::new("é🦀").with_key("ключ").with_header("имя", "wert").with_header("имя", "").with_header("z", "a"),
            Record::new("no key").with_header("h", "1"),
            Record::new(vec![0xff; 3]).with_key(vec![0; 200]),
        ];
        let append = Append { batch: Batch::new(&records), ..batch(&topic, 0, &[]) };
        cx.streams.append(append).await.expect("any bytes are taken");
        let found: Vec<_> = cx.records(&topic, 0).await.into_iter().map(|stored| stored.record).collect();
        assert_eq!(found, records);
    }

    async fn a_record_of_a_mebibyte_comes_back_and_a_larger_one_is_refused(cx: &Context) {
        let (topic, most) = (cx.create("t", 1).await, cx.streams.guarantees().limits.record_bytes);
        let record = |bytes: usize| Record::new((0..bytes).map(|index| (index * 7) as u8).collect::<Bytes>());
        let append = |record: &Record| Append { batch: Batch::new([record]), ..batch(&topic, 0, &[]) };
        let largest = record(most - record(0).size());
        assert_eq!(largest.size(), most);
        cx.streams.append(append(&largest)).await.expect("the largest record is taken");
        assert_kind(cx.streams.append(append(&record(most))).await, ErrorKind::Invalid);
        let found = cx.records(&topic, 0).await;
        assert_eq!(found.len(), 1);
        assert!(found[0].record == largest, "{} bytes came back changed", found[0].record.size());
    }

    async fn expect_holds_or_nothing_is_appended(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let expecting = |expect: Offset| Append { expect: Some(expect), ..batch(&topic, 0, &["x"]) };
        let empty = cx.bounds(&topic, 0).await.end;
        cx.streams.append(expecting(empty)).await.expect("the partition is empty");
        assert_kind(cx.streams.append(expecting(empty)).await, ErrorKind::Conflict);
        let end = cx.bounds(&topic, 0).await.end;
        assert_kind(cx.streams.append(expecting(Offset(end.0 + 1))).await, ErrorKind::Conflict);
        assert_kind(cx.streams.append(expecting(Offset(u64::MAX))).await, ErrorKind::Conflict);
        assert_eq!((cx.values(&topic).await.len(), cx.bounds(&topic, 0).await.end), (1, end));
        cx.streams.append(expecting(end)).await.expect("it ends there");
    }

    async fn of_those_who_expect_the_same_one_appends(cx: &Context) {
        let topic = cx.create("t", 1).await;
        let end = cx.bounds(&topic, 0).await.end;
        let (streams, other) = (cx.streams.clone(), cx.another_client().await);
        let results = cx.parallel(20, |task| {
            let streams = if task % 2 == 0 { &streams } else { &other }.clone();
            let append = Append { expect: Some(end), ..batch(&topic, 0, &[&task.to_string()]) };
            async move { streams.append(append).await }
        }).await;
        let winners: Vec<_> = (0..20).filter(|task| results[*task].is_ok()).map(|task| task.to_string()).collect();
        assert_eq!(winners.len(), 1, "{results:?}");
        assert_eq!(cx.values(&topic).await, winners);
    }

    async fn many_appenders_lose_nothing_and_keep_their_own_order(cx: &Context) {
        const APPENDERS: usize = 16;
        const BATCHES: usize = 25;
        let topic = cx.create("t", 2).await;
        let clients = [cx.streams.clone(), cx.another_client().await];
        let offsets = cx.parallel(APPENDERS, |appender| {
            let (streams, topic) = (clients[appender % 2].clone(), topic.clone());
            async move {
                let mut firsts = Vec::new();
                for number in 0..BATCHES {
                    let partition = (appender / 2 % 2) as u32;
                    let values = [format!("{appender}.{}", 2 * number), format!("{appender}.{}", 2 * number + 1)];
                    let append = batch(&topic, partition, &[&values[0], &values[1]]);
                    firsts.push((partition, streams.append(append).await.expect("an append is taken").first));
                }
                firsts
            }
        }).await.concat();
        assert_eq!(offsets.iter().collect::<BTreeSet<_>>().len(), offsets.len(), "an offset was given twice");
        let mut found = 0;
        for partition in 0..2 {
            let mut next = [0; APPENDERS];
            for value in cx.values_of(&topic, partition).await {
                let (appender, number) = value.split_once('.').expect("as appended");
                let (appender, number): (usize, usize) = (appender.parse().expect("n"), number.parse().expect("n"));
                assert_eq!(number, next[appender], "appender {appender} out of order in partition {partition}");
                next[appender] += 1;
                found += 1;
            }
        }
        assert_eq!(found, APPENDERS * BATCHES * 2);
    }
}
