//! Elections: whoever's turn it is, leads, and its key's value is what it proclaims.

use std::collections::VecDeque;

use bytes::Bytes;
use coact_engine_embedded::{
    Watcher,
    flat::{DeleteRequest, FlatError, KeyRange, Op, PutRequest, Record, TxnRequest},
};
use coact_engine_etcd::wire::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse, election_server::Election,
};
use futures::{stream, stream::BoxStream};
use tonic::{Request, Response, Status};

use super::{
    Node, access, convert,
    errors::{ELECTION_EXPIRED, LEADER_MISSING, NO_LEADER, NOT_LEADER, STOPPED, failed, relayed},
    turn::{self, Place},
};
use crate::auth::{Keys, Verb};

#[tonic::async_trait]
impl Election for Node {
    /// Waits to be the leader. A caller that goes away before it is withdraws.
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let caller = access::caller(&request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        access::line(&caller, &name, &[Verb::Read, Verb::Write])?;
        let wanted = value.clone();
        let adjust = async |place: &Place| self.adjust(place, wanted).await;
        let turn = self.take_turn(&name, lease, value, ELECTION_EXPIRED, adjust);
        let (place, _) = access::wait_unchanged(&caller, turn).await?;
        let leader = LeaderKey { name, key: place.key, rev: place.created as i64, lease: place.lease };
        Ok(Response::new(CampaignResponse { header: self.header(place.revision), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let caller = access::caller(&request)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(LEADER_MISSING)?;
        access::keys(&caller, Keys::one(&leader.key), &[Verb::Write])?;
        let revision = self.put_as_leader(leader.key, leader.rev as u64, leader.lease, value).await?;
        Ok(Response::new(ProclaimResponse { header: self.header(revision) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        access::line(&access::caller(&request)?, &request.get_ref().name, &[Verb::Read])?;
        let (leader, revision) = self.first(turn::line(&request.get_ref().name)).await?;
        let leader = leader.ok_or(NO_LEADER)?;
        Ok(Response::new(self.leads(&leader, revision)))
    }

    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = access::caller(&request)?;
        access::line(&caller, &request.get_ref().name, &[Verb::Read])?;
        let observer = Observer {
            node: self.clone(),
            line: turn::line(&request.get_ref().name),
            leader: None,
            ready: VecDeque::new(),
        };
        let leaders = stream::unfold(Some(observer), |open| async move {
            let mut observer = open?;
            let leader = observer.next().await;
            // An error is the last thing that a stream says.
            let open = leader.is_ok().then_some(observer);
            Some((leader, open))
        });
        Ok(Response::new(access::while_unchanged(caller, leaders)))
    }

    /// Withdraws; no effect for who is not in the line any more.
    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let caller = access::caller(&request)?;
        let leader = request.into_inner().leader.ok_or(LEADER_MISSING)?;
        access::keys(&caller, Keys::one(&leader.key), &[Verb::Write])?;
        let delete = DeleteRequest { keys: KeyRange::one(leader.key.clone()), previous: false };
        let request = TxnRequest {
            compare: vec![turn::created_at(&leader.key, leader.rev as u64)],
            success: vec![Op::Delete(delete)],
            failure: Vec::new(),
        };
        let response = self.engine.txn(request).await.map_err(failed)?;
        Ok(Response::new(ResignResponse { header: self.header(response.revision) }))
    }
}

impl Node {
    /// A lease that stands in the line already now proclaims what this campaign says.
    async fn adjust(&self, place: &Place, wanted: Bytes) -> Result<(), Status> {
        if place.found.as_ref().is_some_and(|found| *found != wanted) {
            self.put_as_leader(place.key.clone(), place.created, place.lease, wanted).await?;
        }
        Ok(())
    }

    async fn put_as_leader(&self, key: Bytes, created: u64, lease: i64, value: Bytes) -> Result<u64, Status> {
        // Without a lease named, the key keeps the one it has: a leader's key must not outlive its lease.
        let put = PutRequest { key: key.clone(), value, lease, ignore_lease: lease == 0, ..PutRequest::default() };
        let request = TxnRequest {
            compare: vec![turn::created_at(&key, created)],
            success: vec![Op::Put(put)],
            failure: Vec::new(),
        };
        let response = self.engine.txn(request).await.map_err(relayed)?;
        if response.failed.is_some() {
            return Err(NOT_LEADER.into());
        }
        Ok(response.revision)
    }

    fn leads(&self, leader: &Record, revision: u64) -> LeaderResponse {
        LeaderResponse { header: self.header(revision), kv: Some(convert::key_value(leader)) }
    }
}

/// Follows the leader: every value of the one who leads, and each one who comes after.
struct Observer {
    node: Node,
    line: KeyRange,
    /// The watch of the leader's key; `None` while nobody is known to lead.
    leader: Option<Watcher>,
    ready: VecDeque<LeaderResponse>,
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        let mut signal = self.node.signal.clone();
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            tokio::select! {
                followed = self.follow() => followed?,
                () = signal.draining() => return Err(STOPPED.into()),
            }
        }
    }

    async fn follow(&mut self) -> Result<(), Status> {
        let Some(watcher) = &mut self.leader else { return self.find().await };
        let delivery = match watcher.next().await {
            Ok(delivery) => delivery,
            // Too far behind to know every value; the newest is what counts.
            Err(FlatError::Compacted(_)) => {
                self.leader = None;
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        for event in &delivery.events {
            if event.record.is_tombstone() {
                self.leader = None;
                break;
            }
            self.ready.push_back(self.node.leads(&event.record, event.record.modified));
        }
        Ok(())
    }

    /// Looks for a leader, and waits for the line to change if there is none.
    async fn find(&mut self) -> Result<(), Status> {
        let (leader, revision) = self.node.first(self.line.clone()).await?;
        if let Some(leader) = leader {
            let keys = KeyRange::one(Bytes::copy_from_slice(&leader.key));
            self.leader = Some(self.node.engine.watch(keys, revision + 1));
            self.ready.push_back(self.node.leads(&leader, revision));
            return Ok(());
        }
        match self.node.engine.watch(self.line.clone(), revision + 1).next().await {
            Ok(_) | Err(FlatError::Compacted(_)) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}
