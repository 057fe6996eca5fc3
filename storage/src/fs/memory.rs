//! A disk in memory that knows what a power loss leaves.
//!
//! Every file keeps its flushed bytes and the list of what was done to it since apart; every directory
//! keeps its durable names and the list of creations, renames and removals since. There are no threads and
//! no clocks here: the same calls give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use kubemq_runtime::Random;
use parking_lot::Mutex;

use super::pages::Pages;
use super::{DirLock, Disk, File};
use crate::Error;

/// What a torn write is torn at.
const SECTOR: u64 = 512;

/// What a disk was asked to do that a crash can fall before or after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Bytes were written, or a file's length changed.
    Write,
    /// A file was flushed.
    Sync,
    /// A name was created, replaced or removed.
    Name,
    /// A directory was flushed.
    SyncDir,
}

/// How often a disk was asked to do what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Calls of [`File::write_at`].
    pub writes: u64,
    /// Bytes that those calls wrote.
    pub bytes_written: u64,
    /// Calls of [`File::sync_data`].
    pub syncs: u64,
    /// Calls of [`Disk::sync_dir`].
    pub dir_syncs: u64,
    /// Calls of [`File::read_at`].
    pub reads: u64,
    /// Bytes of the ranges of [`File::let_go`].
    pub bytes_let_go: u64,
}

/// Called after each step with the disk as a crash at that moment would find it.
pub type Observer = Arc<dyn Fn(Step, &MemoryDisk) + Send + Sync>;

/// A disk in memory. Clones are the same disk; [`MemoryDisk::copy`] makes another one.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// How many open files lead to each content.
    handles: BTreeMap<u64, usize>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// In the order in which they were made.
    unsynced_names: Vec<(PathBuf, Change)>,
    capacity: u64,
    fenced: bool,
    counters: Counters,
    observer: Option<Observer>,
    locks: BTreeMap<PathBuf, Weak<()>>,
}

/// A change of a directory, by the name that it touches first.
#[derive(Clone)]
enum Change {
    Link(u64),
    Unlink,
    RenameTo(PathBuf, u64),
}

/// A file: what the page cache shows, what a power loss surely leaves, and what lies between them.
#[derive(Clone, Default)]
struct Content {
    visible: Pages,
    flushed: Pages,
    unsynced: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Bytes(u64, Bytes),
    SetLen(u64),
    Grow(u64),
}

impl Write {
    fn apply(&self, pages: &mut Pages) {
        match self {
            Self::Bytes(offset, bytes) => pages.write(*offset, bytes),
            Self::SetLen(len) => pages.set_len(*len),
            Self::Grow(len) => pages.grow(*len),
        }
    }
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// Returns an empty disk without a limit.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { capacity: u64::MAX, ..State::default() })))
    }

    /// Limits what all files together may have.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }

    /// Returns how often the disk was asked to do what.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.lock().counters
    }

    /// Has `observer` called after each step that a crash can fall before or after.
    pub fn observe(&self, observer: Observer) {
        self.0.lock().observer = Some(observer);
    }

    /// Makes every later call fail, also through open files: what still holds this disk can do nothing more.
    pub fn fence(&self) {
        self.0.lock().fenced = true;
    }

    /// Returns a copy with the same content, flushed and not. It shares pages, so it is cheap.
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut state = self.0.lock().after_crash();
        state.collect();
        Self(Arc::new(Mutex::new(state)))
    }

    /// Returns what a crash of the process leaves: every written byte, still unflushed where it was.
    #[must_use]
    pub fn process_crash(&self) -> Self {
        self.copy()
    }

    /// Returns what a power loss leaves: what was flushed, and of the rest what `random` chooses: nothing,
    /// all, the beginning or any subset, the last surviving write torn at a sector.
    #[must_use]
    pub fn power_loss(&self, random: &Random) -> Self {
        let mut state = self.0.lock().after_crash();
        let changes = std::mem::take(&mut state.unsynced_names);
        let keep = Survivors::draw(random);
        for (n, (path, change)) in changes.iter().enumerate() {
            if keep.survives(n, changes.len(), random) {
                apply_change(&mut state.durable_names, path, change);
            }
        }
        state.names = state.durable_names.clone();
        state.collect();
        for content in state.files.values_mut() {
            content.lose_power(random);
        }
        Self(Arc::new(Mutex::new(state)))
    }

    /// Flips one bit of a file, in the page cache and on the medium alike. Returns whether it is there.
    pub fn flip_bit(&self, path: &Path, bit: u64) -> bool {
        let mut state = self.0.lock();
        let Some(content) = state.names.get(path).copied().and_then(|file| state.files.get_mut(&file)) else {
            return false;
        };
        for pages in [&mut content.visible, &mut content.flushed] {
            if bit / 8 < pages.len() {
                let byte = pages.read(bit / 8, 1)[0] ^ (1 << (bit % 8));
                pages.write(bit / 8, &[byte]);
            }
        }
        bit / 8 < content.visible.len()
    }

    /// Does what some kernels do when a flush fails: what was not flushed stays visible, but counts as clean, so
    /// that a later flush does not write it either.
    pub fn forget_unflushed(&self, path: &Path) {
        let mut state = self.0.lock();
        if let Some(content) = state.names.get(path).copied().and_then(|file| state.files.get_mut(&file)) {
            content.unsynced.clear();
        }
    }

    fn observed(&self, step: Step) {
        let observer = self.0.lock().observer.clone();
        if let Some(observer) = observer {
            observer(step, self);
        }
    }
}

/// What part of a list of unflushed changes survives a power loss.
enum Survivors {
    None,
    All,
    First(u64),
    Any,
}

impl Survivors {
    fn draw(random: &Random) -> Self {
        match random.below(5) {
            0 => Self::None,
            1 => Self::All,
            2 => Self::First(random.u64()),
            _ => Self::Any,
        }
    }

    fn survives(&self, n: usize, of: usize, random: &Random) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::First(drawn) => (n as u64) < drawn % (of as u64 + 1),
            Self::Any => random.below(2) == 0,
        }
    }
}

impl Content {
    fn lose_power(&mut self, random: &Random) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let keep = Survivors::draw(random);
        let mut left: Vec<&Write> = Vec::new();
        for (n, write) in unsynced.iter().enumerate() {
            if keep.survives(n, unsynced.len(), random) {
                left.push(write);
            }
        }
        let torn = left.last().copied().filter(|_| random.below(2) == 0);
        if torn.is_some() {
            left.pop();
        }
        for write in left {
            write.apply(&mut self.flushed);
        }
        if let Some(torn) = torn {
            self.tear(torn, random);
        }
        self.visible = self.flushed.clone();
    }

    /// Applies some sectors of a write, or the beginning of it.
    fn tear(&mut self, write: &Write, random: &Random) {
        let Write::Bytes(offset, bytes) = write else { return };
        let end = offset + bytes.len() as u64;
        let grown = random.below(2) == 0;
        let garbage = random.below(8) == 0;
        let only_beginning = random.below(2) == 0;
        let old_len = self.flushed.len();
        let mut at = *offset;
        while at < end {
            let next = (at / SECTOR * SECTOR + SECTOR).min(end);
            let survives = random.below(2) == 0;
            if survives {
                let (from, to) = (at - offset, next - offset);
                let slice = bytes.slice(usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0));
                self.flushed.write(at, &slice);
            } else if only_beginning {
                break;
            } else if garbage && at >= old_len {
                // Beyond the old end the medium may hold what an earlier file left there.
                let mut left = vec![0; usize::try_from(next - at).unwrap_or(0)];
                random.fill(&mut left);
                self.flushed.write(at, &left);
            }
            at = next;
        }
        if grown {
            self.flushed.grow(end);
        }
    }
}

fn apply_change(names: &mut BTreeMap<PathBuf, u64>, path: &Path, change: &Change) {
    match change {
        Change::Link(file) => {
            names.insert(path.to_owned(), *file);
        }
        Change::Unlink => {
            names.remove(path);
        }
        Change::RenameTo(to, file) => {
            if names.get(path) == Some(file) {
                names.remove(path);
            }
            names.insert(to.clone(), *file);
        }
    }
}

impl State {
    /// Returns a copy that nobody has open.
    fn after_crash(&self) -> Self {
        Self { fenced: false, observer: None, locks: BTreeMap::new(), handles: BTreeMap::new(), ..self.clone() }
    }

    fn check(&self, operation: &'static str, path: &Path) -> Result<(), Error> {
        if self.fenced {
            return Err(Error::disk(operation, path, io::Error::other("the disk is fenced")));
        }
        Ok(())
    }

    fn change(&mut self, path: &Path, change: Change) {
        apply_change(&mut self.names, path, &change);
        self.unsynced_names.push((path.to_owned(), change));
    }

    /// Bytes that files have, counted by their lengths as a file system that reserves would.
    fn used(&self) -> u64 {
        self.names.values().filter_map(|file| self.files.get(file)).map(|content| content.visible.len()).sum()
    }

    /// Forgets the content of files that no name leads to, now or after a power loss, and nobody holds open.
    fn collect(&mut self) {
        let linked = |change: &Change| match change {
            Change::Link(file) | Change::RenameTo(_, file) => Some(*file),
            Change::Unlink => None,
        };
        let mut used: BTreeSet<u64> = self.handles.keys().copied().collect();
        used.extend(self.names.values().chain(self.durable_names.values()));
        used.extend(self.unsynced_names.iter().filter_map(|(_, change)| linked(change)));
        self.files.retain(|file, _| used.contains(file));
    }

    fn find(&self, operation: &'static str, path: &Path) -> Result<u64, Error> {
        let missing = || Error::disk(operation, path, io::ErrorKind::NotFound.into());
        self.names.get(path).copied().ok_or_else(missing)
    }
}

#[async_trait]
impl Disk for MemoryDisk {
    async fn create(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        let file = {
            let mut state = self.0.lock();
            state.check("create", path)?;
            if state.names.contains_key(path) {
                return Err(Error::disk("create", path, io::ErrorKind::AlreadyExists.into()));
            }
            let file = state.next_file;
            state.next_file += 1;
            state.files.insert(file, Content::default());
            state.change(path, Change::Link(file));
            *state.handles.entry(file).or_default() += 1;
            file
        };
        self.observed(Step::Name);
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, path: path.to_owned() }))
    }

    async fn open(&self, path: &Path) -> Result<Arc<dyn File>, Error> {
        let mut state = self.0.lock();
        state.check("open", path)?;
        let file = state.find("open", path)?;
        *state.handles.entry(file).or_default() += 1;
        Ok(Arc::new(MemoryFile { disk: self.clone(), file, path: path.to_owned() }))
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        {
            let mut state = self.0.lock();
            state.check("rename", from)?;
            let file = state.find("rename", from)?;
            state.change(from, Change::RenameTo(to.to_owned(), file));
        }
        self.observed(Step::Name);
        Ok(())
    }

    async fn remove(&self, path: &Path) -> Result<(), Error> {
        {
            let mut state = self.0.lock();
            state.check("remove", path)?;
            state.find("remove", path)?;
            state.change(path, Change::Unlink);
        }
        self.observed(Step::Name);
        Ok(())
    }

    async fn list(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let state = self.0.lock();
        state.check("list", dir)?;
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    async fn create_dir_all(&self, dir: &Path) -> Result<(), Error> {
        // Directories exist by the files in them.
        self.0.lock().check("create", dir)
    }

    async fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        {
            let mut state = self.0.lock();
            state.check("sync", dir)?;
            state.counters.dir_syncs += 1;
            let changes = std::mem::take(&mut state.unsynced_names);
            for (path, change) in changes {
                if path.parent() == Some(dir) {
                    apply_change(&mut state.durable_names, &path, &change);
                } else {
                    state.unsynced_names.push((path, change));
                }
            }
            state.collect();
        }
        self.observed(Step::SyncDir);
        Ok(())
    }

    async fn free_space(&self, dir: &Path) -> Result<u64, Error> {
        let state = self.0.lock();
        state.check("measure", dir)?;
        Ok(state.capacity.saturating_sub(state.used()))
    }

    async fn total_space(&self, dir: &Path) -> Result<u64, Error> {
        let state = self.0.lock();
        state.check("measure", dir)?;
        Ok(state.capacity)
    }

    async fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>, Error> {
        let mut state = self.0.lock();
        state.check("lock", dir)?;
        if state.locks.get(dir).is_some_and(|lock| lock.strong_count() > 0) {
            return Err(Error::Locked { path: dir.to_owned() });
        }
        let lock = Arc::new(());
        state.locks.insert(dir.to_owned(), Arc::downgrade(&lock));
        Ok(Box::new(MemoryLock { _held: lock }))
    }
}

struct MemoryLock {
    _held: Arc<()>,
}

impl DirLock for MemoryLock {}

struct MemoryFile {
    disk: MemoryDisk,
    file: u64,
    path: PathBuf,
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if let Some(handles) = state.handles.get_mut(&self.file) {
            *handles -= 1;
            if *handles == 0 {
                state.handles.remove(&self.file);
                if !state.names.contains_key(&self.path) {
                    state.collect();
                }
            }
        }
    }
}

impl MemoryFile {
    /// Applies `write`; the file takes at most what the disk's capacity leaves.
    fn write(&self, operation: &'static str, write: Write) -> Result<(), Error> {
        let full = || Error::disk(operation, &self.path, io::ErrorKind::StorageFull.into());
        {
            let mut state = self.disk.0.lock();
            state.check(operation, &self.path)?;
            let used = if state.capacity == u64::MAX { 0 } else { state.used() };
            let capacity = state.capacity;
            let content = state.files.entry(self.file).or_default();
            let end = match &write {
                Write::Bytes(offset, bytes) => offset + bytes.len() as u64,
                Write::SetLen(len) | Write::Grow(len) => *len,
            };
            if used.saturating_add(end.saturating_sub(content.visible.len())) > capacity {
                return Err(full());
            }
            write.apply(&mut content.visible);
            content.unsynced.push(write);
        }
        self.disk.observed(Step::Write);
        Ok(())
    }
}

#[async_trait]
impl File for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let mut state = self.disk.0.lock();
        state.check("read", &self.path)?;
        state.counters.reads += 1;
        Ok(state.files.get(&self.file).map(|content| content.visible.read(offset, len)).unwrap_or_default())
    }

    async fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        let bytes: Bytes = match pieces {
            [one] => one.clone(),
            many => many.concat().into(),
        };
        {
            let mut state = self.disk.0.lock();
            state.check("write", &self.path)?;
            state.counters.writes += 1;
            state.counters.bytes_written += bytes.len() as u64;
        }
        self.write("write", Write::Bytes(offset, bytes))
    }

    async fn allocate(&self, len: u64) -> Result<(), Error> {
        self.write("allocate", Write::Grow(len))
    }

    async fn pave(&self, _: Range<u64>) -> Result<(), Error> {
        // What was never written reads as zeros, and everything is flushed equally fast.
        self.disk.0.lock().check("write", &self.path)
    }

    async fn set_len(&self, len: u64) -> Result<(), Error> {
        self.write("resize", Write::SetLen(len))
    }

    async fn len(&self) -> Result<u64, Error> {
        let state = self.disk.0.lock();
        state.check("measure", &self.path)?;
        Ok(state.files.get(&self.file).map_or(0, |content| content.visible.len()))
    }

    async fn let_go(&self, range: Range<u64>) {
        self.disk.0.lock().counters.bytes_let_go += range.end.saturating_sub(range.start);
    }

    async fn sync_data(&self) -> Result<(), Error> {
        {
            let mut state = self.disk.0.lock();
            state.check("sync", &self.path)?;
            state.counters.syncs += 1;
            let content = state.files.entry(self.file).or_default();
            // Not a copy of what is visible: what was forgotten stays unflushed.
            for write in std::mem::take(&mut content.unsynced) {
                write.apply(&mut content.flushed);
            }
        }
        self.disk.observed(Step::Sync);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(future: impl Future<Output = T>) -> T {
        futures_util::FutureExt::now_or_never(future).unwrap()
    }

    #[test]
    fn flushed_bytes_survive_and_others_may_not() {
        let (disk, path) = (MemoryDisk::new(), Path::new("d/f"));
        let file = wait(disk.create(path)).unwrap();
        wait(file.write_at(0, &["flushed".into()])).unwrap();
        wait(file.sync_data()).unwrap();
        wait(disk.sync_dir(Path::new("d"))).unwrap();
        wait(file.write_at(7, &[" not".into()])).unwrap();
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..100 {
            let after = disk.power_loss(&Random::from_seed(seed));
            let bytes = wait(wait(after.open(path)).unwrap().read_at(0, 100)).unwrap();
            assert!(bytes.starts_with(b"flushed"));
            lost += u32::from(bytes.len() == 7);
            kept += u32::from(&bytes[..] == b"flushed not");
        }
        assert!(lost > 0 && kept > 0);
        let crashed = disk.process_crash();
        assert_eq!(&wait(wait(crashed.open(path)).unwrap().read_at(0, 100)).unwrap()[..], b"flushed not");
    }

    #[test]
    fn what_a_failed_flush_forgot_is_flushed_when_it_is_written_again() {
        let (disk, path) = (MemoryDisk::new(), Path::new("d/f"));
        let file = wait(disk.create(path)).unwrap();
        wait(disk.sync_dir(Path::new("d"))).unwrap();
        let left = |disk: &MemoryDisk| {
            let after = disk.power_loss(&Random::from_seed(1));
            wait(wait(after.open(path)).unwrap().read_at(0, 9)).unwrap()
        };
        wait(file.write_at(0, &["abc".into()])).unwrap();
        disk.forget_unflushed(path);
        wait(file.sync_data()).unwrap();
        assert_eq!((&wait(file.read_at(0, 9)).unwrap()[..], left(&disk).len()), (&b"abc"[..], 0));
        wait(file.write_at(0, &["abc".into()])).unwrap();
        wait(file.sync_data()).unwrap();
        assert_eq!(left(&disk), "abc");
    }

    #[test]
    fn a_name_is_durable_after_its_directory_was_flushed() {
        let disk = MemoryDisk::new();
        let file = wait(disk.create(Path::new("d/a"))).unwrap();
        wait(file.write_at(0, &["x".into()])).unwrap();
        wait(file.sync_data()).unwrap();
        let there = |seed| wait(disk.power_loss(&Random::from_seed(seed)).open(Path::new("d/a"))).is_ok();
        assert!((0..50).any(there) && !(0..50).all(there));
        wait(disk.sync_dir(Path::new("d"))).unwrap();
        wait(disk.rename(Path::new("d/a"), Path::new("d/b"))).unwrap();
        for seed in 0..50 {
            let names = wait(disk.power_loss(&Random::from_seed(seed)).list(Path::new("d"))).unwrap();
            assert!(names == ["a"] || names == ["b"], "{names:?}");
        }
    }

    #[test]
    fn a_fenced_disk_does_nothing_more_and_a_full_one_says_so() {
        let disk = MemoryDisk::new();
        let file = wait(disk.create(Path::new("d/a"))).unwrap();
        disk.set_capacity(10);
        assert!(wait(file.write_at(0, &["12345678901".into()])).unwrap_err().is_disk_full());
        wait(file.write_at(0, &["1234567890".into()])).unwrap();
        disk.fence();
        assert!(wait(file.write_at(0, &["x".into()])).is_err());
        assert!(wait(file.sync_data()).is_err());
        assert_eq!(disk.copy().counters().writes, 2);
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_when_the_file_grows_again() {
        let disk = MemoryDisk::new();
        let file = wait(disk.create(Path::new("d/a"))).unwrap();
        wait(file.write_at(4090, &["abcdefghijkl".into()])).unwrap();
        wait(file.set_len(4092)).unwrap();
        wait(file.allocate(9000)).unwrap();
        let bytes = wait(file.read_at(4090, 20)).unwrap();
        assert_eq!(&bytes[..3], b"ab\0");
        assert!(bytes[2..].iter().all(|byte| *byte == 0));
        assert_eq!(wait(file.len()).unwrap(), 9000);
    }
}
