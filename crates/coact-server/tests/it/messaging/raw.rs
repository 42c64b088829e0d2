//! The generated clients of coact's own services, and what only they have.

use std::net::SocketAddr;

use coact_core::contract::stream::Offset;
use coact_engine_etcd::wire::coact_v1::{TailRequest, queues_client::QueuesClient, streams_client::StreamsClient};
use tonic::transport::{Channel, Endpoint};

use super::{append, streams};
use crate::{
    auth::with,
    bed::{self, within},
};

/// Both services over one connection.
pub(super) async fn connect(address: SocketAddr) -> (StreamsClient<Channel>, QueuesClient<Channel>) {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("the node answers");
    (StreamsClient::new(channel.clone()), QueuesClient::new(channel))
}

#[tokio::test]
async fn a_tail_goes_on_and_ends_with_the_node() {
    let node = bed::node().await;
    let streams = streams(&node, 1).await;
    let (mut client, _) = connect(node.address()).await;
    streams.append(append(&["a"])).await.expect("an append");
    let request = TailRequest {
        namespace: "shop".to_owned(),
        topic: "orders".to_owned(),
        partition: 0,
        from: 0,
        max_bytes: 1 << 20,
    };
    let mut tail = client.tail(with("nobody asks", request)).await.expect("a tail").into_inner();
    for (offset, next) in [(0, "b"), (1, "c"), (2, "d")] {
        let response = within("records", tail.message()).await.expect("open").expect("records");
        let fetched = coact_core::contract::stream::Fetched::try_from(response).expect("records");
        assert_eq!(fetched.records(Offset(offset)).next().expect("a record").offset, Offset(offset));
        streams.append(append(&[next])).await.expect("an append");
    }
    let ended = async {
        while tail.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let (ended, shut_down) = within("the end", async { tokio::join!(ended, node.shutdown()) }).await;
    shut_down.expect("it ends well");
    let error = coact_engine_etcd::messages::failure::error(&ended.expect_err("an error"));
    assert_eq!(error.expect("the node's own").kind(), coact_core::ErrorKind::Unavailable);
}
