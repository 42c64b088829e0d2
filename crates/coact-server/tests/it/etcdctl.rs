//! etcdctl 3.4 against a node: what people type, and what they read.

use std::{
    io::Read,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use coact_core::env::Env;
use coact_server::Server;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::bed::{self, eventually, within};

/// Runs one command that must succeed and returns what it printed, with the ids of this node replaced.
async fn run(node: &Server, command: &str) -> String {
    let (succeeded, text) = run_any(node.address(), command, "").await;
    assert!(succeeded, "etcdctl {command}: {text}");
    text
}

async fn run_any(address: SocketAddr, command: &str, input: &str) -> (bool, String) {
    let arguments: Vec<_> = command.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
    let output = bed::etcdctl(address, &arguments, input).await;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).replace(&address.to_string(), "NODE");
    (output.status.success(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes() {
    let node = bed::node().await;
    for (command, expected) in [
        ("put fruit/apple red", "OK\n"),
        ("put fruit/banana yellow", "OK\n"),
        ("put fruit/cherry dark", "OK\n"),
        ("put fruit/apple green", "OK\n"),
        ("put --prev-kv fruit/apple blue", "OK\nfruit/apple\ngreen\n"),
        ("get fruit/apple", "fruit/apple\nblue\n"),
        ("get fruit/apple --rev=2", "fruit/apple\nred\n"),
        ("get fruit/apple --print-value-only", "blue\n"),
        ("get --prefix fruit/", "fruit/apple\nblue\nfruit/banana\nyellow\nfruit/cherry\ndark\n"),
        ("get --prefix fruit/ --limit=2 --keys-only", "fruit/apple\n\nfruit/banana\n\n"),
        (
            "get --prefix fruit/ --order=DESCEND --sort-by=KEY --keys-only",
            "fruit/cherry\n\nfruit/banana\n\nfruit/apple\n\n",
        ),
        (
            "get --prefix fruit/ --order=DESCEND --sort-by=MODIFY --keys-only",
            "fruit/apple\n\nfruit/cherry\n\nfruit/banana\n\n",
        ),
        ("get --prefix fruit/ --order=ASCEND --sort-by=VALUE --print-value-only", "blue\ndark\nyellow\n"),
        ("get fruit/b fruit/c", "fruit/banana\nyellow\n"),
        ("get --from-key fruit/b --keys-only", "fruit/banana\n\nfruit/cherry\n\n"),
        ("get '' --prefix --keys-only --limit=1", "fruit/apple\n\n"),
        ("get absent", ""),
        ("del fruit/banana --prev-kv", "1\nfruit/banana\nyellow\n"),
        ("del absent", "0\n"),
        ("del --prefix fruit/", "2\n"),
        ("put fruit/apple again", "OK\n"),
    ] {
        assert_eq!(run(&node, command).await, expected, "etcdctl {command}");
    }
    let json = run(&node, "get fruit/apple -w json").await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["kvs"][0]["version"], 1, "a second life starts anew: {json}");
    assert_eq!(json["count"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_transactions() {
    let node = bed::node().await;
    let script = "create(\"flag\") = \"0\"\n\nput flag up\n\nget flag\n\n";
    let (succeeded, text) = run_any(node.address(), "txn", script).await;
    assert!(succeeded && text == "SUCCESS\n\nOK\n", "{text:?}");
    let (succeeded, text) = run_any(node.address(), "txn", script).await;
    assert!(succeeded && text == "FAILURE\n\nflag\nup\n", "{text:?}");
    let (succeeded, text) = run_any(node.address(), "txn", "\nput a 1\nput a 2\n\n\n").await;
    assert!(!succeeded && text.contains("etcdserver: duplicate key given in txn request"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches() {
    let node = bed::node().await;
    run(&node, "put w/a 1").await;
    run(&node, "put w/a 2").await;
    run(&node, "del w/a").await;
    let watch = followed(node.address(), &["watch", "--prefix", "w/", "--rev=2", "--prev-kv"]);
    watch.has("PUT\nw/a\n1\nPUT\nw/a\n1\nw/a\n2\nDELETE\nw/a\n2\nw/a\n\n").await;
    run(&node, "put w/b live").await;
    watch.has("PUT\nw/b\nlive\n").await;
    run(&node, "compaction 4").await;
    let late = followed(node.address(), &["watch", "w/a", "--rev=2"]);
    late.has("watch was canceled (etcdserver: mvcc: required revision has been compacted)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_leases() {
    let node = bed::node().await;
    let granted = run(&node, "lease grant 600").await;
    let id = granted.split(' ').nth(1).expect("an id").to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(600s)\n"));
    run(&node, &format!("put --lease={id} leased 1")).await;
    let left = run(&node, &format!("lease timetolive {id} --keys")).await;
    assert!(left.contains("granted with TTL(600s)") && left.contains("attached keys([leased])"), "{left}");
    assert_eq!(
        run(&node, &format!("lease keep-alive --once {id}")).await,
        format!("lease {id} keepalived with TTL(600)\n")
    );
    assert_eq!(run(&node, "lease list").await, format!("found 1 leases\n{id}\n"));
    assert_eq!(run(&node, &format!("lease revoke {id}")).await, format!("lease {id} revoked\n"));
    assert_eq!(run(&node, "get leased").await, "", "its key went with it");
    assert_eq!(run(&node, &format!("lease timetolive {id}")).await, format!("lease {id} already expired\n"));
    let (succeeded, text) = run_any(node.address(), &format!("lease revoke {id}"), "").await;
    assert!(!succeeded && text.contains("etcdserver: requested lease not found"), "{text}");

    run(&node, "lease grant 1").await;
    eventually("the lease ends by itself", async || run(&node, "lease list").await == "found 0 leases\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_elects() {
    let node = bed::node().await;
    let first = followed(node.address(), &["lock", "deploy"]);
    first.has("deploy/").await;
    let second = followed(node.address(), &["lock", "deploy"]);
    eventually("the second waits", async || node.engine().stats().watchers > 0).await;
    assert_eq!(second.text(), "", "the lock is held");
    first.interrupt().await;
    second.has("deploy/").await;
    second.interrupt().await;
    assert_eq!(run(&node, "lock once true").await, "", "a command runs under the lock");

    let leader = followed(node.address(), &["elect", "post", "me"]);
    leader.has("me\n").await;
    let listener = followed(node.address(), &["elect", "-l", "post"]);
    listener.has("me\n").await;
    leader.interrupt().await;
    eventually("the post is vacant", async || run(&node, "get --prefix post/").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_history_to_a_point() {
    let node = bed::node().await;
    for value in ["1", "2", "3"] {
        run(&node, &format!("put h {value}")).await;
    }
    assert_eq!(run(&node, "compaction 3").await, "compacted revision 3\n");
    assert_eq!(run(&node, "get h --rev=3").await, "h\n2\n");
    for (command, expected) in [
        ("get h --rev=2", "etcdserver: mvcc: required revision has been compacted"),
        ("get h --rev=99", "etcdserver: mvcc: required revision is a future revision"),
        ("compaction 3", "etcdserver: mvcc: required revision has been compacted"),
        ("compaction 99", "etcdserver: mvcc: required revision is a future revision"),
    ] {
        let (succeeded, text) = run_any(node.address(), command, "").await;
        assert!(!succeeded && text.contains(expected), "etcdctl {command}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shows_the_cluster_and_refuses_what_it_has_none_of() {
    let node = bed::node().await;
    let health = run(&node, "endpoint health").await;
    assert!(health.starts_with("NODE is healthy: successfully committed proposal"), "{health}");
    let status = run(&node, "endpoint status").await;
    assert!(
        status.starts_with("NODE, ") && status.contains(", 3.4.23+coact, ") && status.contains(", true, false, 2, "),
        "{status}"
    );
    let members = run(&node, "member list").await;
    assert!(members.contains(", started, coact, , http://NODE, false"), "{members}");
    assert_eq!(run(&node, "alarm list").await, "");
    assert_eq!(run(&node, "defrag").await, "Finished defragmenting etcd member[NODE]\n");
    let dir = tempfile::tempdir().expect("a temp dir");
    let snapshot = format!("snapshot save {}", dir.path().join("snapshot").display());
    for (command, expected) in [
        (
            snapshot.as_str(),
            "snapshot is not supported by a coact node: to back it up, stop it and copy its data directory",
        ),
        ("endpoint hashkv", "hashkv is not supported by a coact node"),
        ("member add two --peer-urls=http://127.0.0.1:1", "adding a member is not supported by a coact node"),
        ("member remove 1", "removing a member is not supported by a coact node"),
        ("user list", "coact does not serve /etcdserverpb.Auth/UserList"),
    ] {
        let (succeeded, text) = run_any(node.address(), command, "").await;
        assert!(!succeeded && text.contains("Unimplemented") && text.contains(expected), "etcdctl {command}: {text}");
    }
}

/// An etcdctl that runs on; killed when dropped.
struct Followed {
    process: Child,
    text: Arc<Mutex<String>>,
    changed: Arc<Notify>,
}

fn followed(address: SocketAddr, arguments: &[&str]) -> Followed {
    let mut command = bed::etcdctl_command(address);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("etcdctl starts");
    let (text, changed) = (Arc::<Mutex<String>>::default(), Arc::<Notify>::default());
    let stdout: Box<dyn Read + Send> = Box::new(process.stdout.take().expect("piped"));
    let stderr: Box<dyn Read + Send> = Box::new(process.stderr.take().expect("piped"));
    for pipe in [stdout, stderr] {
        let (text, changed) = (text.clone(), changed.clone());
        Env::real().spawn_thread("follow", move || collect(pipe, &text, &changed)).expect("a thread");
    }
    Followed { process, text, changed }
}

fn collect(mut pipe: Box<dyn Read + Send>, text: &Mutex<String>, changed: &Notify) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        text.lock().push_str(&String::from_utf8_lossy(&buffer[..length]));
        changed.notify_one();
    }
}

impl Followed {
    /// Waits until it has printed this.
    async fn has(&self, expected: &str) {
        within(&format!("etcdctl prints {expected:?}"), async {
            while !self.text().contains(expected) {
                self.changed.notified().await;
            }
        })
        .await;
    }

    fn text(&self) -> String {
        self.text.lock().clone()
    }

    /// As Ctrl-C does: it gives back what it holds and ends.
    async fn interrupt(mut self) {
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status().expect("kill runs");
        assert!(sent.success(), "the process is there");
        eventually("etcdctl ends", async || matches!(self.process.try_wait(), Ok(Some(_)))).await;
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
