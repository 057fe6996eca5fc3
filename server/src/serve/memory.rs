//! How much memory the process may have: what its control groups allow, or the machine has.

use std::path::{Path, PathBuf};

/// The index takes this part of the memory when nobody says how much.
const INDEX_PART: u64 = 8;
/// And at least so much.
const INDEX_LEAST: u64 = 256 * 1024 * 1024;

/// Returns how much memory the index takes when nobody says how much.
pub(super) fn for_the_index() -> u64 {
    (limit(Path::new("/")).unwrap_or(0) / INDEX_PART).max(INDEX_LEAST)
}

/// Returns the least of what limits the memory of this process, in bytes; nothing where the kernel does not tell.
fn limit(root: &Path) -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    let machine = read(Path::new("proc/meminfo")).as_deref().and_then(of_the_machine);
    let groups = read(Path::new("proc/self/cgroup")).unwrap_or_default();
    let allowed = groups.lines().flat_map(files).filter_map(|file| read(&file)?.trim().parse::<u64>().ok());
    allowed.chain(machine).min()
}

fn of_the_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Returns the files that may hold a limit for a group of the process, its own and those of the groups around it.
fn files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (root, name) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let around = Path::new(path.trim_start_matches('/')).ancestors();
    around.map(|group| Path::new(root).join(group).join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_of_all_limits_counts() {
        let machine = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:        10 kB\n");
        let found = |files: &[(&str, &str)]| limit(root(files).path());
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[machine]), Some(1_024_000));
        let own = ("proc/self/cgroup", "0::/pods/one\n");
        let unlimited = ("sys/fs/cgroup/pods/one/memory.max", "max\n");
        assert_eq!(found(&[machine, own, unlimited]), Some(1_024_000));
        let around = ("sys/fs/cgroup/pods/memory.max", "5000\n");
        assert_eq!(found(&[machine, own, unlimited, around]), Some(5_000), "of the group around it");
        let old = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n");
        let limited = ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "7000\n");
        let other = ("sys/fs/cgroup/cpu/x/memory.limit_in_bytes", "1\n");
        assert_eq!(found(&[machine, old, limited, other]), Some(7_000), "of the first version");
    }

    #[test]
    fn this_machine_says_something() {
        assert!(limit(Path::new("/")).is_some());
        assert!(for_the_index() >= INDEX_LEAST);
    }
}
