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
    is_noted: bool,
    /// Whether a node that flushes now and then ran on the directory when the machine stopped.
    pub(crate) was_cut_off: bool,
}

impl Running {
    /// Looks who ran last on `dir`, and notes a node that flushes now and then (`is_behind`) under the start of the
    /// machine that `boot` names.
    pub(crate) async fn begin(disk: Arc<dyn Disk>, dir: &Path, boot: &str, is_behind: bool) -> Result<Self, Error> {
        let path = dir.join(RUNNING);
        let found = match disk.open(&path).await {
            Ok(file) => Some(file.read_at(0, BYTES).await?),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error),
        };
        let is_this_boot = found.as_ref().is_some_and(|found| *found == boot.as_bytes());
        let running =
            Self { disk, dir: dir.to_owned(), is_noted: is_behind, was_cut_off: found.is_some() && !is_this_boot };
        if found.is_some() && !(is_behind && is_this_boot) {
            running.forget(&path).await?;
        }
        if is_behind && !is_this_boot {
            let file = running.disk.create(&path).await?;
            file.write_at(0, &[Bytes::copy_from_slice(boot.as_bytes())]).await?;
            file.sync_data().await?;
            running.disk.sync_dir(dir).await?;
        }
        Ok(running)
    }

    /// Notes that the node has stopped and everything is flushed.
    pub(crate) async fn end(self) -> Result<(), Error> {
        if self.is_noted { self.forget(&self.dir.join(RUNNING)).await } else { Ok(()) }
    }

    async fn forget(&self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path).await?;
        self.disk.sync_dir(&self.dir).await
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
        let begin = async |boot| Running::begin(Arc::clone(&disk), dir, boot, true).await.unwrap();
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

        // The next one may flush each group: it must know, and notes nothing of its own.
        let begin = async |boot| Running::begin(Arc::clone(&disk), dir, boot, false).await.unwrap();
        let running = begin("four").await;
        assert!(running.was_cut_off);
        assert!(!begin("five").await.was_cut_off, "what it answered is flushed");
        running.end().await.unwrap();
    }
}
