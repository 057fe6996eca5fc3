//! Hash maps whose order does not depend on the process.

#![expect(clippy::disallowed_types, reason = "these aliases are what the rest of the workspace uses instead")]

use std::hash::{BuildHasherDefault, Hasher};

/// A hash map with a fixed hasher: the same insertions iterate in the same order in every process.
///
/// For keys that the node itself makes or bounds; a hostile client could aim collisions at it.
pub type FixedHashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FixedHasher>>;

/// A hash set with a fixed hasher, see [`FixedHashMap`].
pub type FixedHashSet<K> = std::collections::HashSet<K, BuildHasherDefault<FixedHasher>>;

/// A multiply-and-rotate hasher with a fixed start.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedHasher(u64);

impl FixedHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
}

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        // The multiplication leaves the low bits weak, and hash maps pick buckets by them.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        let mut last = [0_u8; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.add(u64::from_le_bytes(last));
        self.add(bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }
}
