//! Whether the machine stopped while the node ran.
//!
//! A node that [flushes now and then](kubemq_storage::log::Flush) may have lost what it answered last when the power
//! went, and only then. So a file in its data directory says under which start of the machine it runs, and is removed
//! when the node has stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kubemq_storage::Error;
use kubemq_storage::fs::Disk;

const RUNNING: &str = "RUNNING";
/// The most that is read of it.
const BYTES: usize = 256;

/// A node that runs, as its data directory knows it.
pub(crate) struct Running {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Whether one ran on the directory when the machine stopped.
    pub(crate) was_cut_off: bool,
}

impl Running {
    /// Notes that a node runs on `dir` under the start of the machine that `boot` names.
    pub(crate) async fn begin(disk: Arc<dyn Disk>, dir: &Path, boot: &str) -> Result<Self, Error> {
        let path = dir.join(RUNNING);
        let was_cut_off = match disk.open(&path).await {
            Ok(file) if file.read_at(0, BYTES).await? == boot.as_bytes() => {
                return Ok(Self { disk, dir: dir.to_owned(), was_cut_off: false });
            }
            Ok(_) => {
                disk.remove(&path).await?;
                true
            }
            Err(error) if error.is_missing() => false,
            Err(error) => return Err(error),
        };
        let file = disk.create(&path).await?;
        file.write_at(0, &[Bytes::copy_from_slice(boot.as_bytes())]).await?;
        file.sync_data().await?;
        disk.sync_dir(dir).await?;
        Ok(Self { disk, dir: dir.to_owned(), was_cut_off })
    }

    /// Notes that the node has stopped and everything is flushed.
    pub(crate) async fn end(self) -> Result<(), Error> {
        self.disk.remove(&self.dir.join(RUNNING)).await
    }
}

/// Returns what names this start of the machine; nothing where that is not known, which is one start for ever.
pub(crate) fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().chars().take(BYTES).collect()
}

#[cfg(test)]
mod tests {
    use kubemq_storage::fs::MemoryDisk;

    use super::*;

    #[tokio::test]
    async fn only_a_machine_that_stopped_under_a_node_is_told_of() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let dir = Path::new("/data");
        disk.create_dir_all(dir).await.unwrap();
        let begin = async |boot| Running::begin(Arc::clone(&disk), dir, boot).await.unwrap();
        let running = begin("one").await;
        assert!(!running.was_cut_off, "a new directory");
        drop(running);
        let running = begin("one").await;
        assert!(!running.was_cut_off, "the process was killed");
        running.end().await.unwrap();
        let running = begin("two").await;
        assert!(!running.was_cut_off, "it had stopped before");
        drop(running);
        assert!(begin("three").await.was_cut_off, "the machine stopped under it");
    }
}
