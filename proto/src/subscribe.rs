//! What a subscription to stored events asks for, and what storing an event demands beyond what every event must be.

use prost::Message as _;

use crate::kubemq::subscribe::EventsStoreType;
use crate::kubemq::{Event, Subscribe};
use crate::strings::Refusal;
use crate::validate::{self, MAX_NAME_BYTES};

/// Where a reader of stored events begins that was never here before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Behind everything that is stored.
    New,
    /// At the first event.
    First,
    /// At the last event.
    Last,
    /// At this sequence.
    Sequence(u64),
    /// At the first event that was stored at this time or later, in nanoseconds since the Unix epoch.
    Time(u64),
    /// As [`Position::Time`], so many nanoseconds before now.
    Ago(u64),
}

/// Times below these bounds are seconds, milliseconds, microseconds; beyond, nanoseconds. SDKs send seconds or
/// nanoseconds and do not say which; for all of them a bound lies at least a thousand years away from now.
const UNITS: [(u64, u64); 3] =
    [(100_000_000_000, 1_000_000_000), (100_000_000_000_000, 1_000_000), (100_000_000_000_000_000, 1_000)];

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Checks a subscription to stored events; its type was looked at before.
///
/// # Errors
///
/// 101, what the store says of the client's id, 102, 119, 108, 107, 111, 112, 113, 114, then what the store says of
/// the channel and the group.
pub fn stored_events(subscribe: &Subscribe) -> Result<Position, Refusal> {
    if subscribe.client_id.is_empty() {
        return Err(Refusal::EmptyClientId);
    }
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !subscribe.client_id.bytes().all(is_usual) || subscribe.client_id.len() > MAX_NAME_BYTES {
        return Err(Refusal::StoreClientId);
    }
    validate::stored_channel(&subscribe.channel)?;
    let position = position(subscribe)?;
    if validate::has_empty_token(&subscribe.channel) {
        return Err(Refusal::StoreSubject);
    }
    if subscribe.group.len() > MAX_NAME_BYTES { Err(Refusal::GroupName) } else { Ok(position) }
}

fn position(subscribe: &Subscribe) -> Result<Position, Refusal> {
    let value = u64::try_from(subscribe.events_store_type_value).ok().filter(|value| *value > 0);
    match EventsStoreType::try_from(subscribe.events_store_type_data) {
        Ok(EventsStoreType::Undefined) => Err(Refusal::StartUndefined),
        // What is not known is taken for this, as it always was.
        Ok(EventsStoreType::StartNewOnly) | Err(_) => Ok(Position::New),
        Ok(EventsStoreType::StartFromFirst) => Ok(Position::First),
        Ok(EventsStoreType::StartFromLast) => Ok(Position::Last),
        Ok(EventsStoreType::StartAtSequence) => value.map(Position::Sequence).ok_or(Refusal::StartSequence),
        Ok(EventsStoreType::StartAtTime) => value.map(|value| Position::Time(nanos(value))).ok_or(Refusal::StartTime),
        Ok(EventsStoreType::StartAtTimeDelta) => {
            let ago = |seconds: u64| Position::Ago(seconds.saturating_mul(NANOS_PER_SECOND));
            value.map(ago).ok_or(Refusal::StartTimeDelta)
        }
    }
}

/// Returns a time in nanoseconds, whatever unit it was meant in.
fn nanos(value: u64) -> u64 {
    let unit = UNITS.iter().find(|(bound, _)| value < *bound).map_or(1, |(_, unit)| *unit);
    value.saturating_mul(unit)
}

/// Checks what storing demands of an event that is in order otherwise.
///
/// # Errors
///
/// 102 when the channel's name is too long, then what the store says of the name and of the size.
pub fn storable_event(event: &Event, max_message_bytes: usize) -> Result<(), Refusal> {
    validate::stored_channel(&event.channel)?;
    if validate::has_empty_token(&event.channel) {
        return Err(Refusal::PublishName);
    }
    if validate::is_deliverable(event.encoded_len(), max_message_bytes) {
        Ok(())
    } else {
        Err(Refusal::PayloadTooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(start: i32, value: i64) -> Subscribe {
        Subscribe {
            subscribe_type_data: 2,
            client_id: "c-1_A".to_owned(),
            channel: "a".to_owned(),
            events_store_type_data: start,
            events_store_type_value: value,
            ..Subscribe::default()
        }
    }

    #[test]
    fn mistakes_are_reported_in_their_order() {
        let long = "n".repeat(MAX_NAME_BYTES + 1);
        type Change = fn(&mut Subscribe);
        let mut wrong = Subscribe { events_store_type_data: 0, ..subscribe(0, 0) };
        (wrong.client_id, wrong.channel, wrong.group) = (String::new(), String::new(), long.clone());
        let steps: [(Refusal, Change); 10] = [
            (Refusal::EmptyClientId, |wrong| wrong.client_id = "a.b".to_owned()),
            (Refusal::StoreClientId, |wrong| wrong.client_id = "a-b".to_owned()),
            (Refusal::EmptyChannel, |wrong| wrong.channel = "..a *.".to_owned()),
            (Refusal::ChannelEndsWithDot, |wrong| wrong.channel = "..a *".to_owned()),
            (Refusal::ChannelWhiteSpace, |wrong| wrong.channel = "..a*".to_owned()),
            (Refusal::ChannelWildcard, |wrong| wrong.channel = "..a".to_owned()),
            (Refusal::StartUndefined, |wrong| wrong.events_store_type_data = 4),
            (Refusal::StartSequence, |wrong| wrong.events_store_type_value = 1),
            (Refusal::StoreSubject, |wrong| wrong.channel = "a:b/c".to_owned()),
            (Refusal::GroupName, |wrong| wrong.group = "g:1".to_owned()),
        ];
        for (refusal, mend) in steps {
            assert_eq!(stored_events(&wrong), Err(refusal));
            mend(&mut wrong);
        }
        assert_eq!(stored_events(&wrong), Ok(Position::Sequence(1)));
        for name in [long.as_str(), validate::MANAGEMENT_CHANNEL] {
            let wrong = Subscribe { channel: name.to_owned(), ..subscribe(1, 0) };
            assert_eq!(stored_events(&wrong), Err(Refusal::EmptyChannel), "{name}");
        }
        let wrong = Subscribe { client_id: long, ..subscribe(1, 0) };
        assert_eq!(stored_events(&wrong), Err(Refusal::StoreClientId));
    }

    #[test]
    fn starts_and_their_values() {
        let rows = [
            (0, 5, Err(Refusal::StartUndefined)),
            (1, -5, Ok(Position::New)),
            (2, 0, Ok(Position::First)),
            (3, 0, Ok(Position::Last)),
            (4, 0, Err(Refusal::StartSequence)),
            (4, -1, Err(Refusal::StartSequence)),
            (4, 1, Ok(Position::Sequence(1))),
            (4, i64::MAX, Ok(Position::Sequence(i64::MAX as u64))),
            (5, 0, Err(Refusal::StartTime)),
            (5, -1, Err(Refusal::StartTime)),
            (5, 1_700_000_000, Ok(Position::Time(1_700_000_000_000_000_000))),
            (5, 1_700_000_000_001, Ok(Position::Time(1_700_000_000_001_000_000))),
            (5, 1_700_000_000_000_002, Ok(Position::Time(1_700_000_000_000_002_000))),
            (5, 1_700_000_000_000_000_003, Ok(Position::Time(1_700_000_000_000_000_003))),
            (5, 99_999_999_999, Ok(Position::Time(u64::MAX))),
            (5, 100_000_000_000, Ok(Position::Time(100_000_000_000_000_000))),
            (5, i64::MAX, Ok(Position::Time(i64::MAX as u64))),
            (6, 0, Err(Refusal::StartTimeDelta)),
            (6, -7, Err(Refusal::StartTimeDelta)),
            (6, 3, Ok(Position::Ago(3_000_000_000))),
            (6, i64::MAX, Ok(Position::Ago(u64::MAX))),
            (9, 0, Ok(Position::New)),
            (-3, 0, Ok(Position::New)),
        ];
        for (start, value, expected) in rows {
            assert_eq!(stored_events(&subscribe(start, value)), expected, "{start} {value}");
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let event =
            |channel: &str| Event { channel: channel.to_owned(), body: vec![7; 100].into(), ..Event::default() };
        let long = "n".repeat(MAX_NAME_BYTES);
        for (channel, expected) in [
            ("a/b:c", Ok(())),
            (long.as_str(), Ok(())),
            (&format!("{long}n"), Err(Refusal::EmptyChannel)),
            ("a..b", Err(Refusal::PublishName)),
            (".a", Err(Refusal::PublishName)),
        ] {
            assert_eq!(storable_event(&event(channel), 1 << 20), expected, "{channel}");
        }
        assert_eq!(storable_event(&event("a"), 1_000), Err(Refusal::PayloadTooLarge));
    }
}
