//! What can go wrong with stored bytes, as kinds that a caller can branch on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failure of the disk, of what lies on it, or of a request that the storage cannot serve.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {operation} {}", path.display())]
    Disk {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// There is no room left for what was to be written.
    #[error("the disk is full: cannot {operation} {}", path.display())]
    DiskFull {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file was written in a format that this program does not know.
    #[error("{} has format version {found}, this program knows version {known}", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version that this program writes.
        known: u32,
    },
    /// Bytes that were flushed once are not what was written.
    #[error("{} is damaged at byte {offset}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Bytes from outside are not what they claim to be.
    #[error("malformed bytes: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// The entry lies below the purge point.
    #[error("entry {index} was purged")]
    Purged {
        /// The entry's index.
        index: u64,
    },
    /// The part is not stored here.
    #[error("part {part} of entry {entry} is not stored here")]
    NotFound {
        /// The entry's index.
        entry: u64,
        /// The part's number.
        part: u16,
    },
    /// The request contradicts the state of the storage.
    #[error("refused: {what}")]
    Refused {
        /// Why.
        what: &'static str,
    },
    /// The storage was closed or its task is gone.
    #[error("the storage is closed")]
    Closed,
}

impl Error {
    /// Returns the error for an `operation` on `path` that the operating system refused with `source`.
    #[must_use]
    pub fn disk(operation: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { operation, path: path.to_owned() }
            }
            _ => Self::Disk { operation, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    /// Returns whether a file or directory does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Returns whether room on the disk is what lacks.
    #[must_use]
    pub const fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// Returns whether flushed bytes were found changed.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}
