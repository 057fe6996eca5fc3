//! What lies in the data directory of a stopped node, read from end to end and left as it is.

use std::path::Path;
use std::sync::Arc;

use kubemq_runtime::{Runtime, chain};
use kubemq_storage::Error;
use kubemq_storage::fs::Disk;
use kubemq_storage::log;
use kubemq_storage::snapshot::Snapshots;
use serde::Serialize;

use crate::data_dir::{DataDir, DataDirError};

/// What can be said about the files.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum Files {
    /// There is no data directory.
    None,
    /// They could not be looked at.
    Unreadable {
        /// Why.
        reason: String,
    },
    /// Everything was read.
    Checked(FilesReport),
}

/// What was read.
#[derive(Debug, Default, Serialize)]
pub(super) struct FilesReport {
    pub(super) segments: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) snapshots: usize,
    pub(super) whole_snapshots: usize,
    pub(super) findings: Vec<Found>,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) what: String,
    /// A write that a crash cut off, which nobody was told had happened.
    pub(super) torn: bool,
}

impl FilesReport {
    pub(super) fn is_damaged(&self) -> bool {
        self.findings.iter().any(|found| !found.torn)
    }

    pub(super) fn has_torn_end(&self) -> bool {
        self.findings.iter().any(|found| found.torn)
    }

    pub(super) fn log_verdict(&self) -> &'static str {
        let log = self.findings.iter().filter(|found| !found.file.starts_with("snapshots"));
        match log.map(|found| found.torn).reduce(|a, b| a && b) {
            None => "whole",
            Some(true) => "whole, with a last write that was cut off",
            Some(false) => "DAMAGED",
        }
    }

    pub(super) fn snapshot_verdict(&self) -> String {
        match (self.snapshots, self.whole_snapshots) {
            (0, _) => "none yet".to_owned(),
            (all, whole) if all == whole => format!("{all}, whole"),
            (all, whole) => format!("{all}, {} of them DAMAGED", all - whole),
        }
    }
}

/// Checks the files in `data`.
pub(super) async fn check(disk: &Arc<dyn Disk>, runtime: &Runtime, data: &Path) -> Files {
    match disk.list(data).await {
        Err(error) if error.is_missing() => return Files::None,
        Ok(names) if names.is_empty() => return Files::None,
        _ => {}
    }
    let unreadable = |reason: String| Files::Unreadable { reason };
    // Held until everything was read, so that no server starts meanwhile.
    let _data_dir = match DataDir::open_existing(Arc::clone(disk), data.to_owned()).await {
        Ok(data_dir) => data_dir,
        Err(DataDirError::InUse { .. }) => {
            return unreadable("a server runs on them, stop it to have them checked".to_owned());
        }
        Err(error) => return unreadable(chain(&error).to_string()),
    };
    let mut report = FilesReport::default();
    if let Err(error) = read_log(disk, data, &mut report).await {
        return unreadable(chain(&error).to_string());
    }
    match read_snapshots(disk, runtime, data, &mut report).await {
        Ok(()) => Files::Checked(report),
        Err(error) => unreadable(chain(&error).to_string()),
    }
}

async fn read_log(disk: &Arc<dyn Disk>, data: &Path, report: &mut FilesReport) -> Result<(), Error> {
    let read = match log::check(Arc::clone(disk), &data.join("log")).await {
        Err(error) if error.is_missing() => return Ok(()),
        read => read?,
    };
    (report.segments, report.entries, report.bytes) = (read.segments, read.entries, read.bytes);
    for finding in read.findings {
        let file = relative(&finding.path, data);
        report.findings.push(Found { file, offset: finding.offset, what: finding.what, torn: finding.torn });
    }
    Ok(())
}

async fn read_snapshots(
    disk: &Arc<dyn Disk>,
    runtime: &Runtime,
    data: &Path,
    report: &mut FilesReport,
) -> Result<(), Error> {
    let snapshots = Snapshots::open_read_only(Arc::clone(disk), data.join("snapshots"), runtime).await?;
    let files = snapshots.files();
    report.snapshots = files.len();
    for file in files {
        match snapshots.read(&file).await {
            Ok(_) => report.whole_snapshots += 1,
            Err(Error::Damaged { path, offset, what }) => {
                report.findings.push(Found { file: relative(&path, data), offset, what, torn: false });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn relative(path: &Path, data: &Path) -> String {
    path.strip_prefix(data).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kubemq_storage::fs::MemoryDisk;
    use std::path::PathBuf;

    fn data() -> PathBuf {
        PathBuf::from("/data")
    }

    async fn node(disk: &Arc<dyn Disk>, runtime: &Runtime) {
        let data_dir = DataDir::open(Arc::clone(disk), data()).await.unwrap();
        let log = log::Log::open(Arc::clone(disk), data().join("log"), log::Options::default(), runtime).await.unwrap();
        log.save_node_id(7).await.unwrap();
        log.close().await.unwrap();
        let snapshots = Snapshots::open(Arc::clone(disk), data().join("snapshots"), runtime).await.unwrap();
        snapshots.write(Bytes::new(), std::iter::once(Bytes::from_static(b"state"))).await.unwrap();
        drop(data_dir);
    }

    #[tokio::test]
    async fn whole_files_are_said_to_be_whole_and_damage_is_named() {
        let (memory, runtime) = (MemoryDisk::new(), Runtime::real());
        let disk: Arc<dyn Disk> = Arc::new(memory.clone());
        assert!(matches!(check(&disk, &runtime, &data()).await, Files::None));
        node(&disk, &runtime).await;
        let Files::Checked(report) = check(&disk, &runtime, &data()).await else { panic!("not checked") };
        assert!(!report.is_damaged(), "{report:?}");
        assert_eq!((report.segments, report.snapshots, report.whole_snapshots), (1, 1, 1));

        let name = disk.list(&data().join("snapshots")).await.unwrap().remove(0);
        assert!(memory.flip_bit(&data().join("snapshots").join(&name), 200));
        let Files::Checked(report) = check(&disk, &runtime, &data()).await else { panic!("not checked") };
        assert!(report.is_damaged());
        assert_eq!(report.findings[0].file, format!("snapshots/{name}"));
        assert_eq!(report.snapshot_verdict(), "1, 1 of them DAMAGED");
    }

    #[tokio::test]
    async fn files_of_a_running_server_and_of_others_are_not_judged() {
        let runtime = Runtime::real();
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let running = DataDir::open(Arc::clone(&disk), data()).await.unwrap();
        let Files::Unreadable { reason } = check(&disk, &runtime, &data()).await else { panic!("judged") };
        assert!(reason.contains("a server runs on them"), "{reason}");
        drop(running);
        assert!(matches!(check(&disk, &runtime, &data()).await, Files::Checked(_)));
        let other = PathBuf::from("/other");
        disk.create_dir_all(&other).await.unwrap();
        disk.create(&other.join("letter")).await.unwrap();
        assert!(matches!(check(&disk, &runtime, &other).await, Files::Unreadable { .. }));
    }
}
