//! A disk that fails: the node says so to whoever writes and on its pages, and goes on only after a restart.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use coact_core::env::{Disk, DiskFile, DiskLock, Env, OpenMode, PlantedBug, RealDisk, Source};
use coact_engine_embedded::Config;
use coact_server::{Server, ServerConfig};
use futures::future::BoxFuture;
use tonic::Code;

use crate::{
    bed,
    client::{Clients, get, put},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_turns_health_red_until_a_restart() {
    let dir = tempfile::tempdir().expect("a temp dir");
    let config = || {
        let mut config = ServerConfig::new(Config::in_dir(dir.path().join("data")));
        config.listen = ([127, 0, 0, 1], 0).into();
        config
    };
    let broken = Arc::new(AtomicBool::new(false));
    let env = Env::new(Fragile { real: Env::real(), broken: broken.clone() });
    let node = Server::start(config(), env).await.expect("a node starts");
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    clients.kv.put(put("before", "1")).await.expect("put");
    assert_eq!(bed::get(node.address(), "/healthz").await.0, 200);

    broken.store(true, Relaxed);
    for attempt in ["first", "second"] {
        let status = clients.kv.put(put(attempt, "1")).await.expect_err("the disk is broken");
        assert_eq!(status.code(), Code::Unavailable);
        let text = status.message();
        assert!(text.starts_with("coact: the engine stopped at a failed write ("), "{text}");
        assert!(
            text.contains("it may have taken effect") || text.contains("the request may have taken effect"),
            "{text}"
        );
        assert!(text.ends_with("restart the node to recover"), "{text}");
        // Mending the disk does not mend the engine: nobody knows what the failed write left behind.
        broken.store(false, Relaxed);
    }
    assert_eq!(clients.kv.range(get("before")).await.expect("what was acknowledged").into_inner().count, 1);
    for (path, expected) in [
        ("/healthz", r#""status":"failed""#),
        ("/readyz", r#""status":"not-ready""#),
        ("/health", r#""health":"false""#),
    ] {
        let (status, body) = bed::get(node.address(), path).await;
        assert!(status == 503 && body.contains(expected), "{path}: {status} {body}");
    }
    assert!(bed::get(node.address(), "/metrics").await.1.contains("\ncoact_healthy 0\n"));
    let _ = node.shutdown().await;

    let node = Server::start(config(), Env::real()).await.expect("it starts again");
    let mut clients = Clients::connect(node.address()).await.expect("the node answers");
    assert_eq!(clients.kv.range(get("before")).await.expect("a range").into_inner().count, 1);
    clients.kv.put(put("after", "1")).await.expect("it writes again");
    node.shutdown().await.expect("a clean end");
}

/// The machine, but for a disk whose syncs fail on demand.
struct Fragile {
    real: Env,
    broken: Arc<AtomicBool>,
}

impl Source for Fragile {
    fn wall_ms(&self) -> u64 {
        self.real.wall_ms()
    }

    fn random(&self) -> u64 {
        self.real.random()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.real.spawn(task);
    }

    fn spawn_thread(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<Box<dyn FnOnce() + Send>>> {
        self.real.spawn_thread(name, work).map_err(io::Error::other)
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(FragileDisk(self.broken.clone()))
    }

    fn planted(&self, _bug: PlantedBug) -> bool {
        false
    }
}

struct FragileDisk(Arc<AtomicBool>);

impl Disk for FragileDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FragileFile { file: RealDisk.open(path, mode)?, broken: self.0.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock(path)
    }
}

struct FragileFile {
    file: Box<dyn DiskFile>,
    broken: Arc<AtomicBool>,
}

impl DiskFile for FragileFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        if self.broken.load(Relaxed) {
            return Err(io::Error::other("planted: the disk is gone"));
        }
        self.file.sync()
    }
}
