//! What is read, from where, and how often the disk is asked.

use super::*;

fn filled(options: Options, count: u64, size: usize) -> Bench {
    let bench = Bench::new(options);
    for from in (1..=count).step_by(16) {
        bench.run(bench.log.append_synced(entries(1, from..(from + 16).min(count + 1), size))).unwrap();
    }
    bench
}

#[test]
fn unapplied_entries_stay_in_memory_and_applied_ones_leave_it() {
    let bench = filled(small(), 64, 200);
    assert!(bench.log.stats().tail_bytes > 64 * 200);
    assert!(bench.log.cached_part(1, 1).is_some());
    bench.log.applied(60);
    assert!(bench.log.stats().tail_bytes < 5 * 500);
    assert!(bench.log.cached_part(1, 1).is_none());
    assert!(bench.log.cached_part(61, 1).is_some(), "not applied");
    assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, 1..65, 200));
}

#[test]
fn unsynced_entries_stay_in_memory() {
    let bench = Bench::new(small());
    bench.log.append(entries(1, 1..33, 200), Box::new(|result| result.unwrap()));
    bench.log.applied(32);
    assert!(bench.log.cached_part(1, 1).is_some());
    bench.run(bench.log.synced(32)).unwrap();
    assert!(bench.log.cached_part(1, 1).is_none());
}

#[test]
fn each_part_of_each_entry_comes_back_from_the_files() {
    let bench = filled(small(), 200, 77).restart(small());
    for index in (1..=200).chain((1..=200).rev()) {
        let read = bench.run(bench.log.read_part(index, 1)).unwrap();
        assert_eq!(Some(read.bytes), entry(1, index, 77).parts.get(1));
        assert_eq!(read.time, index * 1000);
    }
    assert!(matches!(bench.run(bench.log.read_part(3, 2)), Err(Error::NotFound { entry: 3, part: 2 })));
    assert!(matches!(bench.run(bench.log.read_part(201, 0)), Err(Error::NotFound { entry: 201, part: 0 })));
}

#[test]
fn who_reads_in_order_asks_the_disk_once_a_mebibyte() {
    let options = Options { segment_bytes: 64 << 20, tail_cache_bytes: 0, group_bytes: 1 << 20, ..Options::default() };
    let bench = filled(options, 8192, 1024).restart(options);
    let before = bench.log.stats().file_reads;
    for index in 1..=8192 {
        bench.run(bench.log.read_part(index, 1)).unwrap();
    }
    // 8.8 MiB: the first read is short because nobody knew yet, and each ends within a frame.
    let reads = bench.log.stats().file_reads - before;
    assert!(reads <= 24, "{reads}");
    assert_eq!(bench.run(bench.log.entries(1, 8193, u64::MAX)).unwrap().len(), 8192);
}

#[test]
fn what_is_read_ahead_is_bounded() {
    let options = Options { segment_bytes: 64 << 20, tail_cache_bytes: 0, group_bytes: 1 << 20, ..Options::default() };
    let bench = filled(options, 3072, 8 << 10).restart(options);
    let mut most = 0;
    for index in 1..=3072 {
        bench.run(bench.log.read_part(index, 1)).unwrap();
        let stats = bench.log.stats();
        most = most.max(stats.read_ahead_bytes);
        assert!(stats.read_ahead_bytes <= stats.read_ahead_most, "{stats:?}");
    }
    // It was reached: less than the largest chunk was left.
    assert!(most + (1 << 20) > bench.log.stats().read_ahead_most, "{most}");
}

#[test]
fn the_page_cache_keeps_what_was_written_or_read_last() {
    const MOST: u64 = 8 << 20;
    let options = Options {
        segment_bytes: 4 << 20,
        tail_cache_bytes: 0,
        page_cache_bytes: MOST,
        group_bytes: 1 << 20,
        ..Options::default()
    };
    let bench = filled(options, 3072, 8 << 10);
    bench.world.settle();
    let (stats, gone) = (bench.log.stats(), bench.disk.counters().bytes_let_go);
    assert!(stats.page_cache_bytes <= MOST && stats.page_cache_bytes > MOST / 4, "{stats:?}");
    assert!(gone > stats.bytes - MOST && gone < stats.bytes, "{gone} of {}", stats.bytes);
    // After a start nothing counts as written lately.
    let bench = bench.restart(options);
    let before = bench.disk.counters().bytes_let_go;
    let most = bench.log.stats().page_cache_most;
    let mut read = 0;
    for _ in 0..4 {
        bench.log.forget_read_ahead();
        let entries = bench.run(bench.log.entries(1, 3073, u64::MAX)).unwrap();
        read += entries.iter().map(|entry| entry.parts.as_bytes().len() as u64).sum::<u64>();
        assert!(bench.log.stats().page_cache_bytes <= most);
    }
    bench.world.settle();
    let gone = bench.disk.counters().bytes_let_go - before;
    assert!(gone + (most - MOST) >= read, "{gone} of {read}");
    assert!(gone < read, "what was read last stays");
}

#[test]
fn a_read_gives_at_least_one_entry_and_stops_at_the_bound() {
    for bench in [filled(small(), 32, 300), filled(small(), 32, 300).restart(small())] {
        assert_eq!(bench.run(bench.log.entries(5, 20, 1)).unwrap(), entries(1, 5..6, 300));
        let some = bench.run(bench.log.entries(5, 30, 1000)).unwrap();
        assert!((3..5).contains(&some.len()));
        assert_eq!(bench.run(bench.log.entries(30, 99, u64::MAX)).unwrap(), entries(1, 30..33, 300));
        assert!(matches!(bench.run(bench.log.entries(33, 34, 1)), Err(Error::NotFound { entry: 33, .. })));
        assert!(bench.run(bench.log.entries(7, 7, 1)).unwrap().is_empty());
    }
}

#[test]
fn below_the_purge_point_parts_are_readable_and_entries_are_not() {
    let bench = filled(small(), 64, 100);
    bench.run(bench.log.purge(id(1, 40))).unwrap();
    assert!(matches!(bench.run(bench.log.entries(40, 50, 1)), Err(Error::Purged { index: 40 })));
    assert_eq!(bench.run(bench.log.entries(41, 65, u64::MAX)).unwrap().len(), 24);
    let bench = bench.restart(small());
    assert_eq!(bench.run(bench.log.read_part(7, 0)).unwrap().bytes, "1/7");
    assert!(bench.run(bench.log.entries(7, 50, 1)).is_err());
}

#[test]
fn positions_are_sparse() {
    let options = Options { segment_bytes: 4 << 20, tail_cache_bytes: 0, group_bytes: 1 << 20, ..Options::default() };
    let bench = filled(options, 8192, 1024);
    let samples = bench.log.0.shared.index.lock().positions.len();
    assert!((130..160).contains(&samples), "{samples} samples of 9 MiB");
    let segments = bench.log.segments().len();
    let bench = bench.restart(options);
    assert_eq!(bench.log.segments().len(), segments);
    let again = bench.log.0.shared.index.lock().positions.len();
    assert_eq!(again, samples, "footers and frames give the same samples");
}

#[test]
fn what_was_read_ahead_of_a_truncation_is_forgotten() {
    let options = Options { segment_bytes: 1 << 20, tail_cache_bytes: 0, group_bytes: 1024, ..Options::default() };
    let bench = filled(options, 64, 100).restart(options);
    assert_eq!(bench.run(bench.log.all()).unwrap().len(), 64);
    bench.run(bench.log.truncate_after(Some(id(1, 30)))).unwrap();
    bench.run(bench.log.append_synced(entries(2, 31..65, 90))).unwrap();
    bench.log.applied(64);
    let read = bench.run(bench.log.all()).unwrap();
    assert_eq!(read[..30], entries(1, 1..31, 100));
    assert_eq!(read[30..], entries(2, 31..65, 90));
}

#[test]
fn many_parts_come_back_at_once_from_memory_files_and_bodies() {
    let parts = |index: u64| {
        let mut builder = Parts::builder();
        (0..9_u64).for_each(|part| builder.push(&[index as u8, part as u8].repeat(40)));
        builder.finish()
    };
    let bench = Bench::new(small());
    let wanted: Vec<Entry> = (1..=40).map(|index| Entry { parts: parts(index), ..entry(1, index, 1) }).collect();
    bench.run(bench.log.append_synced(wanted.clone())).unwrap();
    let check = |bench: &Bench, index: u64| {
        let read = bench.run(bench.log.read_parts(index, 2..7)).unwrap();
        let entry = &wanted[usize::try_from(index).unwrap() - 1];
        assert_eq!(read.time, entry.time);
        assert_eq!(read.bytes, (2..7).map(|part| entry.parts.get(part).unwrap()).collect::<Vec<_>>(), "{index}");
    };
    assert!(bench.log.cached_parts(7, 2..7).is_some());
    check(&bench, 7);
    let bench = bench.restart(small());
    assert!(bench.log.cached_parts(7, 2..7).is_none());
    (1..=40).for_each(|index| check(&bench, index));
    assert!(bench.log.cached_parts(40, 2..7).is_some(), "read ahead");
    assert!(matches!(bench.run(bench.log.read_parts(7, 8..10)), Err(Error::NotFound { entry: 7, part: 9 })));
    assert!(matches!(bench.run(bench.log.read_parts(41, 0..1)), Err(Error::NotFound { entry: 41, part: 0 })));
    let body = |part: u16| Body { entry: 7, part, time: 7_000, bytes: parts(7).get(part).unwrap() };
    bench.run(bench.log.insert_bodies((0..9).map(body).collect())).unwrap();
    assert!(bench.log.cached_parts(7, 2..7).is_none());
    check(&bench, 7);
}

/// Whoever is slow with a message must not keep a mebibyte of the log in memory for it.
#[test]
fn a_small_part_keeps_nothing_else_in_memory() {
    let options = Options { tail_cache_bytes: 1 << 20, ..Options::default() };
    let bench = filled(options, 64, 200);
    let large = |bench: &Bench| {
        let mut parts = Parts::builder();
        (0..8).for_each(|part| parts.push(&vec![part; if part == 7 { 2000 } else { 100 }]));
        let entry = Entry { id: id(1, 65), time: 65, kind: EntryKind::Normal, parts: parts.finish() };
        bench.run(bench.log.append_synced(vec![entry])).unwrap();
    };
    large(&bench);
    let read = |bench: &Bench, index, part| bench.run(bench.log.read_part(index, part)).unwrap().bytes;
    assert!(read(&bench, 65, 1).is_unique(), "of an entry in memory");
    assert!(!read(&bench, 65, 7).is_unique(), "most of it is not copied");
    let bench = bench.restart(Options { tail_cache_bytes: 0, ..options });
    bench.log.applied(65);
    assert!(read(&bench, 7, 1).is_unique(), "of what was read from a file");
}
