//! Commands that are given something on stdin, one run for each job or record; the exit code decides what becomes of it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    future::Future,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use coact::{Env, Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    sync::watch,
};

use crate::{exit::Exit, output};

/// The exit code that says that no other attempt would help: EX_DATAERR of sysexits.h.
const HOPELESS: i32 = 65;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Done,
    /// It failed; another attempt may help, or not.
    Failed {
        error: String,
        hopeless: bool,
    },
    /// It was asked to end, or could not begin: what it was given is for somebody else.
    GivenBack,
}

/// Runs a command, several at a time.
#[derive(Debug)]
pub(crate) struct Filter {
    command: Vec<OsString>,
    /// How long a run may take to end after SIGTERM, before SIGKILL.
    grace: Duration,
    /// The process group that each run leads.
    running: watch::Sender<BTreeSet<i32>>,
    /// Whether they were asked to end.
    interrupted: AtomicBool,
    /// How to exit if the command cannot be run at all.
    unusable: watch::Sender<Option<Exit>>,
}

impl Filter {
    pub(crate) fn new(command: Vec<OsString>, grace: Duration) -> Arc<Self> {
        let (running, unusable) = (watch::Sender::default(), watch::Sender::default());
        Arc::new(Self { command, grace, running, interrupted: AtomicBool::new(false), unusable })
    }

    /// Runs it once; ends it when what it works on is lost.
    pub(crate) async fn run(
        self: &Arc<Self>,
        what: &str,
        input: Bytes,
        variables: Vec<(String, OsString)>,
        lost: impl Future<Output = ()>,
    ) -> Result<Ended> {
        let mut child = match self.spawn(variables) {
            Ok(child) => child,
            Err(error) => {
                self.give_up(&error);
                return Ok(Ended::GivenBack);
            }
        };
        let mut listed = child.id().map(|id| Listed::new(self, id as i32));
        let stdin = child.stdin.take();
        let feed = async move {
            let Some(mut stdin) = stdin else { return };
            // A command need not read what it is given.
            let _ = stdin.write_all(&input).await;
        };
        let work = async { tokio::join!(child.wait(), feed).0 };
        tokio::pin!(work);
        let status = tokio::select! {
            status = &mut work => status,
            () = lost => {
                output::complain(&format!("{what} is lost, ending its command"));
                self.end(listed.as_ref(), work).await
            }
        };
        listed.iter_mut().for_each(|listed| listed.ended = true);
        let status = status.map_err(|error| Error::invalid("the command cannot be waited for").with_source(error))?;
        Ok(self.outcome(status))
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.running.borrow().len()
    }

    /// Asks all runs to end: what they were given is given back.
    pub(crate) fn terminate(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
        self.running.borrow().iter().for_each(|id| signal(*id, Signal::TERM));
    }

    /// Waits until none runs, for as long as they may take to end.
    pub(crate) async fn all_ended(&self) {
        let mut running = self.running.subscribe();
        let ended = running.wait_for(BTreeSet::is_empty);
        // Those that take longer are killed when nobody waits for them any more.
        let _ = Env::real().timeout(self.grace, ended).await;
    }

    /// How to exit, if the command turned out to be none that can be run.
    pub(crate) fn found_unusable(&self) -> Option<Exit> {
        *self.unusable.borrow()
    }

    /// Waits until it is known that the command cannot be run, and says how to exit.
    pub(crate) async fn unusable(&self) -> Exit {
        let mut unusable = self.unusable.subscribe();
        match unusable.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            _ => std::future::pending().await,
        }
    }

    fn spawn(&self, variables: Vec<(String, OsString)>) -> std::io::Result<Child> {
        let [program, arguments @ ..] = &*self.command else { return Err(std::io::ErrorKind::NotFound.into()) };
        // A group of its own: what it starts is signalled with it, and Ctrl-C at a terminal reaches only us.
        Command::new(program).args(arguments).envs(variables).stdin(Stdio::piped()).process_group(0).spawn()
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

    /// The command cannot be run, so nothing can be done here.
    fn give_up(&self, error: &std::io::Error) {
        self.unusable.send_if_modified(|unusable| {
            if unusable.is_some() {
                return false;
            }
            let program = self.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
            output::complain(&format!("{program} cannot be run: {error}"));
            let absent = error.kind() == std::io::ErrorKind::NotFound;
            *unusable = Some(if absent { Exit::NO_COMMAND } else { Exit::CANNOT_RUN });
            true
        });
    }

    fn outcome(&self, status: ExitStatus) -> Ended {
        let error = match (status.code(), status.signal()) {
            (Some(0), _) => return Ended::Done,
            _ if self.interrupted.load(Ordering::Relaxed) => return Ended::GivenBack,
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        };
        Ended::Failed { error, hopeless: status.code() == Some(HOPELESS) }
    }
}

/// A run on the list, which is killed if it has not ended when nobody waits for it any more.
struct Listed {
    filter: Arc<Filter>,
    id: i32,
    ended: bool,
}

impl Listed {
    fn new(filter: &Arc<Filter>, id: i32) -> Self {
        filter.running.send_if_modified(|running| running.insert(id));
        Self { filter: filter.clone(), id, ended: false }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.filter.running.send_if_modified(|running| running.remove(&self.id));
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

/// Headers as they are found in the environment, which has no room for other bytes than text.
pub(crate) fn header_variables(headers: &[(String, Bytes)]) -> impl Iterator<Item = (String, OsString)> + '_ {
    headers.iter().filter_map(|(name, value)| {
        let value = text(value)?;
        Some((format!("COACT_HEADER_{}", variable_name(name)), value.into()))
    })
}

/// What can be a variable's value.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn variable_name(header: &str) -> String {
    header
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' })
        .collect()
}
