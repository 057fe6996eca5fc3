//! Ids that the broker makes where a client left one out.

use kubemq_runtime::Random;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const NUID_LENGTH: usize = 22;
/// As many digits as a 64-bit number yields without favouring any of them noticeably.
const DIGITS_PER_DRAW: usize = 10;

/// Returns a new message or request id: 22 letters and digits.
#[must_use]
pub fn nuid(random: &Random) -> String {
    let mut bytes = [0_u8; 24];
    random.fill(&mut bytes);
    let (draws, _) = bytes.as_chunks::<8>();
    let mut id = String::with_capacity(NUID_LENGTH);
    for draw in draws {
        let mut rest = u64::from_le_bytes(*draw);
        for _ in 0..DIGITS_PER_DRAW.min(NUID_LENGTH - id.len()) {
            let digit = usize::try_from(rest % 62).unwrap_or_default();
            id.push(char::from(DIGITS.get(digit).copied().unwrap_or(b'0')));
            rest /= 62;
        }
    }
    id
}

/// Returns `id`, or a new one when it is empty.
#[must_use]
pub fn or_nuid(id: String, random: &Random) -> String {
    if id.is_empty() { nuid(random) } else { id }
}

/// Returns a new transaction id: a random UUID (version 4) in lower case.
#[must_use]
pub fn uuid(random: &Random) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0_u8; 16];
    random.fill(&mut bytes);
    let mut id = String::with_capacity(36);
    for (position, mut byte) in bytes.into_iter().enumerate() {
        match position {
            4 | 10 => id.push('-'),
            6 => {
                id.push('-');
                byte = (byte & 0x0F) | 0x40;
            }
            8 => {
                id.push('-');
                byte = (byte & 0x3F) | 0x80;
            }
            _ => {}
        }
        for nibble in [byte >> 4, byte & 0x0F] {
            id.push(char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0')));
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_nuid_has_22_letters_and_digits_and_does_not_repeat() {
        let random = Random::from_seed(1);
        let ids: BTreeSet<String> = (0..1000).map(|_| nuid(&random)).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 22 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    }

    #[test]
    fn only_a_missing_id_is_replaced() {
        let random = Random::from_seed(2);
        assert_eq!(or_nuid("mine".to_owned(), &random), "mine");
        assert_eq!(or_nuid(String::new(), &random).len(), 22);
    }

    #[test]
    fn a_uuid_is_version_4_in_lower_case() {
        let id = uuid(&Random::from_seed(3));
        let groups: Vec<&str> = id.split('-').collect();
        assert_eq!(groups.iter().map(|group| group.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(groups[2].starts_with('4') && groups[3].starts_with(['8', '9', 'a', 'b']));
        assert!(id.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    }
}
