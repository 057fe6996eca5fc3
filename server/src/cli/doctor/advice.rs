//! What a person should know or do, in plain words.

use kubemq_storage::log::Flush;

use super::disk_speed::Speed;
use super::files::Files;

/// A flush faster than this did not reach anything that keeps its content without power.
const TOO_FAST_US: u64 = 15;
/// A flush slower than this makes single senders slow.
const SLOW_US: u64 = 2_000;
/// The longest flush compared with the usual one, from which on stalls are worth a word.
const STALLS: u64 = 50;
/// Below so much free space sends are refused.
const FREE: u64 = 1 << 30;

/// Returns at least one sentence.
pub(super) fn advice(flush: Flush, speed: Option<&Speed>, free_bytes: Option<u64>, files: &Files) -> Vec<String> {
    let mut advice = Vec::new();
    if let Flush::Interval(interval) = flush {
        advice.push(format!(
            "Durability is interval: the loss of power may take what was acknowledged in the last {} ms and while the \
             disk was catching up. With durability group it takes nothing.",
            interval.as_millis()
        ));
    }
    if let Some(speed) = speed {
        about_speed(speed, &mut advice);
    }
    if let Some(free) = free_bytes.filter(|free| *free < FREE) {
        advice.push(format!(
            "Only {} MiB are free. Below 1 GiB a server refuses new messages until space is made; what is \
             stored can still be received and settled.",
            free >> 20
        ));
    }
    about_files(files, &mut advice);
    if advice.is_empty() {
        advice.push("Nothing to worry about.".to_owned());
    }
    advice
}

fn about_speed(speed: &Speed, advice: &mut Vec<String>) {
    if speed.p50_us < TOO_FAST_US {
        advice.push(
            "Flushes are faster than a disk can be. This is memory, or a disk or file system that does not keep its \
             promise: what was acknowledged may be lost with the power. Put the data on a real disk."
                .to_owned(),
        );
    } else {
        advice.push(format!(
            "A sender that waits for each acknowledgement gets about {} messages a second from this disk; senders \
             at the same time share flushes and get many more.",
            1_000_000 / speed.p50_us.max(1)
        ));
    }
    if speed.p50_us >= SLOW_US {
        advice.push(
            "The disk is slow to flush. A solid-state disk with power-loss protection takes well under a millisecond; \
             network storage seldom does."
                .to_owned(),
        );
    }
    if speed.longest_us > speed.p50_us.max(TOO_FAST_US) * STALLS {
        advice.push(format!(
            "The longest flush took {} ms, far longer than usual. Something else writes to the same disk, or the \
             disk stalls now and then; senders feel it as latency.",
            speed.longest_us / 1000
        ));
    }
}

fn about_files(files: &Files, advice: &mut Vec<String>) {
    let Files::Checked(report) = files else { return };
    if report.is_damaged() && report.is_harmless() {
        advice.push(
            "What is damaged only makes starts fast and is made anew; nothing stored is lost. Look at the disk's own \
             health all the same."
                .to_owned(),
        );
    } else if report.is_damaged() {
        advice.push("`kubemq doctor export` writes down what can still be read.".to_owned());
        advice.push(
            "Stored data is damaged. Do not delete anything: copy the directory first, look at the disk's own health, \
             and do not start a server on it alone. A node of a cluster is replaced by an empty one, which its peers \
             fill; a single node is restored from a backup of the directory."
                .to_owned(),
        );
    } else if report.has_torn_end() {
        advice.push(
            "The last write was cut off, as after a crash. It had not been acknowledged; the next start removes it."
                .to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::files::{FilesReport, Found};
    use super::*;

    fn speed(p50_us: u64, longest_us: u64) -> Speed {
        Speed { flushes: 200, p50_us, p99_us: longest_us, longest_us }
    }

    fn found(torn: bool) -> Files {
        let found = Found { file: "log/1".into(), offset: 3, what: "torn".into(), torn, harmless: false };
        Files::Checked(FilesReport { findings: vec![found], ..FilesReport::default() })
    }

    #[test]
    fn each_finding_has_its_sentence() {
        let whole = || Files::Checked(FilesReport::default());
        let rows = [
            (advice(Flush::Group, None, None, &whole()), "Nothing to worry about."),
            (advice(Flush::Group, Some(&speed(100, 400)), Some(FREE), &whole()), "about 10000 messages a second"),
            (advice(Flush::Group, Some(&speed(3, 9)), None, &whole()), "faster than a disk can be"),
            (advice(Flush::Group, Some(&speed(8_000, 9_000)), None, &whole()), "slow to flush"),
            (advice(Flush::Group, Some(&speed(100, 90_000)), None, &whole()), "The longest flush took 90 ms"),
            (advice(Flush::Group, None, Some(FREE - 1), &whole()), "Only 1023 MiB are free"),
            (advice(Flush::Group, None, None, &found(true)), "The last write was cut off"),
            (advice(Flush::Group, None, None, &found(false)), "Stored data is damaged"),
        ];
        let behind = advice(Flush::Interval(Duration::from_millis(50)), None, None, &whole());
        assert!(behind.len() == 1 && behind[0].contains("in the last 50 ms"), "{behind:?}");
        for (said, expected) in rows {
            assert!(said.iter().any(|sentence| sentence.contains(expected)), "{expected}: {said:?}");
        }
        assert_eq!(advice(Flush::Group, Some(&speed(100, 400)), Some(FREE), &whole()).len(), 1);
    }
}
