//! One worker of the tour: takes lines until none is left, whatever happens to the node meanwhile.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use coact::{
    Env, Error, ErrorKind, Key, Realm, Result, Session, SessionOptions, id,
    kv::{Check, Txn, TxnOutcome, Write},
    lock,
};

use super::{
    proof::{RESULTS, Stamp},
    read_lines,
};
use crate::{cmd::tour::passing, exit::Exit, output::write_line};

/// How long the others wait for a worker that was killed while it held the lock.
const LEASE: Duration = Duration::from_secs(2);
/// How long a worker goes on trying to reach the node.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of a worker.
#[derive(Debug, Args)]
pub(crate) struct TourWorker {
    #[arg(long)]
    at: String,
    #[arg(long)]
    number: u64,
    #[arg(long)]
    lines: usize,
    #[arg(long)]
    input: PathBuf,
}

impl TourWorker {
    /// Works until every line is done. A failure that may pass is survived by starting over: everything that matters
    /// is in the store.
    pub(crate) async fn run(self) -> Result<Exit> {
        let lines = read_lines(&self.input, self.lines)?;
        let env = Env::real();
        let mut worked = env.now();
        loop {
            let error = match self.work(&lines, &mut worked).await {
                Ok(()) => return Ok(Exit::SUCCESS),
                Err(error) => error,
            };
            if !passing(&error) || env.now() - worked > PATIENCE {
                return Err(error);
            }
            env.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn work(&self, lines: &[Vec<u8>], worked: &mut std::time::Instant) -> Result<()> {
        let kv = coact::open(&self.at).await?;
        let options = SessionOptions { ttl: LEASE, ..SessionOptions::default() };
        let session = Session::open(&kv, options).await?;
        let ids = id::Generator::open(&session, id::IdOptions::default()).await?;
        let mutex = lock::Mutex::new(&session, "tour")?;
        loop {
            let guard = mutex.acquire().await?;
            let line = self.take_line(&guard, &kv, &ids, lines).await?;
            *worked = kv.env().now();
            guard.release().await?;
            match line {
                Some(line) => write_line(&line.to_string()),
                None => {
                    ids.close().await?;
                    return session.close().await;
                }
            }
        }
    }

    /// Does the next line; `None` if there is none left.
    async fn take_line(
        &self,
        guard: &lock::Guard,
        kv: &coact::KvHandle,
        ids: &id::Generator,
        lines: &[Vec<u8>],
    ) -> Result<Option<usize>> {
        let realm = Realm::default();
        let cursor = Key::new(&realm, "tour", "cursor")?;
        let entry = kv.get(&cursor).await?;
        let at: usize = match &entry {
            None => 0,
            Some(entry) => std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        let Some(line) = lines.get(at) else { return Ok(None) };
        let stamp = Stamp { line: at, id: ids.next().await?.to_string(), token: guard.token(), worker: self.number };
        let mut value = serde_json::to_vec(&stamp).map_err(|_| Error::new(ErrorKind::Internal, "a stamp is JSON"))?;
        value.push(b'\n');
        value.extend_from_slice(line);
        let result = Key::new(&realm, RESULTS, &format!("{at:09}"))?;
        let outcome = guard
            .txn(Txn {
                checks: vec![Check::Absent(result.clone())],
                writes: vec![
                    Write::Put { key: result, value: value.into(), lease: None },
                    Write::Put { key: cursor, value: (at + 1).to_string().into(), lease: None },
                ],
                ..Txn::default()
            })
            .await?;
        match outcome {
            TxnOutcome::Committed { .. } => Ok(Some(at)),
            TxnOutcome::Refused { .. } => {
                Err(Error::new(ErrorKind::Internal, format!("line {at} was done though the cursor says it was not")))
            }
        }
    }
}
