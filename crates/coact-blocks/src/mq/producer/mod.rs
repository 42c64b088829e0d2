//! Producers: records go to the partition of their key, in batches that form by themselves, each at most once.

mod lane;
mod task;
mod transaction;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        kv::KvHandle,
        stream::{DelayId, Delayed, Offset, Record, StreamHandle, TopicInfo},
    },
    guarantees::{Consistency, Durability, Failover, Fence, Needs},
    name::{Realm, Topic},
};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use transaction::Transaction;

use super::{identity::Identity, partition::place_of};
use lane::Waiting;
use task::Command;

/// What producers and consumers need from an engine's streams: that what was acknowledged is there.
pub const NEEDS: Needs = Needs {
    block: "mq",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::PerProcess,
};

/// What a named producer needs from the store that keeps its epoch: it must never go back.
pub const NAME_NEEDS: Needs = Needs {
    block: "mq (a named producer)",
    reads: Consistency::Linearizable,
    writes: Durability::Sync,
    failover: Failover::KeepsWrites,
    fence: Fence::PerProcess,
};

/// Appends records to one topic. Cheap to clone; clones are the same producer.
///
/// Records of one key reach their partition in the order in which they were sent. There is no linger: while a batch of
/// a partition is on its way, the next one gathers, so that batches grow with the load and a lone record waits for
/// nobody. A batch whose answer is lost is repeated with the same stamp, and so appended once.
///
/// When the last clone is dropped, what was sent is still appended in the background; [`close`](Self::close) waits for
/// it.
#[derive(Clone)]
pub struct Producer(Arc<Handle>);

/// How a producer is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// How many bytes may wait for their answers before [`send`](Producer::send) waits; 32 MiB by default.
    pub buffer_bytes: usize,
    /// The most bytes of a batch; 1 MiB by default, and at most what the engine takes.
    pub batch_bytes: usize,
    /// For how long a record is tried before it fails; 30 s by default.
    pub delivery_timeout: Duration,
    /// The realm in which a named producer keeps its epoch; `main` by default.
    pub realm: Realm,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            buffer_bytes: 32 * 1024 * 1024,
            batch_bytes: 1024 * 1024,
            delivery_timeout: Duration::from_secs(30),
            realm: Realm::default(),
        }
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its partition.
    pub partition: u32,
    /// Its place there.
    pub offset: Offset,
    /// The time that it has, in milliseconds since 1970 by the engine's clock.
    pub time_ms: u64,
}

impl Producer {
    /// A producer that nobody else is or will be.
    ///
    /// # Errors
    /// `NotFound` if there is no such topic, `Invalid` for a buffer or a batch without room, `Unsupported` if the engine
    /// promises less than mq [needs](NEEDS); `Unavailable` if it does not answer.
    ///
    /// # Cancel safety
    /// Safe: nothing is left.
    pub async fn open(streams: &StreamHandle, topic: &Topic, options: ProducerOptions) -> Result<Self> {
        Self::start(streams, topic, options, Identity::anonymous(streams.env())).await
    }

    /// The producer of this name. Its older incarnations are `Fenced` in each partition in which this one has appended, and
    /// wherever else they have to take a new epoch.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Unsupported` also if the engine does not recognize repeated batches, or if the store
    /// promises less than a name [needs](NAME_NEEDS); `Invalid` for a name that is no name of an entry.
    ///
    /// # Cancel safety
    /// Older incarnations may be fenced though the future is dropped.
    pub async fn named(
        streams: &StreamHandle,
        kv: &KvHandle,
        topic: &Topic,
        name: &str,
        options: ProducerOptions,
    ) -> Result<Self> {
        kv.require(&NAME_NEEDS)?;
        if streams.guarantees().dedup.is_none() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} does not recognize repeated batches, so a producer's name means nothing",
                    streams.describe()
                ),
            ));
        }
        let identity = Identity::named(kv, &options.realm, topic, name).await?;
        Self::start(streams, topic, options, identity).await
    }

    async fn start(
        streams: &StreamHandle,
        topic: &Topic,
        options: ProducerOptions,
        identity: Identity,
    ) -> Result<Self> {
        streams.require(&NEEDS)?;
        let options = checked(options, streams)?;
        let info = describe(streams, topic).await?;
        let (commands, received) = mpsc::unbounded_channel();
        let core = Arc::new(Core {
            streams: streams.clone(),
            topic: topic.clone(),
            partitions: AtomicU32::new(info.spec.partitions),
            room: Arc::new(Semaphore::new(options.buffer_bytes)),
            identity,
            options,
            transactions: tokio::sync::Mutex::default(),
        });
        streams.env().spawn(task::run(core.clone(), received));
        Ok(Self(Arc::new(Handle { core, commands })))
    }

    /// The topic that it appends to.
    pub fn topic(&self) -> &Topic {
        &self.0.core.topic
    }

    /// Sends a record, and waits only while the buffer is full. The receipt tells where the record is, once it is
    /// there; whoever does not care may drop it.
    ///
    /// # Errors
    /// `Invalid` for a record that is too large, `Closed` after [`close`](Self::close).
    ///
    /// # Cancel safety
    /// The record is sent, or nothing happened.
    pub async fn send(&self, record: Record) -> Result<Receipt> {
        let core = &self.0.core;
        let (bytes, most) = (record.size(), core.streams.guarantees().limits.record_bytes);
        if bytes > most {
            return Err(Error::invalid(format!("a record has {bytes} bytes: at most {most} are allowed")));
        }
        // A record larger than the whole buffer waits until it is alone.
        let share = bytes.min(core.options.buffer_bytes) as u32;
        let room = core.room.clone().acquire_many_owned(share).await.map_err(|_| self.closed())?;
        let (answer, answered) = oneshot::channel();
        let queued = core.streams.env().now();
        let waiting = Waiting { record, answer, queued, _room: room };
        self.0.commands.send(Command::Send(waiting)).map_err(|_| self.closed())?;
        Ok(Receipt(answered))
    }

    /// Sends records and waits until all are appended; the answers come in the same order.
    ///
    /// # Errors
    /// The first failure of a record; others may be appended all the same. With effect `Unknown`, it may be appended
    /// too.
    ///
    /// # Cancel safety
    /// Some may be sent.
    pub async fn send_all(&self, records: impl IntoIterator<Item = Record>) -> Result<Vec<Placed>> {
        let mut receipts = Vec::new();
        for record in records {
            receipts.push(self.send(record).await?);
        }
        futures::future::join_all(receipts).await.into_iter().collect()
    }

    /// Waits until everything that was sent before is settled.
    ///
    /// # Errors
    /// The first failure of a record since the last flush; with effect `Unknown`, it may be appended all the same.
    ///
    /// # Cancel safety
    /// Safe, but the failure is told once.
    pub async fn flush(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.0.commands.send(Command::Flush(answer)).map_err(|_| self.closed())?;
        answered.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Takes no more records, and waits until everything that was sent is settled.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Cancel safety
    /// It closes all the same.
    pub async fn close(&self) -> Result<()> {
        self.0.core.room.close();
        self.flush().await
    }

    /// Keeps a record until a time, in milliseconds since 1970, and appends it then to the partition of its key.
    ///
    /// # Errors
    /// `Invalid` for a record that is too large or a time more than ten years ahead; `Unavailable` with effect `Unknown`
    /// if the answer was lost.
    ///
    /// # Cancel safety
    /// Once polled, it may be kept though the future is dropped.
    pub async fn send_at(&self, record: Record, due_ms: u64) -> Result<DelayId> {
        let partition = self.partition(&record);
        let delayed = Delayed { topic: self.topic().clone(), partition, record, due_ms };
        let ids = self.0.core.streams.schedule(vec![delayed]).await?;
        ids.first().copied().ok_or_else(|| Error::new(ErrorKind::Internal, "an engine kept a record without a handle"))
    }

    /// Keeps a record for so long, and appends it then to the partition of its key.
    ///
    /// # Errors
    /// As [`send_at`](Self::send_at).
    ///
    /// # Cancel safety
    /// As [`send_at`](Self::send_at).
    pub async fn send_after(&self, record: Record, delay: Duration) -> Result<DelayId> {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.send_at(record, self.0.core.streams.env().wall_ms().saturating_add(delay)).await
    }

    /// Cancels a delayed record; false if it was appended, cancelled or rescheduled.
    ///
    /// # Errors
    /// `Unavailable` if the engine does not answer.
    ///
    /// # Cancel safety
    /// Once polled, it may be cancelled though the future is dropped.
    pub async fn cancel(&self, id: DelayId) -> Result<bool> {
        self.0.core.streams.cancel(self.topic(), id).await
    }

    /// Gives a delayed record another time, and so another handle; `None` if it was appended, cancelled or rescheduled.
    ///
    /// # Errors
    /// `Invalid` for a time more than ten years ahead.
    ///
    /// # Cancel safety
    /// Once polled, it may be rescheduled though the future is dropped.
    pub async fn reschedule(&self, id: DelayId, due_ms: u64) -> Result<Option<DelayId>> {
        self.0.core.streams.reschedule(self.topic(), id, due_ms).await
    }

    /// Gathers what is to happen together: records, delayed records, offsets of a group, entries, jobs.
    pub fn transaction(&self) -> Transaction<'_> {
        Transaction::new(&self.0.core)
    }

    fn partition(&self, record: &Record) -> u32 {
        let core = &self.0.core;
        place_of(record, core.partitions(), core.streams.env().random())
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, format!("the producer of {} is closed", self.topic()))
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Producer({} at {})", self.topic(), self.0.core.streams.describe())
    }
}

/// Becomes the place of a record that was sent.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Placed>>);

impl Future for Receipt {
    type Output = Result<Placed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        // Nobody is left to answer only if the environment ended the task: a simulated crash.
        let gone = || Error::new(ErrorKind::Closed, "the producer ended before the answer came").effect_unknown();
        Poll::Ready(answer.unwrap_or_else(|_| Err(gone())))
    }
}

struct Handle {
    core: Arc<Core>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What a producer and its task share.
struct Core {
    streams: StreamHandle,
    topic: Topic,
    partitions: AtomicU32,
    room: Arc<Semaphore>,
    identity: Identity,
    options: ProducerOptions,
    transactions: tokio::sync::Mutex<transaction::Sequences>,
}

impl Core {
    fn partitions(&self) -> u32 {
        self.partitions.load(Ordering::Relaxed)
    }
}

/// A topic that must be there.
pub(super) async fn describe(streams: &StreamHandle, topic: &Topic) -> Result<TopicInfo> {
    streams.topic(topic).await?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{} has no topic {topic}: create it first", streams.describe()))
    })
}

fn checked(options: ProducerOptions, streams: &StreamHandle) -> Result<ProducerOptions> {
    if options.buffer_bytes == 0 || options.batch_bytes == 0 {
        return Err(Error::invalid("buffer_bytes and batch_bytes of 0 are not allowed: a producer needs some room"));
    }
    let buffer_bytes = options.buffer_bytes.min(BUFFER_BYTES_MAX);
    let batch_bytes = options.batch_bytes.min(streams.guarantees().limits.batch_bytes);
    Ok(ProducerOptions { buffer_bytes, batch_bytes, ..options })
}

/// One permit is one byte, and permits are counted in 32 bits.
const BUFFER_BYTES_MAX: usize = 1 << 30;
