//! Streams and queues of a coact node, over the connections that the Kv contract uses.
//!
//! What is asked often goes over a [`session`]: one stream with many requests under way. The rest is unary.

mod queue;
mod session;
mod stream;

use std::sync::Arc;

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        kv::KvHandle,
        queue::QueueHandle,
        stream::{StreamGuarantees, StreamHandle},
    },
    guarantees::Accepted,
    registry::Store,
};

use self::{queue::NodeQueues, session::Sessions, stream::NodeStreams};
use crate::{
    connection::{ANSWER_BYTES_MAX, Connections},
    credentials::Wire,
    errors::{Access, malformed},
    wire::coact_v1::{GuaranteesRequest, queues_client::QueuesClient, streams_client::StreamsClient},
};

/// Every contract that the node has.
pub(crate) async fn open(connections: &Arc<Connections>, kv: KvHandle, accepted: Accepted) -> Result<Store> {
    let env = connections.env.clone();
    let guarantees = match probe(connections).await {
        Ok(guarantees) => guarantees,
        // A node of an earlier version, or one whose engine has neither.
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(kv.into()),
        Err(error) => return Err(error),
    };
    let streams = NodeStreams::new(guarantees, connections.clone());
    let queues = NodeQueues::new(guarantees, connections.clone());
    Ok(Store::from(kv)
        .with_streams(StreamHandle::new(streams, env.clone(), accepted.clone()))
        .with_queues(QueueHandle::new(queues, env, accepted)))
}

async fn probe(connections: &Connections) -> Result<StreamGuarantees> {
    let request = GuaranteesRequest { namespace: connections.config.namespace.to_string() };
    let declared = connections
        .call(Access::Read, request, |wire, request| async move { streams_client(wire).guarantees(request).await })
        .await?;
    declared.into_inner().try_into()
}

fn streams_client(wire: Wire) -> StreamsClient<Wire> {
    StreamsClient::new(wire).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn queues_client(wire: Wire) -> QueuesClient<Wire> {
    QueuesClient::new(wire).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// What was read from an answer. That an answer is wrong is not the caller's fault, whatever is wrong with it.
fn understood<T>(read: Result<T>, what: &str) -> Result<T> {
    read.map_err(|error: Error| if error.kind() == ErrorKind::Corrupt { error } else { malformed(what) })
}

/// Sends one unary request: `ask!(self, Access::Read, streams_client.bounds(request))`.
macro_rules! ask {
    ($self:ident, $access:expr, $client:ident . $method:ident ($request:expr)) => {
        $self
            .sessions
            .unary($access, $request, |wire, request| async move { $client(wire).$method(request).await })
            .await
    };
}
use ask;
