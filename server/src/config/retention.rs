//! The rules that say of single channels how long their stored events are kept, as a person writes them:
//! `orders.*: age=90m, events=1000; audit.>: bytes=10GiB`.

use std::time::Duration;

use super::keys;
use crate::gateway::retention::Keep;

/// The longest age, so that it can be counted in nanoseconds: a hundred years.
const LONGEST: u64 = 100 * 366 * 24 * 3600;
/// Rules, at most: each is compared with the name of each channel.
const RULES: usize = 1_000;

/// Reads rules; no text is no rule.
///
/// # Errors
///
/// What is wrong with the first rule that cannot be read.
pub(super) fn parse(text: &str) -> Result<Vec<(String, Keep)>, String> {
    let rules: Vec<&str> = text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).collect();
    if rules.len() > RULES {
        return Err(format!("has more than {RULES} rules"));
    }
    rules.into_iter().map(rule).collect()
}

fn rule(text: &str) -> Result<(String, Keep), String> {
    // A name may hold colons, a bound does not.
    let Some((pattern, bounds)) = text.rsplit_once(':') else {
        return Err(format!("{text:?} is not of the form channel: age=7d, events=1000, bytes=1GiB"));
    };
    let mut keep = Keep::default();
    for bound in bounds.split(',').map(str::trim) {
        let Some((name, value)) = bound.split_once('=').map(|(name, value)| (name.trim(), value.trim())) else {
            return Err(format!("{bound:?} is none of age=7d, events=1000, bytes=1GiB"));
        };
        match name {
            "age" => keep.age = Some(age(value)?),
            "events" => keep.events = Some(events(value)?),
            "bytes" => keep.bytes = Some(keys::bytes(value, 1, u64::MAX)?),
            _ => return Err(format!("{name:?} is none of age, events, bytes")),
        }
    }
    match pattern.trim() {
        "" => Err(format!("{text:?} names no channel")),
        pattern => Ok((pattern.to_owned(), keep)),
    }
}

/// Reads a stretch of time: a number and s, m, h or d.
///
/// # Errors
///
/// When it is none, or not between a second and a hundred years.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is not an age, such as 90s, 15m, 12h or 7d");
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(malformed()),
    };
    let number: u64 = digits.parse().map_err(|_| malformed())?;
    match number.checked_mul(factor) {
        Some(seconds) if (1..=LONGEST).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text} is out of bounds, it must be 1s to 36600d")),
    }
}

fn events(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a number of events")),
        Ok(events) => Ok(events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        let keep = |age: u64, events: u64, bytes: u64| {
            let some = |value: u64| (value > 0).then_some(value);
            Keep { age: some(age).map(Duration::from_secs), events: some(events), bytes: some(bytes) }
        };
        let rows = [
            ("", vec![]),
            (" ; ", vec![]),
            ("a: age=90s", vec![("a", keep(90, 0, 0))]),
            ("a:b: events=5 , bytes = 2KiB;", vec![("a:b", keep(0, 5, 2048))]),
            ("a.*: age=2h; b.>: age=3d,events=1", vec![("a.*", keep(7200, 0, 0)), ("b.>", keep(259_200, 1, 0))]),
        ];
        for (text, expected) in rows {
            let expected: Vec<_> = expected.into_iter().map(|(name, keep)| (name.to_owned(), keep)).collect();
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for wrong in [
            "a",
            "a:",
            ": age=1s",
            "a: age=1",
            "a: age=0s",
            "a: age=s",
            "a: age=-1s",
            "a: age=36601d",
            "a: age=1é",
            "a: events=0",
            "a: events=x",
            "a: bytes=0",
            "a: bytes=1XB",
            "a: days=1",
            "a: age=1s; b",
        ] {
            assert!(parse(wrong).is_err(), "{wrong} was taken");
        }
        assert!(parse(&"a: age=1s;".repeat(RULES + 1)).is_err());
    }
}
