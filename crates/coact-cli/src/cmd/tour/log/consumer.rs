//! One consumer of the tour: writes down what it has done, until it is asked to end, whatever happens to the node.

use std::{collections::HashSet, fs::File, io::Write as _, path::PathBuf, time::Duration};

use clap::Args;
use coact::{
    Env, Group, Result, Session, SessionOptions, Topic,
    mq::{Consumer, ConsumerOptions, Message, RunOptions},
};

use super::{FAILING, GROUP, HANDLED, MENDED, TOPIC};
use crate::{
    cmd::{
        serve::Signals,
        tour::{cannot, passing},
    },
    exit::Exit,
};

/// How long the others wait for a consumer that was killed.
const LEASE: Duration = Duration::from_secs(2);
/// How often what is done is committed.
const COMMIT: Duration = Duration::from_millis(200);

/// Arguments of a consumer.
#[derive(Debug, Args)]
pub(crate) struct TourConsumer {
    #[arg(long)]
    at: String,
    #[arg(long)]
    place: PathBuf,
}

impl TourConsumer {
    pub(crate) async fn run(self) -> Result<Exit> {
        let failing = std::fs::read_to_string(self.place.join(FAILING)).map_err(cannot("read which programs fail"))?;
        let handled =
            File::options().append(true).open(self.place.join(HANDLED)).map_err(cannot("open what is done"))?;
        let work = Work {
            handled,
            failing: failing.lines().map(|name| name.as_bytes().to_vec()).collect(),
            mended: self.place.join(MENDED),
        };
        let mut signals = Signals::new()?;
        let env = Env::real();
        loop {
            match work.consume(&self.at, &mut signals).await {
                Ok(()) => return Ok(Exit::SUCCESS),
                // The lease ended while the node was away.
                Err(error) if passing(&error) => env.sleep(Duration::from_millis(50)).await,
                Err(error) => return Err(error),
            }
        }
    }
}

struct Work {
    handled: File,
    failing: HashSet<Vec<u8>>,
    /// There, if programs fail no more.
    mended: PathBuf,
}

impl Work {
    /// Handles lines until a signal comes.
    async fn consume(&self, at: &str, signals: &mut Signals) -> Result<()> {
        let store = coact::open_store(at).await?;
        let session = Session::open(store.kv(), SessionOptions { ttl: LEASE, ..SessionOptions::default() }).await?;
        let options = ConsumerOptions { commit_interval: COMMIT, ..ConsumerOptions::default() };
        let (group, topic) = (Group::new(GROUP)?, Topic::new(TOPIC)?);
        let consumer = Consumer::join(&session, store.streams()?, &group, [topic], options).await?;
        let options = RunOptions { max_attempts: 2, first_pause: Duration::from_millis(10), ..RunOptions::default() };
        let run = consumer.run(async |message: Message| self.handle(&message), options);
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            () = signals.first() => {}
        }
        let (left, ended) = tokio::join!(consumer.leave(), run);
        left.and(ended)?;
        session.close().await
    }

    /// What other programs would do with a line. One write appends it whole, so that the file has what all consumers did in
    /// the order in which they did it, and nothing of it is lost when one is killed.
    fn handle(&self, message: &Message) -> Result<(), String> {
        let program = message.record().key.as_deref().unwrap_or_default();
        if self.failing.contains(program) && !self.mended.exists() {
            return Err(format!("{} is to be mended", String::from_utf8_lossy(program)));
        }
        let done = format!("{} {}\n", message.partition, message.stored.offset);
        (&self.handled).write_all(done.as_bytes()).map_err(|error| error.to_string())
    }
}
