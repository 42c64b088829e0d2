//! Following a topic over HTTP, and going on where it was cut.

use tokio::{io::AsyncReadExt, net::TcpStream};

use super::*;
use crate::{bed::within, web::open};

/// Reads events until one has this in its data; all that came.
async fn until(stream: &mut TcpStream, what: &str) -> String {
    let mut text = String::new();
    within(what, async {
        let mut part = [0; 4096];
        while !text.contains(what) {
            let read = stream.read(&mut part).await.expect("it goes on");
            assert!(read > 0, "it ended: {text}");
            text += std::str::from_utf8(&part[..read]).expect("text");
        }
    })
    .await;
    text
}

/// The id of the last event before this text.
fn id_before(text: &str, what: &str) -> String {
    let before = &text[..text.find(what).expect("it came")];
    // Fields may come in any order: the id of the event is the nearest after the last empty line, or after the data.
    let event = &text[before.rfind("\n\n").map_or(0, |at| at + 2)..];
    let id = event.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id");
    id.to_owned()
}

#[tokio::test]
async fn a_tail_goes_on_after_the_last_event_without_a_gap() {
    let node = node().await;
    let at = node.address();
    made(at, 2).await;
    let record = |partition: u32, value: &str| json!({"value": value, "partition": partition});
    let send = async |records: Vec<Value>| {
        post(at, &format!("{TOPIC}/records"), json!({ "records": records })).await.ok();
    };
    send(vec![record(0, "zero-0"), record(1, "one-0"), record(0, "zero-1")]).await;
    let mut stream = open(at, "GET", &format!("{TOPIC}/watch?at=earliest"), &[], None).await;
    let first = until(&mut stream, "zero-1").await;
    assert!(first.contains("event: begin"), "{first}");
    assert!(first.find("zero-0") < first.find("zero-1"), "in order: {first}");
    drop(stream);
    let last = id_before(&first, "zero-0");
    assert!(last.starts_with("0:1,1:"), "{last}: {first}");

    send(vec![record(1, "one-1"), record(0, "zero-2")]).await;
    let mut stream = open(at, "GET", &format!("{TOPIC}/watch"), &[("Last-Event-ID", &last)], None).await;
    let mut text = until(&mut stream, "zero-2").await;
    if !text.contains("one-1") {
        text += &until(&mut stream, "one-1").await;
    }
    assert!(text.contains("zero-1") && !text.contains("zero-0"), "{text}");
    drop(stream);

    // One partition, and only what comes.
    let mut stream = open(at, "GET", &format!("{TOPIC}/watch?partition=1"), &[], None).await;
    let begin = until(&mut stream, "event: begin").await;
    assert!(begin.contains("1:2"), "{begin}");
    send(vec![record(0, "zero-3"), record(1, "one-2")]).await;
    let text = until(&mut stream, "one-2").await;
    assert!(!text.contains("zero-") && !text.contains("one-1"), "{text}");

    // It ends with the topic, and with the node.
    let mut other = open(at, "GET", &format!("{TOPIC}/watch?partition=0&offset=0"), &[], None).await;
    until(&mut other, "zero-3").await;
    let gone = get(at, &format!("{TOPIC}/watch?partition=2")).await;
    assert_eq!(gone.problem(404).0, "not-found");
    within("a shutdown with a tail open", node.shutdown()).await.expect("a clean end");
}

#[tokio::test]
async fn what_is_wrong_with_a_tail_is_said() {
    let node = node().await;
    let at = node.address();
    made(at, 257).await;
    let tail = format!("{TOPIC}/watch");
    let (_, detail) = get(at, &tail).await.problem(400);
    assert_eq!(detail, "257 partitions are too many for one stream: follow one, with partition");
    let (_, detail) = get(at, &format!("{tail}?offset=1")).await.problem(400);
    assert!(detail.contains("257") || detail.starts_with("an offset is of one partition"), "{detail}");
    let (_, detail) =
        call_with(at, "GET", &format!("{tail}?partition=1"), &[("Last-Event-ID", "x")], None).await.problem(400);
    assert_eq!(detail, "Last-Event-ID must be the id of an event of this stream");
    assert_eq!(get(at, "/v1/main/topics/none/watch").await.problem(404).0, "not-found");
}
