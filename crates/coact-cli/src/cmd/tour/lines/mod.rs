//! Worker processes take the lines of a file one by one: lock, read the cursor, stamp the line with an id, write line and
//! cursor in one transaction that carries the fencing token, release.

mod proof;
pub(super) mod worker;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Args;
use coact::{Error, ErrorKind, Result};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
    sync::mpsc,
};

use super::{
    Site, Timeline, cannot, choose_input, failed,
    site::{command, kill, pid},
};

/// A part that does not end within this has failed.
const DEADLINE: Duration = Duration::from_secs(300);
/// The longest line that fits an entry, with room for its stamp.
const LINE_BYTES_MAX: usize = 60 * 1024;

/// What the workers do.
#[derive(Debug, Args)]
pub(super) struct Lines {
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

impl Lines {
    /// Works to the end, and gives the proof.
    pub(super) async fn run(&self, site: &mut Site, show: &mut Timeline) -> Result<Vec<String>> {
        let input = choose_input(self.input.as_ref())?;
        let lines = read_lines(&input, self.lines as usize)?;
        let result = self.result.clone().unwrap_or_else(|| std::env::temp_dir().join("coact-tour.jsonl"));
        show.event(&format!("{} lines of {}, {} workers", lines.len(), input.display(), self.workers));
        let run = Run { input: &input, lines: &lines, workers: self.workers };
        let Some(proof) = site.env.clone().timeout(DEADLINE, run.to_the_end(site, show, &result)).await else {
            return Err(Error::new(ErrorKind::Unavailable, format!("the workers did not end within {DEADLINE:?}")));
        };
        let mut proof = proof?.lines();
        proof.push(format!("  result   {}", result.display()));
        Ok(proof)
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
    input: &'a Path,
    lines: &'a [Vec<u8>],
    workers: u64,
}

impl Run<'_> {
    async fn to_the_end(&self, site: &mut Site, show: &mut Timeline, result: &Path) -> Result<proof::Proof> {
        let (progress, mut reports) = mpsc::channel(1024);
        let mut workers = Vec::new();
        for number in 0..self.workers {
            workers.push(self.start_worker(site, number, progress.clone())?);
        }
        drop(progress);
        show.event("the workers began");

        let (kill_worker, kill_node) = (self.lines.len() / 3, self.lines.len() * 3 / 5);
        let mut killed_worker = false;
        let mut killed_node = !site.owns_node();
        let mut done = 0;
        while let Some(line) = reports.recv().await {
            done = done.max(line + 1);
            show.progress(done, self.lines.len(), "");
            if done >= kill_worker && !killed_worker {
                killed_worker = true;
                show.event(&format!("{done} lines done: kill -9 of worker 1, pid {}", pid(&workers[0])));
                kill(&mut workers[0]).await?;
            }
            if done >= kill_node && !killed_node {
                killed_node = true;
                site.kill_node(show, &format!("{done} lines done")).await?;
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
            return Err(failed("the run ended before the worker and the node were killed"));
        }
        let store = site.open().await?;
        let proof = proof::prove(store.kv(), self.lines, result).await?;
        store.close().await?;
        Ok(proof)
    }

    fn start_worker(&self, site: &Site, number: u64, progress: mpsc::Sender<usize>) -> Result<Child> {
        let mut worker = command()?
            .args(["tour-worker", "--at", &site.url, "--number", &(number + 1).to_string(), "--lines"])
            .arg(self.lines.len().to_string())
            .arg("--input")
            .arg(self.input)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(cannot("start a worker"))?;
        if let Some(stdout) = worker.stdout.take() {
            site.env.spawn(report(stdout, progress));
        }
        Ok(worker)
    }
}

/// Passes on which lines a worker has done.
async fn report(stdout: tokio::process::ChildStdout, progress: mpsc::Sender<usize>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(index) = line.parse()
            && progress.send(index).await.is_err()
        {
            return;
        }
    }
}
