//! coact's engine over Redis and Valkey: standalone, Sentinel, Cluster.
