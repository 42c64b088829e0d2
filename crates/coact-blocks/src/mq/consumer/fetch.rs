//! Reading one partition, as far as there is room.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use coact_core::{
    ErrorKind,
    contract::stream::{Offset, Read},
};

use super::state::{Admitted, Shared};
use crate::{
    backoff::{Backoff, is_retryable},
    mq::group::TopicPartition,
};

/// Starts to read a partition for as long as its era lasts.
pub(super) fn start(shared: &Arc<Shared>, place: TopicPartition, era: u64) {
    shared.streams.env().spawn(run(shared.clone(), place, era));
}

/// How long a read waits for a record: a partition that was given up is noticed after it at the latest.
const WAIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

async fn run(shared: Arc<Shared>, place: TopicPartition, era: u64) {
    let env = shared.streams.env().clone();
    let mut backoff = Backoff::new(&env, FIRST_PAUSE, LONGEST_PAUSE);
    let mut settled = shared.settled.subscribe();
    let (mut records, mut next) = (VecDeque::new(), Offset(0));
    loop {
        settled.mark_unchanged();
        let from = match shared.admit(&place, era, &mut records, next) {
            Admitted::Gone => return,
            Admitted::Full => {
                // It lives as long as this task does.
                let _ = settled.changed().await;
                continue;
            }
            Admitted::All(from) => from,
        };
        let read = Read {
            topic: place.topic.clone(),
            partition: place.partition,
            from,
            max_bytes: shared.options.max_bytes.max(1),
            wait: WAIT,
        };
        match shared.streams.read(read).await {
            Ok(fetched) => {
                backoff.reset();
                records.extend(fetched.records(from));
                next = fetched.next.max(fetched.start);
            }
            Err(error) => {
                if !shared.is_current(&place, era) {
                    return;
                }
                tracing::debug!(topic = %place.topic, partition = place.partition, %error, "a partition could not be read");
                // A topic that was deleted may be created again; anything else that lasts is for people to see.
                if !is_retryable(&error) && error.kind() != ErrorKind::NotFound {
                    shared.fail(error.with("topic", &place.topic).with("partition", place.partition));
                }
                backoff.pause().await;
            }
        }
    }
}
