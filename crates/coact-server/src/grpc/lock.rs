//! Named locks: whoever's turn it is, holds it, until its key goes away.

use bytes::Bytes;
use coact_engine_embedded::flat::{DeleteRequest, KeyRange, Op};
use coact_engine_etcd::wire::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock};
use tonic::{Request, Response, Status};

use super::{
    Node, access,
    errors::{LOCK_EXPIRED, NO_LOCK_KEY},
};
use crate::auth::{Keys, Verb};

#[tonic::async_trait]
impl Lock for Node {
    /// Waits for the lock. A caller that goes away before it has it leaves the line.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = access::caller(&request)?;
        let LockRequest { name, lease } = request.into_inner();
        access::line(&caller, &name, &[Verb::Read, Verb::Write])?;
        let turn = self.take_turn(&name, lease, Bytes::new(), LOCK_EXPIRED, async |_| Ok(()));
        let (place, revision) = access::wait_unchanged(&caller, turn).await?;
        Ok(Response::new(LockResponse { header: self.header(revision), key: place.key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let caller = access::caller(&request)?;
        let UnlockRequest { key } = request.into_inner();
        if key.is_empty() {
            return Err(NO_LOCK_KEY.into());
        }
        access::keys(&caller, Keys::one(&key), &[Verb::Write])?;
        let delete = DeleteRequest { keys: KeyRange::one(key), previous: false };
        let (_, revision) = self.write(Op::Delete(delete)).await?;
        Ok(Response::new(UnlockResponse { header: self.header(revision) }))
    }
}
