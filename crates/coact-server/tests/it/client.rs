//! The generated clients, and short ways to write requests.

use std::net::SocketAddr;

use coact_engine_etcd::wire::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
        WatchResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        lease_client::LeaseClient,
        maintenance_client::MaintenanceClient,
        request_op::Request as Op,
        watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    v3electionpb::election_client::ElectionClient,
    v3lockpb::lock_client::LockClient,
};
use futures::{StreamExt, channel::mpsc};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::bed::within;

/// One connection, every service.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) kv: KvClient<Channel>,
    pub(crate) watch: WatchClient<Channel>,
    pub(crate) lease: LeaseClient<Channel>,
    pub(crate) maintenance: MaintenanceClient<Channel>,
    pub(crate) lock: LockClient<Channel>,
    pub(crate) election: ElectionClient<Channel>,
}

impl Clients {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        Ok(Self {
            kv: KvClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
        })
    }

    /// Opens a watch stream with its first watch: etcd answers no header before it has something to say.
    pub(crate) async fn watch(&mut self, first: WatchCreateRequest) -> WatchStream {
        let (requests, from) = mpsc::unbounded();
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(first)) };
        requests.unbounded_send(create).expect("the stream is open");
        let responses = self.watch.watch(from).await.expect("a watch stream opens").into_inner();
        WatchStream { requests, responses }
    }
}

/// A watch stream, both ways.
pub(crate) struct WatchStream {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl WatchStream {
    pub(crate) fn send(&self, request: RequestUnion) {
        self.requests.unbounded_send(WatchRequest { request_union: Some(request) }).expect("the stream is open");
    }

    pub(crate) fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request));
    }

    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Status> {
        within("a watch response", self.responses.next()).await.unwrap_or_else(|| Err(Status::unknown("end of stream")))
    }
}

pub(crate) fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn get(key: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), ..RangeRequest::default() }
}

pub(crate) fn get_range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { range_end: bytes(end), ..get(key) }
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

pub(crate) fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), ..DeleteRangeRequest::default() }
}

pub(crate) fn delete_range(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { range_end: bytes(end), ..delete(key) }
}

pub(crate) fn txn(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare, success, failure }
}

pub(crate) fn op(request: impl Into<AnyOp>) -> RequestOp {
    RequestOp { request: Some(request.into().0) }
}

/// Lets [`op`] take any request.
pub(crate) struct AnyOp(Op);

impl From<RangeRequest> for AnyOp {
    fn from(request: RangeRequest) -> Self {
        Self(Op::RequestRange(request))
    }
}

impl From<PutRequest> for AnyOp {
    fn from(request: PutRequest) -> Self {
        Self(Op::RequestPut(request))
    }
}

impl From<DeleteRangeRequest> for AnyOp {
    fn from(request: DeleteRangeRequest) -> Self {
        Self(Op::RequestDeleteRange(request))
    }
}

impl From<TxnRequest> for AnyOp {
    fn from(request: TxnRequest) -> Self {
        Self(Op::RequestTxn(request))
    }
}

pub(crate) fn compare(key: &str, result: CompareResult, target: CompareTarget, operand: TargetUnion) -> Compare {
    Compare {
        key: bytes(key),
        result: result.into(),
        target: target.into(),
        target_union: Some(operand),
        ..Compare::default()
    }
}

pub(crate) fn absent(key: &str) -> Compare {
    compare(key, CompareResult::Equal, CompareTarget::Create, TargetUnion::CreateRevision(0))
}

pub(crate) fn value_is(key: &str, value: &str) -> Compare {
    compare(key, CompareResult::Equal, CompareTarget::Value, TargetUnion::Value(bytes(value)))
}
