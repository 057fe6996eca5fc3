//! The conditions of a measurement.

use std::path::Path;
use std::process::Command;

/// Returns what a reader must know to compare figures: one line per fact.
pub(crate) fn conditions(directory: &Path, broker: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("processor", processor()),
        ("memory", memory()),
        ("kernel", first_line("/proc/sys/kernel/osrelease")),
        ("file system", file_system(directory)),
        ("broker", version_of(broker)),
        ("load on the machine before", first_line("/proc/loadavg")),
    ]
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    let model = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    format!("{count} × {}", model.map_or("unknown", |(_, name)| name.trim()))
}

fn memory() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes: Option<u64> = total.and_then(|total| total.split_whitespace().next()?.parse().ok());
    kibibytes.map_or_else(unknown, |kibibytes| format!("{} MiB", kibibytes / 1024))
}

/// Returns type and options of the file system that `directory` is on.
fn file_system(directory: &Path) -> String {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        directory
            .starts_with(at)
            .then(|| (at.len(), format!("{} ({})", fields.next().unwrap_or("?"), fields.next().unwrap_or("?"))))
    });
    mounted.max_by_key(|(length, _)| *length).map_or_else(unknown, |(_, text)| text)
}

fn version_of(broker: &Path) -> String {
    let output = Command::new(broker).arg("--version").output();
    output.map_or_else(|_| unknown(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().map_or_else(unknown, ToOwned::to_owned)
}

fn unknown() -> String {
    "unknown".to_owned()
}
