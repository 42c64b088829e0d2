//! HTTP/JSON next to gRPC, on one node: the same write, the same read.

use std::time::Duration;

use coact::{Key, KvHandle, Realm};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use crate::{
    load::{Measured, closed_loop, print},
    peer::Peer,
};

const GRPC: &str = "gRPC, through coact://";
const HTTP: &str = "HTTP/JSON, kept-alive connections";

pub(crate) async fn run(time: Duration) {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Peer::node(dir.path()).await;
    let kv = node.open().await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let base = node.url.replace("coact://", "http://").replace("/bench", "/v1/bench/kv/");
    for clients in [1, 64] {
        let rows = [puts(&kv, clients, time).await, http_puts(&client, &base, clients, time).await];
        print(&format!("a durable put of 100 bytes, {clients} clients"), GRPC, &rows);
        let rows = [gets(&kv, clients, time).await, http_gets(&client, &base, clients, time).await];
        print(&format!("a linearizable read of it, {clients} clients"), GRPC, &rows);
    }
}

fn key(index: usize) -> Key {
    Key::new(&Realm::default(), "bench", &format!("key-{index}")).expect("a key")
}

async fn puts(kv: &KvHandle, clients: usize, time: Duration) -> Measured {
    closed_loop(GRPC, clients, time, |index| {
        let (kv, key) = (kv.clone(), key(index));
        move || {
            let (kv, key) = (kv.clone(), key.clone());
            async move {
                kv.put(&key, "x".repeat(100), None).await.expect("written");
            }
        }
    })
    .await
}

async fn gets(kv: &KvHandle, clients: usize, time: Duration) -> Measured {
    closed_loop(GRPC, clients, time, |index| {
        let (kv, key) = (kv.clone(), key(index));
        move || {
            let (kv, key) = (kv.clone(), key.clone());
            async move {
                kv.get(&key).await.expect("read").expect("it is there");
            }
        }
    })
    .await
}

type Http = Client<HttpConnector, Full<Bytes>>;

async fn http_puts(client: &Http, base: &str, clients: usize, time: Duration) -> Measured {
    let body = format!("{{\"value\":\"{}\"}}", "x".repeat(100));
    closed_loop(HTTP, clients, time, |index| request_loop(client, Method::PUT, base, index, &body)).await
}

async fn http_gets(client: &Http, base: &str, clients: usize, time: Duration) -> Measured {
    closed_loop(HTTP, clients, time, |index| request_loop(client, Method::GET, base, index, "")).await
}

fn request_loop(
    client: &Http,
    method: Method,
    base: &str,
    index: usize,
    body: &str,
) -> impl FnMut() -> futures::future::BoxFuture<'static, ()> + Send + 'static {
    let (client, body) = (client.clone(), Bytes::copy_from_slice(body.as_bytes()));
    let target = format!("{base}bench%2Fkey-{index}");
    move || {
        let request = Request::builder()
            .method(method.clone())
            .uri(&target)
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))
            .expect("a request");
        let client = client.clone();
        Box::pin(async move {
            let answer = client.request(request).await.expect("an answer");
            assert!(answer.status().is_success(), "{}", answer.status());
            answer.into_body().collect().await.expect("a body");
        })
    }
}
