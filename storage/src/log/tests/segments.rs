//! Segments: how they follow each other, what is removed, and what snapshots bring.

use std::time::Duration;

use super::*;

#[test]
fn a_frame_larger_than_a_segment_has_its_own() {
    let bench = Bench::new(small());
    let sizes = [10, 5000, 10, 100_000, 3000, 10];
    for (n, size) in sizes.iter().enumerate() {
        let index = n as u64 + 1;
        bench.run(bench.log.append_synced(entries(1, index..index + 1, *size))).unwrap();
    }
    let expected: Vec<Entry> = sizes.iter().enumerate().map(|(n, size)| entry(1, n as u64 + 1, *size)).collect();
    assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
    let bench = bench.restart(small());
    assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
    assert_eq!(bench.run(bench.log.read_part(4, 1)).unwrap().bytes.len(), 100_000);
    bench.run(bench.log.append_synced(entries(1, 7..9, 500))).unwrap();
    assert_eq!(bench.restart(small()).log.state().last, Some(id(1, 8)));
}

#[test]
fn a_segment_that_is_full_is_followed_by_another() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..100, 200))).unwrap();
    let segments = bench.log.segments();
    assert!(segments.iter().all(|segment| segment.bytes <= small().segment_bytes), "{segments:?}");
    // None was left half empty either.
    assert!((segments.len() as u64) < 2 * 99 * 250 / small().segment_bytes, "{segments:?}");
}

#[test]
fn two_segments_may_begin_with_one_index() {
    let options = Options { segment_bytes: 700, ..small() };
    let bench = Bench::new(options);
    // Each entry fills a segment, so entry 2 begins one in each term.
    bench.run(bench.log.append_synced(entries(1, 1..4, 500))).unwrap();
    for term in 2..5 {
        bench.run(bench.log.truncate_after(Some(id(1, 1)))).unwrap();
        bench.run(bench.log.append_synced(entries(term, 2..4, 500))).unwrap();
    }
    let begins = bench.log.segments().iter().filter(|segment| segment.first == Some(2)).count();
    assert!(begins >= 2, "{:?}", bench.log.segments());
    let mut expected = entries(1, 1..2, 500);
    expected.extend(entries(4, 2..4, 500));
    let bench = bench.restart(options);
    assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
}

#[test]
fn only_sealed_and_purged_segments_are_removed() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..60, 200))).unwrap();
    let segments = bench.log.segments();
    assert!(segments.len() > 4);
    let refused = |number| bench.run(bench.log.remove_segments(vec![number])).is_err();
    assert!(refused(segments[0].number), "not purged");
    let purged = segments[2].last.unwrap();
    bench.run(bench.log.purge(id(1, purged))).unwrap();
    assert!(refused(segments.last().unwrap().number), "not sealed");
    assert!(refused(segments[3].number), "not purged");
    let part = bench.run(bench.log.read_part(1, 0)).unwrap();
    assert_eq!(part.bytes, "1/1");
    let numbers: Vec<u64> = segments[..3].iter().map(|segment| segment.number).collect();
    bench.run(bench.log.remove_segments(numbers.clone())).unwrap();
    assert_eq!(bench.log.segments()[0], segments[3]);
    bench.log.applied(59);
    let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
    assert!(numbers.iter().all(|number| !names.iter().any(|name| segment::number(name) == Some(*number))));
    let bench = bench.restart(small());
    assert!(matches!(bench.run(bench.log.read_part(1, 0)), Err(Error::NotFound { .. })));
    assert!(!bench.log.has_part(1, 0) && bench.log.has_part(purged + 1, 0));
    assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, purged + 1..60, 200));
}

#[test]
fn a_drained_log_has_two_files() {
    let bench = Bench::new(small());
    for from in (1..200).step_by(8) {
        bench.run(bench.log.append_synced(entries(1, from..from + 8, 100))).unwrap();
    }
    bench.run(bench.log.purge(id(1, 200))).unwrap();
    let sealed: Vec<u64> =
        bench.log.segments().iter().filter(|segment| segment.sealed).map(|segment| segment.number).collect();
    bench.run(bench.log.remove_segments(sealed)).unwrap();
    bench.run(bench.world.runtime().clock.sleep(Duration::from_secs(61)));
    bench.log.look_after_disk();
    bench.world.settle();
    let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
    assert!(names.len() <= 2, "{names:?}");
}

#[test]
fn files_of_removed_segments_are_written_again_and_forgotten_by_a_restart() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..60, 200))).unwrap();
    free_all(&bench, 59);
    let free = |disk: &MemoryDisk, world: &World| {
        let names = world.run(Disk::list(disk, &dir())).unwrap();
        names.iter().filter(|name| segment::is_free(name)).count()
    };
    let freed = free(&bench.disk, &bench.world);
    assert!(freed > 3, "{freed}");
    bench.run(bench.log.append_synced(entries(1, 60..80, 200))).unwrap();
    bench.world.settle();
    let left = free(&bench.disk, &bench.world);
    assert!(left + 2 <= freed, "{left} of {freed} are left");
    let lost: Vec<_> = (0..20).map(|seed| bench.disk.power_loss(&Random::from_seed(seed))).collect();
    for disk in std::iter::once(bench.disk.process_crash()).chain(lost) {
        let bench = Bench::on(disk, small());
        assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, 60..80, 200));
        assert_eq!(free(&bench.disk, &bench.world), 0);
        bench.run(bench.log.append_synced(entries(1, 80..90, 200))).unwrap();
        let bench = bench.restart(small());
        assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, 60..90, 200));
    }
}

#[test]
fn no_more_freed_files_are_kept_than_may_be_and_none_for_long() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..200, 200))).unwrap();
    let free = || {
        let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
        names.iter().filter(|name| segment::is_free(name)).count()
    };
    let before = bench.log.segments().len();
    free_all(&bench, 199);
    assert!(before > keeper::FREE_FILES + 4, "{before}");
    assert_eq!(free(), keeper::FREE_FILES);
    let look = || {
        bench.log.look_after_disk();
        bench.world.settle();
    };
    look();
    assert_eq!(free(), keeper::FREE_FILES, "they may be written again soon");
    bench.run(bench.world.runtime().clock.sleep(keeper::FREE_FOR));
    look();
    assert_eq!(free(), 0);
}

#[test]
fn a_file_that_somebody_reads_is_not_written_again() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..60, 200))).unwrap();
    let files: Vec<_> = bench.log.0.shared.index.lock().segments.values().map(|segment| segment.file.clone()).collect();
    free_all(&bench, 59);
    let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
    assert!(!names.iter().any(|name| segment::is_free(name)), "{names:?}");
    drop(files);
}

fn bodies(range: std::ops::Range<u64>) -> Vec<Body> {
    let body = |entry: u64, part: u16| Body { entry, part, time: entry, bytes: format!("body {entry}/{part}").into() };
    range.flat_map(|entry| [body(entry, 4), body(entry, 1), body(entry, 2)]).collect()
}

#[test]
fn inserted_bodies_are_read_like_others_and_survive() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..6, 50))).unwrap();
    bench.run(bench.log.purge(id(2, 90))).unwrap();
    bench.run(bench.log.insert_bodies(bodies(3..40))).unwrap();
    bench.run(bench.log.insert_bodies(bodies(40..90))).unwrap();
    bench.run(bench.log.insert_bodies(Vec::new())).unwrap();
    let lost = bench.disk.power_loss(&Random::from_seed(1));
    for bench in [bench, Bench::on(lost, small())] {
        for entry in 3..90 {
            for part in [1, 2, 4] {
                let read = bench.run(bench.log.read_part(entry, part)).unwrap();
                assert_eq!((read.time, read.bytes), (entry, format!("body {entry}/{part}").into()));
                assert!(bench.log.has_part(entry, part));
            }
            assert!(!bench.log.has_part(entry, 3) || entry < 6);
            assert!(bench.run(bench.log.read_part(entry, 3)).is_err());
        }
        // What the log itself holds is there where no body was brought.
        assert_eq!(bench.run(bench.log.read_part(4, 0)).unwrap().bytes, "1/4");
        let only: Vec<u64> =
            bench.log.segments().iter().filter(|info| info.bodies_only).map(|info| info.number).collect();
        assert!(!only.is_empty());
        bench.run(bench.log.remove_segments(only)).unwrap();
        assert!(bench.run(bench.log.read_part(50, 1)).is_err());
        bench.run(bench.log.insert_bodies(bodies(50..51))).unwrap();
        assert!(bench.run(bench.log.read_part(50, 1)).is_ok());
    }
}

#[test]
fn a_missing_segment_above_the_purge_point_is_damage() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..60, 200))).unwrap();
    let segments = bench.log.segments();
    bench.run(bench.log.purge(id(1, segments[1].last.unwrap()))).unwrap();
    for (place, fine) in [(0, true), (1, true), (2, false), (3, false)] {
        let disk = bench.disk.process_crash();
        let path = segment::path(&dir(), segments[place].number);
        bench.run(Disk::remove(&disk, &path)).unwrap();
        let opened = Bench::try_on(disk, small());
        assert_eq!(opened.is_ok(), fine, "segment {place}");
        assert!(fine || opened.is_err_and(|error| error.is_damage()));
    }
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    let number = bench.log.segments()[0].number;
    let path = segment::path(&dir(), number);
    let file = bench.run(Disk::open(&bench.disk, &path)).unwrap();
    let mut header = bench.run(file.read_at(0, segment::HEADER)).unwrap().to_vec();
    header[8] = 9;
    let checksum = crc32c::crc32c(&header[..segment::HEADER - 4]);
    header[segment::HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
    bench.run(file.write_at(0, &[header.into()])).unwrap();
    let error = Bench::try_on(bench.disk.process_crash(), small()).err().unwrap();
    assert!(matches!(error, Error::UnknownVersion { found: 9, known: 1, .. }));
    assert!(error.to_string().contains("has format version 9"), "{error}");
}

#[test]
fn the_next_segment_is_reserved_before_it_is_needed() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    bench.world.settle();
    let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
    assert_eq!(names.len(), 2, "the active one and the next: {names:?}");
}

#[test]
fn a_disk_that_fills_up_is_noticed_before_it_is_full_and_so_is_its_end() {
    let options = Options { reserve_bytes: 1 << 20, ..small() };
    let disk = MemoryDisk::new();
    disk.set_capacity(40 << 20);
    let bench = Bench::on(disk, options);
    let looked_at = || {
        bench.log.look_after_disk();
        bench.world.settle();
        bench.log.is_nearly_full()
    };
    assert!(!looked_at());
    assert!(bench.log.free_bytes().is_some_and(|free| free > 39 << 20));
    let other = PathBuf::from("other");
    let file = bench.run(Disk::create(&bench.disk, &other)).unwrap();
    bench.run(file.allocate((39 << 20) + 8192)).unwrap();
    assert!(looked_at(), "{:?}", bench.log.free_bytes());
    bench.run(bench.log.append_synced(entries(1, 1..20, 500))).unwrap();
    assert!(looked_at(), "what is left is there to be used");
    free_all(&bench, 19);
    let names = bench.run(Disk::list(&bench.disk, &dir())).unwrap();
    assert!(!names.iter().any(|name| segment::is_free(name)), "room is given back: {names:?}");
    bench.run(file.set_len(39 << 20)).unwrap();
    assert!(looked_at(), "a little more must be free before it is over");
    bench.run(file.set_len(30 << 20)).unwrap();
    assert!(!looked_at());
}
