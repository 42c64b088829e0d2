//! beanstalkd, and as much of its protocol as the benches need.

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

/// A server; it is killed when this is dropped.
pub(crate) struct Beanstalkd {
    _child: Child,
    address: SocketAddr,
}

impl Beanstalkd {
    /// With a log that is synced at every write, or without any.
    pub(crate) async fn start(log: Option<&Path>) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new("beanstalkd");
        command.args(["-l", "127.0.0.1", "-p", &address.port().to_string()]);
        if let Some(dir) = log {
            std::fs::create_dir_all(dir).expect("a directory");
            command.arg("-b").arg(dir).arg("-f0");
        }
        Self { _child: listening(command, address).await, address }
    }

    pub(crate) async fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).await.expect("it is up");
        stream.set_nodelay(true).expect("a socket");
        let (read, write) = stream.into_split();
        Connection { read: BufReader::new(read), write }
    }
}

/// One request at a time, but for [`put_all`](Self::put_all).
pub(crate) struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Connection {
    /// Puts a job that is ready after so many whole seconds.
    pub(crate) async fn put(&mut self, delay_s: u64, body: &[u8]) {
        self.put_all(1, |_| delay_s, body).await;
    }

    /// Puts so many at once, and waits for all answers.
    pub(crate) async fn put_all(&mut self, count: usize, delay_s: impl Fn(usize) -> u64, body: &[u8]) {
        let mut text = Vec::new();
        for job in 0..count {
            text.extend_from_slice(format!("put 1 {} 60 {}\r\n", delay_s(job), body.len()).as_bytes());
            text.extend_from_slice(body);
            text.extend_from_slice(b"\r\n");
        }
        self.write.write_all(&text).await.expect("it reads");
        for _ in 0..count {
            let answer = self.line().await;
            assert!(answer.starts_with("INSERTED "), "{answer}");
        }
    }

    /// Waits for a job, and gives its id and its body.
    pub(crate) async fn reserve(&mut self) -> (String, Vec<u8>) {
        self.write.write_all(b"reserve\r\n").await.expect("it reads");
        let answer = self.line().await;
        let words: Vec<_> = answer.split(' ').collect();
        let ["RESERVED", id, bytes] = words[..] else { panic!("{answer}") };
        let mut body = vec![0; bytes.parse::<usize>().expect("a length") + 2];
        self.read.read_exact(&mut body).await.expect("a body");
        body.truncate(body.len() - 2);
        (id.to_owned(), body)
    }

    pub(crate) async fn delete(&mut self, id: &str) {
        self.write.write_all(format!("delete {id}\r\n").as_bytes()).await.expect("it reads");
        let answer = self.line().await;
        assert_eq!(answer, "DELETED");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.read.read_line(&mut line).await.expect("an answer");
        line.trim_end().to_owned()
    }
}
