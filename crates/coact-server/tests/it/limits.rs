//! What a node refuses: the network, the slow, the large and the many, and with which words.

use std::{net::SocketAddr, time::Duration};

use coact_core::{ErrorKind, env::Env};
use coact_engine_embedded::Config;
use coact_server::{Limits, Server, ServerConfig};
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use crate::{
    bed::{self, eventually, within},
    client::{Clients, get, put},
};

fn on(listen: &str) -> ServerConfig {
    let mut config = ServerConfig::new(Config::default());
    config.listen = listen.parse().expect("an address");
    config
}

async fn refusal(config: ServerConfig) -> coact_core::Error {
    Server::start(config, Env::real()).await.expect_err("it is refused")
}

/// Sends bytes and reads until the node closes the connection.
async fn answer(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it accepts");
    stream.write_all(request).await.expect("it reads");
    let mut answer = Vec::new();
    // A reset is an end too: the node need not read what it refuses.
    let _ = within("the node closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_network_is_refused() {
    for listen in ["0.0.0.0:7070", "192.0.2.1:7070", "[::]:7070", "[2001:db8::1]:7070"] {
        let error = refusal(on(listen)).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{listen}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("listening on {listen} is refused: it would open the node")), "{text}");
        assert!(text.contains("listen on 127.0.0.1:7070") && text.contains("SSH tunnel"), "{text}");
    }
    let mapped = Server::start(on("[::ffff:127.0.0.1]:0"), Env::real()).await.expect("loopback in another guise");
    mapped.shutdown().await.expect("a clean end");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let node = bed::node().await;
    let error = refusal(on(&node.address().to_string())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let expected = format!("cannot listen on {}: another process listens there", node.address());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let node = bed::node().await;
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    let status = clients.kv.put(put("k", &"x".repeat(1600 * 1024))).await.expect_err("past etcd's limit");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    let status = clients.kv.put(put("k", &"x".repeat(3 << 20))).await.expect_err("past every limit");
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("the limit is: 2097152 bytes"), "{}", status.message());
    clients.kv.put(put("k", &"x".repeat(1400 * 1024))).await.expect("within the limit");
}

#[tokio::test]
async fn who_says_nothing_is_cut_off() {
    let limits = Limits { header_time: Duration::from_millis(200), ..Limits::default() };
    let node = bed::node_with(limits).await;
    assert_eq!(answer(node.address(), b"").await, "", "nothing at all");
    assert_eq!(answer(node.address(), b"PRI * HTTP/2.0\r\n").await, "", "half an HTTP/2 preface");
    let text = answer(node.address(), b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "half a header: {text}");
    eventually("their places are free", async || {
        bed::get(node.address(), "/metrics").await.1.contains("coact_connections 1\n")
    })
    .await;
}

#[tokio::test]
async fn a_header_that_is_too_large_is_refused() {
    let node = bed::node().await;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(64 * 1024));
    let text = answer(node.address(), request.as_bytes()).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    assert_eq!(bed::get(node.address(), "/healthz").await.0, 200, "the others go on");
}

#[tokio::test]
async fn a_url_that_is_too_long_is_refused() {
    let node = bed::node().await;
    for length in [70 * 1024, 1024 * 1024] {
        let request = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(length));
        let text = answer(node.address(), request.as_bytes()).await;
        let refused = ["HTTP/1.1 414", "HTTP/1.1 431"].iter().any(|status| text.starts_with(status));
        assert!(text.is_empty() || refused, "{length}: {text}");
    }
    assert_eq!(bed::get(node.address(), "/healthz").await.0, 200, "the others go on");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_all_of_it_is_read() {
    let limits = Limits { body_bytes: 1024, ..Limits::default() };
    let node = bed::node_with(limits).await;
    let put = |length: &str| {
        format!(
            "PUT /v1/main/kv/a%2Fb HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             {length}\r\n\r\n"
        )
    };
    // Of what it announces little is sent: the answer does not wait for the rest.
    let large = put("Content-Length: 1000000000000") + &"x".repeat(1025);
    let text = answer(node.address(), large.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    let endless =
        format!("{}{}", put("Transfer-Encoding: chunked"), "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n1\r\nx\r\n");
    let text = answer(node.address(), endless.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "one that says no length: {text}");
    let value = r#"{"value":"x"}"#;
    let small = format!("{}{value}", put(&format!("Content-Length: {}", value.len())));
    let text = answer(node.address(), small.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 20"), "control: {text}");
}

#[tokio::test]
async fn a_crowd_past_the_limit_is_turned_away_and_the_first_go_on() {
    const PLACES: u32 = 20;
    let node = bed::node_with(Limits { connections: PLACES, ..Limits::default() }).await;
    let mut first = Clients::connect(node.address()).await.expect("the first");
    first.kv.range(get("k")).await.expect("it is served");
    let mut crowd = Vec::new();
    for _ in 0..10 * PLACES {
        crowd.push(TcpStream::connect(node.address()).await.expect("the system accepts it"));
    }
    // One place is the first client's.
    let turned_away = crowd.iter_mut().map(async |stream| stream.read(&mut [0]).await.map_or(true, |read| read == 0));
    let mut turned_away = turned_away.map(Box::pin).collect::<futures::stream::FuturesUnordered<_>>();
    for _ in 0..10 * PLACES - (PLACES - 1) {
        assert_eq!(within("one is closed", turned_away.next()).await, Some(true));
    }
    first.kv.put(put("k", "v")).await.expect("the first goes on");
    drop(turned_away);
    drop(crowd);
    eventually("there is room again", async || {
        let Ok(mut next) = Clients::connect(node.address()).await else { return false };
        next.kv.range(get("k")).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn connections_past_the_limit_are_closed() {
    let node = bed::node_with(Limits { connections: 2, ..Limits::default() }).await;
    let mut first = Clients::connect(node.address()).await.expect("the first");
    first.kv.range(get("k")).await.expect("it is served");
    let _second = TcpStream::connect(node.address()).await.expect("the second");
    eventually("the third is closed", async || {
        let mut third = TcpStream::connect(node.address()).await.expect("the system accepts it");
        let mut byte = [0];
        Env::real().timeout(Duration::from_millis(100), third.read(&mut byte)).await.is_some()
    })
    .await;
    first.kv.range(get("k")).await.expect("the first goes on");
}

#[tokio::test]
async fn grpc_is_for_http2_and_strangers_are_told() {
    let node = bed::node().await;
    let request = "POST /etcdserverpb.KV/Put HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\n\
                   Content-Length: 0\r\nConnection: close\r\n\r\n";
    let text = answer(node.address(), request.as_bytes()).await;
    assert!(text.starts_with("HTTP/1.1 505 "), "{text}");
    assert!(text.contains("gRPC is spoken over HTTP/2"), "{text}");
    let text = answer(node.address(), b"\x16\x03\x01\x02\x00\x01\x00 a TLS hello").await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
}
