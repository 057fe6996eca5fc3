//! A read-only look at the files of a stopped node: every frame and every part is read and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::Kind;
use super::scan::{self, Window};
use super::segment::{self, Beginning, HEADER, Header, Purpose};
use crate::Error;
use crate::fs::Disk;

/// Something in a file that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// Where in the file.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// Whether an open would cut it as the torn end of the log; anything else is damage.
    pub torn: bool,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Segments that were read.
    pub segments: u64,
    /// Valid write groups.
    pub groups: u64,
    /// Entries, also truncated and purged ones.
    pub entries: u64,
    /// Single parts that snapshots brought.
    pub bodies: u64,
    /// Bytes of valid groups.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Reads all segments in `dir` and changes nothing. The log must not be open.
///
/// # Errors
///
/// What the disk says, and [`Error::UnknownVersion`]. Damage is reported, not returned.
pub async fn check(disk: Arc<dyn Disk>, dir: &Path) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut numbers: Vec<u64> = disk.list(dir).await?.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    let mut newest_log = 0;
    for number in &numbers {
        if check_segment(&disk, dir, *number, &mut report).await? == Some(Purpose::Log) {
            newest_log = *number;
        }
    }
    // Only the newest segment of the log can have a torn end.
    let newest = segment::path(dir, newest_log);
    for finding in &mut report.findings {
        finding.torn &= finding.path >= newest;
    }
    Ok(report)
}

async fn check_segment(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    number: u64,
    report: &mut Report,
) -> Result<Option<Purpose>, Error> {
    let path = segment::path(dir, number);
    let file = disk.open(&path).await?;
    let mut window = Window::open(&file, &path).await?;
    let bytes = window.get(0, HEADER).await?;
    let header = match Header::decode(&bytes, number, &path)? {
        Beginning::Header(header) => header,
        beginning => {
            let behind = scan::look_behind(&mut window, number, HEADER as u64, 0).await?;
            let blank = match beginning {
                Beginning::Zero => !behind.dirty,
                _ => matches!(beginning, Beginning::Other) && behind.group.is_none(),
            };
            if !blank {
                let (what, torn) = ("the header of the segment is not valid".to_owned(), behind.group.is_none());
                report.findings.push(Finding { path, offset: 0, what, torn });
            }
            return Ok(None);
        }
    };
    report.segments += 1;
    let (limit, mut sealed) = (window.len, false);
    let scanned = scan::scan(&mut window, number, header.first_sequence, limit, |group| {
        report.groups += 1;
        for (_, frame) in &group.frames {
            match frame.head.kind {
                Kind::Entry(_) => report.entries += 1,
                Kind::Body => report.bodies += 1,
                Kind::Footer => sealed = true,
                _ => {}
            }
        }
        Ok(())
    })
    .await;
    match scanned {
        Ok(scanned) => {
            report.bytes += scanned.end;
            if scanned.dirty && !sealed && !header.reused {
                let what = "bytes behind the last valid write group".to_owned();
                report.findings.push(Finding { path, offset: scanned.end, what, torn: true });
            }
        }
        Err(Error::Damaged { path, offset, what }) => {
            report.findings.push(Finding { path, offset, what, torn: false });
        }
        Err(error) => return Err(error),
    }
    Ok(Some(header.purpose))
}
