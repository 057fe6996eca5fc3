//! A memory cgroup: the kernel kills what is in it when it needs more than the ceiling.
//!
//! Both versions of the kernel's interface are known. A page of a file that can be read again counts too, but is
//! given back before anything is killed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Where the unified hierarchy is.
const UNIFIED: &str = "/sys/fs/cgroup";

/// Where the older hierarchy of memory is.
const MEMORY: &str = "/sys/fs/cgroup/memory";

/// A group with a ceiling, removed when dropped; whatever was started in it must be gone by then.
pub(crate) struct Cgroup {
    path: PathBuf,
    /// The file that says how often the kernel has killed.
    kills: &'static str,
}

impl Cgroup {
    /// Makes a group with this ceiling in bytes.
    ///
    /// # Errors
    ///
    /// When this user may not, or there is no controller of memory.
    pub(crate) fn new(ceiling: u64) -> anyhow::Result<Self> {
        let name = format!("kubemq-push-{}", std::process::id());
        let controllers = std::fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers")).unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "memory") {
            let enable = Path::new(UNIFIED).join("cgroup.subtree_control");
            std::fs::write(&enable, "+memory").context("the controller of memory cannot be used here")?;
            let group = Self::make(Path::new(UNIFIED).join(name), "memory.events")?;
            group.set("memory.max", ceiling)?;
            // Not there without swap, and then not needed.
            group.set("memory.swap.max", 0).ok();
            return Ok(group);
        }
        if !Path::new(MEMORY).join("memory.limit_in_bytes").exists() {
            bail!("there is no controller of memory");
        }
        let group = Self::make(Path::new(MEMORY).join(name), "memory.oom_control")?;
        group.set("memory.limit_in_bytes", ceiling)?;
        group.set("memory.memsw.limit_in_bytes", ceiling).ok();
        Ok(group)
    }

    fn make(path: PathBuf, kills: &'static str) -> anyhow::Result<Self> {
        std::fs::create_dir(&path).with_context(|| format!("could not make {}", path.display()))?;
        Ok(Self { path, kills })
    }

    fn set(&self, file: &str, value: u64) -> anyhow::Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, value.to_string()).with_context(|| format!("could not write {}", path.display()))
    }

    /// Returns a command that enters the group and then becomes `program`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]);
        command.arg(self.path.join("cgroup.procs")).arg(program);
        command
    }

    /// Returns how many processes the kernel has killed because of the ceiling.
    pub(crate) fn kills(&self) -> u64 {
        let text = std::fs::read_to_string(self.path.join(self.kills)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is left behind is empty and costs nothing.
        std::fs::remove_dir(&self.path).ok();
    }
}
