//! A log goes line by line through a topic, keyed by the program that wrote it, to three consumers of a group. Some lines are
//! delayed, and some programs fail until they are mended. A consumer and the node get kill -9 in the middle.

pub(super) mod consumer;
mod input;
mod ledger;
mod proof;
mod replay;

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use coact::{
    Error, ErrorKind, Group, Realm, Result, Store, Topic,
    contract::stream::TopicSpec,
    mq::{GroupLag, Monitor, Parked},
};
use tokio::{process::Child, sync::watch};

use self::{input::Input, proof::Rates, replay::Replay};
use super::{
    Site, Timeline, cannot, choose_input, failed, passing,
    site::{command, kill, pid, terminate},
};
use crate::cmd::bytes;

/// A part that does not end within this has failed.
const DEADLINE: Duration = Duration::from_secs(900);
/// How often it is looked how far everybody is.
const LOOK: Duration = Duration::from_millis(50);
const CONSUMERS: usize = 3;
const PARTITIONS: u32 = 6;
const TOPIC: &str = "log";
const GROUP: &str = "tour";
/// What consumers find in the tour's directory: what they write of each line that is done, which programs fail, and
/// whether those are mended.
const HANDLED: &str = "handled";
const FAILING: &str = "failing";
const MENDED: &str = "mended";
const CONSUMERS_LOG: &str = "consumers.log";

/// What goes through the topic.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// The log that goes through a topic, again and again until there is enough of it [default: a log of this machine].
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How much of it.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "100MB")]
    log_size: u64,
}

impl Log {
    /// Works to the end, and gives the proof.
    pub(super) async fn run(&self, site: &mut Site, show: &mut Timeline) -> Result<Vec<String>> {
        let path = choose_input(self.log.as_ref())?;
        let input = Input::read(&path, self.log_size)?;
        show.begin_part();
        show.event(&format!(
            "{} lines of {} programs, {:.1} MB: {}, {} times",
            input.count(),
            input.programs().len(),
            input.bytes() as f64 / 1e6,
            path.display(),
            input.repeats(),
        ));
        let env = site.env.clone();
        let run = Run { input, began: env.now() };
        env.timeout(DEADLINE, run.to_the_end(site, show)).await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Unavailable, format!("the log was not through within {DEADLINE:?}")))
        })
    }
}

struct Run {
    input: Input,
    began: Instant,
}

impl Run {
    async fn to_the_end(&self, site: &mut Site, show: &mut Timeline) -> Result<Vec<String>> {
        let failing = self.input.failing();
        std::fs::write(site.place().join(FAILING), failing.join("\n")).map_err(cannot("name the failing programs"))?;
        let mut handled = Handled::create(site)?;
        let store = site.open().await?;
        let topic = Topic::new(TOPIC)?;
        let spec = TopicSpec { partitions: PARTITIONS, ..TopicSpec::default() };
        store.streams()?.create_topic(&topic, &spec).await?;
        let mut consumers = Vec::new();
        for _ in 0..CONSUMERS {
            consumers.push(start_consumer(site)?);
        }
        let watched = Watched::new(&store)?;
        watched.until(site, |lag| lag.members.len() == CONSUMERS && !lag.rebalancing).await?;
        show.event(&format!("{CONSUMERS} consumers share {PARTITIONS} partitions"));

        let mut rates = self.through(site, show, &store, &watched, &mut handled, &mut consumers[0]).await?;
        rates.handled = site.env.now() - self.began;
        self.mend(site, show, &store, &failing).await?;
        rates.all = site.env.now() - self.began;
        for (number, consumer) in consumers.iter_mut().enumerate().skip(1) {
            terminate(consumer)?;
            let status = consumer.wait().await.map_err(cannot("wait for a consumer"))?;
            if !status.success() {
                let log = std::fs::read_to_string(site.place().join(CONSUMERS_LOG)).unwrap_or_default();
                return Err(failed(format!("consumer {} ended with {status}: {log}", number + 1)));
            }
        }
        show.event("the other consumers left politely");
        let proof = proof::prove(store.streams()?, &topic, &self.input, &site.place().join(HANDLED)).await?;
        clear(&store, &topic).await?;
        store.close().await?;
        Ok(proof.lines(&rates))
    }

    /// Sends everything while it is consumed, kills a consumer and the node, and waits until nothing is left.
    async fn through(
        &self,
        site: &mut Site,
        show: &mut Timeline,
        store: &Store,
        watched: &Watched,
        handled: &mut Handled,
        victim: &mut Child,
    ) -> Result<Rates> {
        let total = self.input.count();
        let (told, done) = watch::channel(0);
        let replay = Replay { env: site.env.clone(), input: self.input.clone(), done };
        let store_of_replay = store.clone();
        let (sent_at, mut sent) = tokio::sync::oneshot::channel();
        let env = site.env.clone();
        site.env.spawn(async move {
            let result = replay.run(&store_of_replay).await;
            // Nobody listens any more only if the part has failed.
            let _ = sent_at.send(result.map(|()| env.now()));
        });
        let (mut rates, mut last) = (Rates::default(), (site.env.now(), 0));
        let (mut killed_consumer, mut killed_node, mut all_sent) = (false, !site.owns_node(), false);
        loop {
            site.env.sleep(LOOK).await;
            let count = handled.count()?;
            told.send_replace(count);
            if !all_sent && let Ok(result) = sent.try_recv() {
                (all_sent, rates.sent) = (true, result? - self.began);
            }
            if count * 10 / total.max(1) > last.1 * 10 / total.max(1) {
                let lag = watched.now().await?;
                let lines = lag.as_ref().and_then(GroupLag::messages).unwrap_or(0);
                let age_ms = lag.as_ref().and_then(GroupLag::age_ms).unwrap_or(0);
                rates.most_lag = rates.most_lag.max((lines, age_ms));
                let now = site.env.now();
                let speed = (count - last.1) as f64 / (now - last.0).as_secs_f64();
                last = (now, count);
                let more = format!("{speed:.0} lines/s, lag {lines} lines, {:.1} s", age_ms as f64 / 1e3);
                show.progress(count, total, &more);
            }
            if count >= total / 3 && !killed_consumer {
                killed_consumer = true;
                show.event(&format!("{count} lines handled: kill -9 of consumer 1, pid {}", pid(victim)));
                kill(victim).await?;
            }
            if count >= total * 3 / 5 && !killed_node {
                killed_node = true;
                site.kill_node(
                    show,
                    &format!("{count} lines handled, {} sent", if all_sent { "all" } else { "not all" }),
                )
                .await?;
            }
            if all_sent && watched.nothing_left().await? {
                break;
            }
        }
        if !killed_consumer || !killed_node {
            return Err(failed("the run ended before the consumer and the node were killed"));
        }
        Ok(rates)
    }

    /// Mends the failing programs, and waits until their lines are done.
    async fn mend(&self, site: &Site, show: &Timeline, store: &Store, failing: &[String]) -> Result<()> {
        let parked = Parked::open(store.kv(), &Realm::default(), &Group::new(GROUP)?)?;
        let keys = parked.list().await?;
        let found: BTreeSet<_> = keys.iter().map(|one| one.key.clone()).collect();
        if found != failing.iter().cloned().collect() {
            return Err(failed(format!("parked are {found:?}, and failing are {failing:?}")));
        }
        let waiting: u64 = keys.iter().map(|one| one.waiting).sum();
        show.event(&format!("{waiting} lines of {} programs are parked: those are mended, and redriven", keys.len()));
        File::create(site.place().join(MENDED)).map_err(cannot("say that the programs are mended"))?;
        parked.redrive_all().await?;
        while !parked.list().await?.is_empty() {
            site.env.sleep(LOOK).await;
        }
        show.event("nothing is parked any more");
        Ok(())
    }
}

fn start_consumer(site: &Site) -> Result<Child> {
    let path = site.place().join(CONSUMERS_LOG);
    let log = File::options().create(true).append(true).open(path).map_err(cannot("open the consumers' log"))?;
    command()?
        .args(["tour-consumer", "--at", &site.url, "--place"])
        .arg(site.place())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(cannot("start a consumer"))
}

/// Deletes the topics and the group.
async fn clear(store: &Store, topic: &Topic) -> Result<()> {
    let (streams, group) = (store.streams()?, Group::new(GROUP)?);
    streams.delete_group(&group).await?;
    for topic in [coact::mq::parked_topic(topic, &group)?, topic.clone()] {
        streams.delete_topic(&topic).await?;
    }
    Ok(())
}

/// What consumers wrote of the lines that they have done, as far as it was read.
struct Handled {
    file: File,
    count: usize,
    chunk: Vec<u8>,
}

impl Handled {
    fn create(site: &Site) -> Result<Self> {
        let path = site.place().join(HANDLED);
        File::create(&path).map_err(cannot("make a file for what is done"))?;
        let file = File::open(&path).map_err(cannot("read what is done"))?;
        Ok(Self { file, count: 0, chunk: vec![0; 1 << 20] })
    }

    fn count(&mut self) -> Result<usize> {
        loop {
            let read = self.file.read(&mut self.chunk).map_err(cannot("read what is done"))?;
            if read == 0 {
                return Ok(self.count);
            }
            self.count += self.chunk[..read].iter().filter(|byte| **byte == b'\n').count();
        }
    }
}

/// The group, as it is seen from outside.
struct Watched {
    monitor: Monitor,
    store: Store,
    topic: Topic,
    group: Group,
}

impl Watched {
    fn new(store: &Store) -> Result<Self> {
        let monitor = Monitor::new(store.kv(), store.streams()?, &Realm::default());
        Ok(Self { monitor, store: store.clone(), topic: Topic::new(TOPIC)?, group: Group::new(GROUP)? })
    }

    /// `None` while there is no group, or the node is away.
    async fn now(&self) -> Result<Option<GroupLag>> {
        match self.monitor.group(&self.group).await {
            Ok(lag) => Ok(Some(lag)),
            Err(error) if error.kind() == ErrorKind::NotFound || passing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn until(&self, site: &Site, holds: impl Fn(&GroupLag) -> bool) -> Result<()> {
        while !self.now().await?.is_some_and(|lag| holds(&lag)) {
            site.env.sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether no delayed line waits, and none that is in the topic.
    async fn nothing_left(&self) -> Result<bool> {
        let delays = match self.store.streams()?.delay_stats(&self.topic).await {
            Ok(delays) => delays.pending,
            Err(error) if passing(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(delays == 0 && self.now().await?.is_some_and(|lag| lag.messages() == Some(0)))
    }
}
