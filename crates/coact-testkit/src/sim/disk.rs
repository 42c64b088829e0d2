//! A disk in memory that forgets, tears and fails as disks do.
//!
//! What a crash may leave of a file is decided for each sector of 512 bytes: any version of it that was written since the
//! last sync, or the one that was synced. Of the changes to names, a crash leaves those before the last sync of the
//! directory and a random number of the next ones, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use coact_core::env::{Disk, DiskFile, DiskLock, OpenMode};
use parking_lot::Mutex;

use super::random::Random;

const SECTOR: usize = 512;

/// The disk of a simulated machine, for the test that makes it fail. Cheap to clone.
#[derive(Clone)]
pub struct SimDisk(Arc<Shared>);

struct Shared {
    platters: Mutex<Platters>,
    /// Ends the machine when [`SimDisk::crash_after_ops`] crashes it.
    on_crash: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk(generation {})", self.0.platters.lock().generation)
    }
}

impl SimDisk {
    pub(super) fn new(random: Random, on_crash: Box<dyn Fn() + Send + Sync>) -> Self {
        let platters = Platters {
            random,
            generation: 0,
            crashed: false,
            crash_in: None,
            ops: 0,
            fail_sync: false,
            full: false,
            read_only: false,
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            locks: BTreeSet::new(),
        };
        Self(Arc::new(Shared { platters: Mutex::new(platters), on_crash }))
    }

    /// The disk as a process sees it that starts now: a crash takes it away.
    pub(super) fn attach(&self) -> Arc<dyn Disk> {
        Arc::new(Attached { disk: self.clone(), generation: self.0.platters.lock().generation })
    }

    /// Cuts the power and gives it back. What was synced stays, and by chance some of the rest; files that were open are
    /// unusable and locks are free.
    pub fn crash(&self) {
        self.0.platters.lock().power_cycle();
    }

    /// Crashes the machine in the middle of the n-th change from now, counted from one: that and every later operation
    /// fails until [`World::crash`](super::World::crash) gives the power back.
    pub fn crash_after_ops(&self, n: u64) {
        self.0.platters.lock().crash_in = Some(n.max(1));
    }

    /// Whether [`crash_after_ops`](Self::crash_after_ops) has crashed the machine, and the power is still off.
    pub fn has_crashed(&self) -> bool {
        self.0.platters.lock().crashed
    }

    /// How many changes there were, failed ones included.
    pub fn ops(&self) -> u64 {
        self.0.platters.lock().ops
    }

    /// Fails the next sync of a file. What it had not synced is silently dropped, also for readers, and a later sync
    /// succeeds: as Linux does (fsyncgate).
    pub fn fail_next_sync(&self) {
        self.0.platters.lock().fail_sync = true;
    }

    /// While full, a write that makes a file longer fails; others work.
    pub fn set_full(&self, full: bool) {
        self.0.platters.lock().full = full;
    }

    /// While read-only, every change fails.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.platters.lock().read_only = read_only;
    }
}

struct Platters {
    random: Random,
    /// How often the power was cut.
    generation: u64,
    crashed: bool,
    crash_in: Option<u64>,
    ops: u64,
    fail_sync: bool,
    full: bool,
    read_only: bool,
    /// Also holds files without a name, which some process may have open.
    files: BTreeMap<FileId, Contents>,
    next_file: FileId,
    names: BTreeMap<PathBuf, FileId>,
    durable_names: BTreeMap<PathBuf, FileId>,
    /// Not yet durable, in order.
    changes: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
}

type FileId = u64;

#[derive(Clone, Debug)]
enum NameChange {
    Created(PathBuf, FileId),
    Renamed(PathBuf, PathBuf),
    Removed(PathBuf),
}

impl NameChange {
    fn touches(&self, dir: &Path) -> bool {
        match self {
            Self::Created(path, _) | Self::Removed(path) | Self::Renamed(path, _) => path.parent() == Some(dir),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            Self::Created(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Renamed(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Removed(path) => {
                names.remove(path);
            }
        }
    }
}

/// One file: what readers see, what a crash leaves for certain, and what it may leave.
#[derive(Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Every version since the last sync of each sector that was written.
    written: BTreeMap<usize, Vec<Vec<u8>>>,
    /// It was emptied since the last sync.
    emptied: bool,
}

impl Contents {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let version = sector_of(&self.now, sector);
            self.written.entry(sector).or_default().push(version);
        }
    }

    fn empty(&mut self) {
        self.now.clear();
        self.written.clear();
        self.emptied = true;
    }

    fn sync(&mut self) {
        if self.emptied {
            self.durable.clear();
        }
        // Only what was written since: a failed sync forgets what it could not write.
        self.durable.resize(self.now.len(), 0);
        for (sector, versions) in std::mem::take(&mut self.written) {
            if let Some(newest) = versions.last() {
                let start = sector * SECTOR;
                self.durable[start..start + newest.len()].copy_from_slice(newest);
            }
        }
        self.emptied = false;
    }

    fn forget_unsynced(&mut self) {
        self.now.clone_from(&self.durable);
        self.written.clear();
        self.emptied = false;
    }

    fn crash(&mut self, random: &mut Random) {
        if self.emptied && random.one_in(2) {
            self.durable.clear();
        }
        for (sector, versions) in std::mem::take(&mut self.written) {
            let survivor = random.below(versions.len() as u64 + 1) as usize;
            if let Some(version) = versions.get(survivor) {
                let (start, end) = (sector * SECTOR, sector * SECTOR + version.len());
                if self.durable.len() < end {
                    self.durable.resize(end, 0);
                }
                self.durable[start..end].copy_from_slice(version);
            }
        }
        self.forget_unsynced();
    }
}

fn sector_of(bytes: &[u8], sector: usize) -> Vec<u8> {
    let start = sector * SECTOR;
    bytes[start..bytes.len().min(start + SECTOR)].to_vec()
}

impl Platters {
    fn power_cycle(&mut self) {
        if !self.crashed {
            self.lose_unsynced();
        }
        // Also for what was started while the power was off.
        self.generation += 1;
        self.crashed = false;
        self.crash_in = None;
    }

    fn lose_unsynced(&mut self) {
        self.locks.clear();
        for contents in self.files.values_mut() {
            contents.crash(&mut self.random);
        }
        let kept = self.random.below(self.changes.len() as u64 + 1) as usize;
        for change in self.changes.drain(..).take(kept) {
            change.apply(&mut self.durable_names);
        }
        self.names.clone_from(&self.durable_names);
        let named: BTreeSet<FileId> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    /// Makes every change up to the last one in this directory durable: they reach the disk in order.
    fn sync_names(&mut self, dir: &Path) {
        let Some(last) = self.changes.iter().rposition(|change| change.touches(dir)) else { return };
        for change in self.changes.drain(..=last) {
            change.apply(&mut self.durable_names);
        }
    }

    fn file(&self, path: &Path) -> io::Result<FileId> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn contents(&mut self, file: FileId) -> &mut Contents {
        self.files.entry(file).or_default()
    }

    fn create(&mut self, path: &Path) -> FileId {
        if let Some(file) = self.names.get(path).copied() {
            self.contents(file).empty();
            return file;
        }
        self.next_file += 1;
        self.files.insert(self.next_file, Contents::default());
        self.change_names(NameChange::Created(path.to_owned(), self.next_file));
        self.next_file
    }

    fn sync_file(&mut self, file: FileId) -> io::Result<()> {
        let fails = std::mem::take(&mut self.fail_sync);
        let contents = self.contents(file);
        if fails {
            contents.forget_unsynced();
            return Err(io::Error::other("simulated: the disk could not write (EIO)"));
        }
        contents.sync();
        Ok(())
    }
}

/// The disk in the hands of one process.
#[derive(Clone)]
struct Attached {
    disk: SimDisk,
    generation: u64,
}

impl Attached {
    fn read<T>(&self, read: impl FnOnce(&mut Platters) -> io::Result<T>) -> io::Result<T> {
        let mut platters = self.disk.0.platters.lock();
        self.ensure_powered(&platters)?;
        read(&mut platters)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Platters) -> io::Result<T>) -> io::Result<T> {
        let mut platters = self.disk.0.platters.lock();
        self.ensure_powered(&platters)?;
        platters.ops += 1;
        if platters.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let Some(left) = platters.crash_in.map(|left| left - 1) else { return change(&mut platters) };
        platters.crash_in = Some(left);
        if left > 0 {
            return change(&mut platters);
        }
        // The power may go before the change reaches the disk, while it does, or before anybody hears that it did.
        if platters.random.one_in(2) {
            let _ = change(&mut platters);
        }
        platters.lose_unsynced();
        platters.crashed = true;
        drop(platters);
        (self.disk.0.on_crash)();
        Err(power_is_off())
    }

    fn ensure_powered(&self, platters: &Platters) -> io::Result<()> {
        if platters.crashed || platters.generation != self.generation {
            return Err(power_is_off());
        }
        Ok(())
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("simulated: the machine has crashed")
}

impl Disk for Attached {
    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        // Directories are not simulated: every one exists.
        self.change(|_| Ok(()))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.read(|platters| {
            let inside = platters.names.keys().filter(|name| name.parent() == Some(path));
            Ok(inside.filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned())).collect())
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let file = match mode {
            OpenMode::Read => self.read(|platters| platters.file(path))?,
            OpenMode::Write => {
                self.read(
                    |platters| {
                        if platters.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
                    },
                )?;
                self.read(|platters| platters.file(path))?
            }
            OpenMode::Create => self.change(|platters| Ok(platters.create(path)))?,
        };
        Ok(Box::new(OpenFile { disk: self.clone(), file, writable: mode != OpenMode::Read }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|platters| {
            platters.file(from)?;
            platters.change_names(NameChange::Renamed(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|platters| {
            platters.file(path)?;
            platters.change_names(NameChange::Removed(path.to_owned()));
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|platters| {
            platters.sync_names(path);
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.read(|platters| {
            if platters.read_only {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            if !platters.locks.insert(path.to_owned()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        })?;
        Ok(Box::new(HeldLock { disk: self.clone(), path: path.to_owned() }))
    }
}

struct OpenFile {
    disk: Attached,
    file: FileId,
    writable: bool,
}

impl DiskFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.read(|platters| Ok(platters.contents(self.file).now.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read(|platters| {
            let now = &platters.contents(self.file).now;
            let bytes = now.get(offset as usize..offset as usize + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.change(|platters| {
            let full = platters.full;
            let contents = platters.contents(self.file);
            if full && contents.now.len() < offset as usize + bytes.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            contents.write(offset as usize, bytes);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(|platters| platters.sync_file(self.file))
    }

    fn allocate(&self, length: u64) -> io::Result<bool> {
        self.write_at(0, &vec![0; length as usize]).map(|()| true)
    }
}

struct HeldLock {
    disk: Attached,
    path: PathBuf,
}

impl DiskLock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let _ = self.disk.read(|platters| {
            platters.locks.remove(&self.path);
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> SimDisk {
        SimDisk::new(Random::new(seed, "disk"), Box::new(|| {}))
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/d").join(name)
    }

    fn create(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
        let file = disk.open(&path(name), OpenMode::Create).expect("created");
        file.write_at(0, bytes).expect("written");
        file
    }

    fn create_durably(disk: &dyn Disk, name: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
        let file = create(disk, name, bytes);
        file.sync().expect("synced");
        disk.sync_dir(Path::new("/d")).expect("synced");
        file
    }

    fn read(disk: &dyn Disk, name: &str) -> Option<Vec<u8>> {
        let file = disk.open(&path(name), OpenMode::Read).ok()?;
        let mut bytes = vec![0; file.len().expect("a length") as usize];
        file.read_at(0, &mut bytes).expect("read");
        Some(bytes)
    }

    #[test]
    fn what_was_synced_survives_every_crash_and_the_rest_may_vanish_or_tear() {
        let (mut whole, mut none, mut torn) = (0, 0, 0);
        for seed in 0..100 {
            let disk = disk(seed);
            let before = disk.attach();
            let file = create_durably(&*before, "f", &[1; 1500]);
            file.write_at(512, &[2; 900]).expect("written");
            file.write_at(1500, &[2; 100]).expect("written");
            disk.crash();
            assert!(file.len().is_err(), "an old handle is of no use");
            assert!(before.list(Path::new("/d")).is_err(), "nor is an old process");
            let bytes = read(&*disk.attach(), "f").expect("its name was synced");
            assert_eq!(bytes[..512], [1; 512], "this was synced and not touched since");
            assert_eq!(bytes[1412..1500], [1; 88]);
            match (bytes[512], bytes[1024]) {
                (2, 2) => whole += 1,
                (1, 1) => none += 1,
                _ => torn += 1,
            }
            assert!(bytes[512..1024].iter().all(|byte| *byte == bytes[512]), "a sector does not tear");
        }
        assert!(whole > 5 && none > 5 && torn > 5, "{whole} {none} {torn}");
    }

    #[test]
    fn names_are_durable_after_a_sync_of_the_directory_and_else_a_prefix_of_their_changes() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let disk = disk(seed);
            let process = disk.attach();
            create_durably(&*process, "a", b"a");
            create(&*process, "b", b"b").sync().expect("synced");
            process.rename(&path("b"), &path("c")).expect("renamed");
            process.remove(&path("a")).expect("removed");
            assert_eq!(process.list(Path::new("/d")).expect("a listing"), ["c"]);
            disk.crash();
            seen.insert(disk.attach().list(Path::new("/d")).expect("a listing").concat());
        }
        assert_eq!(seen, ["a", "ab", "ac", "c"].map(str::to_owned).into());
    }

    #[test]
    fn it_crashes_in_the_middle_of_the_change_that_was_asked_for() {
        let disk = disk(1);
        let process = disk.attach();
        let file = create_durably(&*process, "f", b"one");
        disk.crash_after_ops(2);
        file.write_at(0, b"two").expect("the first");
        file.sync().expect_err("the second");
        assert!(disk.has_crashed());
        assert!(read(&*disk.attach(), "f").is_none(), "the power is off");
        disk.crash();
        assert!(!disk.has_crashed());
        let found = read(&*disk.attach(), "f").expect("its name was synced");
        assert!(found == b"one" || found == b"two", "{found:?}");
    }

    #[test]
    fn a_failed_sync_drops_what_it_was_to_write_and_the_next_one_lies() {
        let disk = disk(1);
        let process = disk.attach();
        let file = create_durably(&*process, "f", b"one");
        file.write_at(0, b"two").expect("written");
        disk.fail_next_sync();
        file.sync().expect_err("it fails");
        file.sync().expect("it has nothing to do");
        disk.crash();
        assert_eq!(read(&*disk.attach(), "f").expect("there"), b"one");
    }

    #[test]
    fn a_full_disk_overwrites_and_a_read_only_one_reads() {
        let disk = disk(1);
        let process = disk.attach();
        let file = create_durably(&*process, "f", b"one");
        disk.set_full(true);
        file.write_at(0, b"two").expect("no longer than before");
        assert_eq!(file.write_at(1, b"two").expect_err("longer").kind(), io::ErrorKind::StorageFull);
        disk.set_read_only(true);
        assert_eq!(file.write_at(0, b"two").expect_err("a write").kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read(&*process, "f").expect("there"), b"two");
    }

    #[test]
    fn a_lock_has_one_holder_and_a_crash_frees_it() {
        let disk = disk(1);
        let process = disk.attach();
        let lock = process.lock(&path("LOCK")).expect("free");
        assert_eq!(process.lock(&path("LOCK")).map(drop).expect_err("taken").kind(), io::ErrorKind::WouldBlock);
        disk.crash();
        let again = disk.attach().lock(&path("LOCK")).expect("free again");
        drop(lock);
        assert!(disk.attach().lock(&path("LOCK")).is_err(), "the dead process's handle frees nothing");
        drop(again);
        disk.attach().lock(&path("LOCK")).map(drop).expect("free");
    }
}
