//! The contracts as the embedded engine holds them, in memory and in a directory.
//!
//! A restart here is a close and a recovery; `tests/it` and the beds of `coact serve` end the process.

use std::process::ExitCode;

use coact_core::{Result, contract::kv::Revision, env::Env, guarantees::Accepted, name::Namespace, registry::Store};
use coact_engine_embedded::{Config, Engine};
use coact_testkit::{
    bed::{Bed, StartError},
    suite,
};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::Mutex;

fn main() -> ExitCode {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let beds: Vec<Box<dyn Bed>> = vec![Box::new(EngineBed::in_memory()), Box::new(EngineBed::in_dir(dir))];
    suite::main(beds, [suite::kv::suite, suite::stream::suite, suite::queue::suite])
}

struct EngineBed {
    /// `None` keeps everything in memory.
    dir: Option<TempDir>,
    engine: Mutex<Option<Engine>>,
}

impl EngineBed {
    fn in_memory() -> Self {
        Self { dir: None, engine: Mutex::new(None) }
    }

    fn in_dir(dir: TempDir) -> Self {
        Self { dir: Some(dir), engine: Mutex::new(None) }
    }

    async fn open_engine(&self) -> Result<Engine> {
        let config = self.dir.as_ref().map_or_else(Config::default, |dir| Config::in_dir(dir.path()));
        Engine::open(config, Env::real()).await
    }

    /// The engine; another one if a case closed it.
    async fn engine(&self) -> Result<Engine> {
        let mut engine = self.engine.lock().await;
        if let Some(engine) = &*engine
            && engine.range(Default::default()).await.is_ok()
        {
            return Ok(engine.clone());
        }
        Ok(engine.insert(self.open_engine().await?).clone())
    }
}

impl Bed for EngineBed {
    fn name(&self) -> &str {
        if self.dir.is_some() { "embedded" } else { "memory" }
    }

    fn start(&self) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async { Ok(()) })
    }

    fn open<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, Result<Store>> {
        Box::pin(async { Ok(self.engine().await?.store(namespace.clone(), Accepted::default())) })
    }

    fn restart(&self) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        self.dir.as_ref()?;
        Some(Box::pin(async {
            self.engine().await?.close().await?;
            self.engine().await?;
            Ok(())
        }))
    }

    fn compact(&self, revision: Revision) -> Option<BoxFuture<'_, anyhow::Result<()>>> {
        Some(Box::pin(async move {
            let compacted = self.engine().await?.compact(revision.0).await;
            compacted.map_err(|error| anyhow::anyhow!("compaction: {error:?}"))
        }))
    }
}
