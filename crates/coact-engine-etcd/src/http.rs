//! Plain requests to a coact node, beside the protocol of etcd: same servers, same TLS, same token.

use std::sync::Arc;

use bytes::Bytes;
use coact_core::{Error, ErrorKind, Result, env::Env, url::Url};
use tonic::{
    Status,
    body::Body,
    codegen::{Service as _, http},
};

use crate::{
    config::{Config, Flavour},
    connection::Connections,
    credentials::Wire,
    errors::{Access, malformed},
};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What a node answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Asks a coact node over HTTP; cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHttp(Arc<Connections>);

impl NodeHttp {
    /// Reads a `coact://` URL; nothing is sent yet. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` for another scheme, and for options that are wrong.
    pub fn open(url: &Url, env: Env) -> Result<Self> {
        let config = Config::from_url(url)?;
        if config.flavour != Flavour::Node {
            return Err(Error::invalid(format!("{url} is not a coact node: write coact://host:7070")));
        }
        Ok(Self(Arc::new(Connections::new(config, env)?)))
    }

    /// Sends one request with a JSON body, or none if it is empty.
    ///
    /// # Errors
    /// `Unavailable` if the node does not answer. What it answers is no error, whatever its status.
    ///
    /// # Cancel safety
    /// Once polled, the request may have taken effect.
    pub async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let method = http::Method::from_bytes(method.as_bytes())
            .map_err(|_| Error::new(ErrorKind::Invalid, format!("{method:?} is no HTTP method")))?;
        let uri: http::Uri =
            path.parse().map_err(|_| Error::new(ErrorKind::Invalid, format!("{path:?} is no path of a node")))?;
        let access = if method == http::Method::GET { Access::Read } else { Access::Write };
        let question = (method, uri, body.into());
        let answer = self.0.call(access, question, |wire, (method, uri, body)| ask(wire, method, uri, body)).await?;
        Ok(answer.into_inner())
    }
}

async fn ask(
    mut wire: Wire,
    method: http::Method,
    uri: http::Uri,
    body: Bytes,
) -> Result<tonic::Response<Answer>, Status> {
    let mut request = http::Request::new(Body::new(http_body_util::Full::new(body)));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    std::future::poll_fn(|context| wire.poll_ready(context)).await.map_err(|error| Status::from_error(error.into()))?;
    let response = wire.call(request).await.map_err(|error| Status::from_error(error.into()))?;
    let status = response.status().as_u16();
    let limited = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = http_body_util::BodyExt::collect(limited)
        .await
        .map_err(|_| Status::data_loss(malformed("a page").to_string()))?
        .to_bytes();
    Ok(tonic::Response::new(Answer { status, body }))
}
