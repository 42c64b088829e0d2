//! The blocks on every engine of today: in memory, embedded, a real etcd, a node. The same scenario each time, with two
//! handles as two processes have them. Which block is refused where is in `refused_where_too_little_is_promised`.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use coact::{
    Env, ErrorKind, Group, KvHandle, Realm, Session, SessionOptions, Topic,
    contract::{
        queue::{NewJob, QueueSpec},
        stream::{Record, TopicSpec},
    },
    directory::{Directory, DirectoryOptions, Instance, Mode, SettingChange, Settings, State},
    id::{Generator, IdOptions, Segment, SegmentOptions},
    lock::{Barrier, Election, Latch, Mutex, RateLimiter, RateOptions, RwLock, Semaphore, acquire_all},
    mq::{Consumer, ConsumerOptions, Message, Parked, Producer, ProducerOptions, RunOptions},
    queue::{Context, Outcome, Queue, Worker, WorkerOptions},
};
use coact_testkit::bed::PATIENCE;
use futures::{
    StreamExt,
    future::{join, join_all},
    pin_mut,
};

use crate::stores;

/// Two handles of one store, and what keeps it up.
struct Store {
    one: KvHandle,
    two: KvHandle,
    /// The same with every contract.
    all: [coact::Store; 2],
    _up: Box<dyn std::any::Any + Send>,
}

impl Store {
    async fn memory() -> Self {
        let store = coact::open_store("memory:?accept=volatile").await.expect("it opens");
        Self::new(store.clone(), store, ())
    }

    async fn embedded() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("embedded://{}?segment=1MiB", dir.path().display());
        let store = coact::open_store(&url).await.expect("it opens");
        Self::new(store.clone(), store, dir)
    }

    async fn of(store: stores::Store) -> Self {
        let open = async || coact::open_store(&store.url).await.expect("it opens");
        Self::new(open().await, open().await, store)
    }

    fn new(one: coact::Store, two: coact::Store, up: impl std::any::Any + Send) -> Self {
        Self { one: one.kv().clone(), two: two.kv().clone(), all: [one, two], _up: Box::new(up) }
    }

    async fn sessions(&self) -> [Session; 2] {
        let open = async |kv| Session::open(kv, SessionOptions::default()).await.expect("it answers");
        [open(&self.one).await, open(&self.two).await]
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    Box::pin(Env::real().timeout(PATIENCE, future)).await.unwrap_or_else(|| panic!("{what}: still waiting"))
}

macro_rules! scenarios {
    ($($(#[doc = $what:literal])* async fn $name:ident($store:ident) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                async fn scenario($store: Store) $body

                scenarios!(@on {
                    memory: Store::memory().await,
                    embedded: Store::embedded().await,
                    etcd: Store::of(stores::etcd().await).await,
                    node: Store::of(stores::node().await).await,
                    redis: Store::of(stores::redis().await).await,
                    redis_sentinel: Store::of(stores::redis_sentinel().await).await,
                    redis_cluster: Store::of(stores::redis_cluster().await).await,
                    zookeeper: Store::of(stores::zookeeper().await).await,
                    postgres: Store::of(stores::postgres().await).await,
                });
            }
        )*
    };
    (@on { $($engine:ident: $store:expr,)* }) => {
        $(
            #[tokio::test]
            async fn $engine() {
                let store = $store;
                within("the scenario", scenario(store)).await;
            }
        )*
    };
}

/// On the engines that have topics and queues.
macro_rules! message_scenarios {
    ($($(#[doc = $what:literal])* async fn $name:ident($store:ident) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                async fn scenario($store: Store) $body

                scenarios!(@on {
                    memory: Store::memory().await,
                    embedded: Store::embedded().await,
                    node: Store::of(stores::node().await).await,
                });
            }
        )*
    };
}

scenarios! {
    /// One at a time, in two processes, with tokens that grow and no herd.
    async fn mutex(store) {
        let (inside, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let sessions = store.sessions().await;
        join_all((0..8).map(async |index| {
            let mutex = Mutex::new(&sessions[index % 2], "one").expect("valid");
            for _ in 0..3 {
                let guard = mutex.acquire().await.expect("granted");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                let token = usize::try_from(guard.token()).expect("small");
                assert!(last.swap(token, Ordering::SeqCst) < token, "tokens grow");
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.expect("held");
            }
        }))
        .await;
        let wakeups: u64 = sessions.iter().map(|session| session.lock_stats().wakeups).sum();
        assert!(wakeups <= 24, "{wakeups} wake-ups of 24 releases");
    }

    /// Readers share, writers do not, and a writer becomes a reader without letting another in between.
    async fn rw_lock(store) {
        let [one, two] = store.sessions().await;
        let (here, there) = (RwLock::new(&one, "table").expect("valid"), RwLock::new(&two, "table").expect("valid"));
        let (first, second) = (here.read().await.expect("free"), there.read().await.expect("shared"));
        assert!(there.try_write().await.expect("answers").is_none());
        first.release().await.expect("held");
        let writer = second.try_upgrade().await.expect("answers").expect("the only reader");
        assert!(here.try_read().await.expect("answers").is_none());
        let reader = writer.downgrade().await.expect("held");
        here.try_read().await.expect("answers").expect("shared").release().await.expect("held");
        reader.release().await.expect("held");
    }

    /// Never more than there are, and those of a session that ends come back.
    async fn semaphore(store) {
        let sessions = store.sessions().await;
        let running = AtomicUsize::new(0);
        join_all((0..6).map(async |index| {
            let semaphore = Semaphore::new(&sessions[index % 2], "pool", 2).expect("valid");
            for _ in 0..3 {
                let permit = semaphore.acquire().await.expect("granted");
                assert!(running.fetch_add(1, Ordering::SeqCst) < 2, "more than two");
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                permit.release().await.expect("held");
            }
        }))
        .await;
        let [one, two] = sessions;
        let here = Semaphore::new(&one, "pool", 2).expect("valid");
        let there = Semaphore::new(&two, "pool", 2).expect("valid");
        let _both = [there.acquire().await.expect("free"), there.acquire().await.expect("free")];
        assert!(here.try_acquire().await.expect("answers").is_none());
        two.close().await.expect("answers");
        here.acquire().await.expect("come back").release().await.expect("held");
        let other = Semaphore::new(&one, "pool", 3).expect("valid").acquire().await.expect_err("another number");
        assert_eq!(other.kind(), ErrorKind::Conflict);
    }

    /// One leads after the other, and an observer sees who and what they say.
    async fn election(store) {
        let [one, two] = store.sessions().await;
        let (here, there) = (Election::new(&one, "shop").expect("valid"), Election::new(&two, "shop").expect("valid"));
        let leaders = there.observe();
        pin_mut!(leaders);
        let first = here.campaign("a").await.expect("nobody leads");
        first.proclaim("b").await.expect("it leads");
        let token = first.token();
        let (second, closed) = tokio::join!(there.campaign("c"), one.close());
        closed.expect("answers");
        let second = second.expect("its turn");
        assert!(second.token() > token && first.txn(Default::default()).await.is_err());
        let mut seen = Vec::new();
        while seen.last().map(String::as_str) != Some("c") {
            let leader = leaders.next().await.expect("it goes on").expect("it answers");
            seen.push(leader.map_or(String::new(), |leader| leader.value));
        }
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
        second.resign().await.expect("it leads");
    }

    /// Opposite orders do not wait for each other.
    async fn several(store) {
        let sessions = store.sessions().await;
        join_all((0..4).map(async |index| {
            let lock = |name| Mutex::new(&sessions[index % 2], name).expect("valid");
            let mut locks = [lock("a"), lock("b"), lock("c")];
            if index % 2 == 0 {
                locks.reverse();
            }
            acquire_all(&locks).await.expect("granted").release().await.expect("held");
        }))
        .await;
    }

    /// A latch opens when it was counted down, a barrier when all are there, a rate limit gives what it has.
    async fn counting(store) {
        let [one, two] = store.sessions().await;
        let (here, there) =
            (Latch::open(&one, "start", 2).await.expect("new"), Latch::open(&two, "start", 2).await.expect("known"));
        here.count_down().await.expect("counted");
        let (waited, counted) = tokio::join!(here.wait(), there.count_down());
        waited.and(counted).expect("open");
        let here = Barrier::open(&one, "meet", 2).await.expect("new");
        let there = Barrier::open(&two, "meet", 2).await.expect("known");
        let (first, second) = tokio::join!(here.wait(), there.wait());
        let (first, second) = (first.expect("all are there"), second.expect("all are there"));
        assert!(first.generation == second.generation && first.leader != second.leader);
        let options = RateOptions { permits: 4, per: Duration::from_secs(600), chunk: 2 };
        let here = RateLimiter::open(&one, "mail", options).await.expect("new");
        let there = RateLimiter::open(&two, "mail", options).await.expect("known");
        assert!(here.try_acquire(2).await.expect("answers") && there.try_acquire(2).await.expect("answers"));
        assert!(!here.try_acquire(1).await.expect("answers"));
    }

    /// What is registered here is seen there, and what deregisters is not taken for dead.
    async fn directory(store) {
        let here = Directory::open(&store.one, DirectoryOptions::default()).expect("valid");
        let there = Directory::open(&store.two, DirectoryOptions::default()).expect("valid");
        let mut watch = there.watch("web").await.expect("it loads");
        let registered = here.register(Instance::new("web", "10.0.0.1", 80), Mode::Ephemeral).await.expect("a new id");
        watch.wait_for(|snapshot| snapshot.healthy().count() == 1).await.expect("seen");
        registered.drain(true).await.expect("it answers");
        watch.wait_for(|snapshot| snapshot.healthy().count() == 0).await.expect("seen");
        registered.deregister().await.expect("it answers");
        let last = watch.wait_for(|snapshot| snapshot.instances.is_empty()).await.expect("seen");
        assert_eq!(last.state, State::Fresh);
    }

    /// Versions, conflicts, a way back, and a watch that tells all of it.
    async fn settings(store) {
        let here = Settings::new(&store.one, Realm::default()).expect("enough is promised");
        let there = Settings::new(&store.two, Realm::default()).expect("enough is promised");
        let mut changes = there.watch("billing").expect("valid");
        here.put("billing", "currency", "EUR", Some(0)).await.expect("new");
        there.put("billing", "currency", "USD", Some(1)).await.expect("the version is known");
        assert_eq!(here.put("billing", "currency", "X", Some(1)).await.expect_err("late").kind(), ErrorKind::Conflict);
        here.rollback("billing", "currency", 1).await.expect("it is kept");
        loop {
            if let SettingChange::Set(setting) = changes.next().await.expect("it goes on")
                && setting.version == 3
            {
                assert_eq!((setting.text(), setting.restores), (Some("EUR"), Some(1)));
                break;
            }
        }
    }

    /// No id twice, from two processes and after a restart of one; dense numbers without a gap.
    async fn ids(store) {
        let sessions = store.sessions().await;
        let mut seen = HashSet::new();
        for round in 0..2 {
            for session in &sessions {
                let ids = Generator::open(session, IdOptions::default()).await.expect("a number is free");
                for id in ids.next_n(500).await.expect("in the window") {
                    assert!(seen.insert(id), "{id} twice in round {round}");
                }
                ids.close().await.expect("it answers");
            }
        }
        let options = SegmentOptions { step: 10, ..SegmentOptions::new("invoice") };
        let segment = Segment::open(&store.one, options).await.expect("new");
        assert_eq!(segment.next_n(25).await.expect("it answers"), (1..=25).collect::<Vec<_>>());
        segment.close().await.expect("it answers");
    }
}

/// Each block asks for what it needs; what is refused is accepted by name.
#[tokio::test]
async fn refused_where_too_little_is_promised() {
    let kv = coact::open("memory:").await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    let refusals = [
        Mutex::new(&session, "x").map(drop),
        RwLock::new(&session, "x").map(drop),
        Semaphore::new(&session, "x", 1).map(drop),
        Election::new(&session, "x").map(drop),
        Latch::open(&session, "x", 1).await.map(drop),
        Barrier::open(&session, "x", 1).await.map(drop),
        Generator::open(&session, IdOptions::default()).await.map(drop),
        Segment::open(&kv, SegmentOptions::new("x")).await.map(drop),
        Settings::new(&kv, Realm::default()).map(drop),
    ];
    for refused in refusals {
        let error = refused.expect_err("memory forgets");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(" needs ") && error.to_string().contains("accept=volatile"), "{error}");
    }
    Directory::open(&kv, DirectoryOptions::default()).expect("a directory needs hardly anything");
}

/// Who may lose acknowledged writes says so, and the blocks that live by them do not open unless that is accepted.
#[tokio::test]
async fn refused_where_a_failover_may_lose_writes() {
    let store = stores::redis_sentinel().await;
    let accepted = &store.url;
    let url = accepted.replace("&accept=failover-loss", "");
    assert_ne!(&url, accepted);
    let kv = coact::open(&url).await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    let refusals = [
        Mutex::new(&session, "x").map(drop),
        Election::new(&session, "x").map(drop),
        Generator::open(&session, IdOptions::default()).await.map(drop),
        Segment::open(&kv, SegmentOptions::new("x")).await.map(drop),
        Settings::new(&kv, Realm::default()).map(drop),
    ];
    for refused in refusals {
        let error = refused.expect_err("a failover loses writes");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains("needs acknowledged writes to survive a failover, but redis://127.0.0.1:")
                && text.ends_with("declares that a failover may lose them; choose another engine, or accept it with ?accept=failover-loss"),
            "{text}"
        );
    }
    Directory::open(&kv, DirectoryOptions::default()).expect("a directory heals by itself");
    let kv = coact::open(accepted).await.expect("it opens");
    let session = Session::open(&kv, SessionOptions::default()).await.expect("it answers");
    Election::new(&session, "x").expect("accepted by name");
}

message_scenarios! {
    /// Two members of a group share a topic, delayed records too; what one parks comes back in order.
    async fn topics(store) {
        let topic = Topic::new("orders").expect("valid");
        let streams = store.all[0].streams().expect("it has topics");
        streams.create_topic(&topic, &TopicSpec { partitions: 4, ..TopicSpec::default() }).await.expect("created");
        let producer = Producer::open(streams, &topic, ProducerOptions::default()).await.expect("opens");
        let record = |number: u32| Record::new(number.to_string()).with_key(format!("k{}", number % 29));
        producer.send_all((0..200).map(record)).await.expect("appended");
        for number in 200..220 {
            producer.send_after(record(number), Duration::from_millis(u64::from(number))).await.expect("kept");
        }
        let sessions = store.sessions().await;
        let group = Group::new("readers").expect("valid");
        let done = parking_lot::Mutex::new(Vec::new());
        let is_mended = AtomicBool::new(false);
        let consume = async |index: usize| {
            let streams = store.all[index].streams().expect("it has topics");
            let options = ConsumerOptions::default();
            let consumer = Consumer::join(&sessions[index], streams, &group, [topic.clone()], options).await;
            let consumer = consumer.expect("joins");
            let handle = async |message: Message| {
                let text = String::from_utf8_lossy(&message.record().value).into_owned();
                let number: u32 = text.parse().map_err(|_| "no number")?;
                if number % 29 == 7 && !is_mended.load(Ordering::SeqCst) {
                    return Err("to be mended");
                }
                done.lock().push(number);
                Ok(())
            };
            let options = RunOptions { max_attempts: 1, ..RunOptions::default() };
            let run = consumer.run(handle, options);
            let leave = async {
                let env = Env::real();
                let parked = Parked::open(&store.one, &Realm::default(), &group).expect("valid");
                while done.lock().len() < 212 {
                    env.sleep(Duration::from_millis(10)).await;
                }
                is_mended.store(true, Ordering::SeqCst);
                while done.lock().len() < 220 {
                    parked.redrive_all().await.expect("asked");
                    env.sleep(Duration::from_millis(10)).await;
                }
                consumer.leave().await.expect("leaves");
            };
            join(run, leave).await.0.expect("works");
        };
        join(consume(0), consume(1)).await;
        let done = done.into_inner();
        let of_seven: Vec<_> = done.iter().filter(|number| **number % 29 == 7 && **number < 200).collect();
        assert!(of_seven.is_sorted(), "{of_seven:?}");
        assert_eq!(done.iter().collect::<HashSet<_>>().len(), 220);
    }

    /// Jobs of two workers: each done once, a failed one is tried again, and a stale token changes nothing.
    async fn queues(store) {
        let name = "mails";
        let open = async |index: usize| {
            let queues = store.all[index].queues().expect("it has queues");
            Queue::open(queues, name, QueueSpec::default()).await.expect("opens")
        };
        let (here, there) = (open(0).await, open(1).await);
        for number in 0..100 {
            here.push(NewJob::new(number.to_string())).await.expect("enqueued");
        }
        let done = Arc::new(parking_lot::Mutex::new(HashSet::new()));
        let failed = Arc::new(AtomicUsize::new(0));
        let work = async |queue: &Queue| {
            let worker = Worker::new(queue, WorkerOptions { concurrency: 4, drain: true, ..WorkerOptions::default() });
            let (done, failed) = (done.clone(), failed.clone());
            let handle = move |context: Context| {
                let (done, failed) = (done.clone(), failed.clone());
                async move {
                    let number: u32 = String::from_utf8_lossy(&context.job().body).parse().map_err(|_| "no number")?;
                    if number % 10 == 3 && context.attempt() == 1 {
                        failed.fetch_add(1, Ordering::SeqCst);
                        return Ok(Outcome::Retry { after: Some(Duration::ZERO), error: "not yet".to_owned() });
                    }
                    assert!(done.lock().insert(number), "{number} is done twice");
                    Ok::<_, &str>(Outcome::Done)
                }
            };
            worker.expect("valid").run(handle).await.expect("works").done
        };
        let (one, two) = join(work(&here), work(&there)).await;
        assert_eq!((one + two, failed.load(Ordering::SeqCst), done.lock().len()), (100, 10, 100));
    }
}

/// Where there are none, whoever asks is told.
#[tokio::test]
async fn topics_and_queues_are_refused_where_there_are_none() {
    let etcd = stores::etcd().await;
    let store = coact::open_store(&etcd.url).await.expect("it opens");
    for error in [store.streams().map(drop), store.queues().map(drop)].map(|answer| answer.expect_err("refused")) {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("etcd"), "{error}");
    }
}
