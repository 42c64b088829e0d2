//! `coact tour`: the blocks on real files, with processes that are killed, and a proof at the end.
//!
//! A node runs in a temporary directory, or an engine that is there already serves (`--at`). [`lines`] shows locks, ids and
//! transactions: worker processes take the lines of a file one by one. [`log`] shows topics and groups: a log goes through a
//! topic to three consumers. In both a process and the node get kill -9 in the middle; an engine that is not ours is left
//! alone. At the end each part says what holds only after it has looked.

mod lines;
mod log;
mod site;
mod timeline;

use std::path::PathBuf;

use clap::Args;
use coact::{Env, Error, ErrorKind, Result};

use self::{lines::Lines, log::Log, site::Site, timeline::Timeline};
pub(crate) use self::{lines::worker::TourWorker, log::consumer::TourConsumer};
use crate::{
    exit::Exit,
    output::{say, write_line},
};

/// Arguments of `coact tour`.
#[derive(Debug, Args)]
pub(crate) struct Tour {
    /// Work on this engine instead of a node of our own, in a namespace that is made for the run and emptied after it:
    /// etcd://…, redis://…, zookeeper://…, postgres://…, coact://…
    #[arg(long, value_name = "URL")]
    at: Option<String>,
    /// Only this part [default: both, on engines that have topics].
    #[arg(long, value_enum)]
    only: Option<Part>,
    #[command(flatten)]
    lines: Lines,
    #[command(flatten)]
    log: Log,
}

/// A part of the tour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Workers that take turns by a lock.
    Lines,
    /// A log that goes through a topic.
    Log,
}

impl Tour {
    pub(crate) async fn run(self) -> Result<Exit> {
        let env = Env::real();
        let mut show = Timeline::new(env.clone());
        let mut site = Site::begin(self.at.as_deref(), &env, &show).await?;
        if self.only != Some(Part::Log) {
            self.lines.run(&mut site, &mut show).await?.iter().for_each(|line| write_line(line));
        }
        if self.only == Some(Part::Log) || self.only.is_none() && site.has_topics().await? {
            self.log.run(&mut site, &mut show).await?.iter().for_each(|line| write_line(line));
        } else if self.only.is_none() {
            say(&format!("{} has no topics: the log is left out", site.url));
        }
        site.end(&show).await?;
        Ok(Exit::SUCCESS)
    }
}

/// A file of this machine: text that grows on most, then text that is on every one.
fn choose_input(input: Option<&PathBuf>) -> Result<PathBuf> {
    const DEFAULTS: [&str; 6] = [
        "/var/log/syslog",
        "/var/log/dpkg.log",
        "/var/log/apt/term.log",
        "/var/log/apt/history.log",
        "/usr/share/common-licenses/GPL-3",
        "/etc/services",
    ];
    if let Some(input) = input {
        return Ok(input.clone());
    }
    let usable =
        |path: &&&str| std::fs::File::open(path).and_then(|file| file.metadata()).is_ok_and(|file| file.len() > 10_000);
    DEFAULTS
        .iter()
        .find(usable)
        .map(PathBuf::from)
        .ok_or_else(|| Error::invalid("no log or text file was found on this machine: name one with --input FILE"))
}

fn cannot(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::new(ErrorKind::Unavailable, format!("the tour cannot {what}")).with_source(error)
}

fn failed(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, why.into())
}

/// What must hold and does not.
fn disproved(what: impl std::fmt::Display) -> Error {
    failed(format!("the proof failed: {what}"))
}

/// Whether starting over can help: the node was away, or the lease ended meanwhile.
fn passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Fenced | ErrorKind::Closed)
        || error.effect() == coact::Effect::Unknown
        || matches!(error.retry(), coact::Retry::After(_))
}
