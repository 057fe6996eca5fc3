//! What is marked, and what is left of a log afterwards.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kubemq_runtime::Runtime;
use kubemq_storage::fs::MemoryDisk;
use kubemq_storage::log::Options;
use kubemq_storage::{Entry, EntryKind, LogId, Parts};

use super::*;
use crate::state_machine::{Piece, Pieces, RestoreError};

fn segment(number: u64, first: u64, last: u64) -> SegmentInfo {
    let (first, last) = (Some(first), Some(last));
    SegmentInfo { number, first, last, bytes: 1, parts: 100, sealed: true, bodies_only: false }
}

fn decided(segments: &[SegmentInfo], upto: u64, census: &[(u64, u64)]) -> (Vec<u64>, Vec<u64>) {
    let segments = as_the_next_counts_on(segments.to_vec());
    let (dead, sparse) = decide(segments, upto, &census.iter().copied().collect());
    let dead = dead.iter().map(|segment| segment.number).collect();
    (dead, sparse.iter().map(|sparse| sparse.segment.number).collect())
}

#[test]
fn what_lives_decides() {
    let segments = [segment(1, 0, 9), segment(2, 10, 19), segment(3, 20, 29), segment(4, 30, 39)];
    assert_eq!(decided(&segments, 39, &[]), (vec![1, 2, 3, 4], vec![]));
    assert_eq!(decided(&segments, 39, &[(1, 24), (2, 25), (3, 1)]), (vec![4], vec![3, 1]));
    // Of what lies behind the snapshot it says nothing.
    assert_eq!(decided(&segments, 28, &[(2, 100)]), (vec![1], vec![]));
    let open = SegmentInfo { sealed: false, ..segment(1, 0, 9) };
    assert_eq!(decided(&[open], 39, &[]), (vec![], vec![]));
}

#[test]
fn a_segment_without_entries_goes_with_those_before_it() {
    let vote = SegmentInfo { first: None, last: None, ..segment(2, 0, 0) };
    let segments = [segment(1, 0, 9), vote, segment(3, 10, 12)];
    assert_eq!(decided(&segments, 8, &[]).0, Vec::<u64>::new());
    assert_eq!(decided(&segments, 9, &[]).0, [1, 2]);
}

#[test]
fn the_newest_file_of_bodies_is_not_copied_into_itself() {
    let bodies = |number| SegmentInfo { bodies_only: true, ..segment(number, 0, 9) };
    assert_eq!(decided(&[bodies(1), bodies(2)], 39, &[(1, 1), (2, 1)]), (vec![], vec![1]));
    assert_eq!(decided(&[bodies(1), bodies(2)], 39, &[(1, 1)]), (vec![2], vec![1]));
}

#[test]
fn no_more_is_copied_at_once_than_is_remembered() {
    let large = |number| SegmentInfo { parts: 100 * COPIED_PARTS, ..segment(number, 0, 9) };
    let half = COPIED_PARTS / 2;
    assert_eq!(decided(&[large(1), large(2), large(3)], 39, &[(1, half), (2, half), (3, 1)]).1, [3, 1]);
}

const PARTS: u16 = 20;

fn content(entry: u64, part: u16) -> Bytes {
    format!("{entry}/{part}").repeat(8).into()
}

async fn open(disk: &MemoryDisk) -> Log {
    let options = Options { segment_bytes: 16 << 10, tail_cache_bytes: 1 << 10, ..Options::default() };
    Log::open(Arc::new(disk.clone()), PathBuf::from("log"), options, &Runtime::real()).await.unwrap()
}

async fn append(log: &Log, entries: std::ops::Range<u64>) {
    for index in entries {
        let mut parts = Parts::builder();
        parts.push(b"envelope");
        (1..PARTS).for_each(|part| parts.push(&content(index, part)));
        let id = LogId { term: 1, node: 1, index };
        log.append(vec![Entry { id, time: index, kind: EntryKind::Normal, parts: parts.finish() }], Box::new(drop));
        log.synced(index).await.unwrap();
        log.applied(index);
    }
}

/// Names these parts, a few at a time.
struct Source(Vec<Living>);

impl Pieces<Vec<Living>> for Source {
    fn next(&mut self) -> Result<Piece<Vec<Living>>, RestoreError> {
        if self.0.is_empty() {
            return Ok(Piece::End);
        }
        let rest = self.0.split_off(self.0.len().min(7));
        Ok(Piece::Next(std::mem::replace(&mut self.0, rest)))
    }

    fn feed(&mut self, _: Option<Bytes>) {}
}

/// Marks by what lives, which is named backwards and in part twice.
async fn mark(log: &Log, upto: u64, living: &[Living]) -> Marks {
    let mut named: Vec<Living> = living.iter().rev().copied().collect();
    named.extend(living.iter().step_by(5));
    let walk = || Walk::new(Box::new(Source(named.clone())), None);
    Marks::mark(log, upto, [walk(), walk()]).await.unwrap()
}

async fn reclaim(log: &Log, upto: u64, living: &[Living]) {
    log.purge(LogId { term: 1, node: 1, index: upto }).await.unwrap();
    let mut marks = mark(log, upto, living).await;
    marks.reclaim(log, upto).await.unwrap();
    assert!(marks.is_empty());
}

async fn assert_living(log: &Log, living: &[Living]) {
    for Living { entry, first, count } in living {
        for part in *first..first + count {
            let read = log.read_part(*entry, part).await.unwrap();
            assert_eq!((read.time, read.bytes), (*entry, content(*entry, part)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_living_part_in_each_entry_does_not_keep_the_segments() {
    let disk = MemoryDisk::new();
    let log = open(&disk).await;
    append(&log, 1..300).await;
    let before = log.segments().iter().map(|segment| segment.bytes).sum::<u64>();
    let mut living: Vec<Living> =
        (1..280).map(|entry| Living { entry, first: 1 + u16::try_from(entry % 17).unwrap(), count: 2 }).collect();
    reclaim(&log, 280, &living).await;
    let after: u64 = log.segments().iter().map(|segment| segment.bytes).sum();
    assert!(after * 4 < before, "{after} of {before} bytes are left: {:?}", log.segments());
    assert_living(&log, &living).await;

    // Copies are copied again when little of them lives, and go when nothing does.
    living.retain(|run| run.entry % 9 == 0);
    append(&log, 300..400).await;
    reclaim(&log, 380, &living).await;
    assert_living(&log, &living).await;
    log.close().await.unwrap();
    let log = open(&disk.process_crash()).await;
    assert_living(&log, &living).await;
    reclaim(&log, 390, &living).await;
    assert_living(&log, &living).await;
    reclaim(&log, 395, &[]).await;
    assert!(log.segments().len() <= 2, "{:?}", log.segments());
    assert!(log.read_part(living[0].entry, living[0].first).await.is_err(), "nothing is kept for ever");
}

fn numbers(segments: &[SegmentInfo]) -> Vec<u64> {
    segments.iter().map(|segment| segment.number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_of_which_much_lives_is_left_alone() {
    let disk = MemoryDisk::new();
    let log = open(&disk).await;
    append(&log, 1..200).await;
    let before = log.segments();
    let living: Vec<Living> = (1..190).map(|entry| Living { entry, first: 3, count: PARTS / 2 }).collect();
    reclaim(&log, 190, &living).await;
    assert_eq!(numbers(&log.segments()), numbers(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_keeps_its_segment() {
    let disk = MemoryDisk::new();
    let log = open(&disk).await;
    append(&log, 1..100).await;
    log.close().await.unwrap();
    let log = open(&disk).await;
    let first = log.segments()[0];
    log.purge(LogId { term: 1, node: 1, index: 90 }).await.unwrap();
    let living: Vec<Living> = (1..90).map(|entry| Living { entry, first: 1, count: 1 }).collect();
    let mut marks = mark(&log, 90, &living).await;
    // Somewhere in the first entries.
    for bit in (4000..40_000).step_by(8) {
        assert!(disk.flip_bit(&PathBuf::from(format!("log/{:012}.seg", first.number)), bit));
    }
    assert!(marks.reclaim(&log, 90).await.is_err());
    assert_eq!(log.segments()[0], first);
}
