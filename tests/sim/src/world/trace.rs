//! What happened, as a hash and, on demand, as lines that two runs compare with `diff`.

use std::fmt::{self, Write as _};

/// A 64-bit FNV-1a hash over words and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Fingerprint {
    const PRIME: u64 = 0x0000_0100_0000_01B3;

    /// Adds a word in one step.
    pub fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(Self::PRIME).rotate_left(23);
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(Self::PRIME);
        }
        self.word(bytes.len() as u64);
    }

    /// Returns the hash so far.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Write for Fingerprint {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

/// Collects the trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Fingerprint,
    lines: u64,
    text: Option<String>,
}

impl Trace {
    /// Returns a trace that keeps its text when `keep` is set.
    #[must_use]
    pub fn new(keep: bool) -> Self {
        Self { text: keep.then(String::new), ..Self::default() }
    }

    /// Adds a line: simulated nanoseconds, polls so far, node, text. The polls make two runs differ at the first
    /// line after their schedules did.
    pub fn line(&mut self, now: u64, polls: u64, node: usize, text: fmt::Arguments<'_>) {
        self.lines += 1;
        self.hash.word(now);
        self.hash.word(polls);
        self.hash.word(node as u64);
        // Writing to a hash or a string cannot fail.
        self.hash.write_fmt(text).ok();
        if let Some(out) = &mut self.text {
            writeln!(out, "{now} {polls} n{node} {text}").ok();
        }
    }

    /// Adds a word that is not worth a line.
    pub fn word(&mut self, word: u64) {
        self.hash.word(word);
    }

    /// Returns the hash so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.value()
    }

    /// Returns the number of lines so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the text, empty when it was not kept.
    #[must_use]
    pub fn take_text(&mut self) -> String {
        self.text.take().unwrap_or_default()
    }
}
