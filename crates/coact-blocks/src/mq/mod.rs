//! Message queues over streams: producers, consumer groups, order by key through failures, and how far behind who is.

mod consumer;
mod group;
mod identity;
mod partition;
mod producer;

pub use consumer::{Consumer, ConsumerOptions, Delivery, Position, Settling, Start};
pub use group::{GROUP_NEEDS, TopicPartition};
pub use partition::partition_of;
pub use producer::{NAME_NEEDS, NEEDS, Placed, Producer, ProducerOptions, Receipt, Transaction};
