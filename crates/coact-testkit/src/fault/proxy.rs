//! A TCP proxy between a client and a server, which cuts, delays, holds back and counts.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use coact_core::env::Env;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
};

use super::frames::{Frames, Scanner};

/// How many bytes pass at once.
const PIECE: usize = 16 * 1024;
/// How many pieces may be on their way in one direction of a connection.
const PIECES_UNDER_WAY: usize = 64;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What has passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many connections were made to the server.
    pub connections: u64,
    /// How often a client spoke after the server had: the round trips, while one request follows the other.
    pub turns: u64,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes from the server.
    pub bytes_down: u64,
    /// Frames from clients.
    pub frames_up: Frames,
    /// Frames from the server.
    pub frames_down: Frames,
}

/// A proxy on a free loopback port. Dropping it ends every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    traffic: Arc<Mutex<Traffic>>,
}

#[derive(Clone, Copy, Debug)]
struct Faults {
    server: SocketAddr,
    /// Rises with every cut: connections of an earlier time end.
    cuts: u64,
    is_cut: bool,
    delay: Duration,
    holds_up: bool,
    holds_down: bool,
}

impl Faults {
    fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.holds_up,
            Direction::Down => self.holds_down,
        }
    }
}

impl Proxy {
    /// Starts a proxy to this server, which need not run yet.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port for the proxy")?;
        let address = listener.local_addr()?;
        let faults =
            Faults { server, cuts: 0, is_cut: false, delay: Duration::ZERO, holds_up: false, holds_down: false };
        let (faults, watched) = watch::channel(faults);
        let traffic = Arc::<Mutex<Traffic>>::default();
        Env::real().spawn(accept(listener, watched, traffic.clone()));
        Ok(Self { address, faults, traffic })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections to another server, or to the same one on a new port.
    pub fn redirect(&self, server: SocketAddr) {
        self.faults.send_modify(|faults| faults.server = server);
    }

    /// Ends every connection. Until [`mend`](Self::mend), new ones are closed at once.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| {
            faults.cuts += 1;
            faults.is_cut = true;
        });
    }

    /// Lets everything pass again, and what was held back first. Leaves the delay.
    pub fn mend(&self) {
        self.faults.send_modify(|faults| {
            (faults.is_cut, faults.holds_up, faults.holds_down) = (false, false, false);
        });
    }

    /// Holds back one direction: connections stay open, and nobody is told. Both directions are a network partition, one
    /// is a half-open connection.
    pub fn hold(&self, direction: Direction) {
        self.faults.send_modify(|faults| match direction {
            Direction::Up => faults.holds_up = true,
            Direction::Down => faults.holds_down = true,
        });
    }

    /// Lets every byte arrive so much later, in each direction.
    pub fn delay(&self, by: Duration) {
        self.faults.send_modify(|faults| faults.delay = by);
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock()
    }
}

async fn accept(listener: TcpListener, mut faults: watch::Receiver<Faults>, traffic: Arc<Mutex<Traffic>>) {
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = faults.wait_for(|_| false) => return,
        };
        // What fails here is a client that went away again.
        if let Ok((client, _)) = client
            && !faults.borrow().is_cut
        {
            Env::real().spawn(connect(client, faults.clone(), traffic.clone()));
        }
    }
}

/// Carries one connection until either side ends it, or a cut does.
async fn connect(client: TcpStream, mut faults: watch::Receiver<Faults>, traffic: Arc<Mutex<Traffic>>) {
    let Faults { server, cuts, .. } = *faults.borrow();
    let carried = carry(client, server, faults.clone(), traffic);
    tokio::select! {
        // A connection that fails is what clients of this proxy are tested with.
        _ = carried => {}
        _ = faults.wait_for(|faults| faults.cuts != cuts) => {}
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    faults: watch::Receiver<Faults>,
    traffic: Arc<Mutex<Traffic>>,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    traffic.lock().connections += 1;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let clients_turn = Arc::new(AtomicBool::new(false));
    let up = Lane {
        direction: Direction::Up,
        faults: faults.clone(),
        traffic: traffic.clone(),
        clients_turn: clients_turn.clone(),
    };
    let down = Lane { direction: Direction::Down, faults, traffic, clients_turn };
    tokio::try_join!(up.run(from_client, to_server), down.run(from_server, to_client))?;
    Ok(())
}

/// One direction of one connection.
#[derive(Clone)]
struct Lane {
    direction: Direction,
    faults: watch::Receiver<Faults>,
    traffic: Arc<Mutex<Traffic>>,
    /// Whether it was the client who spoke last on this connection.
    clients_turn: Arc<AtomicBool>,
}

impl Lane {
    async fn run(self, from: OwnedReadHalf, to: OwnedWriteHalf) -> io::Result<()> {
        let (pieces, due) = mpsc::channel(PIECES_UNDER_WAY);
        tokio::try_join!(self.clone().read(from, pieces), self.write(due, to))?;
        Ok(())
    }

    /// Takes what is sent, and notes when it is to arrive.
    async fn read(self, mut from: OwnedReadHalf, pieces: mpsc::Sender<(Instant, Vec<u8>)>) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = from.read(&mut buffer).await?;
            let due = Env::real().now() + self.faults.borrow().delay;
            if count == 0 || pieces.send((due, buffer[..count].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Lets it arrive, and then the end.
    async fn write(mut self, mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut scanner = match self.direction {
            Direction::Up => Scanner::from_client(),
            Direction::Down => Scanner::from_server(),
        };
        while let Some((due, piece)) = pieces.recv().await {
            Env::real().sleep_until(due).await;
            self.until_passing().await?;
            self.count(&mut scanner, &piece);
            to.write_all(&piece).await?;
        }
        self.until_passing().await?;
        to.shutdown().await
    }

    /// An error if the proxy was dropped meanwhile.
    async fn until_passing(&mut self) -> io::Result<()> {
        let direction = self.direction;
        let passing = self.faults.wait_for(|faults| !faults.holds(direction)).await;
        passing.map(drop).map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    fn count(&self, scanner: &mut Scanner, piece: &[u8]) {
        let mut traffic = self.traffic.lock();
        let is_up = self.direction == Direction::Up;
        let was_up = self.clients_turn.swap(is_up, Ordering::SeqCst);
        traffic.turns += u64::from(is_up && !was_up);
        let Traffic { bytes_up, bytes_down, frames_up, frames_down, .. } = &mut *traffic;
        let (bytes, frames) = match self.direction {
            Direction::Up => (bytes_up, frames_up),
            Direction::Down => (bytes_down, frames_down),
        };
        *bytes += piece.len() as u64;
        scanner.scan(piece, frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::PATIENCE;

    /// A server that sends back what it gets, and a proxy before it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        Env::real().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                Env::real().spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    // The proxy may cut it.
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Proxy::start(address).await.expect("it starts")
    }

    async fn client(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.expect("the proxy accepts")
    }

    /// Sends, and returns what comes back; `None` for the end of the connection.
    async fn ask(client: &mut TcpStream, text: &str) -> Option<String> {
        client.write_all(text.as_bytes()).await.ok()?;
        answer(client, text.len()).await
    }

    async fn answer(client: &mut TcpStream, length: usize) -> Option<String> {
        let mut buffer = vec![0; length];
        let read = Env::real().timeout(PATIENCE, client.read_exact(&mut buffer)).await;
        read.expect("an answer or an end").ok()?;
        Some(String::from_utf8(buffer).expect("what was sent"))
    }

    #[tokio::test]
    async fn passes_and_counts() {
        let proxy = echo().await;
        let mut client = client(&proxy).await;
        assert_eq!(ask(&mut client, "hello").await.as_deref(), Some("hello"));
        let Traffic { connections, bytes_up, bytes_down, .. } = proxy.traffic();
        assert_eq!((connections, bytes_up, bytes_down), (1, 5, 5));
    }

    #[tokio::test]
    async fn a_cut_ends_connections_old_and_new_until_mended() {
        let proxy = echo().await;
        let mut old = client(&proxy).await;
        assert!(ask(&mut old, "hello").await.is_some());
        proxy.cut();
        assert_eq!(answer(&mut old, 1).await, None);
        assert_eq!(ask(&mut client(&proxy).await, "hello").await, None);
        proxy.mend();
        assert_eq!(ask(&mut old, "hello").await, None, "a connection does not come back");
        assert_eq!(ask(&mut client(&proxy).await, "hello").await.as_deref(), Some("hello"));
    }

    #[tokio::test]
    async fn what_is_held_back_in_one_direction_arrives_when_mended() {
        let proxy = echo().await;
        let mut client = client(&proxy).await;
        assert!(ask(&mut client, "hello").await.is_some());
        proxy.hold(Direction::Down);
        client.write_all(b"again").await.expect("sent");
        let arrived = async {
            while proxy.traffic().bytes_up < 10 {
                tokio::task::yield_now().await;
            }
        };
        Env::real().timeout(PATIENCE, arrived).await.expect("upwards it passes");
        assert_eq!(proxy.traffic().bytes_down, 5, "downwards it does not");
        proxy.mend();
        assert_eq!(answer(&mut client, 5).await.as_deref(), Some("again"));
    }

    #[tokio::test]
    async fn a_delay_is_at_least_what_was_asked_for() {
        let proxy = echo().await;
        let mut client = client(&proxy).await;
        let delay = Duration::from_millis(50);
        proxy.delay(delay);
        let asked = Env::real().now();
        assert!(ask(&mut client, "hello").await.is_some());
        assert!(Env::real().now() - asked >= 2 * delay, "once in each direction");
    }

    #[tokio::test]
    async fn dropping_it_ends_connections() {
        let proxy = echo().await;
        let mut client = client(&proxy).await;
        assert!(ask(&mut client, "hello").await.is_some());
        proxy.hold(Direction::Down);
        drop(proxy);
        assert_eq!(answer(&mut client, 1).await, None);
    }
}
