//! How often a disk was told to write its cache down, as the kernel counts it for the whole device.
//!
//! It sees every program's fsync and fdatasync alike, without slowing them down; an fsync that also commits the
//! file system's journal may count twice. Nothing is known where there is no `/proc` or the device is not a disk.

use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

/// How many fields of a line of `/proc/diskstats` stand before the number of flushes: the device's numbers and name,
/// eleven of reads and writes, four of discards.
const BEFORE: usize = 3 + 11 + 4;

/// Returns how many flushes the disk under `directory` has completed since the machine started.
pub(crate) fn completed(directory: &Path) -> Option<u64> {
    let device = std::fs::metadata(directory).ok()?.st_dev();
    // The numbers of a device are spread over the bits as the C library has it.
    let major = ((device >> 8) & 0xFFF) | ((device >> 32) & !0xFFF);
    let minor = (device & 0xFF) | ((device >> 12) & !0xFF);
    of_device(&std::fs::read_to_string("/proc/diskstats").ok()?, major, minor)
}

fn of_device(statistics: &str, major: u64, minor: u64) -> Option<u64> {
    statistics.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is = |place: usize, number: u64| fields.get(place).and_then(|field| field.parse().ok()) == Some(number);
        if is(0, major) && is(1, minor) { fields.get(BEFORE)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_device_is_read() {
        let text =
            " 7 0 loop0 1 0 2 0 0 0 0 0 0 0 0 0 0 0 0 5 6\n 254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 449 26\n";
        assert_eq!(of_device(text, 254, 0), Some(449));
        assert_eq!(of_device(text, 7, 0), Some(5));
        assert_eq!(of_device(text, 254, 1), None);
    }
}
