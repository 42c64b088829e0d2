//! coact's engine over ZooKeeper.
