//! Monitoring: what is shown is what is there.

use std::time::Duration;

use coact_blocks::mq::{Committed, Monitor, Producer, ProducerOptions};
use coact_core::{
    ErrorKind,
    contract::stream::{Offset, Record, StreamGuarantees},
    name::Realm,
};

use crate::{
    mq_group::{bed, is_complete, until},
    streams::{GUARANTEES, topic},
    world::pass,
};

#[tokio::test(start_paused = true)]
async fn lag_is_in_messages_and_in_time_and_never_committed_is_its_own_state() {
    let bed = bed(1, 2).await;
    let monitor = Monitor::new(&bed.process.kv, &bed.connection.handle, &Realm::default());
    assert_eq!(monitor.group(&bed.group).await.expect_err("unknown").kind(), ErrorKind::NotFound);

    let (one, two) = (bed.join(1).await, bed.join(2).await);
    let early = monitor.group(&bed.group).await.expect("reads");
    assert_eq!(early.partitions.len(), 2, "what is wanted counts before it is assigned");
    until("they share", || is_complete(&[&one, &two], 2)).await;
    let empty = monitor.group(&bed.group).await.expect("reads");
    assert_eq!((empty.messages(), empty.age_ms(), empty.rebalancing), (Some(0), None, false));
    assert_eq!(empty.generation, one.consumer.generation());
    assert_eq!(empty.members.len(), 2);
    assert_eq!(empty.members[0].incarnation, one.consumer.incarnation());
    assert_eq!(empty.members[0].partitions, one.consumer.assigned());

    bed.send(0..20, 5).await;
    pass(7.0).await;
    let behind = monitor.group(&bed.group).await.expect("reads");
    assert_eq!((behind.messages(), behind.age_ms()), (Some(20), Some(7_000)));
    for member in [&one, &two] {
        while let Some(delivery) = member.consumer.poll().expect("works") {
            delivery.ack();
        }
        member.consumer.commit().await.expect("commits");
    }
    let done = monitor.group(&bed.group).await.expect("reads");
    assert_eq!((done.messages(), done.age_ms()), (Some(0), None));
    assert!(done.partitions.iter().all(|partition| partition.committed == Committed::At(partition.bounds.end)));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_never_committed_says_so() {
    let bed = bed(2, 1).await;
    bed.send(0..3, 1).await;
    let member = bed.join(1).await;
    until("it has the partition", || is_complete(&[&member], 1)).await;
    member.process.crash();
    let monitor = Monitor::new(&bed.process.kv, &bed.connection.handle, &Realm::default());
    let lag = monitor.group(&bed.group).await.expect("reads");
    assert_eq!((lag.partitions[0].committed, lag.messages()), (Committed::Never, Some(3)));
    bed.connection.handle.trim(&bed.orders, 0, Offset(2)).await.expect("trims");
    let trimmed = monitor.group(&bed.group).await.expect("reads");
    assert_eq!(trimmed.messages(), Some(1), "what is gone is not to be done");
    let sparse = bed.streams.connect_with(&bed.process, StreamGuarantees { dense_offsets: false, ..GUARANTEES });
    let monitor = Monitor::new(&bed.process.kv, &sparse.handle, &Realm::default());
    assert_eq!(monitor.group(&bed.group).await.expect("reads").messages(), None, "differences are no counts");
}

#[tokio::test(start_paused = true)]
async fn a_topic_shows_what_it_holds() {
    let bed = bed(3, 2).await;
    bed.send(0..9, 4).await;
    let options = ProducerOptions::default();
    let producer = Producer::open(&bed.connection.handle, &bed.orders, options).await.expect("opens");
    let id = producer.send_after(Record::new("later"), Duration::from_secs(60)).await.expect("kept");
    let monitor = Monitor::new(&bed.process.kv, &bed.connection.handle, &Realm::default());
    let stats = monitor.topic(&bed.orders).await.expect("reads");
    assert_eq!((stats.records(), stats.end(), stats.partitions.len()), (Some(9), 9, 2));
    assert!(stats.bytes() > 0);
    assert_eq!((stats.delays.pending, stats.delays.next_due_ms), (1, Some(id.due_ms)));
    assert_eq!(monitor.topic(&topic("ghosts")).await.expect_err("unknown").kind(), ErrorKind::NotFound);
}
