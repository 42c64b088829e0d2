//! What a test starts as a process of its own: this test binary once more, with a task.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use coact::{
    Env, ErrorKind, Key, KvHandle, Realm, Result, Session, SessionOptions,
    id::{Generator, IdOptions},
    kv::{Txn, TxnOutcome, Write},
    lock::{Election, Guard, Leadership, Mutex, Permit, RwLock, Semaphore, WriteGuard},
};
use coact_blocks::directory::{Directory, DirectoryOptions, Instance, Mode};
use coact_testkit::bed::{PATIENCE, ServerProcess, wait_until};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{crowd, journal::Journal};

const TASK: &str = "COACT_FAULTS_TASK";

/// What a process is to do, where, and as whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) who: String,
    pub(super) url: String,
    /// Where the journal and the signs to go on are.
    pub(super) place: PathBuf,
    pub(super) ttl: Duration,
    pub(super) work: Work,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    /// Hold, write, wait for the sign, write again, let go.
    Hold(Block),
    /// Keep an instance registered until the sign.
    Register,
    /// Make ids until the sign.
    Ids,
    /// Take and return permits and read and write locks until the sign.
    Crowd,
}

/// What can be held by one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Block {
    Mutex,
    Write,
    Permit,
    Leader,
}

impl Block {
    pub(super) const ALL: [Block; 4] = [Block::Mutex, Block::Write, Block::Permit, Block::Leader];
}

/// A process at work, killed when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    task: Task,
    pub(super) process: ServerProcess,
}

impl Worker {
    /// The ids that it has made so far.
    pub(super) fn ids(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.task.ids_file()).unwrap_or_default();
        // The last line of a process that was killed may be half.
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
    }

    pub(super) fn start(task: Task) -> Self {
        Self::start_with(task, &[])
    }

    /// Starts it with more variables in its environment.
    pub(super) fn start_with(task: Task, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test binary"));
        command
            .args(["--exact", "faults::worker::at_work", "--nocapture"])
            .env(TASK, serde_json::to_string(&task).expect("JSON"))
            .envs(variables.iter().copied());
        let log = task.place.join(format!("{}.log", task.who));
        Self { process: ServerProcess::start(&mut command, &log).expect("it starts"), task }
    }

    /// Gives the sign to go on.
    pub(super) fn go_on(&self) {
        std::fs::write(self.task.sign(), "").expect("a file");
    }

    /// Kills it as a crash would, and notes that it is dead.
    pub(super) fn kill(&mut self) {
        self.process.kill();
        self.task.journal().note(&self.task.who, "dead", 0);
    }

    /// Waits until it has ended as it should.
    pub(super) async fn ended(&mut self) {
        wait_until(&Env::real(), "the process ends", PATIENCE, async || !self.process.is_running())
            .await
            .expect("in time");
        let ended = self.task.journal().find(&self.task.who, "ended");
        assert!(ended.is_some(), "{}: {}", self.task.who, self.process.log_tail());
    }
}

impl Task {
    fn sign(&self) -> PathBuf {
        self.place.join(format!("{}.go", self.who))
    }

    pub(super) fn journal(&self) -> Journal {
        journal(&self.place)
    }

    pub(super) fn is_to_go_on(&self) -> bool {
        self.sign().exists()
    }

    /// Waits, and shows meanwhile that it is alive, and what time it believes it is.
    async fn until_sign(&self) {
        let journal = self.journal();
        let env = Env::real();
        wait_until(&env, "the sign to go on", 2 * PATIENCE, async || {
            journal.note(&self.who, "beat", env.wall_ms());
            self.is_to_go_on()
        })
        .await
        .expect("in time");
    }

    /// Where the ids go that it makes.
    fn ids_file(&self) -> PathBuf {
        self.place.join(format!("{}.ids", self.who))
    }
}

/// The journal of a place.
pub(super) fn journal(place: &Path) -> Journal {
    Journal::at(&place.join("journal"))
}

/// The process's part; does nothing when the test run calls it by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_work() {
    let Ok(task) = std::env::var(TASK) else { return };
    // Whatever becomes of the test, its processes do not outlive it.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("Linux");
    let task: Task = serde_json::from_str(&task).expect("written by the parent");
    let kv = coact::open(&task.url).await.expect("the node answers");
    match task.work {
        Work::Hold(block) => hold(&task, &kv, block).await.expect("the work is done"),
        Work::Register => register(&task, &kv).await.expect("the work is done"),
        Work::Ids => make_ids(&task, &kv).await.expect("the work is done"),
        Work::Crowd => crowd::work(&task, &kv).await.expect("the work is done"),
    }
    task.journal().note(&task.who, "ended", 0);
}

pub(super) async fn session(task: &Task, kv: &KvHandle) -> Result<Session> {
    Session::open(kv, SessionOptions { ttl: task.ttl, name: Some(task.who.clone()) }).await
}

async fn hold(task: &Task, kv: &KvHandle, block: Block) -> Result<()> {
    let (journal, who) = (task.journal(), task.who.as_str());
    let session = session(task, kv).await?;
    journal.note(who, "asks", 0);
    let held = Held::acquire(&session, block).await?;
    journal.note(who, "granted-at", uptime());
    journal.note(who, "granted", held.token());
    write(task, kv, &held).await?;
    tokio::select! {
        biased;
        () = task.until_sign() => {}
        _ = held.lost() => {
            journal.note(who, "trusted-until", session_end(&session));
            journal.note(who, "notices", held.token());
            task.until_sign().await;
        }
    }
    // It asks nobody whether it still holds: so does a process that was stopped between its check and its write.
    if write(task, kv, &held).await? {
        // It is the next one's from the moment of the release, which is before its answer.
        journal.note(who, "leaves", 0);
        held.release().await?;
        journal.note(who, "released", 0);
    } else {
        let why = held.lost().await;
        assert_eq!(why.kind(), ErrorKind::Fenced, "{why}");
        journal.note(who, "lost", held.token());
        assert!(!session.is_alive());
    }
    Ok(())
}

/// Writes to three resources: the journal, an entry that anybody may write, and one that is written under the guard.
/// Whether the last took it.
async fn write(task: &Task, kv: &KvHandle, held: &Held) -> Result<bool> {
    let (journal, who) = (task.journal(), task.who.as_str());
    journal.note(who, "writes", held.token());
    kv.put(&entry("unguarded")?, who.to_owned(), None).await?;
    let put = Write::Put { key: entry("guarded")?, value: Bytes::copy_from_slice(who.as_bytes()), lease: None };
    match held.txn(Txn { writes: vec![put], ..Txn::default() }).await {
        Ok(TxnOutcome::Committed { .. }) => {
            journal.note(who, "guarded-done", held.token());
            Ok(true)
        }
        Ok(refused) => panic!("nothing was checked but the guard: {refused:?}"),
        Err(error) if error.kind() == ErrorKind::Fenced => {
            journal.note(who, "guarded-fenced", held.token());
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// An entry that the processes of a test write.
pub(super) fn entry(name: &str) -> Result<Key> {
    Key::new(&Realm::default(), "resource", name)
}

async fn register(task: &Task, kv: &KvHandle) -> Result<()> {
    let directory = Directory::open(kv, DirectoryOptions { ttl: task.ttl, ..DirectoryOptions::default() })?;
    let instance = Instance { id: task.who.clone(), ..Instance::new("web", "10.0.0.1", 80) };
    let registration = directory.register(instance, Mode::Ephemeral).await?;
    task.journal().note(&task.who, "registered", 0);
    task.until_sign().await;
    registration.deregister().await
}

async fn make_ids(task: &Task, kv: &KvHandle) -> Result<()> {
    const AT_ONCE: usize = 20;
    let env = Env::real();
    let mut file = File::options().create(true).append(true).open(task.ids_file()).expect("a file");
    let generator = Generator::open(&session(task, kv).await?, IdOptions::default()).await?;
    while !task.is_to_go_on() {
        let ids = generator.next_n(AT_ONCE).await?;
        let lines: String = ids.map(|id| format!("{id}\n")).collect();
        file.write_all(lines.as_bytes()).expect("it is written");
        task.journal().note(&task.who, "beat", env.wall_ms());
        env.sleep(Duration::from_millis(10)).await;
    }
    generator.close().await
}

/// Hundredths of a second since the machine started: a clock that all processes share, and nothing fakes.
fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("Linux");
    let seconds = text.split(' ').next().expect("a number");
    seconds.replace('.', "").parse().expect("a number with two decimals")
}

/// Until when the session trusted its lease, on the clock of [`uptime`].
fn session_end(session: &Session) -> u64 {
    let passed = Env::real().now().saturating_duration_since(session.deadline());
    uptime() - passed.as_millis() as u64 / 10
}

/// A guard of any kind.
enum Held {
    Mutex(Guard),
    Write(WriteGuard),
    Permit(Permit),
    Leader(Leadership),
}

macro_rules! each {
    ($held:expr, $guard:ident => $result:expr) => {
        match $held {
            Held::Mutex($guard) => $result,
            Held::Write($guard) => $result,
            Held::Permit($guard) => $result,
            Held::Leader($guard) => $result,
        }
    };
}

impl Held {
    async fn acquire(session: &Session, block: Block) -> Result<Self> {
        const NAME: &str = "contended";
        Ok(match block {
            Block::Mutex => Self::Mutex(Mutex::new(session, NAME)?.acquire().await?),
            Block::Write => Self::Write(RwLock::new(session, NAME)?.write().await?),
            Block::Permit => Self::Permit(Semaphore::new(session, NAME, 1)?.acquire().await?),
            Block::Leader => Self::Leader(Election::new(session, NAME)?.campaign(session.name()).await?),
        })
    }

    fn token(&self) -> u64 {
        each!(self, guard => guard.token())
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        each!(self, guard => guard.txn(txn).await)
    }

    async fn lost(&self) -> coact::Error {
        each!(self, guard => guard.lost().await)
    }

    async fn release(self) -> Result<()> {
        match self {
            Self::Mutex(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
            Self::Permit(guard) => guard.release().await,
            Self::Leader(guard) => guard.resign().await,
        }
    }
}
