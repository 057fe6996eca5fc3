//! What lies in the data directory of a stopped node, read from end to end and left as it is.

use std::path::Path;
use std::sync::Arc;

use kubemq_broker::Kind;
use kubemq_runtime::{Runtime, chain};
use kubemq_storage::Error;
use kubemq_storage::fs::Disk;
use kubemq_storage::index::{Opening, SledIndex};
use kubemq_storage::log::{self, Salvage};
use kubemq_storage::snapshot::Snapshots;
use serde::Serialize;

use super::holdings::{Holdings, Tallies, Tally};
use crate::data_dir::{DataDir, DataDirError};

/// An index that is larger is not copied to be checked.
const INDEX_BYTES: u64 = 1 << 30;

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
    /// What is to be said of the index.
    pub(super) index: String,
    /// What can be read, by kind.
    pub(super) holds: Vec<Holds>,
    /// What of that cannot be vouched for.
    pub(super) doubts: Vec<String>,
}

/// What channels of one kind hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Holds {
    pub(super) kind: &'static str,
    pub(super) channels: u64,
    pub(super) messages: u64,
    /// Those of them that cannot be read.
    pub(super) unreadable: u64,
}

impl Holds {
    fn new(tallies: &Tallies, kind: Kind) -> Self {
        let kind = kind.name();
        let (channels, Tally { messages, unreadable }) = tallies.of(kind);
        Self { kind, channels, messages, unreadable }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) what: String,
    /// A write that a crash cut off, which nobody was told had happened.
    pub(super) torn: bool,
    /// What it said stands elsewhere, too.
    pub(super) harmless: bool,
}

impl FilesReport {
    pub(super) fn is_damaged(&self) -> bool {
        self.findings.iter().any(|found| !found.torn)
    }

    /// Returns whether whatever is damaged costs nothing but time.
    pub(super) fn is_harmless(&self) -> bool {
        self.findings.iter().all(|found| found.torn || found.harmless)
    }

    pub(super) fn has_torn_end(&self) -> bool {
        self.findings.iter().any(|found| found.torn)
    }

    pub(super) fn log_verdict(&self) -> &'static str {
        let log = self.findings.iter().filter(|found| found.file.starts_with("log"));
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

/// A stopped node's directory, taken so that no server starts on it meanwhile.
pub(super) struct Taken {
    _data_dir: DataDir,
    /// What is wrong with the file that says in which format it is.
    format: Option<String>,
}

/// Takes `data`; says why that cannot be. A damaged note of the format is no reason, where there is a log beside it.
pub(super) async fn take(disk: &Arc<dyn Disk>, data: &Path) -> Result<Taken, String> {
    match DataDir::open_existing(Arc::clone(disk), data.to_owned()).await {
        Ok(data_dir) => Ok(Taken { _data_dir: data_dir, format: None }),
        Err(DataDirError::InUse { .. }) => Err("a server runs on them, stop it to have them checked".to_owned()),
        Err(error @ DataDirError::Foreign { .. }) => {
            let names = disk.list(&data.join("log")).await.unwrap_or_default();
            if !names.iter().any(|name| name.ends_with(".seg")) {
                return Err(chain(&error).to_string());
            }
            match DataDir::open_without_format(Arc::clone(disk), data.to_owned()).await {
                Ok(data_dir) => Ok(Taken { _data_dir: data_dir, format: Some(chain(&error).to_string()) }),
                Err(error) => Err(chain(&error).to_string()),
            }
        }
        Err(error) => Err(chain(&error).to_string()),
    }
}

/// Checks the files in `data`.
pub(super) async fn check(disk: &Arc<dyn Disk>, runtime: &Runtime, data: &Path) -> Files {
    match disk.list(data).await {
        Err(error) if error.is_missing() => return Files::None,
        Ok(names) if names.is_empty() => return Files::None,
        _ => {}
    }
    let taken = match take(disk, data).await {
        Ok(taken) => taken,
        Err(reason) => return Files::Unreadable { reason },
    };
    match examine(disk, runtime, data, &taken).await {
        Ok(report) => Files::Checked(report),
        Err(error) => Files::Unreadable { reason: chain(&error).to_string() },
    }
}

async fn examine(disk: &Arc<dyn Disk>, runtime: &Runtime, data: &Path, taken: &Taken) -> Result<FilesReport, Error> {
    let mut report = FilesReport::default();
    if let Some(what) = &taken.format {
        let (file, what) = ("FORMAT".to_owned(), what.clone());
        report.findings.push(Found { file, offset: 0, what, torn: false, harmless: false });
    }
    let salvage = match Salvage::open(Arc::clone(disk), &data.join("log")).await {
        Err(error) if error.is_missing() => None,
        salvage => Some(salvage?),
    };
    if let Some(salvage) = &salvage {
        take_findings(salvage.report(), data, &mut report);
    }
    read_snapshots(disk, runtime, data, &mut report).await?;
    read_index(data, &mut report);
    if let Some(salvage) = salvage {
        let mut holdings = Holdings::open(disk, runtime, data, salvage).await?;
        let mut tallies = Tallies::default();
        let counted: Result<(), std::convert::Infallible> = holdings
            .each(|item| {
                tallies.count(&item);
                Ok(())
            })
            .await;
        counted.unwrap_or_else(|never| match never {});
        report.holds = [Kind::Queue, Kind::EventsStore].map(|kind| Holds::new(&tallies, kind)).to_vec();
        report.doubts = holdings.doubts().to_vec();
    }
    Ok(report)
}

fn take_findings(read: &log::Report, data: &Path, report: &mut FilesReport) {
    (report.segments, report.entries, report.bytes) = (read.segments, read.entries, read.bytes);
    for finding in &read.findings {
        let log::Finding { path, offset, what, torn, harmless } = finding;
        let (file, what) = (relative(path, data), what.clone());
        report.findings.push(Found { file, offset: *offset, what, torn: *torn, harmless: *harmless });
    }
}

/// The index is read as a copy: sled cannot open what it may not change.
fn read_index(data: &Path, report: &mut FilesReport) {
    let dir = data.join("index");
    if !dir.is_dir() {
        "none".clone_into(&mut report.index);
        return;
    }
    let scratch = std::env::temp_dir().join(format!("kubemq-doctor-index-{}", std::process::id()));
    report.index = match SledIndex::examine(&dir, &scratch, INDEX_BYTES) {
        Ok(Some(Opening::Kept | Opening::Fresh)) => "whole".to_owned(),
        Ok(Some(Opening::Replaced { reason })) => {
            let what = format!("the index is damaged and will be made anew: {reason}");
            report.findings.push(Found { file: "index".to_owned(), offset: 0, what, torn: false, harmless: true });
            "DAMAGED, the next start makes it anew".to_owned()
        }
        Ok(None) => "not checked: it is larger than 1 GiB, and is made anew if it is damaged".to_owned(),
        Err(error) => format!("not checked: {}", chain(&error)),
    };
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
        match snapshots.verify(&file).await {
            Ok(()) => report.whole_snapshots += 1,
            Err(Error::Damaged { path, offset, what }) => {
                let file = relative(&path, data);
                report.findings.push(Found { file, offset, what, torn: false, harmless: false });
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
        let mut writer = snapshots.begin(Bytes::new()).await.unwrap();
        writer.push(Bytes::from_static(b"state")).await.unwrap();
        writer.finish().await.unwrap();
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
