//! NATS with JetStream, and as much of its protocol as the benches need.

use std::{net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
};

use crate::peer::{free_port, listening};

const SUBJECT: &str = "bench";
const INBOX: &str = "_INBOX.bench";

/// A server with one stream, that syncs each message before it answers; it is killed when this is dropped.
pub(crate) struct Nats {
    _child: Child,
    address: SocketAddr,
}

impl Nats {
    pub(crate) async fn start(dir: &Path) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let python = std::env::var_os("COACT_BENCH_PYTHON").expect("run this by `cargo xtask bench`");
        let settings = dir.join("nats.conf");
        let place = dir.join("nats");
        let text = format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\", sync_interval: always, max_file_store: 50GB }}\n",
            place.display()
        );
        std::fs::write(&settings, text).expect("written");
        let mut command = Command::new(Path::new(&python).with_file_name("nats-server"));
        command.arg("-c").arg(settings);
        let nats = Self { _child: listening(command, address).await, address };
        nats.connect(0).await.create_stream().await;
        nats
    }

    /// Each connection has a number of its own.
    pub(crate) async fn connect(&self, number: usize) -> Connection {
        let stream = TcpStream::connect(self.address).await.expect("it is up");
        stream.set_nodelay(true).expect("a socket");
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let mut line = String::new();
        read.read_line(&mut line).await.expect("it greets");
        assert!(line.starts_with("INFO "), "{line}");
        let inbox = format!("{INBOX}.{number}");
        let hello = format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {inbox} 1\r\n");
        write.write_all(hello.as_bytes()).await.expect("it reads");
        Connection { read, write, inbox }
    }
}

/// One request, or one batch of them, at a time.
pub(crate) struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    inbox: String,
}

impl Connection {
    /// Publishes so many messages, and waits until each is stored.
    pub(crate) async fn publish(&mut self, count: usize, body: &[u8]) {
        let mut text = Vec::new();
        for _ in 0..count {
            text.extend_from_slice(format!("PUB {SUBJECT} {} {}\r\n", self.inbox, body.len()).as_bytes());
            text.extend_from_slice(body);
            text.extend_from_slice(b"\r\n");
        }
        let Self { read, write, .. } = self;
        // Answers come while requests still go.
        let answers = async {
            for _ in 0..count {
                let answer = message(read).await;
                assert!(answer.contains("\"seq\""), "{answer}");
            }
        };
        let (written, ()) = tokio::join!(write.write_all(&text), answers);
        written.expect("it reads");
    }

    async fn create_stream(&mut self) {
        // As much as the peers keep.
        let stream = format!(
            "{{\"name\":\"{SUBJECT}\",\"subjects\":[\"{SUBJECT}\"],\"storage\":\"file\",\"retention\":\"limits\",\"max_msgs\":100000}}"
        );
        let request = format!("PUB $JS.API.STREAM.CREATE.{SUBJECT} {} {}\r\n{stream}\r\n", self.inbox, stream.len());
        self.write.write_all(request.as_bytes()).await.expect("it reads");
        let answer = message(&mut self.read).await;
        assert!(!answer.contains("\"error\""), "{answer}");
    }
}

/// The next message's payload.
async fn message(read: &mut BufReader<OwnedReadHalf>) -> String {
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.expect("an answer");
        if !line.starts_with("MSG ") {
            // PING needs no answer in so short a time.
            assert!(line.starts_with("PING") || line.starts_with("INFO"), "{line}");
            continue;
        }
        let bytes: usize = line.trim_end().rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a length");
        let mut payload = vec![0; bytes + 2];
        read.read_exact(&mut payload).await.expect("a payload");
        return String::from_utf8_lossy(&payload[..bytes]).into_owned();
    }
}
