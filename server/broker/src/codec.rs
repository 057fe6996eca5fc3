//! Numbers and texts as bytes, and back. Reading is total: whatever the bytes are, the answer is a value or a
//! [`Malformed`], never a panic, and never more than one allocation that the bytes themselves pay for.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("bytes end in the middle of a value")]
    Truncated,
    #[error("a number is longer than its type")]
    Number,
}

/// Appends `value` in groups of seven bits, lowest first.
pub(crate) fn put_number(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        // Seven bits and the mark that more follow.
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends the length of `text` and its bytes.
pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    put_number(out, text.len() as u64);
    out.put_slice(text.as_bytes());
}

/// Takes one byte.
pub(crate) fn take_byte(from: &mut impl Buf) -> Result<u8, Malformed> {
    from.try_get_u8().map_err(|_| Malformed::Truncated)
}

/// Takes a fixed word of eight bytes.
pub(crate) fn take_word(from: &mut impl Buf) -> Result<u64, Malformed> {
    from.try_get_u64_le().map_err(|_| Malformed::Truncated)
}

/// Takes a number written by [`put_number`].
pub(crate) fn take_number(from: &mut impl Buf) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(from)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Malformed::Number);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed::Number)
}

/// Takes a number that must fit into 32 bits.
pub(crate) fn take_number_u32(from: &mut impl Buf) -> Result<u32, Malformed> {
    u32::try_from(take_number(from)?).map_err(|_| Malformed::Number)
}

/// Takes a number that must fit into 16 bits.
pub(crate) fn take_number_u16(from: &mut impl Buf) -> Result<u16, Malformed> {
    u16::try_from(take_number(from)?).map_err(|_| Malformed::Number)
}

/// Takes a length and that many bytes, as a slice of the same memory.
pub(crate) fn take_bytes(from: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = usize::try_from(take_number(from)?).map_err(|_| Malformed::Number)?;
    if length > from.len() {
        return Err(Malformed::Truncated);
    }
    Ok(from.split_to(length))
}

/// A checksum for data at rest in the index and in snapshots, eight bytes at a step.
///
/// It finds damage; it is no defence against somebody who wants to deceive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checksum(u64);

impl Checksum {
    /// The checksum of nothing.
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// Takes in one word.
    pub(crate) fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 = (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(29);
    }

    /// Takes in a whole slice, its length included.
    pub(crate) fn slice(&mut self, slice: &[u8]) {
        self.word(slice.len() as u64);
        let mut rest = slice;
        while rest.len() >= 8 {
            self.word(rest.get_u64_le());
        }
        let mut last = 0_u64;
        for (place, byte) in rest.iter().enumerate() {
            last |= u64::from(*byte) << (8 * place);
        }
        self.word(last);
    }

    /// The value so far.
    pub(crate) fn value(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 33)
    }
}

/// Ends a block for the index on disk, which begins with its version, with a checksum. With it comes the half of the
/// checksum that is kept in memory.
pub(crate) fn close_block(mut block: BytesMut) -> (Bytes, u32) {
    let mut sum = Checksum::new();
    sum.slice(&block);
    block.put_u64_le(sum.value());
    (block.freeze(), sum.value() as u32)
}

/// What is in such a block. `None` when its bytes are damaged or of another version.
pub(crate) fn open_block(block: &Bytes, version: u8) -> Option<Bytes> {
    let content = block.len().checked_sub(8)?;
    let mut sum = Checksum::new();
    sum.slice(&block[..content]);
    if take_word(&mut block.slice(content..)).ok()? != sum.value() {
        return None;
    }
    let mut content = block.slice(..content);
    (take_byte(&mut content).ok()? == version).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = BytesMut::new();
            put_number(&mut out, value);
            let mut bytes = out.freeze();
            assert_eq!(take_number(&mut bytes), Ok(value));
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn a_number_that_is_too_long_is_refused() {
        let mut bytes = Bytes::from_static(&[0xff; 10]);
        assert_eq!(take_number(&mut bytes), Err(Malformed::Number));
        let mut bytes = Bytes::from_static(&[0x80; 3]);
        assert_eq!(take_number(&mut bytes), Err(Malformed::Truncated));
    }

    #[test]
    fn the_checksum_sees_every_bit_and_the_length() {
        let bytes: Vec<u8> = (0..37).collect();
        let sum = |bytes: &[u8]| {
            let mut sum = Checksum::new();
            sum.slice(bytes);
            sum.value()
        };
        let right = sum(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum(&wrong), right, "bit {bit}");
        }
        assert_ne!(sum(&bytes[..36]), right);
        assert_ne!(sum(&[0; 8]), sum(&[0; 9]));
    }
}
