//! What the lock protects: a resource outside the cluster, which every host reaches whatever is cut (a Unix socket passes
//! between network namespaces). It checks tokens; a control beside it takes everything.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use coact::Env;
use coact_testkit::check::tokens::{Report, Resource};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix},
    sync::watch,
};

/// The resource, and the control that ignores tokens.
#[derive(Clone, Debug)]
pub(crate) struct Protected(Arc<Pair>);

#[derive(Debug)]
struct Pair {
    fenced: Resource,
    control: Resource,
    /// Who believes to hold the lock.
    inside: watch::Sender<BTreeSet<String>>,
}

impl Protected {
    pub(crate) fn new() -> Self {
        let (fenced, control) = (Resource::new(), Resource::without_tokens());
        Self(Arc::new(Pair { fenced, control, inside: watch::Sender::default() }))
    }

    /// What the resource and the control have seen.
    pub(crate) fn reports(&self) -> (Report, Report) {
        (self.0.fenced.report(), self.0.control.report())
    }

    /// Waits until somebody begins to hold the lock, with all its writes before it, and says who.
    pub(crate) async fn next_holder(&self) -> Option<String> {
        let mut inside = self.0.inside.subscribe();
        loop {
            inside.changed().await.ok()?;
            if let Some(holder) = inside.borrow_and_update().first() {
                return Some(holder.clone());
            }
        }
    }

    /// Waits until somebody else believes to hold the lock as well.
    pub(crate) async fn other_than(&self, holder: &str) {
        let mut inside = self.0.inside.subscribe();
        // It is kept as long as this lives.
        let _ = inside.wait_for(|inside| inside.iter().any(|other| other != holder)).await;
    }

    /// Serves it at this socket, until the runtime ends.
    pub(crate) fn serve(&self, socket: &Path) -> Result<()> {
        let listener = UnixListener::bind(socket).with_context(|| format!("serving at {}", socket.display()))?;
        let this = self.clone();
        Env::real().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                // A client that goes away ends its own conversation.
                Env::real().spawn(async move { drop(this.converse(stream).await) });
            }
        });
        Ok(())
    }

    async fn converse(&self, stream: UnixStream) -> Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await? {
            let taken = self.answer(&line)?;
            writer.write_all(if taken { b"taken\n" } else { b"refused\n" }).await?;
        }
        Ok(())
    }

    fn answer(&self, line: &str) -> Result<bool> {
        let mut words = line.split(' ');
        let (what, holder) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let token: u64 = words.next().context("no token")?.parse()?;
        let Pair { fenced, control, inside } = &*self.0;
        match what {
            "enter" => {
                fenced.enter(holder, token);
                control.enter(holder, token);
                inside.send_if_modified(|inside| inside.insert(holder.to_owned()));
                Ok(true)
            }
            "leave" => {
                fenced.leave(holder);
                control.leave(holder);
                inside.send_if_modified(|inside| inside.remove(holder));
                Ok(true)
            }
            _ => {
                control.write(holder, token);
                Ok(fenced.write(holder, token))
            }
        }
    }
}

/// A conversation with the resource.
#[derive(Debug)]
pub(crate) struct Client {
    lines: tokio::io::Lines<BufReader<unix::OwnedReadHalf>>,
    writer: unix::OwnedWriteHalf,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).await.with_context(|| format!("connecting to {}", socket.display()))?;
        let (reader, writer) = stream.into_split();
        Ok(Self { lines: BufReader::new(reader).lines(), writer })
    }

    /// `enter`, `leave` or `write`; whether it was taken.
    pub(crate) async fn tell(&mut self, what: &str, holder: &str, token: u64) -> Result<bool> {
        self.writer.write_all(format!("{what} {holder} {token}\n").as_bytes()).await?;
        let answer = self.lines.next_line().await?.context("the resource is gone")?;
        Ok(answer == "taken")
    }
}
