//! What etcd's clients ask when they are given a user and a password.

use coact_engine_etcd::wire::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, auth_server::Auth};
use tonic::{Request, Response, Status};

use super::{
    Node,
    errors::{AUTH_FAILED, AUTH_OFF},
};
use crate::auth::Principal;

#[tonic::async_trait]
impl Auth for Node {
    /// The password is a token, and the answer is the same token: `etcdctl --user deployer:TOKEN`. The name is what
    /// people read, and is not looked at.
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let AuthenticateRequest { password, .. } = request.into_inner();
        match self.auth.identify(Some(&password)) {
            Principal::Everybody => Err(AUTH_OFF.into()),
            Principal::Anonymous => {
                self.auth.note_anonymous("authenticate");
                Err(AUTH_FAILED.into())
            }
            Principal::Bearer(_) => {
                Ok(Response::new(AuthenticateResponse { header: self.header(self.engine.revision()), token: password }))
            }
        }
    }
}
