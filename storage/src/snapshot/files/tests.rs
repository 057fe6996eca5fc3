use super::*;
use crate::fs::MemoryDisk;
use crate::fs::memory::{Observer, Step};
use futures_util::FutureExt;
use kubemq_runtime::Random;
use std::sync::atomic::{AtomicU64, Ordering};

fn dir() -> PathBuf {
    PathBuf::from("/data/snapshots")
}

/// The calls of a disk in memory are ready at once; what is waited for here are only turns.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    (0..10_000).find_map(|_| future.as_mut().now_or_never()).expect("a memory disk never waits")
}

fn open(disk: &MemoryDisk) -> Files {
    now(Files::open(Arc::new(disk.clone()), dir())).unwrap()
}

/// Writes a snapshot from its first to its last chunk.
async fn write(files: &Files, meta: Bytes, chunks: impl IntoIterator<Item = Bytes>) -> Result<SnapshotFile, Error> {
    let mut writer = files.begin(meta).await?;
    for chunk in chunks {
        if let Err(error) = writer.push(chunk).await {
            writer.abandon().await;
            return Err(error);
        }
    }
    writer.finish().await
}

/// What was in a file.
#[derive(Debug)]
struct Loaded {
    file: SnapshotFile,
    meta: Bytes,
    chunks: Vec<Bytes>,
}

async fn read(files: &Files, file: &SnapshotFile) -> Result<Loaded, Error> {
    let mut reader = files.hold(file).await?.reader().await?;
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().await? {
        chunks.push(chunk);
    }
    Ok(Loaded { file: file.clone(), meta: reader.meta().clone(), chunks })
}

async fn newest(files: &Files) -> Result<Option<Loaded>, Error> {
    match files.files().last() {
        Some(file) => read(files, file).await.map(Some),
        None => Ok(None),
    }
}

fn meta(number: u64) -> Bytes {
    Bytes::from(format!("metadata of {number}"))
}

/// Content that depends on the number; empty, small, and larger than one write.
fn chunks(number: u64) -> Vec<Bytes> {
    let random = Random::from_seed(number);
    let lengths = [0, 1, 700, 9_000, 300_000, 1_200_000, 5];
    let chunk = |length| {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes);
        Bytes::from(bytes)
    };
    lengths.into_iter().map(chunk).collect()
}

fn small(number: u64) -> Vec<Bytes> {
    (0..700).map(|n| Bytes::from(format!("chunk {n} of {number}"))).collect()
}

#[test]
fn what_was_written_is_read_and_two_are_kept() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    assert!(now(newest(&snapshots)).unwrap().is_none());
    for number in 1..=4 {
        let file = now(write(&snapshots, meta(number), chunks(number))).unwrap();
        let loaded = now(newest(&snapshots)).unwrap().unwrap();
        assert_eq!((loaded.file, loaded.meta, loaded.chunks), (file, meta(number), chunks(number)));
    }
    for snapshots in [snapshots, open(&disk)] {
        let files = snapshots.files();
        assert_eq!(files.iter().map(|file| file.number).collect::<Vec<_>>(), [3, 4]);
        let loaded = now(read(&snapshots, &files[0])).unwrap();
        assert_eq!((loaded.meta, loaded.chunks), (meta(3), chunks(3)));
    }
    assert_eq!(now(disk.list(&dir())).unwrap().len(), 2);
}

#[test]
fn a_snapshot_without_content_is_a_snapshot() {
    let snapshots = open(&MemoryDisk::new());
    now(write(&snapshots, Bytes::new(), [])).unwrap();
    let loaded = now(newest(&snapshots)).unwrap().unwrap();
    assert_eq!((loaded.meta, loaded.chunks), (Bytes::new(), vec![]));
}

#[test]
fn an_abandoned_snapshot_leaves_nothing_and_an_unfinished_one_until_the_next_opening() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let mut writer = now(snapshots.begin(meta(1))).unwrap();
    now(writer.push(Bytes::from_static(b"a chunk"))).unwrap();
    now(writer.abandon());
    assert!(now(disk.list(&dir())).unwrap().is_empty());
    drop(now(snapshots.begin(meta(2))).unwrap());
    assert_eq!(now(disk.list(&dir())).unwrap().len(), 1);
    open(&disk);
    assert!(now(disk.list(&dir())).unwrap().is_empty());
}

#[test]
fn a_reader_reads_on_while_newer_snapshots_are_written() {
    let snapshots = open(&MemoryDisk::new());
    let file = now(write(&snapshots, meta(1), chunks(1))).unwrap();
    let mut reader = now(now(snapshots.hold(&file)).unwrap().reader()).unwrap();
    for number in 2..6 {
        now(write(&snapshots, meta(number), small(number))).unwrap();
    }
    assert!(!snapshots.files().contains(&file));
    assert_eq!(reader.meta(), &meta(1));
    for chunk in chunks(1) {
        assert_eq!(now(reader.next_chunk()).unwrap(), Some(chunk));
    }
    assert_eq!(now(reader.next_chunk()).unwrap(), None);
    assert_eq!(now(reader.next_chunk()).unwrap(), None);
}

#[test]
fn what_is_too_large_to_be_read_back_is_refused() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let refused = now(write(&snapshots, Bytes::from(vec![0; MAX_META_BYTES + 1]), []));
    assert!(matches!(refused, Err(Error::Refused { .. })));
    let refused = now(write(&snapshots, meta(1), [Bytes::from(vec![0; MAX_CHUNK_BYTES + 1])]));
    assert!(matches!(refused, Err(Error::Refused { .. })));
    assert!(now(disk.list(&dir())).unwrap().is_empty());
}

/// Changes the file `name` on the disk.
fn spoil(disk: &MemoryDisk, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir().join(name);
    let file = now(disk.open(&path)).unwrap();
    let length = usize::try_from(now(file.len()).unwrap()).unwrap();
    let mut bytes = now(file.read_at(0, length)).unwrap().to_vec();
    change(&mut bytes);
    now(file.set_len(0)).unwrap();
    now(file.write_at(0, &[Bytes::from(bytes)])).unwrap();
}

#[test]
fn every_flipped_bit_and_every_cut_is_found_and_named() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let content = [Bytes::from_static(b"first"), Bytes::new(), Bytes::from_static(b"third")];
    let file = now(write(&snapshots, Bytes::from_static(b"meta"), content.clone())).unwrap();
    let path = dir().join(&file.name);
    let length = now(now(disk.open(&path)).unwrap().len()).unwrap();
    let fails = |case: &str| match now(read(&open(&disk), &file)) {
        Err(Error::Damaged { path: named, .. } | Error::UnknownVersion { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{case}: {other:?}"),
    };
    for bit in 0..length * 8 {
        let byte = usize::try_from(bit / 8).unwrap();
        spoil(&disk, &file.name, |bytes| bytes[byte] ^= 1 << (bit % 8));
        fails(&format!("bit {bit}"));
        spoil(&disk, &file.name, |bytes| bytes[byte] ^= 1 << (bit % 8));
    }
    for cut in 0..length {
        let copy = disk.copy();
        spoil(&copy, &file.name, |bytes| bytes.truncate(usize::try_from(cut).unwrap()));
        let snapshots = open(&copy);
        assert!(matches!(now(read(&snapshots, &file)), Err(Error::Damaged { .. })), "cut at {cut}");
    }
    spoil(&disk, &file.name, |bytes| bytes.push(0));
    fails("a byte more");
    spoil(&disk, &file.name, |bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(now(read(&open(&disk), &file)).unwrap().chunks, content);
}

#[test]
fn exchanged_and_repeated_chunks_are_found() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let file =
        now(write(&snapshots, Bytes::new(), [Bytes::from_static(b"aaaa"), Bytes::from_static(b"bbbb")])).unwrap();
    let (first, second) = (HEADER, HEADER + CHUNK_HEADER + 4);
    let exchanged = disk.copy();
    spoil(&exchanged, &file.name, |bytes| {
        let (head, tail) = bytes.split_at_mut(second);
        head[first..].swap_with_slice(&mut tail[..CHUNK_HEADER + 4]);
    });
    assert!(matches!(now(read(&open(&exchanged), &file)), Err(Error::Damaged { .. })));
    let dropped = disk.copy();
    spoil(&dropped, &file.name, |bytes| drop(bytes.drain(second..second + CHUNK_HEADER + 4)));
    assert!(matches!(now(read(&open(&dropped), &file)), Err(Error::Damaged { .. })));
}

#[test]
fn a_snapshot_that_was_found_damaged_does_not_push_out_a_whole_one() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    for number in 1..=2 {
        now(write(&snapshots, meta(number), small(number))).unwrap();
    }
    let newest = snapshots.files()[1].clone();
    spoil(&disk, &newest.name, |bytes| bytes[200] ^= 1);
    let snapshots = open(&disk);
    assert!(matches!(now(read(&snapshots, &newest)), Err(Error::Damaged { .. })));
    now(write(&snapshots, meta(3), small(3))).unwrap();
    assert_eq!(snapshots.files().iter().map(|file| file.number).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(now(read(&snapshots, &snapshots.files()[0])).unwrap().meta, meta(1));
}

#[test]
fn a_snapshot_of_a_newer_program_is_refused_by_name() {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let file = now(write(&snapshots, meta(1), small(1))).unwrap();
    spoil(&disk, &file.name, |bytes| bytes[8] = 9);
    assert!(matches!(now(read(&snapshots, &file)), Err(Error::UnknownVersion { found: 9, known: 1, .. })));
}

/// Writes four snapshots while every step is followed by a check of what a crash would leave there.
fn crash_everywhere(crash: fn(&MemoryDisk, u64) -> MemoryDisk) -> u64 {
    let disk = MemoryDisk::new();
    let snapshots = open(&disk);
    let completed = Arc::new(AtomicU64::new(0));
    let cuts = Arc::new(AtomicU64::new(0));
    let observer: Observer = {
        let (completed, cuts) = (Arc::clone(&completed), Arc::clone(&cuts));
        Arc::new(move |step: Step, disk: &MemoryDisk| {
            let completed = completed.load(Ordering::Relaxed);
            for seed in 0..4 {
                let cut = cuts.fetch_add(1, Ordering::Relaxed);
                let found = open(&crash(disk, cut));
                let case = format!("cut {cut} (seed {seed}) after {step:?} with {completed} completed");
                let loaded = now(newest(&found)).expect(&case);
                let number = loaded.as_ref().map_or(0, |loaded| loaded.file.number);
                // The last completed one, or the one that was being completed.
                assert!(number == completed || number == completed + 1, "{case}: found {number}");
                if let Some(loaded) = loaded {
                    assert_eq!((loaded.meta, loaded.chunks), (meta(number), small(number)), "{case}");
                }
                // Nothing half-written is visible, and all that is visible can be read.
                for file in found.files() {
                    now(read(&found, &file)).expect(&case);
                }
                let names = now(found.0.disk.list(&dir())).unwrap();
                assert_eq!(names.len(), found.files().len(), "{case}: {names:?}");
            }
        })
    };
    disk.observe(observer);
    for number in 1..=4 {
        now(write(&snapshots, meta(number), small(number))).unwrap();
        completed.store(number, Ordering::Relaxed);
    }
    cuts.load(Ordering::Relaxed)
}

#[test]
fn a_power_loss_anywhere_leaves_the_last_snapshot_or_the_one_before_whole() {
    let cuts = crash_everywhere(|disk, seed| disk.power_loss(&Random::from_seed(seed)));
    assert!(cuts >= 100, "{cuts} cuts");
}

#[test]
fn a_crash_of_the_process_anywhere_leaves_the_last_snapshot_or_the_one_before_whole() {
    let cuts = crash_everywhere(|disk, _| disk.process_crash());
    assert!(cuts >= 100, "{cuts} cuts");
}
