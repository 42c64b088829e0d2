//! Exit codes. They are part of the interface: scripts depend on them.

use std::process::ExitCode;

use coact::{Error, ErrorKind};

/// Shown below `coact --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0 done            3 absent, or a check refused   6 engine unavailable    9 denied
  1 failed          4 conflict, or not in time     7 data corrupt
  2 wrong usage     5 fenced: the lease is over    8 not supported
  `lock run`, `rw`, `sem run` and `elect` exit as their command does (128+n for signal n), 124 if it did not get the
  lock in time, 125 if it lost the lock, 126/127 if the command cannot be run or found.";

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    pub(crate) const SUCCESS: Exit = Exit(0);
    pub(crate) const FAILURE: Exit = Exit(1);
    pub(crate) const ABSENT: Exit = Exit(3);
    pub(crate) const CONFLICT: Exit = Exit(4);
    pub(crate) const NOT_IN_TIME: Exit = Exit(124);
    pub(crate) const LOST: Exit = Exit(125);
    pub(crate) const CANNOT_RUN: Exit = Exit(126);
    pub(crate) const NO_COMMAND: Exit = Exit(127);
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        Exit(match error.kind() {
            ErrorKind::Invalid => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::AlreadyExists | ErrorKind::Conflict => 4,
            ErrorKind::Fenced => 5,
            ErrorKind::Unavailable | ErrorKind::Closed | ErrorKind::Exhausted => 6,
            ErrorKind::Corrupt => 7,
            ErrorKind::Unsupported | ErrorKind::Compacted => 8,
            ErrorKind::Denied => 9,
            _ => 1,
        })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.0)
    }
}
