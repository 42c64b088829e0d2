//! The servers beside which coact is measured, started on free loopback ports and ended by their pid.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use coact::{Env, KvHandle, Store};
use coact_testkit::bed::{Bed as _, PostgresBed, RedisBed, RedisMode};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

/// A running server; it is killed when this is dropped.
pub(crate) struct Peer {
    _child: Child,
    pub(crate) url: String,
}

impl Peer {
    /// A coact node, in a process of its own.
    pub(crate) async fn node(dir: &Path) -> Self {
        let program =
            std::env::var("COACT_BENCH_NODE").expect("run this by `cargo xtask bench`, which builds the node");
        let port = free_port();
        let mut command = Command::new(program);
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(dir.join("node"));
        Self::start(command, format!("coact://127.0.0.1:{port}/bench")).await
    }

    /// etcd, with a disk that it syncs as it does by default.
    pub(crate) async fn etcd(dir: &Path) -> Self {
        let (client, peer) = (free_port(), free_port());
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.join("etcd")).args([
            "--listen-client-urls",
            &format!("http://127.0.0.1:{client}"),
            "--advertise-client-urls",
            &format!("http://127.0.0.1:{client}"),
            "--listen-peer-urls",
            &format!("http://127.0.0.1:{peer}"),
            "--initial-advertise-peer-urls",
            &format!("http://127.0.0.1:{peer}"),
            "--initial-cluster",
            &format!("default=http://127.0.0.1:{peer}"),
            "--log-level",
            "error",
        ]);
        Self::start(command, format!("etcd://127.0.0.1:{client}/bench")).await
    }

    async fn start(command: Command, url: String) -> Self {
        let peer = Self { _child: spawn(command), url };
        let env = Env::real();
        let ready = env.timeout(Duration::from_secs(60), async {
            while coact::open(&peer.url).await.is_err() {
                env.sleep(Duration::from_millis(50)).await;
            }
        });
        ready.await.unwrap_or_else(|| panic!("{} did not come up", peer.url));
        peer
    }

    pub(crate) async fn open(&self) -> KvHandle {
        coact::open(&self.url).await.expect("it is up")
    }
}

/// What messages are measured on: coact in process and through a node, and servers that users would pick instead.
pub(crate) struct Sides {
    pub(crate) embedded: Store,
    pub(crate) node: Store,
    pub(crate) redis: RedisBed,
    pub(crate) postgres: PostgresBed,
    _node: Peer,
}

impl Sides {
    pub(crate) async fn start(dir: &Path) -> Self {
        let embedded = coact::open_store(&format!("embedded://{}/embedded", dir.display())).await.expect("it opens");
        let node = Peer::node(dir).await;
        let store = coact::open_store(&node.url).await.expect("it is up");
        Self { embedded, node: store, redis: redis().await, postgres: postgres().await, _node: node }
    }
}

/// Redis with an append-only file that is synced at every write.
pub(crate) async fn redis() -> RedisBed {
    let bed = RedisBed::new(RedisMode::Single, |url| Box::pin(async move { coact::open_store(&url).await }));
    bed.start().await.expect("Redis is installed by `cargo xtask test`");
    bed
}

/// A connection that waits for its answers as long as the others do.
pub(crate) async fn redis_connection(bed: &RedisBed) -> redis::aio::MultiplexedConnection {
    let url = bed.url("bench").await;
    let client = redis::Client::open(url.trim_end_matches("/bench")).expect("a URL");
    let settings = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&settings).await.expect("it answers")
}

/// One PostgreSQL, which syncs every commit.
pub(crate) async fn postgres() -> PostgresBed {
    let bed = PostgresBed::new(|url| Box::pin(async move { coact::open_store(&url).await }));
    bed.start().await.expect("PostgreSQL is installed by `cargo xtask test`");
    bed
}

/// The resident memory of this process, in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Starts a server, which is killed when it is dropped, and waits until it takes connections.
pub(crate) async fn listening(command: Command, address: SocketAddr) -> Child {
    let child = spawn(command);
    let env = Env::real();
    let ready = env.timeout(Duration::from_secs(60), async {
        while TcpStream::connect(address).await.is_err() {
            env.sleep(Duration::from_millis(20)).await;
        }
    });
    ready.await.unwrap_or_else(|| panic!("nobody listens at {address}"));
    child
}

fn spawn(mut command: Command) -> Child {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn();
    child.unwrap_or_else(|error| panic!("{command:?} cannot be started; `cargo xtask bench` installs it: {error}"))
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}
