//! Upkeep: what a node tells about itself, and what it needs none of.

use coact_core::guarantees::Durability;
use coact_engine_etcd::wire::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse, alarm_request::AlarmAction, maintenance_server::Maintenance,
};
use futures::stream::Empty;
use tonic::{Request, Response, Status, metadata::MetadataValue};

use super::{Node, RAFT_TERM, access, errors::unsupported};
use crate::ETCD_VERSION;

/// Response metadata that names the durability of acknowledged writes, since etcd's messages have no place for it:
/// `sync`, `os`, `interval:<ms>` or `memory`.
const DURABILITY_HEADER: &str = "coact-durability";

#[tonic::async_trait]
impl Maintenance for Node {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        access::caller(&request)?;
        let stats = self.engine.stats();
        let mut response = Response::new(StatusResponse {
            header: self.header(stats.revision),
            version: ETCD_VERSION.to_owned(),
            db_size: stats.log_bytes as i64,
            leader: self.member_id,
            raft_index: stats.revision,
            raft_term: RAFT_TERM,
            raft_applied_index: stats.revision,
            errors: self.engine.health().err().into_iter().collect(),
            db_size_in_use: stats.log_bytes as i64,
            is_learner: false,
        });
        if let Ok(durability) = MetadataValue::try_from(durability_name(self.engine.config().durability)) {
            response.metadata_mut().insert(DURABILITY_HEADER, durability);
        }
        Ok(response)
    }

    /// There are never alarms: an engine that cannot write stops, and says so in its health.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        access::admin(&access::caller(&request)?, "alarm")?;
        if request.get_ref().action() == AlarmAction::Activate {
            return Err(unsupported("raising an alarm", "its health follows from its disk alone"));
        }
        Ok(Response::new(AlarmResponse { header: self.header(self.engine.revision()), alarms: Vec::new() }))
    }

    /// Nothing to do, and no harm in asking: the log gives its space back by itself as snapshots replace it.
    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        access::admin(&access::caller(&request)?, "defragment")?;
        Ok(Response::new(DefragmentResponse { header: self.header(self.engine.revision()) }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        access::admin(&access::caller(&request)?, "hash")?;
        Err(unsupported("hash", NO_REPLICAS))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        access::admin(&access::caller(&request)?, "hashkv")?;
        Err(unsupported("hashkv", NO_REPLICAS))
    }

    type SnapshotStream = Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        access::admin(&access::caller(&request)?, "snapshot")?;
        let instead = "to back it up, stop it and copy its data directory, or save the keys with \
                       etcdctl get --from-key \"\" -w json";
        Err(unsupported("snapshot", instead))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        access::admin(&access::caller(&request)?, "move the leader")?;
        Err(unsupported("moving the leader", "it is a cluster of one member, itself"))
    }
}

const NO_REPLICAS: &str = "there are no replicas to compare, and every record on disk has its own checksum";

fn durability_name(durability: Durability) -> String {
    match durability {
        Durability::Memory => "memory".to_owned(),
        Durability::Os => "os".to_owned(),
        Durability::Interval(every) => format!("interval:{}", every.as_millis()),
        Durability::Sync | Durability::Quorum => "sync".to_owned(),
    }
}
