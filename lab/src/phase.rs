//! One phase: a fresh namespace, one client on each host, one fault, and everything that was seen.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use coact::Env;
use coact_testkit::{bed::wait_until, check::tokens::Report};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin},
};

use crate::{
    check,
    cluster::{Cluster, wait_whole},
    history::{Event, Kind, Recorder, now, operations},
    net::{HOSTS, Net, Run, step_clock},
    plant::Plant,
    resource::Protected,
};

/// What is done to the cluster or its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Nemesis {
    /// The leader's host, and the client on it, are cut off.
    IsolateLeader,
    /// Another host, and the client on it, are cut off.
    IsolateFollower,
    /// What the leader's host sends is lost; it hears the others.
    OneWay,
    /// The leader's server is stopped in its tracks, and goes on.
    PauseLeader,
    /// The client that holds the lock is stopped in its tracks for longer than its lease, and goes on.
    PauseHolder,
    /// The leader's server and a client of another host are killed; the server starts again.
    Kill,
    /// The wall clocks of the leader's server and of a client go back an hour.
    StepClock,
}

impl Nemesis {
    pub(crate) fn all() -> &'static [Self] {
        Self::value_variants()
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// How long it lasts.
    fn lasts(self) -> Duration {
        Duration::from_millis(match self {
            Self::IsolateLeader => 4_500,
            Self::IsolateFollower | Self::OneWay | Self::PauseLeader | Self::PauseHolder => 3_500,
            Self::Kill => 3_000,
            Self::StepClock => 2_000,
        })
    }

    /// How long it is watched afterwards: after a death, until nobody may be shown the dead.
    fn watched_after(self) -> Duration {
        Duration::from_millis(if self == Self::Kill { 4_000 } else { 2_000 })
    }
}

const BEFORE: Duration = Duration::from_millis(1_000);
/// How long opening, going on after a fault, reading everything at the end, and closing may each take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was seen of one phase.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) events: Vec<Event>,
    pub(crate) fault: Fault,
    /// What the resource saw, and the control without tokens.
    pub(crate) fenced: Report,
    pub(crate) control: Report,
    /// How much later than otherwise a lease may end, in nanoseconds.
    pub(crate) lease_delay: u64,
}

/// What was done, when, and to whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// When the workloads were told to stop.
    pub(crate) stopped: u64,
    /// The host that is cut off, or whose server is struck.
    pub(crate) struck: Option<String>,
    /// Whether the client there is cut off from the majority.
    pub(crate) cut: bool,
    /// Whether nothing but clocks was struck.
    pub(crate) clock: bool,
    /// The client that was paused.
    pub(crate) paused: Option<String>,
    /// The client that was killed.
    pub(crate) killed: Option<String>,
}

/// How a phase is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) engine: &'static str,
    pub(crate) nemesis: Nemesis,
    pub(crate) seed: u64,
    pub(crate) plant: Option<Plant>,
    /// Where sockets and clock files go.
    pub(crate) place: PathBuf,
    /// Where the history goes.
    pub(crate) history: PathBuf,
}

/// Runs it, and leaves the cluster whole.
pub(crate) async fn run(net: &Net, cluster: &mut dyn Cluster, plan: &Plan) -> Result<Seen> {
    let leader = cluster.leader().await.context("nobody leads")?;
    let other = leader % HOSTS + 1;
    let (protected, socket) = (Protected::new(), plan.place.join("resource"));
    protected.serve(&socket)?;
    let log = Log::create(plan)?;
    let mut clients = Vec::new();
    for host in 1..=HOSTS {
        clients.push(Client::start(net, cluster, plan, &socket, host, &log)?);
    }
    wait_for(&log, "ready", HOSTS).await?;
    tell(&mut clients, "run").await;
    Env::real().sleep(BEFORE).await;
    let mut stage = Stage { net, cluster, clients: &mut clients, log: &log, protected: &protected };
    let mut fault = stage.strike(plan.nemesis, leader, other).await?;
    Env::real().sleep(plan.nemesis.watched_after()).await;
    let went_on = async || check::recovered_ms(&operations(&log.events()), &fault).is_some();
    // The check says so if they never do.
    let _ = wait_until(&Env::real(), "writes go on", PATIENCE, went_on).await;
    fault.stopped = log.note("stop", Value::Null);
    tell(&mut clients, "stop").await;
    cluster.settle().await?;
    wait_whole(cluster).await?;
    tell(&mut clients[other_than(&fault, leader) - 1..][..1], "final").await;
    wait_for(&log, "final", 1).await?;
    tell(&mut clients, "close").await;
    let killed = usize::from(fault.killed.is_some());
    wait_for(&log, "closed", HOSTS - killed).await?;
    let (fenced, control) = protected.reports();
    std::fs::remove_file(&socket)?;
    let lease_delay = cluster.lease_delay().as_nanos() as u64;
    Ok(Seen { events: log.events(), fault, fenced, control, lease_delay })
}

/// A client that lives to read everything at the end.
fn other_than(fault: &Fault, leader: usize) -> usize {
    let alive = |host: &usize| fault.killed.as_deref() != Some(name(*host).as_str());
    (1..=HOSTS).filter(|host| *host != leader).find(alive).unwrap_or(leader)
}

fn name(host: usize) -> String {
    format!("h{host}")
}

/// What a nemesis acts on.
struct Stage<'a, 'n> {
    net: &'a Net,
    cluster: &'a mut (dyn Cluster + 'n),
    clients: &'a mut [Client],
    log: &'a Log,
    protected: &'a Protected,
}

impl Stage<'_, '_> {
    /// Strikes, waits, and mends.
    async fn strike(&mut self, nemesis: Nemesis, leader: usize, other: usize) -> Result<Fault> {
        let lasts = nemesis.lasts();
        let mut fault = Fault { struck: Some(name(leader)), clock: nemesis == Nemesis::StepClock, ..Fault::default() };
        match nemesis {
            Nemesis::IsolateLeader | Nemesis::IsolateFollower | Nemesis::OneWay => {
                let host = if nemesis == Nemesis::IsolateFollower { other } else { leader };
                (fault.struck, fault.cut) = (Some(name(host)), true);
                match nemesis {
                    Nemesis::OneWay => self.net.mute(host)?,
                    _ => self.net.isolate(host)?,
                }
                fault.from = self.begin(&format!("{} {}", nemesis.name(), name(host)));
                if host == leader {
                    self.cluster.take_over_from(host).await?;
                }
                self.until(fault.from, lasts).await;
                // Before the cut is said to end: until it is gone, a replaced primary answers who is next to it.
                self.cluster.shoot(host);
                fault.to = self.begin("heal");
                self.net.heal()?;
            }
            Nemesis::PauseLeader => {
                fault.from = self.begin(&format!("pause the server of {}", name(leader)));
                self.cluster.pause(leader)?;
                self.cluster.take_over_from(leader).await?;
                self.until(fault.from, lasts).await;
                self.cluster.shoot(leader);
                fault.to = self.begin("resume");
                self.cluster.resume(leader)?;
            }
            Nemesis::PauseHolder => {
                let holder = self.protected.next_holder().await.context("nobody holds the lock")?;
                let client = self.clients.iter().find(|client| client.node == holder).context("an unknown holder")?;
                client.signal(Signal::STOP)?;
                fault.from = self.begin(&format!("pause the client of {holder}"));
                self.until(fault.from, lasts).await;
                // A late write is one after somebody else's; if nobody ever gets the lock, the check says so.
                let _ = Env::real().timeout(PATIENCE, self.protected.other_than(&holder)).await;
                (fault.struck, fault.paused) = (None, Some(holder));
                fault.to = self.begin("resume");
                client.signal(Signal::CONT)?;
            }
            Nemesis::Kill => {
                fault.killed = Some(name(other));
                self.clients[other - 1].child.kill().await.context("killing a client")?;
                fault.from =
                    self.begin(&format!("kill the client of {} and the server of {}", name(other), name(leader)));
                self.cluster.servers().kill(leader);
                self.cluster.take_over_from(leader).await?;
                self.until(fault.from, lasts).await;
                fault.to = self.begin("restart");
                self.cluster.restart(leader)?;
            }
            Nemesis::StepClock => {
                fault.from = self.begin(&format!("the clocks of {} go back an hour", name(leader)));
                let clocks = [self.cluster.clock(leader), Some(self.clients[leader - 1].clock.clone())];
                clocks.iter().flatten().try_for_each(|clock| step_clock(clock, -3_600))?;
                self.until(fault.from, lasts).await;
                fault.to = self.begin("the clocks are right again");
                clocks.iter().flatten().try_for_each(|clock| step_clock(clock, 0))?;
            }
        }
        Ok(fault)
    }

    fn begin(&self, what: &str) -> u64 {
        self.log.note("nemesis", json!(what))
    }

    /// Waits until this long after the strike.
    async fn until(&self, from: u64, lasts: Duration) {
        let gone = Duration::from_nanos(now().saturating_sub(from));
        Env::real().sleep(lasts.saturating_sub(gone)).await;
    }
}

/// The history, as it is written.
#[derive(Clone)]
struct Log(Arc<Mutex<Written>>);

struct Written {
    file: File,
    events: Vec<Event>,
}

impl Log {
    fn create(plan: &Plan) -> Result<Self> {
        let path = &plan.history;
        let mut file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        let (engine, nemesis) = (plan.engine, plan.nemesis.name());
        let (lasts, after) = (plan.nemesis.lasts().as_millis(), plan.nemesis.watched_after().as_millis());
        let schedule = json!({ "before_ms": BEFORE.as_millis(), "fault_ms": lasts, "after_ms": after });
        let header = json!({ "engine": engine, "nemesis": nemesis, "seed": plan.seed, "schedule": schedule });
        writeln!(file, "{header}")?;
        Ok(Self(Arc::new(Mutex::new(Written { file, events: Vec::new() }))))
    }

    fn take(&self, event: Event) {
        let mut written = self.0.lock();
        if let Ok(line) = serde_json::to_string(&event) {
            // What cannot be kept is still checked.
            let _ = writeln!(written.file, "{line}");
        }
        written.events.push(event);
    }

    /// Notes what the lab does, and returns when.
    fn note(&self, what: &str, value: Value) -> u64 {
        let log = self.clone();
        Recorder::new("lab", move |event| log.take(event)).note(what, value);
        now()
    }

    fn count(&self, what: &str) -> usize {
        self.0.lock().events.iter().filter(|event| event.f == what && event.kind == Kind::Info).count()
    }

    fn events(&self) -> Vec<Event> {
        self.0.lock().events.clone()
    }
}

/// Waits until this many clients have come so far.
async fn wait_for(log: &Log, what: &str, count: usize) -> Result<()> {
    wait_until(&Env::real(), what, PATIENCE, async || log.count(what) >= count).await.with_context(|| {
        format!("{} of {count} clients are {what}; their last words: {}", log.count(what), last_words(&log.events()))
    })
}

fn last_words(events: &[Event]) -> String {
    let of = |host| events.iter().rev().find(|event| event.node == name(host));
    (1..=HOSTS).filter_map(of).map(|event| format!("{event:?}")).collect::<Vec<_>>().join("; ")
}

async fn tell(clients: &mut [Client], what: &str) {
    for client in clients {
        // One that was killed hears nothing.
        let _ = client.orders.write_all(format!("{what}\n").as_bytes()).await;
    }
}

/// A client process on a host, killed when dropped.
struct Client {
    node: String,
    child: Child,
    orders: ChildStdin,
    clock: PathBuf,
}

impl Client {
    fn start(net: &Net, cluster: &dyn Cluster, plan: &Plan, socket: &Path, host: usize, log: &Log) -> Result<Self> {
        let node = name(host);
        let clock = plan.place.join(format!("client-{node}.clock"));
        step_clock(&clock, 0)?;
        let program = std::env::current_exe().context("where this program is")?;
        let mut command = net.on(host, Run { clock: Some(&clock), ..Run::default() }, &program);
        command.args(["worker", "--url", &cluster.url(host, &format!("lab-{}", plan.nemesis.name()))]);
        command.args(["--node", &node, "--seed", &(plan.seed + host as u64).to_string(), "--resource"]).arg(socket);
        if let Some(plant) = plan.plant.and_then(|plant| plant.to_possible_value()) {
            command.args(["--plant", plant.get_name()]);
        }
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("starting a client")?;
        let orders = child.stdin.take().context("a client without standard input")?;
        let history = child.stdout.take().context("a client without standard output")?;
        let log = log.clone();
        Env::real().spawn(async move {
            let mut lines = BufReader::new(history).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(event) = serde_json::from_str(&line) {
                    log.take(event);
                }
            }
        });
        Ok(Self { node, child, orders, clock })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        ensure!(id.is_some(), "the client of {} has ended", self.node);
        id.map_or(Ok(()), |id| kill_process(id, signal)).context("signalling a client")
    }
}
