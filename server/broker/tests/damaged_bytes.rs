//! Whatever bytes arrive as an operation or as a snapshot, nothing panics, and what was damaged is not taken.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use bytes::{BufMut, Bytes, BytesMut};
use common::Random;
use kubemq_broker::limits::SNAPSHOT_RECORD;
use kubemq_broker::{
    BatchView, ChannelId, Coldest, Kind, MoveItem, MoveMode, Name, Operation, Reader, RestoreError, Sequences, Start,
    State, TimerRef,
};

const SECOND: u64 = 1_000_000_000;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn publish(channel: &str, delay_ms: u64) -> Operation {
    let message = Bytes::from_static(b"message");
    Operation::Publish { kind: Kind::Queue, channel: name(channel), delay_ms, expiration_ms: 5, message }
}

fn operations() -> Vec<Operation> {
    let items = (1..9).map(|sequence| MoveItem { sequence, receive_count: 1, expires_at: 9, stored: None }).collect();
    vec![
        publish("q", 0),
        publish("q", 900),
        Operation::Ack { channel: ChannelId(65_537), sequences: [1, 3, 4, 900].into_iter().collect() },
        Operation::Move { from: ChannelId(65_537), to: (Kind::Queue, name("dead")), mode: MoveMode::DeadLetter, items },
        Operation::Drop { channel: ChannelId(65_537), sequences: Sequences::range(5, u64::MAX) },
        Operation::Release { timers: vec![TimerRef { due: 7, entry: 3, part: 1, scheduled: None }] },
        Operation::Create { kind: Kind::Events, channel: name("events") },
        Operation::Delete { kind: Kind::Queue, channel: name("dead") },
        Operation::Purge { kind: Kind::Queue, channel: name("q"), upto: 60, held: Sequences::range(9, 12) },
        Operation::Tidy { channel: ChannelId(65_537), last_activity: 9 },
        Operation::Beat,
        Operation::Trim { channel: ChannelId(65_537), upto: 7 },
        Operation::OpenCursor { channel: name("events"), reader: Reader::client(&name("c")), start: Start::At(3) },
        Operation::MoveCursor {
            channel: ChannelId(65_537),
            reader: Reader::group(&name("g")),
            after: 70_000,
            events: 2,
            bytes: 300,
        },
    ]
}

fn apply(state: &mut State, operations: &[Bytes]) {
    let entry = state.entry() + 1;
    let time = state.time().saturating_add(SECOND);
    let known = BatchView { origin: entry, epoch: 1, number: 1, first_part: 1, operations };
    let applied = state.apply(entry, time, &[known]);
    assert_eq!(applied.answers.len(), 1);
}

/// Changes a few bytes, cuts, repeats or lengthens.
fn damage(random: &mut Random, bytes: &[u8]) -> Bytes {
    let mut damaged = bytes.to_vec();
    for _ in 0..=random.below(3) {
        if damaged.is_empty() {
            break;
        }
        let place = random.below(damaged.len() as u64) as usize;
        match random.below(6) {
            0 => damaged.truncate(place),
            1 => damaged.insert(place, random.next() as u8),
            2 => damaged[place] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => damaged.extend_from_within(place..),
            _ => damaged[place] ^= 1 << random.below(8),
        }
    }
    damaged.into()
}

#[test]
fn random_bytes_as_operations() {
    let mut random = Random::new(1);
    let readable: Vec<Bytes> = operations().iter().map(Operation::to_bytes).collect();
    let mut state = State::default();
    let mut decoded = 0;
    for round in 0..4_000 {
        let mut batch = vec![publish("q", 0).to_bytes()];
        for _ in 0..20 {
            let bytes: Bytes = if random.once_in(4) {
                // A known code and version, then anything.
                let mut bytes = BytesMut::from(&[1 + random.below(13) as u8, 1][..]);
                (0..random.below(40)).for_each(|_| bytes.put_u8(random.next() as u8));
                bytes.freeze()
            } else {
                let whole: Bytes = random.pick(&readable).clone();
                damage(&mut random, &whole)
            };
            if let Ok(operation) = Operation::decode(&bytes) {
                let again = operation.to_bytes();
                assert_eq!(Operation::decode(&again), Ok(operation), "what was read can be written and read");
                decoded += 1;
            }
            batch.push(bytes);
        }
        apply(&mut state, &batch);
        if round % 100 == 0 {
            let chunks: Vec<Bytes> = state.snapshot().chunks().all().unwrap();
            assert_eq!(State::restore(chunks).unwrap().digest(), state.digest(), "the state is sound");
        }
    }
    assert!(decoded > 10_000, "only {decoded} of 80 000 damaged operations could be read: the damage is too great");
}

/// A state with something of everything: blocks, bitmaps, full ranges, copies, near and far timers, origins.
fn rich_state() -> State {
    let mut state = State::default();
    for entry in 0..80 {
        let mut batch: Vec<Bytes> = Vec::new();
        for _ in 0..60 {
            batch.push(publish("q", 0).to_bytes());
            if entry % 4 == 0 {
                batch.push(publish("r", 0).to_bytes());
            }
        }
        batch.push(publish("q", 100_000).to_bytes());
        batch.push(publish("r", 7_200_000).to_bytes());
        apply(&mut state, &batch);
    }
    let q = state.channel(Kind::Queue, "q").unwrap().id();
    let r = state.channel(Kind::Queue, "r").unwrap().id();
    let items = (1..100).map(|sequence| MoveItem { sequence, receive_count: 2, expires_at: 5, stored: None }).collect();
    let held = (3..4_000).filter(|sequence| sequence % 700 == 0).collect();
    let settle = [
        Operation::Move { from: r, to: (Kind::Queue, name("dead")), mode: MoveMode::DeadLetter, items },
        Operation::Ack { channel: r, sequences: (200..500).filter(|sequence| sequence % 3 != 0).collect() },
        Operation::Purge { kind: Kind::Queue, channel: name("q"), upto: 4_000, held },
        Operation::Create { kind: Kind::Queries, channel: name("queries") },
        Operation::Ack { channel: q, sequences: Sequences::range(4_200, 4_300) },
    ];
    apply(&mut state, &settle.map(|operation| operation.to_bytes()));
    let stored = |_| {
        let message = Bytes::from_static(b"event");
        Operation::Publish { kind: Kind::EventsStore, channel: name("e"), delay_ms: 0, expiration_ms: 0, message }
    };
    apply(&mut state, &(0..90).map(stored).map(|operation| operation.to_bytes()).collect::<Vec<_>>());
    let e = state.channel(Kind::EventsStore, "e").unwrap().id();
    let read = (0..20).map(|number| Operation::OpenCursor {
        channel: name("e"),
        reader: Reader::client(&name(&format!("client-{number}"))),
        start: Start::At(number * 4),
    });
    let trim = [Operation::Trim { channel: e, upto: 30 }];
    apply(&mut state, &read.chain(trim).map(|operation| operation.to_bytes()).collect::<Vec<_>>());
    state
}

fn written(state: &State) -> Vec<u8> {
    state.snapshot().chunks().all().unwrap().into_iter().flatten().collect()
}

#[test]
fn a_snapshot_cut_anywhere_is_refused() {
    let bytes = Bytes::from(written(&rich_state()));
    for length in (0..bytes.len()).step_by(7).chain(bytes.len() - 20..bytes.len()) {
        let Err(error) = State::restore([bytes.slice(..length)]) else { panic!("{length} bytes were taken") };
        assert!(
            matches!(error, RestoreError::Truncated | RestoreError::Record(_) | RestoreError::Contradiction(_)),
            "{length} bytes: {error}"
        );
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert_eq!(State::restore([longer.into()]).err(), Some(RestoreError::Trailing));
}

#[test]
fn a_snapshot_with_any_bit_flipped_is_refused() {
    let bytes = written(&rich_state());
    for bit in 0..bytes.len() * 8 {
        // Every bit of the first records, then a sample.
        if bit > 2_000 && bit % 67 != 0 {
            continue;
        }
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(State::restore([damaged.into()]).is_err(), "bit {bit} of {}", bytes.len() * 8);
    }
}

#[test]
fn random_bytes_as_snapshots() {
    let mut random = Random::new(2);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        assert!(State::restore([bytes.into()]).is_err());
    }
    assert_eq!(State::restore([]).err(), Some(RestoreError::Truncated));
}

/// What versions 1 to 3 wrote is read; without readers and sealed blocks they are alike.
#[test]
fn the_versions_before_are_read() {
    let mut state = State::default();
    apply(&mut state, &[publish("q", 0).to_bytes()]);
    for version in [1, 2, 3] {
        let mut bytes = written(&state);
        bytes[6] = version;
        // A limit of the index stood behind the limit of channels, which takes three bytes.
        bytes[0] += 1;
        bytes.insert(10, 99);
        let bytes = with_right_checksum(&bytes).unwrap();
        assert_eq!(State::restore([bytes.into()]).unwrap().digest(), state.digest());
    }
}

#[test]
fn places_that_the_second_version_wrote_are_read() {
    // Written by the last program of that version: five events, of which a client took three, and a group that began
    // behind them; three messages, of which one was settled.
    let state = State::restore([Bytes::from_static(include_bytes!("samples/version_2.snapshot"))]).unwrap();
    let events = state.channel(Kind::EventsStore, "e").unwrap();
    let place = |reader: Reader| events.cursor(&reader);
    assert_eq!(place(Reader::client(&name("c"))), Some(3));
    assert_eq!(place(Reader::group(&name("g"))), Some(5));
    assert_eq!(place(Reader::client(&name("g"))), None);
    assert_eq!((events.first_sequence(), events.next_sequence()), (Some(1), 6));
    let queue = state.channel(Kind::Queue, "q").unwrap();
    assert_eq!((queue.waiting(), queue.next_alive(0), queue.next_sequence()), (2, Some(2), 4));
    // What was written then says nothing of the last use of places: they are as new as the snapshot.
    assert_eq!(events.stale_cursors(4 * SECOND), 0);
    let again = State::restore(state.snapshot().chunks().all().unwrap()).unwrap();
    assert_eq!(again.digest(), state.digest());
}

#[test]
fn delayed_messages_that_the_fourth_version_wrote_are_read() {
    // Written by the last program of that version: 150 delayed messages of two channels, of which half were near; the
    // other channel was deleted, and nine messages were released.
    let sample = Bytes::from_static(include_bytes!("samples/version_4.snapshot"));
    let mut state = State::restore([sample]).unwrap();
    let b = state.channel(Kind::Queue, "b").unwrap();
    assert_eq!((b.totals().delayed, b.waiting(), state.timer_count()), (94, 6, 141));
    assert_eq!(state.snapshot().living().all().unwrap().len(), 100, "those of the deleted channel are not needed");
    // The blocks that they lie in now stand in no snapshot yet.
    let mut next = Some(Coldest::default());
    while let Some(from) = next {
        next = state.let_go(state.entry(), 0, 0, from, 99);
    }
    assert_eq!(state.sealed_blocks(), 2);
    let again = State::restore(state.snapshot().chunks().all().unwrap()).unwrap();
    assert_eq!((again.digest(), again.index_bytes()), (state.digest(), state.index_bytes()));

    // They are released as they were due: those in the log behind that snapshot do not say what becomes of them.
    let later = state.time() + 7_200 * SECOND;
    let due = state.due(later, SECOND, 1_000).timers;
    assert_eq!(due.len(), 141);
    assert!(due.is_sorted());
    let (old, new) = due.split_at(70);
    let old = old.iter().map(|timer| TimerRef { scheduled: None, ..*timer }).collect();
    for timers in [old, new.to_vec()] {
        let release = [Operation::Release { timers }.to_bytes()];
        let entry = state.entry() + 1;
        let view = BatchView { origin: entry, epoch: 1, number: 1, first_part: 1, operations: &release };
        assert_eq!(state.apply(entry, later, &[view]).answers.len(), 1);
    }
    let b = state.channel(Kind::Queue, "b").unwrap();
    assert_eq!((b.totals().delayed, b.waiting(), state.timer_count()), (0, 100, 0));
}

#[test]
fn another_version_is_named() {
    let mut bytes = written(&State::default());
    // Length, tag, four letters, version.
    bytes[6] = 6;
    assert_eq!(State::restore([bytes.into()]).err(), Some(RestoreError::UnknownVersion(6)));
    assert_eq!(State::restore([Bytes::from_static(b"\x05hello")]).err(), Some(RestoreError::NotASnapshot));
}

#[test]
fn a_record_longer_than_any_that_is_written_is_damage() {
    let whole = written(&rich_state());
    let first = 1 + usize::from(whole[0]);
    // Behind the first record, only what stands before one: its length, seven bits a byte.
    let begun = |length: usize| {
        let bits = [length & 0x7f | 0x80, length >> 7 & 0x7f | 0x80, length >> 14].map(|bits| bits as u8);
        State::restore([Bytes::from([&whole[..first], &bits].concat())]).unwrap_err()
    };
    assert_eq!(begun(SNAPSHOT_RECORD), RestoreError::Truncated, "the rest of it is waited for");
    assert_eq!(begun(SNAPSHOT_RECORD + 1), RestoreError::Record(0));
}

/// The checksum of the snapshot format, written a second time, so that damage can be dressed up as sound.
fn with_right_checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sum: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut word = |word: u64| {
        let mixed = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        sum = (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(29);
    };
    let mut rest = bytes;
    let mut out = Vec::new();
    loop {
        let (mut length, mut shift) = (0_usize, 0);
        let start = rest;
        loop {
            let (byte, left) = rest.split_first()?;
            rest = left;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 21 {
                return None;
            }
        }
        let record = rest.get(..length)?;
        if record.first() == Some(&10) {
            break;
        }
        rest = &rest[length..];
        out.extend_from_slice(&start[..start.len() - rest.len()]);
        word(record.len() as u64);
        for chunk in record.chunks(8) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            if chunk.len() == 8 {
                word(u64::from_le_bytes(padded));
            }
        }
        let mut last = [0; 8];
        let remainder = record.chunks_exact(8).remainder();
        last[..remainder.len()].copy_from_slice(remainder);
        word(u64::from_le_bytes(last));
    }
    let mixed = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    out.extend_from_slice(&[9, 10]);
    out.extend_from_slice(&(mixed ^ (mixed >> 33)).to_le_bytes());
    Some(out)
}

#[test]
fn damage_with_a_right_checksum_is_refused_or_leaves_a_state_that_works() {
    let bytes = written(&rich_state());
    assert_eq!(with_right_checksum(&bytes).as_ref(), Some(&bytes), "the checksum is understood");
    let mut random = Random::new(3);
    let readable: Vec<Bytes> = operations().iter().map(Operation::to_bytes).collect();
    let mut taken = 0;
    for _ in 0..3_000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(2) {
            let place = random.below(damaged.len() as u64) as usize;
            match random.below(4) {
                0 => damaged[place] = random.next() as u8,
                1 => damaged[place] = damaged[place].wrapping_add(1),
                _ => damaged[place] ^= 1 << random.below(8),
            }
        }
        let Some(damaged) = with_right_checksum(&damaged) else { continue };
        let Ok(mut state) = State::restore([damaged.into()]) else { continue };
        taken += 1;
        let living = state.snapshot().living().all().unwrap().len();
        assert!(living > 0);
        for channel in Kind::ALL.into_iter().flat_map(|kind| state.channels(kind)) {
            let mut next = channel.next_alive(0);
            while let Some(sequence) = next {
                assert!(channel.locate(sequence).here().is_some(), "{sequence} waits and is nowhere");
                next = channel.next_alive(sequence + 1);
            }
        }
        apply(&mut state, &readable);
        let later = state.time().saturating_add(10_000 * SECOND);
        let due = state.due(later, SECOND, 100);
        apply(&mut state, &[Operation::Release { timers: due.timers }.to_bytes()]);
        let again =
            State::restore(state.snapshot().chunks().all().unwrap()).expect("what was taken can be written again");
        assert_eq!(again.digest(), state.digest());
    }
    assert!(taken > 150, "only {taken} damaged snapshots were taken: this tests little");
}
