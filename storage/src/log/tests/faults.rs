//! Disks that fail, stop half-way, are late, lie, or change bits: what they do is detected, stays where it
//! is, and has a name.

use std::io::ErrorKind;
use std::time::Duration;

use super::*;
use crate::fs::FaultyDisk;
use crate::fs::faulty::{Call, Fault, Operation};

/// Opens a log on a disk that asks `decide`, in a world of its own.
fn faulty(
    inner: &MemoryDisk,
    decide: impl Fn(&Call<'_>) -> Fault + Send + Sync + 'static,
) -> (World, Result<Log, Error>) {
    let world = World::default();
    let runtime = world.runtime();
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(Arc::new(inner.clone()), runtime.clock.clone(), decide));
    let log = world.run(Log::open(disk, dir(), small(), &runtime));
    (world, log)
}

/// A fault for the n-th of the calls that `hit` chooses.
fn nth(
    n: u64,
    fault: Fault,
    hit: impl Fn(&Call<'_>) -> bool + Send + Sync,
) -> impl Fn(&Call<'_>) -> Fault + Send + Sync {
    let count = AtomicU64::new(0);
    move |call| {
        if hit(call) && count.fetch_add(1, Ordering::SeqCst) == n { fault } else { Fault::None }
    }
}

/// What a scripted run had answered when it ended, and how it ended.
struct Outcome {
    answered: u64,
    asked: u64,
    error: Option<Error>,
}

/// Appends, votes, truncates and reads until something fails.
fn script(world: &World, log: &Log) -> Outcome {
    let mut outcome = Outcome { answered: 0, asked: 0, error: None };
    let result = world.run(async {
        for index in 1..30 {
            outcome.asked = index;
            log.append_synced(entries(1, index..index + 1, 150)).await?;
            outcome.answered = index;
            log.applied(index);
            log.save_vote(Vote { term: index, node: 1, committed: false }).await?;
            if index % 10 == 0 {
                assert_eq!(log.read_part(index / 2, 0).await?.bytes, format!("1/{}", index / 2));
            }
        }
        Ok(())
    });
    outcome.error = result.err();
    outcome
}

/// Opens what a crash left: everything that was answered is there, and nothing that was never asked for.
fn assert_kept(disk: MemoryDisk, outcome: &Outcome, place: &str) {
    let bench = Bench::try_on(disk, small()).unwrap_or_else(|error| panic!("{place}: {error}"));
    let last = bench.log.state().last.map_or(0, |last| last.index);
    assert!((outcome.answered..=outcome.asked).contains(&last), "{place}: {last}");
    assert!(bench.log.state().vote.term >= outcome.answered.saturating_sub(1), "{place}");
    assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, 1..last + 1, 150), "{place}");
}

#[test]
fn whichever_call_fails_nothing_answered_is_lost_and_nothing_more_is_answered() {
    let kinds = [Fault::Fail(ErrorKind::Other), Fault::Short];
    let (mut met, mut failed) = (0, 0);
    for fault in kinds {
        for n in 0.. {
            let disk = MemoryDisk::new();
            let counted = Arc::new(AtomicU64::new(0));
            let read = Arc::new(AtomicBool::new(false));
            let (count, is_read) = (Arc::clone(&counted), Arc::clone(&read));
            let decide = nth(n, fault, move |call| {
                if count.fetch_add(1, Ordering::SeqCst) == n {
                    is_read.store(call.operation == Operation::Read, Ordering::SeqCst);
                }
                true
            });
            let place = format!("{fault:?} at call {n}");
            let (world, log) = faulty(&disk, decide);
            let Ok(log) = log else {
                met += 1;
                assert_kept(disk.process_crash(), &Outcome { answered: 0, asked: 0, error: None }, &place);
                continue;
            };
            let outcome = script(&world, &log);
            if counted.load(Ordering::SeqCst) <= n {
                break;
            }
            met += 1;
            if let Some(error) = &outcome.error {
                // A read concerns who asked for it; anything else ends the log.
                assert_eq!(log.state().failed, !read.load(Ordering::SeqCst), "{place}: {error}");
                if log.state().failed {
                    failed += 1;
                    let later = world.run(log.append_synced(entries(1, outcome.asked + 1..outcome.asked + 2, 1)));
                    assert!(later.is_err(), "{place}: answered after a failure");
                    assert!(log.failure().borrow().is_some());
                }
            }
            let random = Random::from_seed(n);
            world.crash();
            assert_kept(disk.process_crash(), &outcome, &place);
            assert_kept(disk.power_loss(&random), &outcome, &place);
        }
    }
    assert!(met > 200 && failed > 100, "{met} faults met, {failed} logs failed");
}

fn is_segment_sync(call: &Call<'_>) -> bool {
    call.operation == Operation::Sync && call.path.extension().is_some_and(|extension| extension == "seg")
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_the_next_open_cuts_there() {
    // The first sync of a segment reserves it, the second one is the first group's.
    for n in [4, 5, 7, 11] {
        let disk = MemoryDisk::new();
        let (world, log) = faulty(&disk, nth(n, Fault::Fail(ErrorKind::Other), is_segment_sync));
        let log = log.unwrap();
        let outcome = script(&world, &log);
        assert!(matches!(outcome.error, Some(Error::Disk { .. })), "{n}");
        let before = disk.counters();
        for _ in 0..3 {
            assert!(world.run(log.save_vote(Vote::default())).is_err());
            assert!(world.run(log.append_synced(entries(1, outcome.asked + 1..outcome.asked + 2, 1))).is_err());
            assert!(world.run(log.synced(outcome.asked + 1)).is_err());
        }
        assert!(world.run(log.close()).is_err());
        assert_eq!(disk.counters(), before, "nothing is written after the failure");
        world.crash();
        // Opened twice: what was cut must not come back once the note is gone.
        let bench = Bench::on(disk.process_crash(), small()).restart(small());
        let state = bench.log.state();
        let votes = state.vote.term;
        // Entry and vote alternate: exactly what was answered is left.
        assert_eq!(state.last.map_or(0, |last| last.index), outcome.answered, "{n}");
        assert!(votes == outcome.answered || votes + 1 == outcome.answered, "{n}: {votes}");
        let next = outcome.answered + 1;
        bench.run(bench.log.append_synced(entries(1, next..next + 3, 150))).unwrap();
        let bench = Bench::on(bench.disk.power_loss(&Random::from_seed(n)), small());
        assert_eq!(bench.run(bench.log.all()).unwrap(), entries(1, 1..next + 3, 150));
    }
}

#[test]
fn when_even_the_note_fails_what_is_shown_after_a_failed_sync_is_on_the_disk() {
    let mut entries_in_doubt = 0;
    for n in 4..16 {
        let disk = MemoryDisk::new();
        let sync = nth(n, Fault::Fail(ErrorKind::Other), is_segment_sync);
        let (world, log) = faulty(&disk, move |call| {
            let note = call.path.ends_with(recovery::NOTE) && call.operation == Operation::Create;
            if note { Fault::Fail(ErrorKind::Other) } else { sync(call) }
        });
        let outcome = script(&world, &log.unwrap());
        assert!(outcome.error.is_some());
        // The pages of the failed sync look clean now, and are not on the disk.
        for name in world.run(Disk::list(&disk, &dir())).unwrap() {
            disk.forget_unflushed(&dir().join(name));
        }
        world.crash();
        let bench = Bench::on(disk.process_crash(), small());
        let (shown, vote) = (bench.run(bench.log.all()).unwrap(), bench.log.state().vote);
        entries_in_doubt += shown.len() as u64 - outcome.answered;
        let lost = Bench::on(bench.disk.power_loss(&Random::from_seed(n)), small());
        assert_eq!((lost.run(lost.log.all()).unwrap(), lost.log.state().vote), (shown, vote), "{n}");
    }
    assert!(entries_in_doubt > 2, "the page cache shows entries whose sync failed: {entries_in_doubt}");
}

#[test]
fn a_late_disk_answers_late_and_in_order() {
    let disk = MemoryDisk::new();
    let random = Random::from_seed(1);
    let (world, log) = faulty(&disk, move |_| Fault::Late(Duration::from_micros(random.below(50_000))));
    let log = log.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    for index in 1..40 {
        let told = Arc::clone(&told);
        let done = Box::new(move |result: Result<(), Error>| told.lock().push((index, result.is_ok())));
        log.append(entries(1, index..index + 1, 200), done);
        if index % 7 == 0 {
            world.run(log.synced(index)).unwrap();
        }
    }
    world.run(log.synced(39)).unwrap();
    assert_eq!(*told.lock(), (1..40).map(|index| (index, true)).collect::<Vec<_>>());
    assert!(log.stats().fdatasync_latency[10..].iter().sum::<u64>() > 0);
}

#[test]
fn a_sync_that_lied_is_detected_where_a_later_group_survived() {
    let (mut damaged, mut shorter) = (0, 0);
    for seed in 0..300 {
        let disk = MemoryDisk::new();
        let lying = Arc::new(AtomicBool::new(false));
        let lies = Arc::clone(&lying);
        let (world, log) = faulty(&disk, move |call| {
            if lies.load(Ordering::SeqCst) && call.operation == Operation::Sync { Fault::Lie } else { Fault::None }
        });
        let log = log.unwrap();
        world.run(log.append_synced(entries(1, 1..4, 60))).unwrap();
        lying.store(true, Ordering::SeqCst);
        for index in 4..9 {
            world.run(log.append_synced(entries(1, index..index + 1, 60))).unwrap();
        }
        world.crash();
        match Bench::try_on(disk.power_loss(&Random::from_seed(seed)), small()) {
            Err(Error::Damaged { path, what, .. }) => {
                assert!(path.starts_with(dir()) && what.contains("flushed"), "{what}");
                damaged += 1;
            }
            Err(error) => panic!("{error}"),
            Ok(bench) => {
                // No later group was left to tell: at least no entry is shown without those before it.
                let found = bench.run(bench.log.all()).unwrap();
                assert!(found.len() >= 3);
                assert_eq!(found, entries(1, 1..found.len() as u64 + 1, 60));
                shorter += 1;
            }
        }
    }
    assert!(damaged > 30 && shorter > 30, "{damaged} detected, {shorter} without a later group");
}

#[test]
fn a_read_that_flips_a_bit_is_named_and_the_next_one_is_fine() {
    let disk = MemoryDisk::new();
    let flipping = Arc::new(AtomicU64::new(u64::MAX));
    let bit = Arc::clone(&flipping);
    let (world, log) = faulty(&disk, move |call| match bit.load(Ordering::SeqCst) {
        u64::MAX => Fault::None,
        _ if call.operation != Operation::Read => Fault::None,
        bit => Fault::FlipBit(bit),
    });
    let log = log.unwrap();
    world.run(log.append_synced(entries(1, 1..20, 100))).unwrap();
    log.applied(19);
    assert!(log.cached_part(3, 1).is_none());
    let mut damaged = 0;
    for bit in 0..400 * 8 {
        // Only what was read and checked well is kept, so each read here goes to the disk.
        log.0.shared.index.lock().forget_read_ahead(0);
        flipping.store(bit, Ordering::SeqCst);
        match world.run(log.read_part(3, 1)) {
            Ok(read) => assert_eq!(Some(read.bytes), entry(1, 3, 100).parts.get(1)),
            Err(error) => {
                assert!(error.is_damage() && error.to_string().contains(".seg is damaged at byte"), "{error}");
                damaged += 1;
            }
        }
        flipping.store(u64::MAX, Ordering::SeqCst);
        log.0.shared.index.lock().forget_read_ahead(0);
        assert!(world.run(log.read_part(3, 1)).is_ok());
    }
    assert!(damaged > 500, "{damaged}");
    assert!(!log.state().failed, "a read that fails stops nobody else");
}

#[test]
fn a_bit_flipped_anywhere_is_damage_or_harmless_but_never_content() {
    flip_every_bit(&Bench::new(small()), 1);
}

#[test]
fn a_bit_flipped_in_a_file_that_was_written_again_is_damage_or_harmless_but_never_content() {
    let bench = Bench::new(small());
    // The same entries in the same places, all of them valid in their time.
    bench.run(bench.log.append_synced(entries(1, 1..40, 120))).unwrap();
    free_all(&bench, 39);
    flip_every_bit(&bench, 40);
    let reused = |info: &SegmentInfo| {
        let file = bench.run(Disk::open(&bench.disk, &segment::path(&dir(), info.number))).unwrap();
        let header = bench.run(file.read_at(0, segment::HEADER)).unwrap();
        let header = segment::Header::decode(&header, info.number, &dir()).unwrap();
        matches!(header, segment::Beginning::Header(header) if header.reused)
    };
    assert!(bench.log.segments().iter().filter(|info| reused(info)).count() >= 2);
}

fn flip_every_bit(bench: &Bench, from: u64) {
    bench.run(bench.log.append_synced(entries(1, from..from + 15, 120))).unwrap();
    bench.run(bench.log.save_vote(Vote { term: 3, node: 2, committed: true })).unwrap();
    bench.run(bench.log.append_synced(entries(1, from + 15..from + 19, 120))).unwrap();
    // The mark of a clean stop closes the one hole: bit rot in the very last group.
    bench.run(bench.log.close()).unwrap();
    let expected = entries(1, from..from + 19, 120);
    let state = bench.log.state();
    let (mut damaged, mut fine) = (0, 0);
    for info in bench.log.segments() {
        let path = segment::path(&dir(), info.number);
        for byte in 0..info.bytes + 40 {
            let disk = bench.disk.copy();
            assert!(disk.flip_bit(&path, byte * 8 + byte % 8));
            let found = Bench::try_on(disk, small()).and_then(|again| {
                let entries = again.run(again.log.all())?;
                Ok((again.log.state(), entries))
            });
            match found {
                Ok((found, entries)) => {
                    assert_eq!(
                        (found, entries),
                        (state.clone(), expected.clone()),
                        "byte {byte} of {}",
                        path.display()
                    );
                    fine += 1;
                }
                Err(error) => {
                    assert!(error.is_damage(), "{error}");
                    assert!(error.to_string().contains("data/log/0/"), "{error}");
                    damaged += 1;
                }
            }
        }
    }
    assert!(damaged > 3000 && fine > 0, "{damaged} named, {fine} harmless");
}

#[test]
fn a_bit_flipped_on_its_way_to_the_disk_is_found_by_the_check() {
    let disk = MemoryDisk::new();
    let is_write = |call: &Call<'_>| call.operation == Operation::Write;
    let (world, log) = faulty(&disk, nth(3, Fault::FlipBit(2000), is_write));
    let log = log.unwrap();
    for index in 1..6 {
        world.run(log.append_synced(entries(1, index..index + 1, 300))).unwrap();
    }
    let report = world.run(check(Arc::new(disk.copy()), &dir())).unwrap();
    assert!(report.findings.iter().any(|finding| !finding.torn && finding.what.contains("checksum")), "{report:?}");
    world.crash();
    let found = Bench::try_on(disk.process_crash(), small()).and_then(|bench| bench.run(bench.log.all()));
    assert!(found.is_err_and(|error| error.is_damage()));
}

#[test]
fn the_check_finds_nothing_in_a_whole_log_and_a_torn_end_in_a_torn_one() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..40, 120))).unwrap();
    let body = Body { entry: 900, part: 1, time: 1, bytes: "x".into() };
    bench.run(bench.log.insert_bodies(vec![body])).unwrap();
    let report = bench.run(check(Arc::new(bench.disk.copy()), &dir())).unwrap();
    assert_eq!((report.entries, report.bodies, report.findings.len()), (39, 1, 0), "{report:?}");
    let newest = bench.log.segments().into_iter().rfind(|info| !info.bodies_only).unwrap();
    let path = segment::path(&dir(), newest.number);
    let file = bench.run(Disk::open(&bench.disk, &path)).unwrap();
    bench.run(file.write_at(newest.bytes, &["torn".into()])).unwrap();
    let report = bench.run(check(Arc::new(bench.disk.copy()), &dir())).unwrap();
    assert!(matches!(&report.findings[..], [finding] if finding.torn && finding.offset == newest.bytes), "{report:?}");
    let again = bench.restart(small());
    assert_eq!(again.run(again.log.all()).unwrap().len(), 39);
}

#[test]
fn a_full_disk_has_its_own_error_and_costs_nothing_that_was_answered() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 100))).unwrap();
    bench.world.settle();
    let used = |disk: &MemoryDisk| {
        let names = bench.run(Disk::list(disk, &dir())).unwrap();
        let files = names.iter().map(|name| bench.run(Disk::open(disk, &dir().join(name))).unwrap());
        files.map(|file| bench.run(file.len()).unwrap()).sum::<u64>()
    };
    bench.disk.set_capacity(used(&bench.disk) + 1000);
    let mut answered = 1;
    let error = loop {
        match bench.run(bench.log.append_synced(entries(1, answered + 1..answered + 2, 100))) {
            Ok(()) => answered += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_disk_full(), "{error}");
    assert!(answered > 10, "the reserved segment is used up first: {answered}");
    assert!(bench.log.state().failed);
    let disk = bench.disk.process_crash();
    disk.set_capacity(u64::MAX);
    let again = Bench::on(disk, small());
    let last = again.log.state().last.unwrap().index;
    assert_eq!(last, answered, "nothing half-written is seen");
    assert_eq!(again.run(again.log.all()).unwrap(), entries(1, 1..last + 1, 100));
}

#[test]
fn room_that_was_made_in_time_is_used() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 100))).unwrap();
    bench.world.settle();
    // The next reservation fails; nobody needs it yet.
    bench.disk.set_capacity(0);
    let file_len = small().segment_bytes + segment::FOOTER_ROOM;
    bench.disk.set_capacity(2 * file_len + 100);
    let mut next = 2;
    while bench.log.segments().len() < 2 {
        bench.run(bench.log.append_synced(entries(1, next..next + 1, 100))).unwrap();
        next += 1;
    }
    bench.world.settle();
    bench.disk.set_capacity(u64::MAX);
    bench.run(bench.log.append_synced(entries(1, next..next + 40, 100))).unwrap();
    assert_eq!(bench.run(bench.log.all()).unwrap().len() as u64, next + 39);
}
