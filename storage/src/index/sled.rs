//! The index in sled.
//!
//! sled has files and threads of its own and no way to repair itself, so everything about it stays in this file:
//! it is opened, checked from end to end, and thrown away when anything in it cannot be read. Some of its ways
//! to fail are panics; they are caught and count as damage.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::{BlockKey, Index, IndexError, MAX_BLOCK_BYTES, Opening, Space};

/// Length of the checksum in front of each block.
const CHECKSUM: usize = 4;
/// Below this size of the files nothing is rewritten.
const SHRINK_FROM: u64 = 64 * 1024 * 1024;
/// Files of which less than one part in this many is alive are rewritten.
const SHRINK_SHARE: u64 = 4;
/// How often a locked directory is tried again, and how long each time: sled's threads let go of the lock a
/// moment after the last handle was dropped.
const LOCK_TRIES: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// How sled is used.
#[derive(Clone, Debug)]
pub struct SledOptions {
    /// Bytes of sled's own cache. Its memory follows the size of the values rather than this. Default 8 MiB.
    pub cache_bytes: u64,
    /// From which size of the files on they are rewritten when under a quarter of them is alive. Default 64 MiB.
    pub shrink_from_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 8 * 1024 * 1024, shrink_from_bytes: SHRINK_FROM }
    }
}

/// An [`Index`] in a directory of sled's.
pub struct SledIndex {
    dir: PathBuf,
    options: SledOptions,
    /// Nothing after a failed clear only.
    db: Option<sled::Db>,
    blocks: u64,
    living_bytes: u64,
}

impl std::fmt::Debug for SledIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledIndex").field("dir", &self.dir).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl SledIndex {
    /// Opens the index in `dir` and checks every block of it. A damaged one is thrown away.
    ///
    /// # Errors
    ///
    /// [`IndexError::InUse`] when another process has it open, [`IndexError::Io`] when not even an empty index
    /// can be made there.
    pub fn open(dir: &Path, options: SledOptions) -> Result<(Self, Opening), IndexError> {
        let mut index = Self { dir: dir.to_owned(), options, db: None, blocks: 0, living_bytes: 0 };
        // What a crash left of throwing away or rewriting.
        for leftover in [index.aside(), index.rewritten()] {
            index.remove_dir(&leftover)?;
        }
        match index.open_db() {
            // sled starts again silently when its main file is gone, so only a block proves that it is kept.
            Ok(()) if index.is_empty() => Ok((index, Opening::Fresh)),
            Ok(()) => Ok((index, Opening::Kept)),
            Err(IndexError::Damaged { reason, .. }) => {
                index.clear()?;
                Ok((index, Opening::Replaced { reason }))
            }
            Err(error) => Err(error),
        }
    }

    /// Looks whether the index in `dir`, which nobody has open, would be kept by the next start, and changes nothing: what
    /// is opened is a copy, made in `scratch` and removed again. Returns nothing when it is larger than `most` bytes.
    ///
    /// # Errors
    ///
    /// [`IndexError::Io`] when it cannot be copied.
    pub fn examine(dir: &Path, scratch: &Path, most: u64) -> Result<Option<Opening>, IndexError> {
        let copy =
            Self { dir: scratch.to_owned(), options: SledOptions::default(), db: None, blocks: 0, living_bytes: 0 };
        copy.remove_dir(scratch)?;
        let copied = copy_dir(dir, scratch, most).map_err(|error| copy.io(&error));
        let examined = match copied {
            Ok(true) => Self::open(scratch, SledOptions::default()).map(|(_, opening)| Some(opening)),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        copy.remove_dir(scratch)?;
        examined
    }

    /// Opens an empty index in `dir`, whatever there was.
    ///
    /// # Errors
    ///
    /// As [`SledIndex::open`].
    pub fn open_emptied(dir: &Path, options: SledOptions) -> Result<(Self, Opening), IndexError> {
        let index = Self { dir: dir.to_owned(), options: options.clone(), db: None, blocks: 0, living_bytes: 0 };
        index.remove_dir(dir)?;
        Self::open(dir, options)
    }

    fn open_db(&mut self) -> Result<(), IndexError> {
        let mut tries = 0;
        loop {
            match self.try_open_db() {
                Err(IndexError::InUse { .. }) if tries < LOCK_TRIES => tries += 1,
                result => return result,
            }
            wait_for_lock();
        }
    }

    fn try_open_db(&mut self) -> Result<(), IndexError> {
        let (db, blocks, living_bytes) = guarded(&self.dir, || {
            let db = config(&self.dir, &self.options).open().map_err(|error| self.error(&error))?;
            let (blocks, living_bytes) = count(&db, &self.dir)?;
            Ok((db, blocks, living_bytes))
        })?;
        (self.db, self.blocks, self.living_bytes) = (Some(db), blocks, living_bytes);
        Ok(())
    }

    /// Runs `work` on sled; a panic inside counts as damage.
    fn with_db<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, sled::Error>) -> Result<T, IndexError> {
        let db = self.db.as_ref().ok_or(IndexError::Closed)?;
        guarded(&self.dir, || work(db).map_err(|error| self.error(&error)))
    }

    fn error(&self, error: &sled::Error) -> IndexError {
        let dir = self.dir.clone();
        match error {
            sled::Error::Io(io) if io.to_string().starts_with("could not acquire lock") => IndexError::InUse { dir },
            // sled reports several kinds of damage as i/o errors; none of them can be told from a failing disk,
            // and the answer to both is the same.
            error => IndexError::Damaged { dir, reason: error.to_string() },
        }
    }

    fn io(&self, error: &std::io::Error) -> IndexError {
        IndexError::Io { dir: self.dir.clone(), reason: error.to_string() }
    }

    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.dir.with_file_name(name)
    }

    fn aside(&self) -> PathBuf {
        self.sibling(".damaged")
    }

    fn rewritten(&self) -> PathBuf {
        self.sibling(".rewritten")
    }

    fn remove_dir(&self, dir: &Path) -> Result<(), IndexError> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.io(&error)),
            _ => Ok(()),
        }
    }

    /// Moves the directory out of the way, so that threads which sled left behind cannot touch the next one.
    fn put_aside(&self) -> Result<(), IndexError> {
        self.remove_dir(&self.aside())?;
        match std::fs::rename(&self.dir, self.aside()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.io(&error)),
            _ => self.remove_dir(&self.aside()),
        }
    }

    fn is_sparse(&self) -> bool {
        let disk = self.disk_bytes();
        disk >= self.options.shrink_from_bytes && self.living_bytes.saturating_mul(SHRINK_SHARE) < disk
    }

    fn close_db(&mut self) {
        if let Some(db) = self.db.take() {
            // Dropping flushes, and a damaged sled may panic in it.
            drop(catch_unwind(AssertUnwindSafe(|| drop(db))));
        }
    }
}

impl Index for SledIndex {
    fn put(&mut self, key: BlockKey, block: &Bytes) -> Result<(), IndexError> {
        if block.len() > MAX_BLOCK_BYTES {
            return Err(IndexError::TooLarge { key, bytes: block.len() });
        }
        let name = key.encode();
        let mut value = Vec::with_capacity(CHECKSUM + block.len());
        value.extend_from_slice(&checksum(&name, block).to_le_bytes());
        value.extend_from_slice(block);
        let added = as_u64(value.len());
        let old = self.with_db(|db| db.insert(name, value))?;
        match old {
            Some(old) => self.living_bytes = self.living_bytes.saturating_sub(as_u64(old.len())),
            None => self.blocks += 1,
        }
        self.living_bytes += added;
        Ok(())
    }

    fn get(&mut self, key: BlockKey) -> Result<Option<Bytes>, IndexError> {
        let name = key.encode();
        let value = self.with_db(|db| db.get(name))?;
        Ok(value.and_then(|value| whole(&name, &value).map(Bytes::copy_from_slice)))
    }

    fn remove_range(&mut self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<u64, IndexError> {
        let (first, last) = range.into_inner();
        if first > last {
            return Ok(0);
        }
        let first = BlockKey { space, owner, first }.encode();
        let last = BlockKey { space, owner, first: last }.encode();
        let (removed, bytes) = self.with_db(|db| {
            let (mut removed, mut bytes) = (0, 0);
            for name in db.range(first..=last).keys() {
                if let Some(old) = db.remove(name?)? {
                    removed += 1;
                    bytes += as_u64(old.len());
                }
            }
            Ok((removed, bytes))
        })?;
        self.blocks = self.blocks.saturating_sub(removed);
        self.living_bytes = self.living_bytes.saturating_sub(bytes);
        Ok(removed)
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        self.close_db();
        self.put_aside()?;
        (self.blocks, self.living_bytes) = (0, 0);
        self.open_db()
    }

    fn shrink(&mut self) -> Result<bool, IndexError> {
        if !self.is_sparse() {
            return Ok(false);
        }
        let target = self.rewritten();
        self.remove_dir(&target)?;
        self.with_db(|db| {
            let fresh = config(&target, &self.options).open()?;
            for item in db.iter() {
                let (name, value) = item?;
                fresh.insert(name, value)?;
            }
            fresh.flush().map(drop)
        })?;
        self.close_db();
        self.put_aside()?;
        std::fs::rename(&target, &self.dir).map_err(|error| self.io(&error))?;
        self.open_db()?;
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        self.with_db(|db| db.flush().map(drop))
    }

    fn len(&self) -> u64 {
        self.blocks
    }

    fn disk_bytes(&self) -> u64 {
        self.with_db(sled::Db::size_on_disk).unwrap_or(0)
    }
}

impl Drop for SledIndex {
    fn drop(&mut self) {
        self.close_db();
    }
}

#[expect(clippy::disallowed_methods, reason = "sled's threads are outside of every door, and so is waiting for them")]
fn wait_for_lock() {
    std::thread::sleep(LOCK_WAIT);
}

/// Copies a directory with all that is in it; returns whether it has no more than `most` bytes.
fn copy_dir(from: &Path, to: &Path, most: u64) -> std::io::Result<bool> {
    let mut left = most;
    let mut dirs = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = dirs.pop() {
        std::fs::create_dir_all(&to)?;
        for entry in std::fs::read_dir(&from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push((entry.path(), target));
                continue;
            }
            let Some(rest) = left.checked_sub(entry.metadata()?.len()) else { return Ok(false) };
            left = rest;
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(true)
}

fn config(dir: &Path, options: &SledOptions) -> sled::Config {
    // No flusher: what a crash takes is put again, and an idle node wakes nobody.
    sled::Config::new().path(dir).cache_capacity(options.cache_bytes).flush_every_ms(None)
}

/// Reads everything, so that damage shows now and not when a block is needed; returns blocks and their bytes.
fn count(db: &sled::Db, dir: &Path) -> Result<(u64, u64), IndexError> {
    let damaged = |reason: String| IndexError::Damaged { dir: dir.to_owned(), reason };
    let (mut blocks, mut bytes) = (0, 0);
    for item in db.iter() {
        let (name, value) = item.map_err(|error| damaged(error.to_string()))?;
        if whole(&name, &value).is_none() {
            return Err(damaged("the checksum of a block is wrong".to_owned()));
        }
        blocks += 1;
        bytes += as_u64(value.len());
    }
    Ok((blocks, bytes))
}

/// Returns the block in `value` when its checksum, which covers the key too, is right.
fn whole<'a>(name: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (stored, block) = value.split_first_chunk::<CHECKSUM>()?;
    (u32::from_le_bytes(*stored) == checksum(name, block)).then_some(block)
}

fn checksum(name: &[u8], block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(name), block)
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Runs `work`; a panic in it is reported as damage of the index in `dir`.
fn guarded<T>(dir: &Path, work: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&'static str>().copied())
            .unwrap_or("no text");
        Err(IndexError::Damaged { dir: dir.to_owned(), reason: format!("sled panicked: {reason}") })
    })
}

#[cfg(test)]
mod tests;
