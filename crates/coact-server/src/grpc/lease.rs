//! Leases. Server time decides when they end.

use std::time::Duration;

use bytes::Bytes;
use coact_engine_embedded::flat::FlatError;
use coact_engine_etcd::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, lease_server::Lease,
};
use futures::{stream, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Node, access,
    errors::{STOPPED, TTL_TOO_LARGE, failed},
};
use crate::auth::{Caller, Keys, Verb};

/// The shortest lease, in seconds. etcd's is longer than its election timeout, two seconds by default; a node has no
/// election.
const TTL_MIN: i64 = 1;
/// The longest lease, in seconds, as in etcd.
const TTL_MAX: i64 = 9_000_000_000;

#[tonic::async_trait]
impl Lease for Node {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        access::some_write(&access::caller(&request)?)?;
        let request = request.into_inner();
        if request.ttl > TTL_MAX {
            return Err(TTL_TOO_LARGE.into());
        }
        let ttl = Duration::from_secs(request.ttl.max(TTL_MIN) as u64);
        let (id, granted) = self.engine.lease_grant(request.id, ttl).await.map_err(failed)?;
        Ok(Response::new(LeaseGrantResponse {
            header: self.header(self.engine.revision()),
            id,
            ttl: granted.as_secs() as i64,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.allow_lease(&access::caller(&request)?, request.get_ref().id, Verb::Write)?;
        self.engine.lease_revoke(request.get_ref().id).await.map_err(failed)?;
        Ok(Response::new(LeaseRevokeResponse { header: self.header(self.engine.revision()) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let caller = access::caller(&request)?;
        access::some_write(&caller)?;
        let renewals = stream::unfold(Some((self.clone(), request.into_inner())), |open| async move {
            let (mut node, mut requests) = open?;
            let renewed = node.renew_next(&mut requests).await?;
            // An error is the last thing that a stream says.
            let open = renewed.is_ok().then_some((node, requests));
            Some((renewed, open))
        });
        Ok(Response::new(access::while_unchanged(caller, renewals)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let caller = access::caller(&request)?;
        access::some_write(&caller)?;
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        if keys {
            self.allow_lease(&caller, id, Verb::Read)?;
        }
        let header = self.header(self.engine.revision());
        let response = match self.engine.lease_status(id) {
            Ok(status) => LeaseTimeToLiveResponse {
                header,
                id,
                ttl: status.left.as_secs() as i64,
                granted_ttl: status.granted.as_secs() as i64,
                keys: status.keys.iter().filter(|_| keys).map(|key| Bytes::copy_from_slice(key)).collect(),
            },
            Err(FlatError::LeaseNotFound) => {
                LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() }
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        access::admin(&access::caller(&request)?, "list leases")?;
        let leases = self.engine.leases().into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.header(self.engine.revision()), leases }))
    }
}

impl Node {
    /// The end of a lease deletes its keys, and a look at it lists them: both need leave for each of them.
    fn allow_lease(&self, caller: &Caller, id: i64, verb: Verb) -> Result<(), Status> {
        access::some_write(caller)?;
        let keys = self.engine.lease_status(id).map(|status| status.keys).unwrap_or_default();
        keys.iter().try_for_each(|key| access::keys(caller, Keys::one(key), &[verb]))
    }

    /// Answers the next renewal; `None` once the client has no more.
    async fn renew_next(
        &mut self,
        requests: &mut Streaming<LeaseKeepAliveRequest>,
    ) -> Option<Result<LeaseKeepAliveResponse, Status>> {
        let request = tokio::select! {
            request = requests.message() => request,
            () = self.signal.draining() => return Some(Err(STOPPED.into())),
        };
        match request {
            Ok(Some(request)) => Some(self.renew(request.id)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn renew(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        // Before the renewal, so that the revision is never newer than the lease was known to live.
        let header = self.header(self.engine.revision());
        let ttl = match self.engine.lease_renew(id) {
            Ok(left) => left.as_secs() as i64,
            Err(FlatError::LeaseNotFound) => 0,
            Err(error) => return Err(failed(error)),
        };
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }
}
