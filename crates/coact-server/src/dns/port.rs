//! The sockets: UDP packets and TCP connections, within limits.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use coact_core::env::Env;
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
};
use tracing::{debug, warn};

use super::{
    answer::{Answer, Zone},
    message::{self, Question, Received, Transport},
    services::Services,
};
use crate::{lifecycle::Signal, metrics::SharedMetrics};

/// The most questions over UDP that are answered at once; a further one is dropped, and its client asks again.
const UDP_QUESTIONS: usize = 1_024;
/// The most TCP connections; a further one is closed at once.
const TCP_CONNECTIONS: usize = 256;
/// How long a client may take for its next question, and to read an answer.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// How long receiving rests after the system refused it.
const PAUSE: Duration = Duration::from_millis(50);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How often two free ports of the same number are looked for.
const BIND_ROUNDS: u32 = 16;
const UDP_BYTES_MAX: usize = 4_096;

/// The two sockets of one address.
#[derive(Debug)]
pub(crate) struct Listeners {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listeners {
    /// Binds both.
    pub(crate) async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let mut round = 0;
        loop {
            round += 1;
            let udp = UdpSocket::bind(listen).await?;
            let address = udp.local_addr()?;
            match TcpListener::bind(address).await {
                Ok(tcp) => return Ok(Self { udp, tcp, address }),
                // What the system chose for UDP is taken for TCP.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && listen.port() == 0 && round < BIND_ROUNDS => {
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What questions are answered with.
pub(super) struct Port {
    env: Env,
    services: Services,
    zone: Zone,
    signal: Signal,
    metrics: SharedMetrics,
}

impl Port {
    pub(super) fn new(env: Env, services: Services, zone: Zone, signal: Signal, metrics: SharedMetrics) -> Arc<Self> {
        Arc::new(Self { env, services, zone, signal, metrics })
    }

    /// Starts to answer, until the shutdown begins.
    pub(super) fn serve(self: Arc<Self>, listeners: Listeners) {
        let env = self.env.clone();
        env.spawn(self.clone().serve_udp(listeners.udp));
        env.spawn(self.clone().serve_tcp(listeners.tcp));
        env.spawn(self.sweep());
    }

    async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let places = Arc::new(Semaphore::new(UDP_QUESTIONS));
        let mut signal = self.signal.clone();
        let mut buffer = vec![0; UDP_BYTES_MAX];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                () = signal.draining() => return,
            };
            let (length, from) = match received {
                Ok(received) => received,
                Err(error) => {
                    debug!(%error, "a DNS packet could not be received");
                    self.env.sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.metrics.dns_dropped();
                continue;
            };
            let (port, socket, bytes) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            self.env.spawn(async move {
                let _place = place;
                if let Some(answer) = port.answer(&bytes, Transport::Udp).await
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    debug!(%error, "a DNS answer could not be sent");
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(TCP_CONNECTIONS));
        let mut signal = self.signal.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = signal.draining() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a DNS connection could not be accepted");
                    self.env.sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.metrics.dns_dropped();
                continue;
            };
            let port = self.clone();
            self.env.spawn(async move {
                let _place = place;
                let mut signal = port.signal.clone();
                tokio::select! {
                    served = port.converse(stream) => drop(served),
                    () = signal.draining() => {}
                }
            });
        }
    }

    /// Answers one question after the other, until the client leaves or takes too long.
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let asked = self.env.timeout(TCP_PATIENCE, read_framed(&mut stream)).await;
            let bytes = asked.ok_or(io::ErrorKind::TimedOut)??;
            let Some(answer) = self.answer(&bytes, Transport::Tcp).await else { return Ok(()) };
            let sent = self.env.timeout(TCP_PATIENCE, write_framed(&mut stream, &answer)).await;
            sent.ok_or(io::ErrorKind::TimedOut)??;
        }
    }

    /// The bytes to answer with, if there is anything to answer.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let (question, answer) = match message::read(bytes, transport) {
            Received::Nothing => {
                self.metrics.dns_dropped();
                return None;
            }
            Received::Faulty(question, code) => (question, Answer::of(code)),
            Received::Question(question) => {
                let answer = match &question.query {
                    Some(query) => self.zone.answer(query, &self.services, &self.env).await,
                    None => Answer::of(ResponseCode::FormErr),
                };
                (question, answer)
            }
        };
        self.metrics.dns_answered(question.kind(), answer.code);
        self.write(&question, answer)
    }

    fn write(&self, question: &Question, answer: Answer) -> Option<Vec<u8>> {
        let written = question.answer(answer).or_else(|error| {
            warn!(%error, "a DNS question is answered with SERVFAIL");
            question.answer(Answer::of(ResponseCode::ServFail))
        });
        written.ok()
    }

    async fn sweep(self: Arc<Self>) {
        let mut signal = self.signal.clone();
        loop {
            tokio::select! {
                () = self.env.sleep(SWEEP_EVERY) => self.services.sweep(),
                () = signal.draining() => return,
            }
        }
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // One write: a client may take two packets for two messages.
    let framed = [&length.to_be_bytes(), bytes].concat();
    stream.write_all(&framed).await
}
