//! What streams and queues are asked for, by one caller: leave first, then the engine.
//!
//! What returns what is stored is a read, what changes it is a write, and what takes it away from others, or changes how
//! it is kept, is for admins of the block.

use std::{future::Future, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    contract::{
        commit::{Commit, CommitOutcome},
        kv::{Check, LeaseId, Read as KvRead, Txn},
        queue::{Claim, QueueHandle},
        stream::{self, Append, Fetched, Offset, Read, StreamHandle},
    },
    error::Effect,
    name::{Dir, Key, Namespace, Queue, Topic},
    registry::Store,
};
use coact_engine_embedded::flat::KeyRange;
use coact_engine_etcd::{
    messages::{all, failure, part, try_all},
    wire::coact_v1::{
        AppendRequest, Appended, ClaimRequest, ClaimResponse, CommitRequest, CommitResponse, EnqueueRequest,
        EnqueueResponse, ReadRequest, ReadResponse, SettleRequest, SettleResponse, Settled,
    },
};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use super::{Node, access};
use crate::auth::{Block, Caller, Keys, Verb};

/// The most bytes of one answer to a read, but for a batch that is larger.
pub(super) const READ_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where one caller is served.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) node: Node,
    caller: Caller,
    /// What was asked for last: a session asks for the same namespace again and again.
    last: Mutex<Option<(String, Store)>>,
}

impl Desk {
    /// Splits a request into who asks and what.
    pub(super) fn open<T>(node: &Node, request: Request<T>) -> Result<(Self, T), Status> {
        let caller = access::caller(&request)?;
        Ok((Self { node: node.clone(), caller, last: Mutex::default() }, request.into_inner()))
    }

    pub(super) async fn append(&self, request: AppendRequest) -> Result<Appended> {
        let append = part(request.append, "batch")?;
        let (streams, _) = self.topic(&request.namespace, &append.topic, Verb::Write)?;
        let append = Append::try_from(append)?;
        let brought = Brought::of(&append);
        let appended = streams.append(append).await?;
        self.note_in(&request.namespace, &brought, appended);
        Ok(appended.into())
    }

    pub(super) async fn read(&self, request: ReadRequest) -> Result<ReadResponse> {
        let (streams, topic) = self.topic(&request.namespace, &request.topic, Verb::Read)?;
        let wait = Duration::from_millis(request.wait_ms).min(streams.guarantees().limits.wait_max);
        let read = Read {
            topic,
            partition: request.partition,
            from: Offset(request.from),
            max_bytes: request.max_bytes.min(READ_BYTES_MAX) as usize,
            wait,
        };
        let fetched = self.patiently(wait, Effect::NotApplied, streams.read(read)).await?;
        self.note_out(&request.namespace, &request.topic, &fetched);
        Ok(fetched.into())
    }

    pub(super) async fn commit(&self, request: CommitRequest) -> Result<CommitResponse> {
        let namespace = request.namespace.clone();
        self.allow_named(&request)?;
        let store = self.store(&namespace)?;
        let commit = Commit::try_from(request)?;
        if let Some((_, txn)) = &commit.kv {
            self.allow_txn(&Namespace::new(&namespace)?, txn)?;
        }
        let brought: Vec<_> = commit.appends.iter().map(Brought::of).collect();
        let outcome = store.streams()?.commit(commit).await?;
        if let CommitOutcome::Committed(committed) = &outcome {
            for (brought, appended) in brought.iter().zip(&committed.appended) {
                self.note_in(&namespace, brought, *appended);
            }
        }
        Ok(outcome.into())
    }

    /// Counts what was appended, unless it was there already.
    fn note_in(&self, namespace: &str, brought: &Brought, appended: stream::Appended) {
        if !appended.duplicate {
            let Brought { topic, records, bytes } = brought;
            self.node.overview().traffic().note_in(namespace, topic.as_str(), *records, *bytes);
        }
    }

    /// Counts what was read.
    pub(super) fn note_out(&self, namespace: &str, topic: &str, fetched: &Fetched) {
        let records = fetched.batches.iter().map(|stored| u64::from(stored.batch.count())).sum();
        let bytes = fetched.batches.iter().map(|stored| stored.batch.bytes().len() as u64).sum();
        self.node.overview().traffic().note_out(namespace, topic, records, bytes);
    }

    pub(super) async fn enqueue(&self, request: EnqueueRequest) -> Result<EnqueueResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Write])?;
        Ok(EnqueueResponse { jobs: all(queues.enqueue(&queue, try_all(request.jobs)?).await?) })
    }

    /// Who claims gets to see the jobs, and takes them from others.
    pub(super) async fn claim(&self, request: ClaimRequest) -> Result<ClaimResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Read, Verb::Write])?;
        let wait = Duration::from_millis(request.wait_ms).min(queues.guarantees().limits.wait_max);
        let claim = Claim {
            queue,
            worker: request.worker,
            limit: request.limit as usize,
            lease: Duration::from_millis(request.lease_ms),
            wait,
        };
        Ok(ClaimResponse { jobs: all(self.patiently(wait, Effect::Unknown, queues.claim(claim)).await?) })
    }

    pub(super) async fn settle(&self, request: SettleRequest) -> Result<SettleResponse> {
        let (queues, queue) = self.queue(&request.namespace, &request.queue, &[Verb::Write])?;
        let settled = queues.settle(&queue, try_all(request.settle)?).await?;
        Ok(SettleResponse { settled: settled.into_iter().map(|settled| Settled::from(settled).into()).collect() })
    }

    /// The streams of a namespace and the name of a topic in it, if this may be done to it.
    pub(super) fn topic(&self, namespace: &str, topic: &str, verb: Verb) -> Result<(StreamHandle, Topic)> {
        self.caller.allow(Block::Mq, verb, namespace, topic)?;
        Ok((self.store(namespace)?.streams()?.clone(), Topic::new(topic)?))
    }

    /// The streams of a namespace, if this may be done to all topics and groups in it.
    pub(super) fn streams(&self, namespace: &str, verb: Verb) -> Result<StreamHandle> {
        self.caller.allow_prefix(Block::Mq, verb, namespace, "")?;
        Ok(self.store(namespace)?.streams()?.clone())
    }

    /// The streams of a namespace, if this may be done to one name in it, of a topic or a group.
    pub(super) fn streams_for(&self, namespace: &str, name: &str, verb: Verb) -> Result<StreamHandle> {
        self.caller.allow(Block::Mq, verb, namespace, name)?;
        Ok(self.store(namespace)?.streams()?.clone())
    }

    /// The queues of a namespace and the name of one of them, if all of this may be done to it.
    pub(super) fn queue(&self, namespace: &str, queue: &str, verbs: &[Verb]) -> Result<(QueueHandle, Queue)> {
        verbs.iter().try_for_each(|verb| self.caller.allow(Block::Queue, *verb, namespace, queue))?;
        Ok((self.store(namespace)?.queues()?.clone(), Queue::new(queue)?))
    }

    /// The queues of a namespace, if this may be done to all of them.
    pub(super) fn queues(&self, namespace: &str, verb: Verb) -> Result<QueueHandle> {
        self.caller.allow_prefix(Block::Queue, verb, namespace, "")?;
        Ok(self.store(namespace)?.queues()?.clone())
    }

    pub(super) fn store(&self, namespace: &str) -> Result<Store> {
        let mut last = self.last.lock();
        if let Some((_, store)) = last.as_ref().filter(|(of, _)| of == namespace) {
            return Ok(store.clone());
        }
        let store = self.node.store(Namespace::new(namespace)?);
        *last = Some((namespace.to_owned(), store.clone()));
        Ok(store)
    }

    /// Whether one name may be used so.
    pub(super) fn allow(&self, block: Block, verb: Verb, namespace: &str, name: &str) -> Result<()> {
        self.caller.allow(block, verb, namespace, name)
    }

    /// Does what may wait for long; it ends when the node does, and when what the caller may do has changed. `effect` is
    /// what it may have done by then.
    pub(super) async fn patiently<T>(
        &self,
        wait: Duration,
        effect: Effect,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        if wait.is_zero() {
            return work.await;
        }
        let mut signal = self.node.signal();
        let why = tokio::select! {
            done = work => return done,
            () = self.caller.until_changed() => "what this token allows has changed; ask again",
            () = signal.draining() => "the node shuts down; ask again",
        };
        let error = Error::new(ErrorKind::Unavailable, why);
        Err(if effect == Effect::Unknown { error.effect_unknown() } else { error })
    }

    /// Whether everything may be done that a commit does to topics, groups and queues.
    fn allow_named(&self, request: &CommitRequest) -> Result<()> {
        let namespace = &request.namespace;
        let topics = request.appends.iter().map(|append| &append.topic);
        for topic in topics.chain(request.delayed.iter().map(|delayed| &delayed.topic)) {
            self.allow(Block::Mq, Verb::Write, namespace, topic)?;
        }
        if let Some(offsets) = &request.offsets {
            self.allow(Block::Mq, Verb::Write, namespace, &offsets.group)?;
            // How far a group came is of use to who may read the topic only.
            offsets.offsets.iter().try_for_each(|at| self.allow(Block::Mq, Verb::Read, namespace, &at.topic))?;
        }
        let queues = request.jobs.iter().map(|job| &job.queue);
        let mut queues = queues.chain(request.settle.iter().map(|settle| &settle.queue));
        queues.try_for_each(|queue| self.allow(Block::Queue, Verb::Write, namespace, queue))
    }

    /// As for the same transaction in etcd's words: what it looks at is read, what it changes is written.
    fn allow_txn(&self, namespace: &Namespace, txn: &Txn) -> Result<()> {
        let key = |key: &Key, verb| self.caller.allow_keys(Keys::one(key.to_flat(namespace).as_bytes()), verb);
        for check in &txn.checks {
            match check {
                Check::Absent(at) | Check::CreatedAt(at, _) | Check::ModifiedAt(at, _) => key(at, Verb::Read)?,
                Check::LeaseAlive(LeaseId(lease)) => {
                    let held = format!("{namespace}/.lease//{lease:016x}");
                    self.caller.allow_keys(Keys::one(held.as_bytes()), Verb::Read)?;
                }
            }
        }
        for read in &txn.reads {
            match read {
                KvRead::Get(at) => key(at, Verb::Read)?,
                KvRead::First(dir) | KvRead::Last(dir) | KvRead::Count(dir) => self.allow_dir(namespace, dir)?,
            }
        }
        txn.writes.iter().try_for_each(|write| key(write.key(), Verb::Write))
    }

    fn allow_dir(&self, namespace: &Namespace, dir: &Dir) -> Result<()> {
        let range = KeyRange::prefix(dir.to_flat(namespace));
        self.caller.allow_keys(Keys::range(&range.start, &range.end), Verb::Read)
    }
}

/// What an append brings.
struct Brought {
    topic: Topic,
    records: u64,
    bytes: u64,
}

impl Brought {
    fn of(append: &Append) -> Self {
        let (records, bytes) = (u64::from(append.batch.count()), append.batch.bytes().len() as u64);
        Self { topic: append.topic.clone(), records, bytes }
    }
}

/// An answer, or the refusal that the client reads back as the same error.
pub(super) fn reply<T>(answer: Result<T>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(|error| failure::status(&shown(error)))
}

/// An engine that closes is a node that shuts down: the client's own handle is not closed.
pub(super) fn shown(error: Error) -> Error {
    if error.kind() != ErrorKind::Closed {
        return error;
    }
    let shown = Error::new(ErrorKind::Unavailable, "the node shuts down; ask again");
    if error.effect() == Effect::Unknown { shown.effect_unknown() } else { shown }
}
