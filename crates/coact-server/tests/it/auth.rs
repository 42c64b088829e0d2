//! Tokens and roles, as a caller meets them: what is refused, how, and that nothing leaks.

mod client;
mod denied;
mod secrets;
mod tokens;

use std::path::Path;

use coact_core::env::Env;
use coact_engine_embedded::Config;
use coact_server::{
    Server, ServerConfig,
    auth::{AuthConfig, Token},
};
use serde_json::{Value, json};
use tonic::{Request, metadata::MetadataValue};

use crate::bed;

/// A node that asks for tokens, with its first admin's.
pub(crate) struct Guarded {
    pub(crate) node: Server,
    pub(crate) admin: String,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default(), None).await
    }

    pub(crate) async fn start_with(engine: Config, audit_file: Option<&Path>) -> Self {
        let admin = Token::generate().expect("randomness");
        let node = start(engine, &admin, audit_file).await;
        Self { node, admin: admin.expose() }
    }

    /// Makes a role of the same permissions, and a token that has it.
    pub(crate) async fn token(&self, label: &str, permissions: &[&str]) -> String {
        let permissions: Vec<_> = permissions.iter().map(|text| permission(text)).collect();
        let path = format!("/v1/auth/roles/{label}");
        let (status, body) = self.ask("PUT", &path, &self.admin, &json!({ "permissions": permissions })).await;
        assert_eq!(status, 204, "{body}");
        self.token_of(label, &[label]).await
    }

    pub(crate) async fn token_of(&self, label: &str, roles: &[&str]) -> String {
        let (status, body) =
            self.ask("POST", "/v1/auth/tokens", &self.admin, &json!({ "label": label, "roles": roles })).await;
        assert_eq!(status, 201, "{body}");
        body["token"].as_str().expect("the token").to_owned()
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let header = format!("Authorization: Bearer {token}\r\n");
        let (head, body) = bed::http_with(self.node.address(), method, path, &header, &body).await;
        (status(&head), serde_json::from_str(&body).unwrap_or_default())
    }
}

pub(crate) async fn start(engine: Config, admin: &Token, audit_file: Option<&Path>) -> Server {
    let mut config = ServerConfig::new(engine);
    config.listen = ([127, 0, 0, 1], 0).into();
    config.auth =
        AuthConfig { enabled: true, audit_file: audit_file.map(Path::to_owned), bootstrap_admin: Some(admin.digest()) };
    Server::start(config, Env::real()).await.expect("a node starts")
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

/// A gRPC request with a token.
pub(crate) fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("text");
    request.metadata_mut().insert("authorization", value);
    request
}

fn permission(text: &str) -> Value {
    let parts: Vec<_> = text.split(' ').collect();
    json!({
        "namespace": parts[0],
        "block": parts[1],
        "verbs": parts[2],
        "prefix": parts.get(3).copied().unwrap_or_default(),
    })
}

fn id_of(token: &str) -> &str {
    &token[6..14]
}
