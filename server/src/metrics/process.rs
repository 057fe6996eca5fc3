//! What the kernel knows of this process, under the names that Prometheus' own clients use.

use prometheus::proto::MetricFamily;

use super::{counter, gauge};

/// Ticks of the kernel's accounting of processor time: fixed in its interface to programs.
const TICKS_PER_SECOND: u64 = 100;

/// Returns what is known; nothing where the kernel does not tell.
pub(super) fn families() -> Vec<MetricFamily> {
    let mut families = Vec::new();
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if let Some(kibibytes) = field("VmRSS:") {
            families.push(gauge("process_resident_memory_bytes", "memory in use", &[], kibibytes * 1024));
        }
        if let Some(threads) = field("Threads:") {
            families.push(gauge("process_threads", "threads of the process", &[], threads));
        }
    }
    if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(processor_seconds) {
        families.push(counter("process_cpu_seconds_total", "processor time used", &[], seconds));
    }
    if let Some(seconds) = started() {
        let help = "start of the process, in seconds since the Unix epoch";
        families.push(gauge("process_start_time_seconds", help, &[], seconds));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        families.push(gauge("process_open_fds", "open files and connections", &[], super::as_u64(open.count())));
    }
    families
}

/// Returns when the process started: so many ticks after the machine did.
fn started() -> Option<u64> {
    let line = std::fs::read_to_string("/proc/self/stat").ok()?;
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let machine = machine.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(machine.trim().parse::<u64>().ok()? + ticks_to_start(&line)? / TICKS_PER_SECOND)
}

/// Returns the start of a process out of the kernel's line about it.
fn ticks_to_start(line: &str) -> Option<u64> {
    line.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Returns user and system time out of the kernel's line about a process.
fn processor_seconds(line: &str) -> Option<u64> {
    // The second field is a name in parentheses that may hold anything; user time is the 12th after it.
    let fields = line.rsplit_once(')')?.1;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let line = "42 (a name) with ) S 1 42 42 0 -1 4194560 100 0 0 0 250 151 0 0 20 0 4 0 12345 1000000 200 1 0";
        assert_eq!((processor_seconds(line), ticks_to_start(line)), (Some(4), Some(12345)));
        let families = families();
        let names: Vec<_> = families.iter().map(MetricFamily::name).collect();
        let known = [
            "process_resident_memory_bytes",
            "process_threads",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_open_fds",
        ];
        assert_eq!(names, known);
        assert!(families[0].get_metric()[0].get_gauge().get_value() > 100_000.0);
    }
}
