//! Randomness: ids and jitter, one stream per purpose.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};

/// A stream of random numbers, shared by its clones. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<Xoshiro256PlusPlus>>);

impl Random {
    /// Returns the stream that `seed` names; equal seeds give equal streams.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed))))
    }

    /// Returns a stream seeded by the operating system.
    #[must_use]
    #[expect(clippy::disallowed_types, reason = "this is the door to randomness")]
    pub fn from_system() -> Self {
        use std::hash::{BuildHasher, RandomState};
        // The keys of RandomState come from the system's generator; hashing a constant with two of them
        // yields the 128 bits that make two processes' ids differ, without a second source of entropy.
        let (high, low) = (RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8));
        Self::from_seed(high ^ low.rotate_left(32))
    }

    /// Returns a random number.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }

    /// Returns a random number less than `bound`, zero when `bound` is zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        // Multiply-shift: the bias is below 2^-32 for the small bounds that are drawn here.
        u64::try_from((u128::from(self.u64()) * u128::from(bound)) >> 64).unwrap_or(0)
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().fill_bytes(bytes);
    }

    /// Returns a stream of its own for `purpose`. It depends on this stream's seed and on the purpose only
    /// when it is made before anything else was drawn.
    #[must_use]
    pub fn branch(&self, purpose: &str) -> Self {
        let mut seed = self.u64();
        for byte in purpose.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Self::from_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_streams() {
        let (a, b) = (Random::from_seed(3), Random::from_seed(3));
        assert_eq!(a.u64(), b.u64());
        assert_eq!(a.branch("ids").u64(), b.branch("ids").u64());
        assert_ne!(a.branch("ids").u64(), b.branch("jitter").u64());
        assert!((0..1000).all(|_| a.below(7) < 7));
        assert_eq!(a.below(0), 0);
    }
}
