//! The data directory as a whole: one process at a time uses it, and it says in which format it is.
//!
//! What lies inside belongs to the log, the snapshots and the index. This refuses a directory that another
//! process uses, that another program filled, or that a version wrote which this one does not know.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kubemq_storage::fs::{DirLock, Disk};

/// The version of the format that is written.
pub const FORMAT_VERSION: u32 = 1;

const FORMAT: &str = "FORMAT";
const FORMAT_TEMPORARY: &str = "FORMAT.temporary";
/// What the file begins with; the version follows.
const FORMAT_HEAD: &str = "kubemq data directory, format ";
/// The most that is read of it.
const FORMAT_BYTES: usize = 256;
/// Directories that hold what must not be forgotten.
const DURABLE: [&str; 2] = ["log", "snapshots"];

/// Why a data directory cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error(
        "the data directory {} is in use by another process: stop that one, or name another directory with --data",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Its format is not known.
    #[error(
        "the data directory {} has format version {found}, and this program knows version {FORMAT_VERSION}: \
         use the version of kubemq that wrote it",
        dir.display()
    )]
    UnknownVersion {
        /// The directory.
        dir: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// It holds something else.
    #[error("{} is not a kubemq data directory: {reason}; name another one with --data", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It cannot be read or written.
    #[error("the data directory {} cannot be used", dir.display())]
    Disk {
        /// The directory.
        dir: PathBuf,
        /// What went wrong.
        #[source]
        cause: kubemq_storage::Error,
    },
}

/// A data directory that this process may use until this is dropped.
pub struct DataDir {
    _lock: Box<dyn DirLock>,
    /// Whether it was made just now.
    pub is_new: bool,
}

impl DataDir {
    /// Takes `dir` for this process; makes it when there is nothing. Touches the disk: to be run on a thread of
    /// its own.
    ///
    /// # Errors
    ///
    /// [`DataDirError`] names the directory and what to do.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, DataDirError> {
        let failed = |cause| DataDirError::Disk { dir: dir.clone(), cause };
        disk.create_dir_all(&dir).await.map_err(failed)?;
        // Before the lock leaves its file there, so that a refused directory stays as it was.
        let found = read_format(&*disk, &dir).await?;
        if found.is_none() {
            refuse_what_is_not_ours(&*disk, &dir).await?;
        }
        let lock = lock(&*disk, &dir).await?;
        // The first process to come writes the format; another one may have been it a moment ago.
        let is_new = found.is_none() && read_format(&*disk, &dir).await?.is_none();
        if is_new {
            write_format(&*disk, &dir).await.map_err(failed)?;
        }
        Ok(Self { _lock: lock, is_new })
    }

    /// Takes an existing data directory for this process, to look at it. Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// As [`DataDir::open`], and [`DataDirError::Foreign`] when there is no data directory.
    pub async fn open_existing(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, DataDirError> {
        if read_format(&*disk, &dir).await?.is_none() {
            return Err(DataDirError::Foreign { dir, reason: "there is no file FORMAT in it".to_owned() });
        }
        Ok(Self { _lock: lock(&*disk, &dir).await?, is_new: false })
    }

    /// Takes a directory of which the format cannot be read, to save what it holds. Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// [`DataDirError::InUse`], and what the disk says.
    pub async fn open_without_format(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, DataDirError> {
        Ok(Self { _lock: lock(&*disk, &dir).await?, is_new: false })
    }
}

async fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DirLock>, DataDirError> {
    disk.lock_dir(dir).await.map_err(|error| match error {
        kubemq_storage::Error::Locked { .. } => DataDirError::InUse { dir: dir.to_owned() },
        cause => DataDirError::Disk { dir: dir.to_owned(), cause },
    })
}

/// Returns the version that the directory says it has, or nothing when it says none. Refuses what it does not know.
async fn read_format(disk: &dyn Disk, dir: &Path) -> Result<Option<u32>, DataDirError> {
    let failed = |cause| DataDirError::Disk { dir: dir.to_owned(), cause };
    let file = match disk.open(&dir.join(FORMAT)).await {
        Err(error) if error.is_missing() => return Ok(None),
        file => file.map_err(failed)?,
    };
    let bytes = file.read_at(0, FORMAT_BYTES).await.map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let version =
        text.lines().next().and_then(|line| line.strip_prefix(FORMAT_HEAD)).and_then(|text| text.parse().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(Some(FORMAT_VERSION)),
        Some(found) => Err(DataDirError::UnknownVersion { dir: dir.to_owned(), found }),
        None => {
            let reason = "its file FORMAT says something else".to_owned();
            Err(DataDirError::Foreign { dir: dir.to_owned(), reason })
        }
    }
}

/// A directory without a format must be empty: nothing is ever written among somebody else's files, and a log
/// whose format got lost is not taken for a new directory.
async fn refuse_what_is_not_ours(disk: &dyn Disk, dir: &Path) -> Result<(), DataDirError> {
    let foreign = |reason| Err(DataDirError::Foreign { dir: dir.to_owned(), reason });
    let names = disk.list(dir).await.map_err(|cause| DataDirError::Disk { dir: dir.to_owned(), cause })?;
    // A first start that was cut off leaves the lock's file, and perhaps an unfinished format.
    let ours = |name: &str| name == FORMAT_TEMPORARY || name.eq_ignore_ascii_case("lock");
    if let Some(name) = names.iter().find(|name| !ours(name)) {
        return foreign(format!("there is a file {name} and no file FORMAT in it"));
    }
    for part in DURABLE {
        match disk.list(&dir.join(part)).await {
            Ok(names) if !names.is_empty() => return foreign(format!("there are files in {part} and no file FORMAT")),
            _ => {}
        }
    }
    Ok(())
}

async fn write_format(disk: &dyn Disk, dir: &Path) -> Result<(), kubemq_storage::Error> {
    let temporary = dir.join(FORMAT_TEMPORARY);
    match disk.remove(&temporary).await {
        Err(error) if !error.is_missing() => return Err(error),
        _ => {}
    }
    let file = disk.create(&temporary).await?;
    file.write_at(0, &[Bytes::from(format!("{FORMAT_HEAD}{FORMAT_VERSION}\n"))]).await?;
    file.sync_data().await?;
    disk.rename(&temporary, &dir.join(FORMAT)).await?;
    disk.sync_dir(dir).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubemq_runtime::Random;
    use kubemq_storage::fs::memory::Observer;
    use kubemq_storage::fs::{MemoryDisk, RealDisk};

    async fn put(disk: &dyn Disk, path: &Path, text: &'static str) {
        let file = disk.create(path).await.unwrap();
        file.write_at(0, &[Bytes::from_static(text.as_bytes())]).await.unwrap();
    }

    #[tokio::test]
    async fn one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let first = DataDir::open(Arc::clone(&disk), dir.clone()).await.unwrap();
        assert!(first.is_new);
        let refused = DataDir::open(Arc::clone(&disk), dir.clone()).await.err().unwrap();
        assert!(matches!(refused, DataDirError::InUse { .. }) && refused.to_string().contains(&*dir.to_string_lossy()));
        let refused = DataDir::open_existing(Arc::clone(&disk), dir.clone()).await.err().unwrap();
        assert!(matches!(refused, DataDirError::InUse { .. }));
        drop(first);
        assert!(!DataDir::open_existing(Arc::clone(&disk), dir.clone()).await.unwrap().is_new);
        assert!(!DataDir::open(disk, dir).await.unwrap().is_new);
    }

    #[tokio::test]
    async fn what_is_not_ours_is_refused_and_left_alone() {
        let dir = PathBuf::from("/data");
        let rows = [
            ("FORMAT", "kubemq data directory, format 2\n", "has format version 2, and this program knows version 1"),
            ("FORMAT", "something\n", "its file FORMAT says something else"),
            ("FORMAT", "", "its file FORMAT says something else"),
            ("letter.txt", "dear", "there is a file letter.txt"),
            ("log/1.seg", "frames", "there are files in log"),
        ];
        for (name, text, said) in rows {
            let memory = MemoryDisk::new();
            let disk: Arc<dyn Disk> = Arc::new(memory.clone());
            let path = dir.join(name);
            disk.create_dir_all(path.parent().unwrap()).await.unwrap();
            put(&*disk, &path, text).await;
            let before = disk.list(&dir).await.unwrap();
            let refused = DataDir::open(Arc::clone(&disk), dir.clone()).await.err().unwrap().to_string();
            assert!(refused.contains(said) && refused.contains("/data"), "{name}: {refused}");
            assert_eq!(disk.list(&dir).await.unwrap(), before, "{name}");
        }
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let refused = DataDir::open_existing(disk, dir).await.err().unwrap();
        assert!(matches!(refused, DataDirError::Foreign { .. }));
    }

    #[tokio::test]
    async fn a_first_start_can_be_cut_off_anywhere() {
        let found = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let disk = MemoryDisk::new();
        let observer: Observer = {
            let found = Arc::clone(&found);
            Arc::new(move |_, disk: &MemoryDisk| {
                let mut found = found.lock();
                let seed = found.len() as u64;
                found.push(disk.process_crash());
                found.extend((0..8).map(|n| disk.power_loss(&Random::from_seed(seed * 8 + n))));
            })
        };
        disk.observe(observer);
        DataDir::open(Arc::new(disk.clone()), PathBuf::from("/data")).await.unwrap();
        let found = std::mem::take(&mut *found.lock());
        assert!(found.len() >= 30, "{}", found.len());
        for (n, disk) in found.into_iter().enumerate() {
            let again = DataDir::open(Arc::new(disk), PathBuf::from("/data")).await;
            assert!(again.is_ok(), "cut {n}: {:?}", again.err());
        }
    }
}
