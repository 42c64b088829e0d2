//! A server that breaks its watch streams where a real one does so only by bad luck: within a revision.

use std::{pin::Pin, sync::Arc};

use coact_core::env::Env;
use coact_engine_etcd::wire::{
    etcdserverpb::{
        AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest,
        HashResponse, MoveLeaderRequest, MoveLeaderResponse, ResponseHeader, SnapshotRequest, SnapshotResponse,
        StatusRequest, StatusResponse, WatchRequest, WatchResponse,
        maintenance_server::{Maintenance, MaintenanceServer},
        watch_request::RequestUnion,
        watch_server::{Watch, WatchServer},
    },
    mvccpb::{Event, KeyValue},
};
use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming, async_trait, metadata::MetadataValue, transport::Server};

use crate::server::free_port;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Default)]
pub(crate) struct Fake {
    /// The start of every watch that was asked for.
    starts: Arc<Mutex<Vec<i64>>>,
    durability: Option<&'static str>,
}

impl Fake {
    pub(crate) fn declaring(durability: &'static str) -> Self {
        Self { durability: Some(durability), ..Self::default() }
    }

    pub(crate) fn starts(&self) -> Vec<i64> {
        self.starts.lock().clone()
    }

    /// Serves until the test ends; returns the port.
    pub(crate) fn serve(&self) -> u16 {
        let port = free_port();
        let server = Server::builder()
            .add_service(MaintenanceServer::new(self.clone()))
            .add_service(WatchServer::new(self.clone()));
        Env::real().spawn(async move { server.serve(([127, 0, 0, 1], port).into()).await.expect("served") });
        port
    }
}

fn event(revision: i64, name: &str) -> Event {
    let key = format!("main/main/w//{name}").into();
    let kv = KeyValue { key, create_revision: revision, mod_revision: revision, version: 1, ..KeyValue::default() };
    Event { kv: Some(kv), ..Event::default() }
}

#[async_trait]
impl Watch for Fake {
    type WatchStream = Answers<WatchResponse>;

    /// The first stream ends after two of the three events of revision 7, the second one after the first event of 8.
    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let mut requests = request.into_inner();
        let Some(Ok(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })) = requests.next().await
        else {
            return Err(Status::invalid_argument("not a create request"));
        };
        let turn = {
            let mut starts = self.starts.lock();
            starts.push(create.start_revision);
            starts.len()
        };
        let header = Some(ResponseHeader { revision: 9, ..ResponseHeader::default() });
        let response = WatchResponse { header, watch_id: create.watch_id, ..WatchResponse::default() };
        let created = WatchResponse { created: true, ..response.clone() };
        let part = |fragment, events| WatchResponse { fragment, events, ..response.clone() };
        let seven = ["a", "b", "c"].map(|name| event(7, name));
        let eight = ["a", "d"].map(|name| event(8, name));
        let lost = Err(Status::unavailable("etcdserver: server stopped"));
        let answers = match turn {
            1 => vec![Ok(created), Ok(part(true, seven[..2].to_vec())), lost],
            2 => vec![Ok(created), Ok(part(true, seven.to_vec())), Ok(part(true, eight[..1].to_vec())), lost],
            _ => vec![Ok(created), Ok(part(false, eight.to_vec()))],
        };
        // The last stream stays open.
        let rest = if turn < 3 { stream::empty().boxed() } else { stream::pending().boxed() };
        Ok(Response::new(Box::pin(stream::iter(answers).chain(rest))))
    }
}

#[async_trait]
impl Maintenance for Fake {
    type SnapshotStream = Answers<SnapshotResponse>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let version = "3.5.0+coact".to_owned();
        let mut response = Response::new(StatusResponse { version, ..StatusResponse::default() });
        if let Some(durability) = self.durability {
            response.metadata_mut().insert("coact-durability", MetadataValue::from_static(durability));
        }
        Ok(response)
    }

    async fn alarm(&self, _: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn move_leader(&self, _: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
