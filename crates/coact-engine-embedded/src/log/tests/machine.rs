//! A simulated machine whose processes and syncs fail at a chosen change of the disk, one level below the log.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use coact_core::env::{Disk, DiskFile, DiskLock, Env, OpenMode, PlantedBug, Source};
use coact_testkit::sim::World;
use futures::future::BoxFuture;

const NAME: &str = "node";

/// A change of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDir,
}

/// Looks at every change before it is made; what it refuses is not made.
pub(super) type Hook = Arc<dyn Fn(Change, &Path) -> io::Result<()> + Send + Sync>;

/// What a failed sync left in the page cache: shown to readers until the power is cut, never on the disk.
type PageCache = Arc<Mutex<BTreeMap<PathBuf, Vec<(u64, Vec<u8>)>>>>;

/// A machine of a simulated world.
pub(super) struct Machine {
    world: World,
    cache: PageCache,
}

impl Machine {
    pub(super) fn new(world: World) -> Self {
        Self { world, cache: PageCache::default() }
    }

    /// A process that starts now.
    pub(super) fn process(&self) -> Env {
        self.process_with(Arc::new(|_, _| Ok(())))
    }

    /// A process with this hook.
    pub(super) fn process_with(&self, hook: Hook) -> Env {
        let world = self.world.clone();
        let before_failed_sync = Arc::new(move || world.disk(NAME).fail_next_sync());
        let disk = self.world.env(NAME).disk();
        Env::new(Process {
            disk: HookedDisk { disk, hook, cache: self.cache.clone(), before_failed_sync },
            threads: false,
        })
    }

    /// A process that is killed (`kill -9`) when it is about to make its n-th change, from one.
    pub(super) fn process_killed_at(&self, n: u64) -> Env {
        let left = Mutex::new(n);
        self.process_with(Arc::new(move |change, _| {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            *left = left.saturating_sub(1);
            // A dead process does not even see its sync fail.
            if *left == 0 { Err(killed(change)) } else { Ok(()) }
        }))
    }

    /// A process whose first sync of a file fails.
    pub(super) fn process_with_failing_sync(&self) -> Env {
        let failed = Mutex::new(false);
        self.process_with(Arc::new(move |change, _| {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if change == Change::Sync && !std::mem::replace(&mut *failed, true) {
                return Err(io::Error::other("the disk could not write (EIO)"));
            }
            Ok(())
        }))
    }

    /// Cuts the power and gives it back.
    pub(super) fn cut_power(&self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.world.crash(NAME);
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }
}

const KILLED: io::ErrorKind = io::ErrorKind::Interrupted;

fn killed(change: Change) -> io::Error {
    io::Error::new(KILLED, format!("killed before {change:?}"))
}

/// An environment of real files that does everything on the caller's thread.
pub(super) fn without_threads() -> Env {
    let disk = Env::real().disk();
    let disk = HookedDisk {
        disk,
        hook: Arc::new(|_, _| Ok(())),
        cache: PageCache::default(),
        before_failed_sync: Arc::new(|| {}),
    };
    Env::new(Process { disk, threads: false })
}

/// An environment of real files, whose thread sees every change of the disk before it is made.
pub(super) fn on_real_disk(hook: Hook) -> Env {
    let disk = Env::real().disk();
    let disk = HookedDisk { disk, hook, cache: PageCache::default(), before_failed_sync: Arc::new(|| {}) };
    Env::new(Process { disk, threads: true })
}

struct Process {
    disk: HookedDisk,
    threads: bool,
}

impl Source for Process {
    fn wall_ms(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        4
    }

    fn spawn(&self, _task: BoxFuture<'static, ()>) {}

    fn spawn_thread(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<Box<dyn FnOnce() + Send>>> {
        if !self.threads {
            return Ok(Some(work));
        }
        Env::real().spawn_thread(name, work).map_err(io::Error::other)
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    fn planted(&self, _bug: PlantedBug) -> bool {
        false
    }
}

#[derive(Clone)]
struct HookedDisk {
    disk: Arc<dyn Disk>,
    hook: Hook,
    cache: PageCache,
    before_failed_sync: Arc<dyn Fn() + Send + Sync>,
}

impl Disk for HookedDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        if mode == OpenMode::Create {
            (self.hook)(Change::Create, path)?;
        }
        let file = self.disk.open(path, mode)?;
        Ok(Box::new(HookedFile { file, path: path.to_owned(), disk: self.clone(), unsynced: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.hook)(Change::Rename, to)?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.hook)(Change::Remove, path)?;
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)(Change::SyncDir, path)?;
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
}

struct HookedFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    disk: HookedDisk,
    unsynced: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl DiskFile for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)?;
        let cache = self.disk.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, bytes) in cache.get(&self.path).into_iter().flatten() {
            for (index, byte) in bytes.iter().enumerate() {
                let place = (at + index as u64).checked_sub(offset).and_then(|place| buffer.get_mut(place as usize));
                place.into_iter().for_each(|place| *place = *byte);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (self.disk.hook)(Change::Write, &self.path)?;
        self.file.write_at(offset, bytes)?;
        let mut cache = self.disk.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.entry(self.path.clone()).and_modify(|stale| stale.push((offset, bytes.to_vec())));
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.disk.hook)(Change::Sync, &self.path) {
            Ok(()) => {
                self.file.sync()?;
                unsynced.clear();
                Ok(())
            }
            Err(error) if error.kind() == KILLED => Err(error),
            Err(error) => {
                (self.disk.before_failed_sync)();
                let _ = self.file.sync();
                let mut cache = self.disk.cache.lock().unwrap_or_else(PoisonError::into_inner);
                cache.entry(self.path.clone()).or_default().append(&mut unsynced);
                Err(error)
            }
        }
    }
}
