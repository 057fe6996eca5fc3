//! What is written, when it is synced, and in which order it is answered.

use super::*;

#[test]
fn entries_are_readable_at_once_and_synced_when_told() {
    let bench = Bench::new(small());
    let told = Arc::new(Mutex::new(Vec::new()));
    for index in 1..=3 {
        let told = Arc::clone(&told);
        bench.log.append(
            entries(1, index..index + 1, 10),
            Box::new(move |result| told.lock().push((index, result.is_ok()))),
        );
    }
    assert_eq!(bench.log.state().last, Some(id(1, 3)));
    assert_eq!(bench.log.state().synced_index, 0);
    assert_eq!(bench.log.cached_part(2, 0).unwrap().bytes, "1/2");
    assert!(told.lock().is_empty());
    bench.run(bench.log.synced(3)).unwrap();
    assert_eq!(*told.lock(), [(1, true), (2, true), (3, true)]);
    assert_eq!(bench.log.state().synced_index, 3);
}

#[test]
fn one_group_of_many_requests_is_one_fdatasync() {
    let bench = Bench::new(Options::default());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    bench.world.settle();
    let before = bench.disk.counters();
    for index in 2..66 {
        bench.log.append(entries(1, index..index + 1, 1024), Box::new(|result| result.unwrap()));
    }
    let vote = bench.log.save_vote(Vote { term: 2, node: 1, committed: false });
    bench.run(vote).unwrap();
    let after = bench.disk.counters();
    assert_eq!((after.syncs - before.syncs, after.writes - before.writes), (1, 1));
    let amplification = (after.bytes_written - before.bytes_written) as f64 / (64.0 * 1024.0);
    assert!(amplification < 1.11, "{amplification}");
}

#[test]
fn entries_are_answered_before_they_are_flushed_now_and_then() {
    let interval = std::time::Duration::from_millis(500);
    let options = Options { flush: Flush::Interval(interval), ..Options::default() };
    let bench = Bench::new(options);
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    let before = bench.disk.counters().syncs;
    for index in 2..12 {
        bench.run(bench.log.append_synced(entries(1, index..index + 1, 100))).unwrap();
    }
    let last = |disk: MemoryDisk| Bench::on(disk, options).log.state().last;
    // The least of what may be left.
    let power_lost = || (0..50).map(|seed| last(bench.disk.power_loss(&Random::from_seed(seed)))).min().unwrap();
    assert_eq!(bench.disk.counters().syncs, before);
    assert!(bench.log.stats().unflushed_bytes > 1000);
    assert_eq!(last(bench.disk.process_crash()), Some(id(1, 11)), "the process takes nothing with it");
    assert_eq!(power_lost(), Some(id(1, 1)), "the power takes what was not flushed");

    let clock = bench.world.runtime().clock;
    bench.run(clock.sleep(interval + std::time::Duration::from_millis(10)));
    assert_eq!(bench.disk.counters().syncs, before + 1);
    assert_eq!((bench.log.stats().unflushed_bytes, power_lost()), (0, Some(id(1, 11))));
    // A mark is all that follows.
    bench.run(clock.sleep(std::time::Duration::from_secs(60)));
    assert_eq!((bench.disk.counters().syncs, bench.log.stats().marks), (before + 1, 1));

    bench.run(bench.log.append_synced(entries(1, 12..13, 100))).unwrap();
    bench.run(bench.log.save_vote(Vote { term: 2, node: 1, committed: false })).unwrap();
    assert_eq!(power_lost(), Some(id(1, 12)), "a vote takes with it what stands before it");
    bench.run(bench.log.append_synced(entries(2, 13..14, 100))).unwrap();
    bench.run(bench.log.close()).unwrap();
    assert_eq!(power_lost(), Some(id(2, 13)), "and so does the end");
}

#[test]
fn an_idle_log_writes_one_mark_and_then_nothing() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    let groups = bench.log.stats().groups;
    let clock = bench.world.runtime().clock;
    bench.run(clock.sleep(std::time::Duration::from_millis(150)));
    let stats = bench.log.stats();
    assert_eq!((stats.groups, stats.marks), (groups + 1, 1));
    let counters = bench.disk.counters();
    bench.run(clock.sleep(std::time::Duration::from_secs(10)));
    assert_eq!(bench.disk.counters(), counters, "an idle log does no disk work");
}

#[test]
fn entries_that_do_not_follow_are_refused() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..3, 10))).unwrap();
    for bad in [entries(1, 4..5, 1), entries(1, 2..3, 1)] {
        assert!(matches!(bench.run(bench.log.append_synced(bad)), Err(Error::Refused { .. })));
    }
    let mut gap = entries(1, 3..4, 1);
    gap.extend(entries(1, 5..6, 1));
    assert!(bench.run(bench.log.append_synced(gap)).is_err());
    assert_eq!(bench.log.state().last, Some(id(1, 2)));
}

#[test]
fn hard_state_comes_back() {
    let bench = Bench::new(small());
    let vote = Vote { term: 4, node: 2, committed: true };
    bench
        .run(async {
            bench.log.save_node_id(77).await?;
            bench.log.save_vote(vote).await?;
            bench.log.append_synced(entries(4, 1..6, 10)).await?;
            bench.log.save_committed(id(4, 4));
            bench.log.save_snapshot_pointer(id(4, 3), "three").await?;
            bench.log.purge(id(4, 2)).await
        })
        .unwrap();
    let before = bench.log.state();
    let after = bench.restart(small()).log.state();
    assert_eq!(after, before);
    assert_eq!((after.node_id, after.vote, after.committed), (Some(77), vote, Some(id(4, 4))));
    assert_eq!((after.snapshot, after.purged), (Some((id(4, 3), "three".to_owned())), Some(id(4, 2))));
}

#[test]
fn committed_is_never_ahead_of_the_entries_on_disk() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    bench.log.append(entries(1, 2..6, 900), Box::new(|result| result.unwrap()));
    bench.log.save_committed(id(1, 5));
    bench.run(bench.log.synced(3)).unwrap();
    let crashed = Bench::on(bench.disk.process_crash(), small());
    let state = crashed.log.state();
    assert!(state.committed <= state.last, "{state:?}");
    bench.run(bench.log.synced(5)).unwrap();
    bench.run(bench.log.save_vote(Vote::default())).unwrap();
    assert_eq!(bench.restart(small()).log.state().committed, Some(id(1, 5)));
}

#[test]
fn a_truncation_is_a_frame_and_later_frames_win() {
    let mut bench = Bench::new(small());
    let mut longest = 0;
    bench.run(bench.log.append_synced(entries(1, 1..8, 100))).unwrap();
    for term in 2..12 {
        bench.run(bench.log.truncate_after(Some(id(1, 3)))).unwrap();
        assert_eq!(bench.log.state().last, Some(id(1, 3)));
        assert!(bench.run(bench.log.entries(4, 5, 1)).is_err());
        bench.run(bench.log.append_synced(entries(term, 4..8, 100))).unwrap();
        let bytes: u64 = bench.log.segments().iter().map(|segment| segment.bytes).sum();
        assert!(bytes > longest, "nothing is cut");
        longest = bytes;
        let mut expected = entries(1, 1..4, 100);
        expected.extend(entries(term, 4..8, 100));
        assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
        bench = bench.restart(small());
        assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
        // From the files, too: nothing is in memory after the restart.
        assert_eq!(bench.run(bench.log.read_part(5, 0)).unwrap().bytes, format!("{term}/5"));
    }
    assert!(bench.log.segments().len() > 3);
    bench.run(bench.log.truncate_after(None)).unwrap();
    assert_eq!(bench.restart(small()).log.state().last, None);
}

#[test]
fn a_truncation_that_overtakes_a_write_leaves_no_old_entry() {
    let bench = Bench::new(small());
    bench.log.append(entries(1, 1..9, 100), Box::new(|result| result.unwrap()));
    let truncated = bench.log.truncate_after(Some(id(1, 4)));
    bench.run(truncated).unwrap();
    bench.run(bench.log.synced(4)).unwrap();
    bench.run(bench.log.append_synced(entries(2, 5..7, 100))).unwrap();
    bench.run(bench.log.synced(6)).unwrap();
    bench.log.applied(6);
    let mut expected = entries(1, 1..5, 100);
    expected.extend(entries(2, 5..7, 100));
    assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
    assert_eq!(bench.run(bench.log.read_part(7, 0)).unwrap_err().to_string(), "part 0 of entry 7 is not stored here");
    let bench = bench.restart(small());
    assert_eq!(bench.run(bench.log.all()).unwrap(), expected);
}

#[test]
fn a_purge_beyond_the_end_begins_anew() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..6, 50))).unwrap();
    bench.run(bench.log.purge(id(3, 100))).unwrap();
    assert_eq!(bench.log.state().last, Some(id(3, 100)));
    bench.run(bench.log.synced(100)).unwrap();
    bench.run(bench.log.append_synced(entries(3, 101..104, 50))).unwrap();
    let bench = bench.restart(small());
    assert_eq!(bench.run(bench.log.all()).unwrap(), entries(3, 101..104, 50));
    // What was purged can still be delivered, what never was here cannot.
    assert_eq!(bench.run(bench.log.read_part(5, 0)).unwrap().bytes, "1/5");
    assert!(!bench.log.has_part(50, 0) && bench.log.has_part(5, 0) && bench.log.has_part(102, 1));
    assert!(matches!(bench.run(bench.log.read_part(50, 0)), Err(Error::NotFound { entry: 50, part: 0 })));
}

#[test]
fn an_entry_at_index_zero_is_one_like_others() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 0..2, 10))).unwrap();
    bench.run(bench.log.synced(1)).unwrap();
    bench.run(bench.log.truncate_after(Some(id(1, 0)))).unwrap();
    let bench = bench.restart(small());
    assert_eq!(bench.log.state().last, Some(id(1, 0)));
    assert_eq!(bench.run(bench.log.entries(0, 1, 10)).unwrap(), entries(1, 0..1, 10));
}

#[test]
fn closing_ends_all_tasks_and_dropping_does_too() {
    let bench = Bench::new(small());
    bench.run(bench.log.append_synced(entries(1, 1..2, 10))).unwrap();
    bench.run(bench.log.close()).unwrap();
    bench.world.settle();
    assert_eq!(bench.world.tasks(), 0);
    assert_eq!(bench.log.stats().marks, 1);
    assert!(matches!(bench.run(bench.log.save_vote(Vote::default())), Err(Error::Closed)));
    bench.run(bench.log.close()).unwrap();
    let Bench { world, log, .. } = Bench::new(small());
    drop(log);
    world.settle();
    assert_eq!(world.tasks(), 0);
}
