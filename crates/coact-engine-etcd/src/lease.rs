//! Renewal of leases: one keep-alive stream for each handle, whatever the number of leases.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use coact_core::{Error, ErrorKind, Result, contract::kv::LeaseId};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    connection::Connections,
    errors::{Access, Failure, closed, malformed},
    watch::on_stream,
    wire::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient},
};

type Reply = oneshot::Sender<Result<Duration, Failure>>;

enum Command {
    Renew {
        lease: LeaseId,
        reply: Reply,
    },
    /// An answer is overdue: try another connection.
    Overdue,
    Close,
}

/// Asks the task that owns the stream.
pub(crate) struct Renewals {
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<Connections>,
}

impl Renewals {
    /// Starts the task; it opens the stream at the first renewal.
    pub(crate) fn start(connections: Arc<Connections>) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let env = connections.env.clone();
        env.spawn(Task { connections: connections.clone(), commands: inbox, waiting: HashMap::new() }.run());
        Self { commands, connections }
    }

    /// Renews, once more on another connection if the first one breaks: two renewals do no more than one.
    pub(crate) async fn renew(&self, lease: LeaseId) -> Result<Duration> {
        let env = &self.connections.env;
        let timeout = self.connections.config.timeout;
        let deadline = env.now() + timeout;
        let closed = || closed(&self.connections.config.description);
        let mut tries = 0;
        loop {
            let (reply, answer) = oneshot::channel();
            self.commands.send(Command::Renew { lease, reply }).map_err(|_| closed())?;
            let left = deadline.saturating_duration_since(env.now());
            match env.timeout(left, answer).await {
                Some(Ok(Ok(ttl))) => return Ok(ttl),
                Some(Ok(Err(failure))) => {
                    tries += 1;
                    let enough = self.connections.servers() + usize::from(!failure.unreachable);
                    if !failure.elsewhere || tries >= enough {
                        return Err(failure.error);
                    }
                }
                Some(Err(_)) => return Err(closed()),
                None => {
                    let _ = self.commands.send(Command::Overdue);
                    return Err(Failure::timeout(&self.connections.peers(), timeout, Access::Idempotent).error);
                }
            }
        }
    }

    pub(crate) fn close(&self) {
        let _ = self.commands.send(Command::Close);
    }
}

struct Task {
    connections: Arc<Connections>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Who waits for an answer about a lease, in the order asked; the server answers in order.
    waiting: HashMap<i64, VecDeque<Reply>>,
}

impl Task {
    async fn run(mut self) {
        while let Some(command) = self.commands.recv().await {
            let (requests, outbox) = mpsc::unbounded_channel();
            if self.command(command, &requests).is_break() {
                return;
            }
            // A server answers the opening of a stream together with its first response, so a request is in it already.
            if !self.waiting.is_empty() && self.stream(requests, outbox).await.is_break() {
                return;
            }
        }
    }

    /// Serves one stream until it breaks.
    async fn stream(
        &mut self,
        requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
        outbox: mpsc::UnboundedReceiver<LeaseKeepAliveRequest>,
    ) -> ControlFlow<()> {
        let Ok(line) = self.connections.line() else { return ControlFlow::Break(()) };
        let mut client = LeaseClient::new(line.channel.clone());
        let opening = client.lease_keep_alive(on_stream(UnboundedReceiverStream::new(outbox)));
        tokio::pin!(opening);
        let mut responses = None;
        let status = loop {
            let response = async {
                match &mut responses {
                    None => opening.as_mut().await.map(|response| {
                        responses = Some(response.into_inner());
                        None
                    }),
                    Some(responses) => match responses.message().await? {
                        Some(response) => Ok(Some(response)),
                        None => Err(tonic::Status::unavailable("the server ended the stream")),
                    },
                }
            };
            tokio::select! {
                biased;
                response = response => match response {
                    Ok(Some(response)) => self.answer(&response),
                    Ok(None) => {}
                    Err(status) => break status,
                },
                command = self.commands.recv() => match command {
                    Some(Command::Overdue) => break tonic::Status::unavailable("a renewal is overdue"),
                    Some(command) => self.command(command, &requests)?,
                    None => return ControlFlow::Break(()),
                },
            }
        };
        tracing::debug!(engine = %self.connections.config.description, %status, "the keep-alive stream broke");
        self.connections.replace(&line);
        self.connections.log_in_after(&status).await;
        let peer = self.connections.peer(&line);
        for reply in self.waiting.drain().flat_map(|(_, replies)| replies) {
            let _ = reply.send(Err(Failure::of(&status, &peer, Access::Idempotent)));
        }
        ControlFlow::Continue(())
    }

    fn command(
        &mut self,
        command: Command,
        requests: &mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    ) -> ControlFlow<()> {
        match command {
            Command::Renew { lease, reply } => {
                self.waiting.entry(lease.0).or_default().push_back(reply);
                let _ = requests.send(LeaseKeepAliveRequest { id: lease.0 });
            }
            Command::Overdue => {}
            Command::Close => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn answer(&mut self, response: &LeaseKeepAliveResponse) {
        let Some(replies) = self.waiting.get_mut(&response.id) else { return };
        let reply = replies.pop_front();
        if replies.is_empty() {
            self.waiting.remove(&response.id);
        }
        if let Some(reply) = reply {
            let _ = reply.send(renewed(response.ttl));
        }
    }
}

fn renewed(ttl: i64) -> Result<Duration, Failure> {
    if ttl > 0 {
        return Ok(Duration::from_secs(ttl.unsigned_abs()));
    }
    let error = Error::new(ErrorKind::Fenced, "the lease has ended");
    Err(Failure { error, elsewhere: false, unreachable: false })
}

/// The length of a granted lease.
pub(crate) fn granted(ttl: i64) -> Result<Duration> {
    if ttl > 0 { Ok(Duration::from_secs(ttl.unsigned_abs())) } else { Err(malformed("a lease grant")) }
}

/// Whole seconds, rounded up: a lease lives at least as long as asked.
pub(crate) fn seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(seconds.max(1)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_round_up_to_whole_seconds() {
        for (ttl, expected) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60)] {
            assert_eq!(seconds(Duration::from_millis(ttl)), expected, "{ttl}");
        }
    }

    #[test]
    fn an_answer_without_time_left_means_that_the_lease_has_ended() {
        assert_eq!(renewed(3).expect("alive"), Duration::from_secs(3));
        for ttl in [0, -1] {
            assert_eq!(renewed(ttl).expect_err("ended").error.kind(), ErrorKind::Fenced);
        }
    }
}
