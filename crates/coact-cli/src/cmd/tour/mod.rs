//! `coact tour`: the blocks on a real file, with processes that are killed, and a proof at the end.
//!
//! A node runs in a temporary directory, or an engine that is there already serves (`--at`). Worker processes take the lines of a file one by one: lock, read the cursor,
//! stamp the line with an id, write line and cursor in one transaction that carries the fencing token, release. One
//! worker and the node get kill -9 in the middle; an engine that is not ours is left alone. At the end every line must be
//! there once, and the run says so only after it has looked.

mod proof;
pub(crate) mod worker;

use std::{
    io::IsTerminal as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use coact::{
    Env, Error, ErrorKind, KvHandle, Realm, Result, Url,
    kv::{Order, Txn, Write},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use crate::{
    exit::Exit,
    output::{say, write_line},
};

/// What is tried if no input is given: text that grows on most machines, then text that is on every one.
const DEFAULT_INPUTS: [&str; 6] = [
    "/var/log/syslog",
    "/var/log/dpkg.log",
    "/var/log/apt/term.log",
    "/var/log/apt/history.log",
    "/usr/share/common-licenses/GPL-3",
    "/etc/services",
];
/// A whole run that does not end within this has failed.
const DEADLINE: Duration = Duration::from_secs(300);
/// The longest line that fits an entry, with room for its stamp.
const LINE_BYTES_MAX: usize = 60 * 1024;

/// Arguments of `coact tour`.
#[derive(Debug, Args)]
pub(crate) struct Tour {
    /// Work on this engine instead of a node of our own, in a namespace that is made for the run and emptied after it:
    /// etcd://…, redis://…, zookeeper://…, postgres://…, coact://…
    #[arg(long, value_name = "URL")]
    at: Option<String>,
    /// The file whose lines are worked on [default: a log of this machine].
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// How many worker processes.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..=32))]
    workers: u64,
    /// At most this many lines.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    lines: u64,
    /// Write what came out here, one JSON object a line [default: in a temporary directory].
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
}

impl Tour {
    pub(crate) async fn run(self) -> Result<Exit> {
        let input = self.choose_input()?;
        let lines = read_lines(&input, self.lines as usize)?;
        let place = tempfile::Builder::new().prefix("coact-tour-").tempdir().map_err(cannot("make a directory"))?;
        let result = self.result.clone().unwrap_or_else(|| std::env::temp_dir().join("coact-tour.jsonl"));
        let env = Env::real();
        let mut show = Timeline::new(env.clone(), lines.len());
        show.event(&format!("{} lines of {}, {} workers", lines.len(), input.display(), self.workers));
        let url = match &self.at {
            Some(at) => of_namespace(at, &format!("tour-{:016x}", env.random()))?,
            None => format!("coact://127.0.0.1:{}/tour", free_port()?),
        };
        let run = Run {
            place: place.path(),
            input: &input,
            lines: &lines,
            workers: self.workers,
            env: env.clone(),
            owns_node: self.at.is_none(),
            url,
        };
        let Some(outcome) = env.timeout(DEADLINE, run.to_the_end(&mut show, &result)).await else {
            return Err(Error::new(ErrorKind::Unavailable, format!("the tour did not end within {DEADLINE:?}")));
        };
        let proof = outcome?;
        proof.lines().iter().for_each(|line| write_line(line));
        write_line(&format!("  result   {}", result.display()));
        Ok(Exit::SUCCESS)
    }

    fn choose_input(&self) -> Result<PathBuf> {
        if let Some(input) = &self.input {
            return Ok(input.clone());
        }
        let usable = |path: &&&str| std::fs::metadata(path).is_ok_and(|file| file.len() > 10_000);
        DEFAULT_INPUTS
            .iter()
            .find(usable)
            .map(PathBuf::from)
            .ok_or_else(|| Error::invalid("no log or text file was found on this machine: name one with --input FILE"))
    }
}

/// The lines of the file, without their ends.
fn read_lines(path: &Path, at_most: usize) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)
        .map_err(|error| Error::invalid(format!("the input {} cannot be read", path.display())).with_source(error))?;
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').take(at_most).map(<[u8]>::to_vec).collect();
    if lines.len() < 10 {
        return Err(Error::invalid(format!(
            "the input {} has {} lines: the tour needs at least 10",
            path.display(),
            lines.len()
        )));
    }
    if let Some(long) = lines.iter().position(|line| line.len() > LINE_BYTES_MAX) {
        return Err(Error::invalid(format!(
            "line {} of {} has {} bytes: at most {LINE_BYTES_MAX} fit",
            long + 1,
            path.display(),
            lines[long].len()
        )));
    }
    Ok(lines)
}

struct Run<'a> {
    place: &'a Path,
    input: &'a Path,
    lines: &'a [Vec<u8>],
    workers: u64,
    env: Env,
    /// Where the workers work.
    url: String,
    /// Whether a node of our own serves it.
    owns_node: bool,
}

impl Run<'_> {
    async fn to_the_end(&self, show: &mut Timeline, result: &Path) -> Result<proof::Proof> {
        let mut node = None;
        if self.owns_node {
            node = Some(self.start_node(show, "up").await?);
        } else {
            show.event(&format!("{} serves", self.open().await?.describe()));
        }
        let (progress, mut reports) = mpsc::channel(1024);
        let mut workers = Vec::new();
        for number in 0..self.workers {
            workers.push(self.start_worker(number, progress.clone())?);
        }
        drop(progress);
        show.event("the workers began");

        let (kill_worker, kill_node) = (self.lines.len() / 3, self.lines.len() * 3 / 5);
        let mut killed_worker = false;
        let mut killed_node = !self.owns_node;
        let mut done = 0;
        while let Some(line) = reports.recv().await {
            done = done.max(line + 1);
            show.progress(done);
            if done >= kill_worker && !killed_worker {
                killed_worker = true;
                show.event(&format!("{done} lines done: kill -9 of worker 1, pid {}", pid(&workers[0])));
                kill(&mut workers[0]).await?;
            }
            if done >= kill_node
                && !killed_node
                && let Some(running) = &mut node
            {
                killed_node = true;
                show.event(&format!("{done} lines done: kill -9 of the node, pid {}", pid(running)));
                kill(running).await?;
                *running = self.start_node(show, "up again").await?;
            }
        }
        for (number, worker) in workers.iter_mut().enumerate().skip(1) {
            let status = worker.wait().await.map_err(cannot("wait for a worker"))?;
            if !status.success() {
                return Err(failed(format!("worker {} ended with {status}", number + 1)));
            }
        }
        show.event("the other workers found nothing left to do");
        if !killed_worker || !killed_node {
            return Err(failed("the run ended before the worker and the node were killed".to_owned()));
        }
        let kv = self.open().await?;
        let proof = proof::prove(&kv, self.lines, result).await?;
        if let Some(node) = &mut node {
            drop(kv);
            self.stop_node(node).await?;
            show.event("the node ended politely");
        } else {
            empty(&kv).await?;
            kv.close().await?;
            show.event("the namespace is empty again");
        }
        Ok(proof)
    }

    async fn start_node(&self, show: &Timeline, how: &str) -> Result<Child> {
        let address = self.url.trim_start_matches("coact://").split('/').next().unwrap_or_default();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place.join("node.log"))
            .map_err(cannot("open the node's log"))?;
        let mut node = command()?
            .args(["serve", "--listen", address, "--data"])
            .arg(self.place.join("data"))
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot("start the node"))?;
        loop {
            if let Some(status) = node.try_wait().map_err(cannot("look after the node"))? {
                let log = std::fs::read_to_string(self.place.join("node.log")).unwrap_or_default();
                return Err(failed(format!("the node ended with {status}: {log}")));
            }
            if self.open().await.is_ok() {
                show.event(&format!("the node is {how} on {address}, pid {}", pid(&node)));
                return Ok(node);
            }
            self.env.sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop_node(&self, node: &mut Child) -> Result<()> {
        let status = match node.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            Some(id) => {
                rustix::process::kill_process(id, rustix::process::Signal::TERM)
                    .map_err(|error| cannot("stop the node")(error.into()))?;
                node.wait().await.map_err(cannot("wait for the node"))?
            }
            None => return Err(failed("the node had ended before it was stopped".to_owned())),
        };
        if status.success() { Ok(()) } else { Err(failed(format!("the node ended with {status}"))) }
    }

    fn start_worker(&self, number: u64, progress: mpsc::Sender<usize>) -> Result<Child> {
        let mut worker = command()?
            .args(["tour-worker", "--at", &self.url, "--number", &(number + 1).to_string(), "--lines"])
            .arg(self.lines.len().to_string())
            .arg("--input")
            .arg(self.input)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot("start a worker"))?;
        if let Some(stdout) = worker.stdout.take() {
            self.env.spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(index) = line.parse()
                        && progress.send(index).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(worker)
    }

    async fn open(&self) -> Result<KvHandle> {
        coact::open(&self.url).await
    }
}

/// The same engine with another namespace.
fn of_namespace(at: &str, namespace: &str) -> Result<String> {
    let url = Url::parse(at)?;
    if url.hosts().is_empty() {
        return Err(Error::invalid(format!(
            "{url} belongs to one process, and the tour has several: leave --at out, or name a server"
        )));
    }
    let (before, query) =
        at.split_once('?').map_or((at, String::new()), |(before, query)| (before, format!("?{query}")));
    let authority = before.strip_suffix(url.path()).unwrap_or(before);
    Ok(format!("{authority}/{namespace}{query}"))
}

/// Deletes all that the tour wrote.
async fn empty(kv: &KvHandle) -> Result<()> {
    let realm = Realm::default();
    loop {
        let dirs = kv.dirs(&realm, "", "", 100).await?;
        if dirs.is_empty() {
            return Ok(());
        }
        for dir in dirs {
            let page = kv.list(&dir, Order::Name { after: String::new() }, 1000).await?;
            for some in page.entries.chunks(kv.guarantees().limits.writes) {
                let writes = some.iter().map(|entry| Write::Delete(entry.key.clone())).collect();
                let _ = kv.txn(&realm, Txn { writes, ..Txn::default() }).await?;
            }
        }
    }
}

fn command() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().map_err(cannot("find this program"))?))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(cannot("find a free port"))?;
    Ok(listener.local_addr().map_err(cannot("find a free port"))?.port())
}

async fn kill(child: &mut Child) -> Result<()> {
    child.kill().await.map_err(cannot("kill a process"))
}

fn pid(child: &Child) -> String {
    child.id().map_or("gone".to_owned(), |id| id.to_string())
}

fn cannot(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::new(ErrorKind::Unavailable, format!("the tour cannot {what}")).with_source(error)
}

fn failed(why: String) -> Error {
    Error::new(ErrorKind::Internal, why)
}

/// Events with their time, and how far it is.
struct Timeline {
    env: Env,
    began: Instant,
    total: usize,
    shown_tenth: usize,
    terminal: bool,
}

impl Timeline {
    fn new(env: Env, total: usize) -> Self {
        Self { began: env.now(), env, total, shown_tenth: 0, terminal: std::io::stderr().is_terminal() }
    }

    fn event(&self, text: &str) {
        let seconds = (self.env.now() - self.began).as_secs_f64();
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        say(&format!("{clear}{seconds:7.2}s  {text}"));
    }

    fn progress(&mut self, done: usize) {
        let tenth = done * 10 / self.total;
        if tenth > self.shown_tenth {
            self.shown_tenth = tenth;
            self.event(&format!("{:3} %  {}{}", tenth * 10, "#".repeat(tenth * 3), ".".repeat(30 - tenth * 3)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_has_a_namespace_of_its_own() {
        for (at, expected) in [
            ("etcd://h:1", "etcd://h:1/t"),
            ("etcd://h:1,i:2/shop?timeout=1s", "etcd://h:1,i:2/t?timeout=1s"),
            ("redis://u:p@h/", "redis://u:p@h/t"),
        ] {
            assert_eq!(of_namespace(at, "t").expect("a server"), expected);
        }
        let error = of_namespace("embedded:///var/lib/coact", "t").expect_err("one process").to_string();
        assert!(error.contains("leave --at out"), "{error}");
    }
}
