//! Message queues over streams: producers, consumer groups, order by key through failures, and how far behind who is.

mod consumer;
mod group;
mod history;
mod identity;
mod lag;
mod parked;
mod partition;
mod producer;
mod retry;
mod run;
mod seek;

pub use consumer::{Consumer, ConsumerOptions, Delivery, Position, Settling, Start};
pub use group::{GROUP_NEEDS, TopicPartition};
pub use history::{History, MINUTES_KEPT, SECONDS_KEPT, Sample};
pub use lag::{Committed, GroupLag, GroupMember, Monitor, PartitionLag, TopicStats};
pub use parked::{Parked, ParkedKey};
pub use partition::partition_of;
pub use producer::{NAME_NEEDS, NEEDS, Placed, Producer, ProducerOptions, Receipt, Transaction};
pub use retry::{
    ATTEMPTS_HEADER, ERROR_HEADER, ORIGIN_HEADER, Policy, ROUND_HEADER, dead_topic, parked_topic, retry_topic,
};
pub use run::{Message, RunOptions};
pub use seek::{SeekTo, seek};
