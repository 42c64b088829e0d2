//! `coact top`: everything that goes on, at once and again.

use coact::Env;
use coact_testkit::bed::{PATIENCE, wait_until};
use serde_json::Value;

use crate::{node::Node, running::Running};

fn documents(text: &str) -> Vec<Value> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn what_goes_on_is_shown_once_and_as_it_changes() {
    let node = Node::start().await;
    let once = || documents(&node.stdout(&["top", "--once", "-o", "json"])).remove(0);
    let nothing: Vec<Value> = Vec::new();
    assert_eq!(once()["locks"], Value::from(nothing.clone()));
    assert_eq!(node.stdout(&["top", "--once"]), "nothing is held, led or served\n\n");
    let live = Running::start(&node, "live", &["top", "--interval", "100ms", "-o", "jsonl"]);
    live.wrote("it has looked", |text| !documents(text).is_empty()).await;

    let sleep = ["--", "sleep", "1000"];
    let start = |name: &str, arguments: &[&str]| Running::start(&node, name, &[arguments, &sleep].concat());
    let becomes = async |what: &str, wish: &dyn Fn(&Value) -> bool| {
        wait_until(&Env::real(), what, PATIENCE, async || wish(&once())).await.unwrap_or_else(|_| panic!("{}", once()));
    };
    let mut running = vec![start("quiet", &["lock", "run", "a-quiet", "--label", "librarian"])];
    running.push(start("busy", &["rw", "read", "busy", "--label", "reader"]));
    becomes("both are held", &|top| top["locks"].as_array().is_some_and(|locks| locks.len() >= 2)).await;
    running.push(start("waiter", &["rw", "write", "busy"]));
    becomes("one waits", &|top| top["locks"][0]["waiters"] == 1).await;
    running.push(start("leader", &["elect", "shop", "--value", "10.0.0.1"]));
    running.push(start("permit", &["sem", "run", "builds", "--permits", "3"]));
    let web = ["dir", "register", "web", "--address", "h", "--port", "80", "--id"];
    running.push(start("one", &[&web[..], &["one"]].concat()));
    node.stdout(&[&web[..], &["two", "--persistent"]].concat());
    node.stdout(&["dir", "drain", "web", "two"]);
    node.stdout(&["id", "next"]);
    becomes("everything is there", &|top| {
        ["elections", "semaphores", "ids"]
            .iter()
            .all(|section| top[section].as_array().is_some_and(|one| one.len() == 1))
            && top["services"][0]["total"] == 2
    })
    .await;

    let top = once();
    let [busy, quiet] = [&top["locks"][0], &top["locks"][1]];
    assert_eq!((&busy["lock"], &busy["kind"], &busy["holder"]), (&"busy".into(), &"rw".into(), &"reader".into()));
    assert_eq!((&quiet["lock"], &quiet["waiters"]), (&"a-quiet".into(), &0.into()), "the contended one comes first");
    assert_eq!((&top["elections"][0]["election"], &top["elections"][0]["value"]), (&"shop".into(), &"10.0.0.1".into()));
    assert_eq!((&top["semaphores"][0]["in_use"], &top["semaphores"][0]["permits"]), (&1.into(), &3.into()));
    let service = &top["services"][0];
    assert_eq!((&service["healthy"], &service["draining"], &service["state"]), (&1.into(), &1.into(), &"fresh".into()));
    assert_eq!((&top["ids"][0]["ids"], &top["ids"][0]["workers_known"]), (&"main".into(), &1.into()));
    let table = node.stdout(&["top", "--once", "--rows", "1"]);
    assert!(table.starts_with("LOCK  KIND  HOLDER  TOKEN  HELD_S  WAITERS  OLDEST_WAIT_S\nbusy  rw"), "{table}");
    // How many depends on whether the node has its own for health checks by now.
    assert!(table.contains("… and ") && table.contains(" more\n") && !table.contains("a-quiet"), "{table}; {}", once());

    live.wrote("the one that goes on has seen it too", |text| {
        documents(text).last().is_some_and(|top| top["services"][0]["total"] == 2 && top["locks"][0]["waiters"] == 1)
    })
    .await;
    let first = documents(&live.stdout()).remove(0);
    assert_eq!(first["locks"], Value::from(nothing), "it began before anything was held");
}

#[tokio::test]
async fn it_goes_on_when_the_node_comes_back() {
    let mut node = Node::start().await;
    let live = Running::start(&node, "live", &["top", "--interval", "100ms"]);
    live.wrote("it looks", |text| !text.is_empty()).await;
    assert!(!live.stdout().contains('\x1b'), "no terminal, no control characters");
    node.crash();
    let complains = async || live.stderr().contains("coact: ");
    wait_until(&Env::real(), "it complains", PATIENCE, complains).await.expect("in time");
    let before = live.stdout().len();
    node.restart().await;
    live.wrote("it looks again", |text| text.len() > before).await;
}
