//! Bits flip in sealed files, everywhere: they are found, nothing changed is given out, and the rest is.

use super::*;

/// Flips every so many bits.
const STEP: usize = 61;
const ENTRIES: u64 = 40;

/// A log with some sealed files and one of bodies.
fn bench() -> Bench {
    let bench = Bench::new(small());
    for from in (1..=ENTRIES).step_by(4) {
        bench.run(bench.log.append_synced(entries(1, from..from + 4, 120))).unwrap();
    }
    let bodies = (900..906).map(|entry| Body { entry, part: 1, time: 1, bytes: vec![7; 100].into() }).collect();
    bench.run(bench.log.insert_bodies(bodies)).unwrap();
    bench.log.applied(ENTRIES);
    bench
}

/// Returns how many of the entries are not given back whole. Panics when something else is given back.
async fn lost(salvage: &mut Salvage) -> u64 {
    let mut lost = 0;
    for index in 1..=ENTRIES {
        let written = entry(1, index, 120);
        let mut whole = true;
        for part in 0..2 {
            match salvage.part(index, part).await {
                Ok(read) => assert_eq!((read.time, Some(read.bytes)), (written.time, written.parts.get(part))),
                Err(Error::Damaged { .. } | Error::NotFound { .. }) => whole = false,
                Err(error) => panic!("{error}"),
            }
        }
        lost += u64::from(!whole);
    }
    for body in 900..906 {
        match salvage.part(body, 1).await {
            Ok(read) => assert_eq!(read.bytes, vec![7; 100]),
            Err(Error::Damaged { .. } | Error::NotFound { .. }) => lost += 1,
            Err(error) => panic!("{error}"),
        }
    }
    lost
}

/// Reads a sealed segment piece by piece and returns what is wrong with it.
fn scrub(bench: &Bench, segment: u64) -> Vec<ScrubDamage> {
    let (mut next, mut damaged, mut bytes) = (Some(ScrubPlace::start_of(segment)), Vec::new(), 0);
    while let Some(place) = next {
        let piece = bench.run(bench.log.scrub(place, 600)).unwrap();
        damaged.extend(piece.damaged);
        bytes += piece.bytes;
        next = piece.next;
    }
    assert!(bytes > 0, "segment {segment} was not read");
    damaged
}

#[test]
fn a_bit_that_flips_anywhere_in_a_sealed_file_is_found_and_costs_one_entry_at_most() {
    let bench = bench();
    let disk: Arc<dyn Disk> = Arc::new(bench.disk.clone());
    let sealed: Vec<SegmentInfo> = bench.log.segments().into_iter().filter(|info| info.sealed).collect();
    assert!(sealed.len() > 3 && sealed.iter().any(|info| info.bodies_only));
    let (mut costly, mut harmless) = (0, 0);
    for info in &sealed {
        assert!(scrub(&bench, info.number).is_empty());
        let path = segment::path(&dir(), info.number);
        // Behind its groups only the trailer says something.
        let len = bench.run(async { disk.open(&path).await?.len().await }).unwrap();
        let trailer = if info.bodies_only { len..len } else { len - 32..len };
        for bit in (0..usize::try_from(len * 8).unwrap()).step_by(STEP) {
            let (bit, byte) = (bit as u64, bit as u64 / 8);
            if byte >= info.bytes && !trailer.contains(&byte) {
                continue;
            }
            assert!(bench.disk.flip_bit(&path, bit));
            let mut salvage = bench.run(Salvage::open(Arc::clone(&disk), &dir())).unwrap();
            let findings = &salvage.report().findings;
            assert!(findings.iter().any(|finding| finding.path == path), "bit {bit} of {path:?}: {findings:?}");
            let is_harmless = findings.iter().all(|finding| finding.harmless);
            let lost = bench.run(lost(&mut salvage));
            assert!(lost <= u64::from(!is_harmless), "bit {bit} of {path:?} costs {lost}: {:?}", salvage.report());
            (costly, harmless) = (costly + lost, harmless + u64::from(is_harmless));
            assert!(!scrub(&bench, info.number).is_empty(), "bit {bit} of {path:?} is not found by the scrub");
            assert!(bench.disk.flip_bit(&path, bit));
        }
    }
    assert!(costly > 50 && harmless > 5, "{costly} cost something, {harmless} nothing");
}

#[test]
fn the_time_of_a_damaged_entry_is_known_and_that_of_a_lost_one_is_never_too_early() {
    let bench = bench();
    let sealed: Vec<SegmentInfo> = bench.log.segments().into_iter().filter(|info| info.sealed).collect();
    let second = sealed.iter().find(|info| info.number == 2).unwrap();
    let first = second.first.unwrap();
    let path = segment::path(&dir(), second.number);
    let bytes = bench.run(async { Disk::open(&bench.disk, &path).await?.read_at(0, 2000).await }).unwrap();
    let body = bytes.windows(20).position(|window| window.iter().all(|byte| *byte == window[0] && *byte > 0)).unwrap();
    // The body of the first entry of the segment; then the head of its frame, which stands a little before it.
    for (byte, expected) in [(body + 5, first * 1000), (body - 40, first * 1000)] {
        assert!(bench.disk.flip_bit(&path, 8 * byte as u64));
        bench.log.applied(ENTRIES);
        assert!(bench.run(bench.log.read_part(first, 1)).is_err(), "byte {byte}");
        assert_eq!(bench.run(bench.log.time_of(first)), Some(expected), "byte {byte}");
        // With its head what follows it is lost, too.
        for later in first + 1..=second.last.unwrap() {
            let time = bench.run(bench.log.time_of(later)).unwrap();
            assert!(time >= later * 1000, "byte {byte}: entry {later} at {time}");
        }
        assert!(bench.disk.flip_bit(&path, 8 * byte as u64));
        bench.log.forget_read_ahead();
    }
}

#[test]
fn the_entries_that_a_salvage_gives_are_those_that_were_not_truncated() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..20, 120))).unwrap();
    bench.run(bench.log.truncate_after(Some(id(1, 9)))).unwrap();
    bench.run(bench.log.append_synced(entries(2, 10..15, 50))).unwrap();
    let mut salvage = bench.run(Salvage::open(Arc::new(bench.disk.copy()), &dir())).unwrap();
    let (mut from, mut found) = (0, Vec::new());
    while let Some(entry) = bench.run(salvage.next_entry(from)).unwrap() {
        from = entry.id.index + 1;
        found.push(entry);
    }
    let mut expected = entries(1, 1..10, 120);
    expected.extend(entries(2, 10..15, 50));
    assert_eq!(found, expected);
}

#[test]
fn what_is_gone_or_still_written_to_has_nothing_to_be_scrubbed() {
    let bench = bench();
    let written = bench.log.segments().into_iter().find(|info| !info.sealed).unwrap();
    for segment in [written.number, 999] {
        let piece = bench.run(bench.log.scrub(ScrubPlace::start_of(segment), 600)).unwrap();
        assert!(piece.bytes == 0 && piece.damaged.is_empty() && piece.next.is_none());
    }
}
