//! Reading for those who follow a stretch of the log: many parts at once, and where in time it lies.

use std::ops::Range;

use bytes::Bytes;

use super::Log;
use super::reader::ReadJob;
use crate::Error;

/// Consecutive parts of one entry that were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartsRead {
    /// The LogTime of their entry.
    pub time: u64,
    /// Their bytes, in order.
    pub bytes: Vec<Bytes>,
}

/// What the log knows of a moment without reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moment {
    /// The last sampled entry that is older.
    pub before: Option<u64>,
    /// The first sampled entry that is of that moment or later.
    pub from: Option<u64>,
}

impl Log {
    /// Returns parts of an entry when all of them are in memory.
    #[must_use]
    pub fn cached_parts(&self, entry: u64, parts: Range<u16>) -> Option<PartsRead> {
        let chunk = {
            let index = self.0.shared.index.lock();
            if index.has_bodies_of(entry) {
                return None;
            }
            if let Some(entry) = index.tail.get(entry) {
                let bytes: Option<_> = parts.map(|part| entry.parts.get(part)).collect();
                return Some(PartsRead { time: entry.time, bytes: bytes? });
            }
            index.find_chunk(entry)?
        };
        chunk.parts(entry, parts)?.ok()
    }

    /// Returns parts of an entry from memory or from a file, also below the purge point.
    ///
    /// # Errors
    ///
    /// As [`Log::read_part`], for the first part that cannot be read.
    pub async fn read_parts(&self, entry: u64, parts: Range<u16>) -> Result<PartsRead, Error> {
        if let Some(read) = self.cached_parts(entry, parts.clone()) {
            return Ok(read);
        }
        if !self.0.shared.index.lock().has_bodies_of(entry) {
            let chunk = self.read(|reply| ReadJob::Entries { from: entry, reply }).await?;
            let missing = Error::NotFound { entry, part: parts.start };
            return chunk.parts(entry, parts).unwrap_or(Err(missing));
        }
        let mut read = PartsRead { time: 0, bytes: Vec::with_capacity(parts.len()) };
        for part in parts {
            let one = self.read_part(entry, part).await?;
            read.time = one.time;
            read.bytes.push(one.bytes);
        }
        Ok(read)
    }

    /// Returns the LogTime of an entry, also when what it carries is damaged. Where not even its head can be read it
    /// returns a later time, that of the next sampled entry: whoever removes what is old must not take it for older
    /// than it is. Nothing when there is none yet.
    pub async fn time_of(&self, entry: u64) -> Option<u64> {
        let in_memory = self.0.shared.index.lock().tail.get(entry).map(|entry| entry.time);
        if in_memory.is_some() {
            return in_memory;
        }
        let chunk = self.read(|reply| ReadJob::Entries { from: entry, reply }).await.ok();
        let read = chunk.and_then(|chunk| chunk.time(entry));
        read.or_else(|| self.0.shared.index.lock().positions.time_from(entry))
    }

    /// Returns between which entries the log passed `time`, as far as the sparse index tells.
    #[must_use]
    pub fn moment(&self, time: u64) -> Moment {
        self.0.shared.index.lock().positions.moment(time)
    }
}
