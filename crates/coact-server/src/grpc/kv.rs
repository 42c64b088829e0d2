//! Keys and values.

use coact_engine_embedded::flat::{Answer, Op, TxnRequest as FlatTxn, TxnResponse as FlatResponse};
use coact_engine_etcd::wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, kv_server::Kv,
};
use tonic::{Request, Response, Status};

use super::{
    Node, access, check, convert,
    errors::{COMPACTED, failed, wrong_answer},
};

#[tonic::async_trait]
impl Kv for Node {
    /// A serializable read is answered like any other: the one member is never behind.
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let caller = access::caller(&request)?;
        let request = request.into_inner();
        check::range(&request)?;
        access::range(&caller, &request)?;
        let (found, revision) = self.engine.range(convert::range(request)).await.map_err(failed)?;
        Ok(Response::new(convert::range_response(found, self.header(revision))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = access::caller(&request)?;
        let request = request.into_inner();
        check::put(&request)?;
        access::put(&caller, &request)?;
        check::size(&request, self.limits.request_bytes)?;
        let (answer, revision) = self.write(Op::Put(convert::put(request))).await?;
        let Answer::Put(previous) = answer else { return Err(wrong_answer()) };
        let prev_kv = previous.as_deref().map(convert::key_value);
        Ok(Response::new(PutResponse { header: self.header(revision), prev_kv }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = access::caller(&request)?;
        let request = request.into_inner();
        check::delete(&request)?;
        access::delete(&caller, &request)?;
        check::size(&request, self.limits.request_bytes)?;
        let (answer, revision) = self.write(Op::Delete(convert::delete(request))).await?;
        let Answer::Delete { deleted, previous } = answer else { return Err(wrong_answer()) };
        Ok(Response::new(DeleteRangeResponse {
            header: self.header(revision),
            deleted: deleted as i64,
            prev_kvs: previous.iter().map(|record| convert::key_value(record)).collect(),
        }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = access::caller(&request)?;
        let request = request.into_inner();
        check::txn(&request, self.limits.txn_ops)?;
        access::txn(&caller, &request)?;
        check::size(&request, self.limits.request_bytes)?;
        let response = self.engine.txn(convert::txn(request)).await.map_err(failed)?;
        let header = self.header(response.revision);
        Ok(Response::new(convert::txn_response(response, header)))
    }

    /// Compaction is durable before it is answered, whether `physical` was asked for or not.
    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        access::admin(&access::caller(&request)?, "compact")?;
        let Ok(revision) = u64::try_from(request.get_ref().revision) else { return Err(COMPACTED.into()) };
        self.engine.compact(revision).await.map_err(failed)?;
        Ok(Response::new(CompactionResponse { header: self.header(self.engine.revision()) }))
    }
}

impl Node {
    /// Runs one write as a transaction of its own.
    pub(super) async fn write(&self, op: Op) -> Result<(Answer, u64), Status> {
        let request = FlatTxn { success: vec![op], ..FlatTxn::default() };
        let FlatResponse { mut answers, revision, .. } = self.engine.txn(request).await.map_err(failed)?;
        let answer = answers.pop().ok_or_else(wrong_answer)?;
        Ok((answer, revision))
    }
}
