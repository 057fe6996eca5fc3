//! Changes of bytes, of the kinds that disks, networks and people make.

use kubemq_runtime::Random;

/// Numbers at which readers go wrong.
const NUMBERS: [u64; 10] = [0, 1, 127, 128, 255, 65_535, u32::MAX as u64, i64::MAX as u64, u64::MAX - 1, u64::MAX];
/// Most changes of one seed.
const MOST: u64 = 6;

/// Changes `bytes` in some places; `other` is another sample of the same kind.
pub(crate) fn some(bytes: &mut Vec<u8>, other: &[u8], random: &Random) {
    for _ in 0..=random.below(MOST) {
        one(bytes, other, random);
    }
}

fn one(bytes: &mut Vec<u8>, other: &[u8], random: &Random) {
    let place = |random: &Random| index(random, bytes.len());
    let at = place(random);
    let upto = (at + 1 + index(random, 64)).min(bytes.len());
    match random.below(10) {
        0..3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = u8::try_from(random.below(256)).unwrap_or_default();
            }
        }
        4 | 5 => {
            // A number of some width, in the order in which the program writes numbers.
            let number = NUMBERS[index(random, NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][index(random, 4)];
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        6 => bytes.truncate(at),
        7 => {
            bytes.drain(at..upto);
        }
        8 => {
            let again = bytes[at..upto].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {
            let from = index(random, other.len());
            let end = (from + 1 + index(random, 256)).min(other.len());
            bytes.splice(at..upto, other[from..end].iter().copied());
        }
    }
}

fn index(random: &Random, length: usize) -> usize {
    usize::try_from(random.below(length.max(1) as u64)).unwrap_or_default()
}
