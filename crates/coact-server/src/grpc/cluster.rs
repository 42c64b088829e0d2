//! The cluster: one member, itself.

use coact_engine_etcd::wire::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    cluster_server::Cluster,
};
use tonic::{Request, Response, Status};

use super::{Node, access, errors::unsupported};

const ALONE: &str = "it is a cluster of one member, itself";

#[tonic::async_trait]
impl Cluster for Node {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        access::caller(&request)?;
        let member = Member {
            id: self.member_id,
            name: "coact".to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: vec![self.url.clone()],
            is_learner: false,
        };
        Ok(Response::new(MemberListResponse { header: self.header(self.engine.revision()), members: vec![member] }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        access::admin(&access::caller(&request)?, "adding a member")?;
        Err(unsupported("adding a member", ALONE))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        access::admin(&access::caller(&request)?, "removing a member")?;
        Err(unsupported("removing a member", ALONE))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        access::admin(&access::caller(&request)?, "updating a member")?;
        Err(unsupported("updating a member", ALONE))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        access::admin(&access::caller(&request)?, "promoting a member")?;
        Err(unsupported("promoting a member", ALONE))
    }
}
