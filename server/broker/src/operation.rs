//! Operations: the changes that entries carry, and their bytes. Each opens with its code and the version of its
//! layout. Decoding is total: what this version does not know or cannot read is a [`DecodeError`], never a panic, and
//! `apply` answers it with a refusal.

use bytes::{BufMut, Bytes, BytesMut};

use crate::channel::ChannelId;
use crate::codec::{Malformed, put_number, take_byte, take_bytes, take_number, take_number_u16, take_number_u32};
use crate::cursors::{Reader, Start};
use crate::limits::{ENTRY_BOUND, MOVE_ITEMS, RELEASE_TIMERS};
use crate::name::{Kind, Name, NameError};
use crate::sequences::Sequences;
use crate::timer::{Expiration, Scheduled};

/// The layout that this version writes and reads, for every operation but those that follow.
const VERSION: u8 = 1;
/// The layout of a move that this version writes; it reads the first one, too.
const MOVE_VERSION: u8 = 2;
/// The layout of a release that this version writes; it reads the first one, too.
const RELEASE_VERSION: u8 = 2;

const PUBLISH: u8 = 1;
const ACK: u8 = 2;
const MOVE: u8 = 3;
const DROP: u8 = 4;
const RELEASE: u8 = 5;
const CREATE: u8 = 6;
const DELETE: u8 = 7;
const PURGE: u8 = 8;
const BEAT: u8 = 9;
const TIDY: u8 = 10;
const TRIM: u8 = 11;
const OPEN_CURSOR: u8 = 12;
const MOVE_CURSOR: u8 = 13;
const FORGET_CURSORS: u8 = 14;

/// What a [`Operation::Move`] means for the copies that it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MoveMode {
    /// Nack, reject, visibility expired: the message returns; origin and policy stay as they are.
    Return = 1,
    /// The receive limit was reached: the policy is cleared and the copy names the channel it came from.
    DeadLetter = 2,
    /// Requeue or resend: a fresh send of a copy; where it came from earlier is forgotten.
    Requeue = 3,
}

/// One message that is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveItem {
    /// Sequence in the channel that it leaves.
    pub sequence: u64,
    /// Receive count that the copy stores.
    pub receive_count: u32,
    /// When the copy expires, in nanoseconds; 0 for never.
    pub expires_at: u64,
    /// Where its first publish stands, as whoever moves it has found it: those who apply this may not have the block at
    /// hand that tells. Not asked for when it was stored again before. Version 1 did not say it.
    pub stored: Option<Stored>,
}

/// Where a message stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Entry that carries it.
    pub entry: u64,
    /// Part of that entry.
    pub part: u16,
    /// Its size.
    pub bytes: u32,
}

/// Names one delayed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerRef {
    /// When it is due, in nanoseconds.
    pub due: u64,
    /// Entry that carries it.
    pub entry: u64,
    /// Part of that entry.
    pub part: u16,
    /// What becomes of it, as whoever releases it has found it: those who apply this may not have the block at hand that
    /// tells. Version 1 did not say it.
    pub scheduled: Option<Scheduled>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Stores a message at the tail, or a timer when it has a delay. Creates the channel when needed.
    Publish {
        /// Kind of the channel; only stored kinds are taken.
        kind: Kind,
        /// Name of the channel.
        channel: Name,
        /// Delay in milliseconds; 0 for none.
        delay_ms: u64,
        /// Time to live in milliseconds, from when it becomes visible; 0 for ever.
        expiration_ms: u64,
        /// The encoded message: it stays where it is, only its length is counted.
        message: Bytes,
    },
    /// Settles messages. Those that are gone are ignored.
    Ack {
        /// The channel.
        channel: ChannelId,
        /// Which ones.
        sequences: Sequences,
    },
    /// Settles messages here and stores copies there, all or nothing. Those that are gone are ignored.
    Move {
        /// The channel that they leave.
        from: ChannelId,
        /// Kind and name of the channel that they go to; it may be the same.
        to: (Kind, Name),
        /// What becomes of them.
        mode: MoveMode,
        /// Which ones, in the order in which they are stored.
        items: Vec<MoveItem>,
    },
    /// Removes messages that were found expired, and counts them as such.
    Drop {
        /// The channel.
        channel: ChannelId,
        /// Which ones.
        sequences: Sequences,
    },
    /// Stores delayed messages that are due. Those that were released before, or are not due at the entry's time, are
    /// ignored.
    Release {
        /// Which ones, in the order in which they are stored.
        timers: Vec<TimerRef>,
    },
    /// Creates a channel, or marks one that exists as wanted.
    Create {
        /// Its kind.
        kind: Kind,
        /// Its name.
        channel: Name,
    },
    /// Deletes a channel with everything in it.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its name.
        channel: Name,
    },
    /// Settles everything that is stored up to a sequence and not held by somebody.
    Purge {
        /// Kind of the channel.
        kind: Kind,
        /// Name of the channel.
        channel: Name,
        /// Last sequence that is meant.
        upto: u64,
        /// What stays.
        held: Sequences,
    },
    /// Carries the entry's time, nothing else.
    Beat,
    /// Deletes a channel that nobody created explicitly, if it is still empty and was not used since.
    Tidy {
        /// The channel.
        channel: ChannelId,
        /// The last activity that the proposer saw; a later one keeps the channel.
        last_activity: u64,
    },
    /// Removes the oldest events of an events-store channel, and counts them as expired.
    Trim {
        /// The channel; one of another kind is left alone.
        channel: ChannelId,
        /// Last sequence that goes.
        upto: u64,
    },
    /// Gives a reader of stored events a place, unless it has one. Creates the channel when needed.
    OpenCursor {
        /// Name of the events-store channel.
        channel: Name,
        /// Who reads.
        reader: Reader,
        /// Where it begins when it has no place yet.
        start: Start,
    },
    /// Notes how far a reader of stored events came. Nobody is moved back.
    MoveCursor {
        /// The channel.
        channel: ChannelId,
        /// Who reads.
        reader: Reader,
        /// The sequence up to which it has everything.
        after: u64,
        /// Events that it took since that was noted last.
        events: u64,
        /// Their size.
        bytes: u64,
    },
    /// Forgets the places of readers who did not use them for long and could not go on from there: the events behind
    /// their places are gone.
    ForgetCursors {
        /// The channel; one of another kind is left alone.
        channel: ChannelId,
        /// Places that were used at this time or later are kept, in nanoseconds.
        before: u64,
    },
}

/// Why bytes are no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("an operation ends in the middle of a value")]
    Truncated,
    /// A number does not fit its type.
    #[error("an operation holds a number that is out of range")]
    Number,
    /// The code is not known to this version.
    #[error("an operation has the unknown code {0}")]
    UnknownCode(u8),
    /// The layout is not known to this version.
    #[error("an operation with code {code} has the unknown version {version}")]
    UnknownVersion {
        /// The code.
        code: u8,
        /// The version.
        version: u8,
    },
    /// The number names no kind.
    #[error("an operation names the unknown channel kind {0}")]
    UnknownKind(u8),
    /// The number names no mode.
    #[error("an operation names the unknown move mode {0}")]
    UnknownMode(u8),
    /// The number names no sort of reader.
    #[error("an operation names the unknown sort of reader {0}")]
    UnknownReader(u8),
    /// The number names no start.
    #[error("an operation names the unknown start {0}")]
    UnknownStart(u8),
    /// The channel name is refused.
    #[error("{0}")]
    Name(#[from] NameError),
    /// A list is longer than its limit.
    #[error("an operation lists more than its limit allows")]
    TooMany,
    /// A list of sequences is not in order.
    #[error("an operation lists sequences out of order")]
    Unsorted,
    /// Bytes are left behind the operation.
    #[error("an operation is followed by bytes that do not belong to it")]
    Trailing,
}

impl From<Malformed> for DecodeError {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Truncated => Self::Truncated,
            Malformed::Number => Self::Number,
        }
    }
}

/// Writes what stands before the message of a [`Operation::Publish`]; whatever is appended to `out` afterwards is the
/// message. Saves the copy when the message is encoded straight into the same buffer.
pub fn publish_head(out: &mut BytesMut, kind: Kind, channel: &Name, delay_ms: u64, expiration_ms: u64) {
    head(out, PUBLISH);
    put_channel(out, kind, channel);
    put_number(out, delay_ms);
    put_number(out, expiration_ms);
}

impl Operation {
    /// Appends the bytes of this operation.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Publish { kind, channel, delay_ms, expiration_ms, message } => {
                out.reserve(message.len() + channel.as_bytes().len() + 32);
                publish_head(out, *kind, channel, *delay_ms, *expiration_ms);
                out.put_slice(message);
            }
            Self::Ack { channel, sequences } => {
                head(out, ACK);
                put_number(out, channel.0);
                sequences.encode(out);
            }
            Self::Move { from, to: (kind, name), mode, items } => {
                head(out, MOVE);
                put_number(out, from.0);
                put_channel(out, *kind, name);
                out.put_u8(*mode as u8);
                put_number(out, items.len() as u64);
                for item in items {
                    put_number(out, item.sequence);
                    put_number(out, u64::from(item.receive_count));
                    put_number(out, item.expires_at);
                    // Entries begin with 1: 0 says that nothing is said.
                    put_number(out, item.stored.map_or(0, |stored| stored.entry));
                    if let Some(Stored { part, bytes, .. }) = item.stored {
                        put_number(out, u64::from(part));
                        put_number(out, u64::from(bytes));
                    }
                }
            }
            Self::Drop { channel, sequences } => {
                head(out, DROP);
                put_number(out, channel.0);
                sequences.encode(out);
            }
            Self::Release { timers } => {
                head(out, RELEASE);
                put_number(out, timers.len() as u64);
                for timer in timers {
                    put_number(out, timer.due);
                    put_number(out, timer.entry);
                    put_number(out, u64::from(timer.part));
                    out.put_u8(u8::from(timer.scheduled.is_some()));
                    if let Some(Scheduled { channel, expiration, bytes }) = timer.scheduled {
                        put_number(out, channel.0);
                        put_number(out, u64::from(expiration.0));
                        put_number(out, u64::from(bytes));
                    }
                }
            }
            Self::Create { kind, channel } => {
                head(out, CREATE);
                put_channel(out, *kind, channel);
            }
            Self::Delete { kind, channel } => {
                head(out, DELETE);
                put_channel(out, *kind, channel);
            }
            Self::Purge { kind, channel, upto, held } => {
                head(out, PURGE);
                put_channel(out, *kind, channel);
                put_number(out, *upto);
                held.encode(out);
            }
            Self::Beat => head(out, BEAT),
            Self::Tidy { channel, last_activity } => {
                head(out, TIDY);
                put_number(out, channel.0);
                put_number(out, *last_activity);
            }
            Self::Trim { channel, upto } => {
                head(out, TRIM);
                put_number(out, channel.0);
                put_number(out, *upto);
            }
            Self::OpenCursor { channel, reader, start } => {
                head(out, OPEN_CURSOR);
                put_name(out, channel);
                reader.encode(out);
                start.encode(out);
            }
            Self::MoveCursor { channel, reader, after, events, bytes } => {
                head(out, MOVE_CURSOR);
                put_number(out, channel.0);
                reader.encode(out);
                for number in [*after, *events, *bytes] {
                    put_number(out, number);
                }
            }
            Self::ForgetCursors { channel, before } => {
                head(out, FORGET_CURSORS);
                put_number(out, channel.0);
                put_number(out, *before);
            }
        }
    }

    /// The bytes of this operation.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Reads an operation. Name and message are slices of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut rest = bytes.clone();
        let code = take_byte(&mut rest)?;
        if !(PUBLISH..=FORGET_CURSORS).contains(&code) {
            return Err(DecodeError::UnknownCode(code));
        }
        let version = take_byte(&mut rest)?;
        if version == 0 || version > newest(code) {
            return Err(DecodeError::UnknownVersion { code, version });
        }
        let operation = match code {
            PUBLISH => {
                let (kind, channel) = take_channel(&mut rest)?;
                let delay_ms = take_number(&mut rest)?;
                let expiration_ms = take_number(&mut rest)?;
                return Ok(Self::Publish { kind, channel, delay_ms, expiration_ms, message: rest });
            }
            ACK => Self::Ack { channel: take_id(&mut rest)?, sequences: Sequences::decode(&mut rest)? },
            MOVE => decode_move(&mut rest, version)?,
            DROP => Self::Drop { channel: take_id(&mut rest)?, sequences: Sequences::decode(&mut rest)? },
            RELEASE => decode_release(&mut rest, version)?,
            CREATE => {
                let (kind, channel) = take_channel(&mut rest)?;
                Self::Create { kind, channel }
            }
            DELETE => {
                let (kind, channel) = take_channel(&mut rest)?;
                Self::Delete { kind, channel }
            }
            PURGE => {
                let (kind, channel) = take_channel(&mut rest)?;
                let upto = take_number(&mut rest)?;
                Self::Purge { kind, channel, upto, held: Sequences::decode(&mut rest)? }
            }
            TIDY => Self::Tidy { channel: take_id(&mut rest)?, last_activity: take_number(&mut rest)? },
            TRIM => Self::Trim { channel: take_id(&mut rest)?, upto: take_number(&mut rest)? },
            OPEN_CURSOR => {
                let channel = Name::from_bytes(take_bytes(&mut rest)?)?;
                let reader = Reader::decode(&mut rest)?;
                let start = Start::decode(take_byte(&mut rest)?, take_number(&mut rest)?)?;
                Self::OpenCursor { channel, reader, start }
            }
            MOVE_CURSOR => {
                let channel = take_id(&mut rest)?;
                let reader = Reader::decode(&mut rest)?;
                let (after, events, bytes) =
                    (take_number(&mut rest)?, take_number(&mut rest)?, take_number(&mut rest)?);
                Self::MoveCursor { channel, reader, after, events, bytes }
            }
            FORGET_CURSORS => Self::ForgetCursors { channel: take_id(&mut rest)?, before: take_number(&mut rest)? },
            _ => Self::Beat,
        };
        if rest.is_empty() { Ok(operation) } else { Err(DecodeError::Trailing) }
    }
}

fn head(out: &mut BytesMut, code: u8) {
    out.put_u8(code);
    out.put_u8(newest(code));
}

/// The newest layout of an operation.
fn newest(code: u8) -> u8 {
    match code {
        MOVE => MOVE_VERSION,
        RELEASE => RELEASE_VERSION,
        _ => VERSION,
    }
}

fn put_channel(out: &mut BytesMut, kind: Kind, name: &Name) {
    out.put_u8(kind.number());
    put_name(out, name);
}

fn put_name(out: &mut BytesMut, name: &Name) {
    put_number(out, name.as_bytes().len() as u64);
    out.put_slice(name.as_bytes());
}

fn take_channel(from: &mut Bytes) -> Result<(Kind, Name), DecodeError> {
    let number = take_byte(from)?;
    let kind = Kind::from_number(number).ok_or(DecodeError::UnknownKind(number))?;
    let name = Name::from_bytes(take_bytes(from)?)?;
    Ok((kind, name))
}

fn take_id(from: &mut Bytes) -> Result<ChannelId, DecodeError> {
    Ok(ChannelId(take_number(from)?))
}

fn decode_move(from: &mut Bytes, version: u8) -> Result<Operation, DecodeError> {
    let source = take_id(from)?;
    let to = take_channel(from)?;
    let mode = match take_byte(from)? {
        1 => MoveMode::Return,
        2 => MoveMode::DeadLetter,
        3 => MoveMode::Requeue,
        other => return Err(DecodeError::UnknownMode(other)),
    };
    let count = take_number(from)?;
    if count > MOVE_ITEMS as u64 {
        return Err(DecodeError::TooMany);
    }
    let mut items = Vec::with_capacity((count as usize).min(from.len() / 3));
    for _ in 0..count {
        let sequence = take_number(from)?;
        let receive_count = take_number_u32(from)?;
        let expires_at = take_number(from)?;
        let stored = if version < MOVE_VERSION { None } else { take_stored(from)? };
        items.push(MoveItem { sequence, receive_count, expires_at, stored });
    }
    Ok(Operation::Move { from: source, to, mode, items })
}

fn take_stored(from: &mut Bytes) -> Result<Option<Stored>, DecodeError> {
    let entry = take_number(from)?;
    if entry == 0 {
        return Ok(None);
    }
    if entry >= ENTRY_BOUND {
        return Err(DecodeError::Number);
    }
    Ok(Some(Stored { entry, part: take_number_u16(from)?, bytes: take_number_u32(from)? }))
}

fn decode_release(from: &mut Bytes, version: u8) -> Result<Operation, DecodeError> {
    let count = take_number(from)?;
    if count > RELEASE_TIMERS as u64 {
        return Err(DecodeError::TooMany);
    }
    let mut timers = Vec::with_capacity((count as usize).min(from.len() / 3));
    for _ in 0..count {
        let due = take_number(from)?;
        let entry = take_number(from)?;
        let part = take_number_u16(from)?;
        let scheduled = if version < RELEASE_VERSION { None } else { take_scheduled(from)? };
        timers.push(TimerRef { due, entry, part, scheduled });
    }
    Ok(Operation::Release { timers })
}

fn take_scheduled(from: &mut Bytes) -> Result<Option<Scheduled>, DecodeError> {
    match take_byte(from)? {
        0 => Ok(None),
        1 => {
            let (channel, expiration) = (take_id(from)?, Expiration(take_number_u32(from)?));
            Ok(Some(Scheduled { channel, expiration, bytes: take_number_u32(from)? }))
        }
        _ => Err(DecodeError::Number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn examples() -> Vec<Operation> {
        let sequences: Sequences = [1, 2, 3, 9, 40].into_iter().collect();
        let items = vec![
            MoveItem { sequence: 7, receive_count: 3, expires_at: 0, stored: None },
            MoveItem {
                sequence: 2,
                receive_count: u32::MAX,
                expires_at: u64::MAX,
                stored: Some(Stored { entry: ENTRY_BOUND - 1, part: u16::MAX, bytes: u32::MAX }),
            },
        ];
        vec![
            Operation::Publish {
                kind: Kind::Queue,
                channel: name("orders"),
                delay_ms: 300,
                expiration_ms: 70_000,
                message: Bytes::from_static(b"body"),
            },
            Operation::Publish {
                kind: Kind::EventsStore,
                channel: name("x"),
                delay_ms: 0,
                expiration_ms: 0,
                message: Bytes::new(),
            },
            Operation::Ack { channel: ChannelId(77), sequences: sequences.clone() },
            Operation::Move { from: ChannelId(1), to: (Kind::Queue, name("dead")), mode: MoveMode::DeadLetter, items },
            Operation::Drop { channel: ChannelId(u64::MAX), sequences: Sequences::range(1, u64::MAX) },
            Operation::Release {
                timers: vec![
                    TimerRef { due: 5, entry: 6, part: 7, scheduled: None },
                    TimerRef {
                        due: u64::MAX,
                        entry: 1 << 40,
                        part: 1,
                        scheduled: Some(Scheduled::new(ChannelId(u64::MAX), u64::MAX, u32::MAX)),
                    },
                ],
            },
            Operation::Create { kind: Kind::Queries, channel: name("q") },
            Operation::Delete { kind: Kind::Events, channel: name("é") },
            Operation::Purge { kind: Kind::Queue, channel: name("q"), upto: 99, held: sequences },
            Operation::Beat,
            Operation::Tidy { channel: ChannelId(4), last_activity: 1 << 60 },
            Operation::Trim { channel: ChannelId(4), upto: u64::MAX },
            Operation::OpenCursor { channel: name("e"), reader: Reader::client(&name("c")), start: Start::At(7) },
            Operation::OpenCursor { channel: name("e"), reader: Reader::group(&name("c")), start: Start::New },
            Operation::MoveCursor {
                channel: ChannelId(9),
                reader: Reader::group(&name("gr")),
                after: 1 << 40,
                events: 3,
                bytes: 4000,
            },
            Operation::ForgetCursors { channel: ChannelId(9), before: 1 << 60 },
        ]
    }

    #[test]
    fn operations_come_back() {
        for operation in examples() {
            let bytes = operation.to_bytes();
            assert_eq!(Operation::decode(&bytes), Ok(operation));
        }
    }

    #[test]
    fn the_message_stays_where_it_is() {
        let operation = examples().remove(0);
        let bytes = operation.to_bytes();
        let Ok(Operation::Publish { message, .. }) = Operation::decode(&bytes) else { panic!("a publish") };
        assert_eq!(message.as_ptr(), bytes[bytes.len() - 4..].as_ptr());
    }

    #[test]
    fn every_shortened_operation_is_refused_or_a_shorter_publish() {
        for operation in examples() {
            let bytes = operation.to_bytes();
            for length in 0..bytes.len() {
                match Operation::decode(&bytes.slice(..length)) {
                    Ok(Operation::Publish { .. }) => assert!(matches!(operation, Operation::Publish { .. })),
                    Ok(other) => panic!("{operation:?} cut to {length} bytes became {other:?}"),
                    Err(_) => {}
                }
            }
            if !matches!(operation, Operation::Publish { .. }) {
                let mut longer = BytesMut::from(&bytes[..]);
                longer.put_u8(0);
                assert_eq!(Operation::decode(&longer.freeze()), Err(DecodeError::Trailing), "{operation:?}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (bytes, expected) in [
            (&[][..], DecodeError::Truncated),
            (&[0, 1], DecodeError::UnknownCode(0)),
            (&[15, 1], DecodeError::UnknownCode(15)),
            (&[9], DecodeError::Truncated),
            (&[9, 2], DecodeError::UnknownVersion { code: 9, version: 2 }),
            (&[6, 1, 9, 1, b'a'], DecodeError::UnknownKind(9)),
            (&[6, 1, 1, 0], DecodeError::Name(NameError::Empty)),
            (&[6, 1, 1, 1, 0xff], DecodeError::Name(NameError::NotText)),
            (&[3, 1, 5, 1, 1, b'a', 4, 0], DecodeError::UnknownMode(4)),
            (&[3, 1, 5, 1, 1, b'a', 1, 0x81, 0x20], DecodeError::TooMany),
            (&[5, 1, 0x81, 0x08], DecodeError::TooMany),
            (&[5, 2, 1, 1, 1, 1, 2], DecodeError::Number),
            (&[5, 3, 0], DecodeError::UnknownVersion { code: 5, version: 3 }),
            (&[2, 1, 5, 0x81, 0x80, 0x40], DecodeError::TooMany),
            (&[12, 1, 1, b'a', 0], DecodeError::Name(NameError::Empty)),
            (&[12, 1, 1, b'a', 1, 1], DecodeError::Name(NameError::Empty)),
            (&[12, 1, 1, b'a', 2, 3, b'c'], DecodeError::UnknownReader(3)),
            (&[12, 1, 1, b'a', 2, 1, 0xff], DecodeError::Name(NameError::NotText)),
            (&[12, 1, 1, b'a', 2, 1, b'c', 5, 0], DecodeError::UnknownStart(5)),
            (&[12, 1, 1, b'a', 2, 1, b'c', 1, 9], DecodeError::Number),
        ] {
            assert_eq!(Operation::decode(&Bytes::copy_from_slice(bytes)), Err(expected), "{bytes:?}");
        }
    }
}
