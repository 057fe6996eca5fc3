//! What a process has used, as the kernel counts it. Nothing is known where there is no `/proc`.

use std::time::Duration;

/// Ticks per second of the times in `/proc/<process>/stat`: fixed at 100 in the interface to user space.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used since it was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time, in user space and in the kernel.
    pub cpu: Duration,
    /// Bytes that it caused to be written to disks.
    pub written_bytes: u64,
}

impl Usage {
    /// Returns what a process has used, this one when `process` is `None`.
    #[must_use]
    pub fn of(process: Option<u32>) -> Option<Self> {
        Some(Self { cpu: cpu_time(process)?, written_bytes: written_bytes(process)? })
    }

    /// Returns what was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
        }
    }
}

/// Returns the processor time that a process has used, this one when `process` is `None`.
#[must_use]
pub fn cpu_time(process: Option<u32>) -> Option<Duration> {
    let text = std::fs::read_to_string(path(process, "stat")).ok()?;
    // The name of the program stands in parentheses and may contain anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * (1000 / TICKS_PER_SECOND)))
}

/// Returns the memory that a process has resident, in bytes.
#[must_use]
pub fn resident_bytes(process: Option<u32>) -> Option<u64> {
    let kibibytes = number_in(&path(process, "status"), "VmRSS:")?;
    Some(kibibytes * 1024)
}

/// Returns the most memory that a process ever had resident, in bytes.
#[must_use]
pub fn peak_resident_bytes(process: Option<u32>) -> Option<u64> {
    let kibibytes = number_in(&path(process, "status"), "VmHWM:")?;
    Some(kibibytes * 1024)
}

/// Returns how many bytes a process caused to be written to disks.
#[must_use]
pub fn written_bytes(process: Option<u32>) -> Option<u64> {
    number_in(&path(process, "io"), "write_bytes:")
}

fn path(process: Option<u32>, file: &str) -> String {
    process.map_or_else(|| format!("/proc/self/{file}"), |process| format!("/proc/{process}/{file}"))
}

fn number_in(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_memory() {
        let before = cpu_time(None).unwrap();
        let deadline = kubemq_runtime::Clock::real();
        while cpu_time(None).unwrap() == before {
            assert!(deadline.now().as_nanos() < 60_000_000_000, "a minute of work used no processor time");
        }
        let resident = resident_bytes(None).unwrap();
        assert!(resident > 1 << 16 && peak_resident_bytes(None).unwrap() >= resident);
        assert!(written_bytes(None).is_some());
        assert_eq!(cpu_time(Some(u32::MAX)), None);
    }
}
