//! `coact queue work`: a command for each job.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use coact::{
    Env, Error, Result,
    contract::queue::QueueSpec,
    queue::{Context, Control, Outcome, Queue, RateLimit, Stats, Worker, WorkerOptions},
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use super::open;
use crate::{
    Target,
    cmd::{child::default_label, duration, serve::Signals},
    exit::Exit,
    output,
};

/// Arguments of `coact queue work`.
#[derive(Debug, Args)]
pub(crate) struct Work {
    /// The queue; it is made if there is none.
    queue: String,
    /// How many jobs at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// How long a job stays ours if we can no longer say that we live.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    lease: Duration,
    /// At most so many jobs begin per second.
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How long a job rests after its first failure; it doubles with each, less up to a half.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    retry: Duration,
    /// The longest rest after a failure.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    retry_max: Duration,
    /// How long commands may go on after SIGINT or SIGTERM, before SIGKILL; their jobs are given back.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    grace: Duration,
    /// End after one job.
    #[arg(long)]
    once: bool,
    /// End when no job is ready.
    #[arg(long)]
    drain: bool,
    /// Who this is, as shown by `coact queue jobs`.
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    target: Target,
    /// The command. It finds COACT_JOB_ID, COACT_JOB_ATTEMPT, COACT_JOB_TOKEN, COACT_QUEUE, and each header as
    /// COACT_HEADER_NAME.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Work {
    pub(crate) async fn run(self) -> Result<Exit> {
        let (store, queues) = open(&self.target).await?;
        let queue = Queue::open(&queues, &self.queue, QueueSpec::default()).await?;
        let worker = Worker::new(&queue, self.options())?;
        let control = worker.control();
        let mut signals = Signals::new()?;
        let commands = Arc::new(Commands {
            command: self.command,
            queue: self.queue,
            grace: self.grace,
            control: control.clone(),
            running: parking_lot::Mutex::default(),
            interrupted: AtomicBool::new(false),
            unusable: parking_lot::Mutex::default(),
        });
        let runner = commands.clone();
        let run = worker.run(move |context| runner.clone().run(context));
        tokio::pin!(run);
        let stats = loop {
            tokio::select! {
                stats = &mut run => break stats?,
                () = signals.first() => commands.interrupt(),
            }
        };
        store.close().await?;
        output::say(&summary(&stats));
        let unusable = commands.unusable.lock().take();
        Ok(unusable.unwrap_or(Exit::SUCCESS))
    }

    fn options(&self) -> WorkerOptions {
        WorkerOptions {
            concurrency: self.concurrency,
            lease: self.lease,
            rate: self.rate.map(RateLimit::per_second),
            retry_first: self.retry.min(self.retry_max),
            retry_longest: self.retry_max,
            grace: self.grace,
            drain: self.drain,
            jobs: self.once.then_some(1),
            name: Some(self.label.clone().unwrap_or_else(default_label)),
        }
    }
}

/// The exit code that says that no other attempt would help: EX_DATAERR of sysexits.h.
const DEAD: i32 = 65;

/// Commands that run, one for each job.
struct Commands {
    command: Vec<OsString>,
    queue: String,
    grace: Duration,
    control: Control,
    /// The group that each of them leads.
    running: parking_lot::Mutex<BTreeSet<i32>>,
    /// Whether they were asked to end.
    interrupted: AtomicBool,
    /// How to exit if the command cannot be run at all.
    unusable: parking_lot::Mutex<Option<Exit>>,
}

impl Commands {
    /// The first time, lets them end; after that asks them to.
    fn interrupt(&self) {
        let running = self.running.lock();
        if self.control.is_stopped() {
            self.interrupted.store(true, Ordering::Relaxed);
            running.iter().for_each(|id| signal(*id, Signal::TERM));
        } else if !running.is_empty() {
            output::complain(&format!("waiting for {} jobs; once more ends them", running.len()));
        }
        drop(running);
        self.control.stop();
    }

    async fn run(self: Arc<Self>, context: Context) -> Result<Outcome> {
        let mut child = match self.spawn(&context) {
            Ok(child) => child,
            Err(error) => return Ok(self.give_up(&error)),
        };
        let mut listed = child.id().map(|id| Listed::new(&self, id as i32));
        let stdin = child.stdin.take();
        let body = context.job().body.clone();
        let feed = async move {
            let Some(mut stdin) = stdin else { return };
            // A command need not read what it is given.
            let _ = stdin.write_all(&body).await;
        };
        let work = async { tokio::join!(child.wait(), feed).0 };
        tokio::pin!(work);
        let status = tokio::select! {
            status = &mut work => status,
            () = context.lost() => {
                output::complain(&format!("job {} is lost, ending its command", context.id()));
                self.end(listed.as_ref(), work).await
            }
        };
        listed.iter_mut().for_each(|listed| listed.ended = true);
        match status {
            Ok(status) => Ok(self.outcome(status)),
            Err(error) => Err(Error::invalid("the command cannot be waited for").with_source(error)),
        }
    }

    fn spawn(&self, context: &Context) -> std::io::Result<Child> {
        let [program, arguments @ ..] = &*self.command else { return Err(std::io::ErrorKind::NotFound.into()) };
        // A group of its own: what it starts is signalled with it, and Ctrl-C at a terminal reaches only us.
        Command::new(program)
            .args(arguments)
            .envs(variables(&self.queue, context))
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
    }

    /// SIGTERM, then SIGKILL.
    async fn end(
        &self,
        listed: Option<&Listed>,
        work: impl Future<Output = std::io::Result<ExitStatus>> + Unpin,
    ) -> std::io::Result<ExitStatus> {
        let mut work = work;
        let tell = |with| listed.iter().for_each(|listed| signal(listed.id, with));
        tell(Signal::TERM);
        match Env::real().timeout(self.grace, &mut work).await {
            Some(status) => status,
            None => {
                tell(Signal::KILL);
                work.await
            }
        }
    }

    /// The command cannot be run, so no job can be done here.
    fn give_up(&self, error: &std::io::Error) -> Outcome {
        self.control.stop();
        let mut unusable = self.unusable.lock();
        if unusable.is_none() {
            let program = self.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
            output::complain(&format!("{program} cannot be run: {error}"));
            let absent = error.kind() == std::io::ErrorKind::NotFound;
            *unusable = Some(if absent { Exit::NO_COMMAND } else { Exit::CANNOT_RUN });
        }
        Outcome::Release
    }

    fn outcome(&self, status: ExitStatus) -> Outcome {
        let error = match (status.code(), status.signal()) {
            (Some(0), _) => return Outcome::Done,
            _ if self.interrupted.load(Ordering::Relaxed) => return Outcome::Release,
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        };
        if status.code() == Some(DEAD) { Outcome::Kill { error } } else { Outcome::Retry { after: None, error } }
    }
}

/// A command on the list, which is killed if it has not ended when nobody waits for it any more.
struct Listed {
    commands: Arc<Commands>,
    id: i32,
    ended: bool,
}

impl Listed {
    fn new(commands: &Arc<Commands>, id: i32) -> Self {
        commands.running.lock().insert(id);
        Self { commands: commands.clone(), id, ended: false }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.commands.running.lock().remove(&self.id);
        if !self.ended {
            signal(self.id, Signal::KILL);
        }
    }
}

fn signal(id: i32, signal: Signal) {
    let Some(group) = Pid::from_raw(id) else { return };
    // It may have ended meanwhile.
    let _ = kill_process_group(group, signal);
}

/// What a command finds in its environment.
fn variables(queue: &str, context: &Context) -> Vec<(String, OsString)> {
    let numbers = [
        ("COACT_JOB_ID", context.id().0),
        ("COACT_JOB_ATTEMPT", context.attempt().into()),
        ("COACT_JOB_TOKEN", context.token().0),
    ];
    let mut variables: Vec<_> =
        numbers.into_iter().map(|(name, number)| (name.to_owned(), number.to_string().into())).collect();
    variables.push(("COACT_QUEUE".to_owned(), queue.into()));
    for (name, value) in &context.job().headers {
        // The environment has no room for other bytes.
        if let Ok(value) = std::str::from_utf8(value)
            && !value.contains('\0')
        {
            variables.push((format!("COACT_HEADER_{}", variable_name(name)), value.into()));
        }
    }
    variables
}

fn variable_name(header: &str) -> String {
    header
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' })
        .collect()
}

fn summary(stats: &Stats) -> String {
    let Stats { done, retried, dead, released, fenced, unanswered, .. } = stats;
    let mut text = format!("{done} done, {retried} to try again, {dead} dead, {released} given back");
    if fenced + unanswered > 0 {
        text.push_str(&format!(", {fenced} lost, {unanswered} without an answer"));
    }
    text
}
