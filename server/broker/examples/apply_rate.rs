//! How fast operations are applied, on one core: run it in release. Prints one line per workload.
//!
//! The operations are encoded beforehand, as they arrive from the log; decoding them is part of what is measured. Rates
//! are per time on a core (Linux only), so that others on the machine disturb little; snapshots are in real time.

#![expect(clippy::print_stdout, reason = "prints its measurements")]
#![expect(clippy::disallowed_methods, reason = "measures real time; nothing that is simulated runs here")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use kubemq_broker::{BatchView, Kind, Name, NameError, Operation, Sequences, State};

const BATCH: u64 = 1024;
const MESSAGES: u64 = 4 * 1024 * 1024;

fn main() -> Result<(), NameError> {
    for channels in [1, 10, 1_000, 100_000] {
        publish_and_ack(channels)?;
    }
    Ok(())
}

/// Publishes to so many channels in turn, then acks everything in batches as a consumer would, then writes it down.
fn publish_and_ack(channels: u64) -> Result<(), NameError> {
    let mut state = State::default();
    let message = Bytes::from(vec![b'm'; 64]);
    let mut names = Vec::new();
    for number in 0..channels {
        names.push(Name::new(&format!("a.channel.of.usual.length.{number}"))?);
    }
    let publish = |number: u64| Operation::Publish {
        kind: Kind::Queue,
        channel: names[(number % channels) as usize].clone(),
        delay_ms: 0,
        expiration_ms: 0,
        message: message.clone(),
    };
    let mut spent = Duration::ZERO;
    for batch in 0..MESSAGES / BATCH {
        let operations: Vec<Bytes> =
            (batch * BATCH..(batch + 1) * BATCH).map(|number| publish(number).to_bytes()).collect();
        spent += apply(&mut state, &operations);
    }
    report(channels, "publish", MESSAGES, spent);

    write_down(&mut state, channels, &publish(0).to_bytes());

    let ids: Vec<_> = state.channels(Kind::Queue).map(|channel| (channel.id(), channel.next_sequence())).collect();
    let mut acks = Vec::new();
    for (channel, next) in ids {
        for first in (1..next).step_by(4) {
            let sequences = Sequences::range(first, (first + 3).min(next - 1));
            acks.push(Operation::Ack { channel, sequences }.to_bytes());
        }
    }
    let mut spent = Duration::ZERO;
    for operations in acks.chunks(BATCH as usize) {
        spent += apply(&mut state, operations);
    }
    report(channels, "ack of 4", acks.len() as u64, spent);
    Ok(())
}

/// What a snapshot costs: beginning it, the first change beside it, writing it, reading it.
fn write_down(state: &mut State, channels: u64, operation: &Bytes) {
    let began = Instant::now();
    let snapshot = state.snapshot();
    let taken = began.elapsed();
    let began = Instant::now();
    apply(state, std::slice::from_ref(operation));
    let first = began.elapsed();
    let began = Instant::now();
    let chunks: Vec<Bytes> = snapshot.chunks().all().unwrap_or_default();
    let (written, bytes) = (began.elapsed(), chunks.iter().map(Bytes::len).sum::<usize>());
    let began = Instant::now();
    let restored = State::restore(chunks).is_ok();
    let read = began.elapsed();
    let index = state.index_bytes();
    println!(
        "{channels:>7} channels: snapshot of {index} bytes of index: begun in {taken:?}, first change {first:?}, \
         {bytes} bytes written in {written:?}, read in {read:?}: {restored}"
    );
}

fn apply(state: &mut State, operations: &[Bytes]) -> Duration {
    let entry = state.entry() + 1;
    let batch = BatchView { origin: 1, epoch: 1, number: entry, first_part: 1, operations };
    let began = on_core();
    let applied = state.apply(entry, 1_700_000_000_000_000_000 + entry, &[batch]);
    let spent = on_core() - began;
    drop(applied);
    spent
}

/// Time on a core so far; none where the system does not tell.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

fn report(channels: u64, what: &str, count: u64, spent: Duration) {
    println!("{channels:>7} channels: {what}: {:.2} M/s", count as f64 / spent.as_secs_f64() / 1e6);
}
