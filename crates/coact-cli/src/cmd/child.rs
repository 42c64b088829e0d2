//! A command that runs while something is held, and must not outlive it.

use std::{ffi::OsString, future::Future, io::IsTerminal as _, os::unix::process::ExitStatusExt as _, process::Stdio};
use std::{process::ExitStatus, time::Duration};

use coact::{Env, Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};

use crate::{cmd::serve::Signals, exit::Exit, output};

/// A command on its way.
pub(crate) struct Running {
    child: Child,
    signals: ChildSignals,
    /// How long it may take to end after SIGTERM, before SIGKILL.
    grace: Duration,
}

impl Running {
    /// Starts a command with more environment; says what is wrong if that fails, and how to exit.
    pub(crate) fn start(
        command: &[OsString],
        environment: &[(&str, String)],
        grace: Duration,
    ) -> std::result::Result<Self, Exit> {
        let [program, arguments @ ..] = command else { return Err(Exit::NO_COMMAND) };
        let mut process = Command::new(program);
        process.args(arguments).stdin(Stdio::inherit());
        process.envs(environment.iter().map(|(name, value)| (name, value)));
        if own_group() {
            process.process_group(0);
        }
        match process.spawn() {
            Ok(child) => {
                let signals = ChildSignals { id: child.id(), group: own_group() };
                Ok(Self { child, signals, grace })
            }
            Err(error) => {
                output::complain(&format!("{} cannot be run: {error}", program.to_string_lossy()));
                let absent = error.kind() == std::io::ErrorKind::NotFound;
                Err(if absent { Exit::NO_COMMAND } else { Exit::CANNOT_RUN })
            }
        }
    }

    /// Waits for its end, passing signals on; ends it when what is held is lost, and says so.
    pub(crate) async fn until_lost(
        mut self,
        what: &str,
        lost: impl Future<Output = Error>,
        signals: &mut Signals,
    ) -> Result<Exit> {
        tokio::pin!(lost);
        loop {
            tokio::select! {
                exit = self.ended() => return exit,
                error = &mut lost => {
                    output::complain(&format!("{what} is lost, ending the command: {error}"));
                    self.end().await?;
                    return Ok(Exit::LOST);
                }
                () = signals.first() => self.terminate(),
            }
        }
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<Exit> {
        self.child.wait().await.map(exit_of).map_err(cannot_wait)
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signals.send(Signal::TERM);
    }

    /// SIGTERM, then SIGKILL: it must not outlive what is held by more than the grace.
    async fn end(&mut self) -> Result<()> {
        self.terminate();
        if Env::real().timeout(self.grace, self.child.wait()).await.is_none() {
            self.signals.send(Signal::KILL);
            self.child.wait().await.map_err(cannot_wait)?;
        }
        // What the command had started may have ignored the polite one.
        self.signals.send(Signal::KILL);
        Ok(())
    }
}

/// A command at a terminal stays in its group, so that it can read from it; elsewhere it gets one of its own, so that
/// what it starts is signalled with it.
fn own_group() -> bool {
    !std::io::stdin().is_terminal()
}

struct ChildSignals {
    id: Option<u32>,
    group: bool,
}

impl ChildSignals {
    fn send(&self, signal: Signal) {
        let Some(id) = self.id.and_then(|id| Pid::from_raw(id as i32)) else { return };
        // It may have ended meanwhile.
        let _ = if self.group { kill_process_group(id, signal) } else { kill_process(id, signal) };
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Exit(u8::try_from(code).unwrap_or(1))
}

fn cannot_wait(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "the command cannot be waited for").with_source(error)
}

/// Who this is, as shown to people: the host and the process.
pub(crate) fn default_label() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}
