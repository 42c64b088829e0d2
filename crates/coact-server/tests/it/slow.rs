//! Hundreds of clients that say a byte now and then (slow loris): they are put up with for a while, and keep nobody out.

use std::{net::SocketAddr, time::Duration};

use coact_core::env::Env;
use coact_server::Limits;
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

use crate::{
    bed::{self, eventually, within},
    client::{Clients, get, put},
};

const EACH: usize = 100;
const BETWEEN_BYTES: Duration = Duration::from_millis(50);
/// How many requests a client makes that does as it should.
const REQUESTS: usize = 200;
/// The start of an HTTP/2 connection with empty settings, and of a frame with 255 bytes of headers.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\xff\x01\x05\0\0\0\x01";
const HEADER: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ";
const BODY: &[u8] = b"PUT /v1/main/kv/slow HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                      Content-Length: 100000\r\n\r\n";

/// Clients that begin like this and go on byte by byte.
pub(crate) struct Slow(Vec<oneshot::Receiver<()>>);

impl Slow {
    pub(crate) async fn connect(address: SocketAddr, begin: &'static [u8], byte: u8, count: usize) -> Self {
        let streams = join_all((0..count).map(async |_| {
            let mut stream = TcpStream::connect(address).await.expect("it accepts");
            stream.write_all(begin).await.expect("sent");
            stream
        }));
        let clients = streams.await.into_iter().map(|stream| {
            let (closed, end) = oneshot::channel();
            Env::real().spawn(async move {
                dribble(stream, byte).await;
                // Nobody may wait for it.
                let _ = closed.send(());
            });
            end
        });
        Self(clients.collect())
    }

    /// Waits until the node has closed every one.
    pub(crate) async fn all_closed(self) {
        within("the node closes the slow", join_all(self.0)).await;
    }
}

/// Goes on until the node closes the connection.
async fn dribble(stream: TcpStream, byte: u8) {
    let (mut from, mut to) = stream.into_split();
    let say = async {
        while to.write_all(&[byte]).await.is_ok() {
            Env::real().sleep(BETWEEN_BYTES).await;
        }
    };
    let mut said = Vec::new();
    tokio::select! {
        () = say => {}
        // A reset is an end too.
        _ = from.read_to_end(&mut said) => {}
    }
}

async fn all_kinds(address: SocketAddr) -> Vec<Slow> {
    let kinds: [(&[u8], u8); 4] = [(b"", b'P'), (HEADER, b'x'), (BODY, b' '), (HTTP2, 0)];
    join_all(kinds.map(|(begin, byte)| Slow::connect(address, begin, byte, EACH))).await
}

/// Makes requests, over HTTP/2 and HTTP/1, that are all answered.
async fn requests(address: SocketAddr) {
    let mut clients = Clients::connect(address).await.expect("the node answers");
    for number in 0..REQUESTS {
        let value = number.to_string();
        within("a put", clients.kv.put(put("k", &value))).await.expect("done");
        let found = within("a read", clients.kv.range(get("k"))).await.expect("done").into_inner();
        assert_eq!(found.kvs[0].value, value);
    }
    assert_eq!(bed::get(address, "/healthz").await.0, 200);
}

async fn connections(address: SocketAddr) -> usize {
    let metrics = bed::get(address, "/metrics").await.1;
    let count = metrics.lines().find_map(|line| line.strip_prefix("coact_connections "));
    count.expect("the metric").parse().expect("a number")
}

#[tokio::test]
async fn the_slow_keep_nobody_waiting() {
    // They are put up with for longer than this test takes.
    let long = Duration::from_secs(600);
    let limits = Limits { header_time: long, ping_every: long, ..Limits::default() };
    let node = bed::node_with(limits).await;
    let slow = Slow::connect(node.address(), HEADER, b'x', 2 * EACH).await;
    let slow_http2 = Slow::connect(node.address(), HTTP2, 0, 2 * EACH).await;
    eventually("all are in", async || connections(node.address()).await > 4 * EACH).await;
    requests(node.address()).await;
    assert!(connections(node.address()).await > 4 * EACH, "all the while they were connected");
    drop((slow, slow_http2));
}

#[tokio::test]
async fn the_slow_are_closed_and_their_places_are_free() {
    let short = Duration::from_millis(500);
    let limits = Limits {
        header_time: short,
        ping_every: short,
        ping_timeout: short,
        connections: (4 * EACH + 10) as u32,
        ..Limits::default()
    };
    let node = bed::node_with(limits).await;
    let slow = all_kinds(node.address()).await;
    requests(node.address()).await;
    for kind in slow {
        kind.all_closed().await;
    }
    eventually("only who asks is connected", async || connections(node.address()).await == 1).await;
    requests(node.address()).await;
}
