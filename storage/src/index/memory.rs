//! An index in memory: it forgets everything with its process, which is all that an index promises.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::{BlockKey, Index, IndexError, MAX_BLOCK_BYTES, Space};

/// An [`Index`] without a disk, for simulations and tests.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    blocks: BTreeMap<BlockKey, Bytes>,
}

impl MemoryIndex {
    /// Returns an empty index.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Index for MemoryIndex {
    fn put(&mut self, key: BlockKey, block: &Bytes) -> Result<(), IndexError> {
        if block.len() > MAX_BLOCK_BYTES {
            return Err(IndexError::TooLarge { key, bytes: block.len() });
        }
        self.blocks.insert(key, block.clone());
        Ok(())
    }

    fn get(&mut self, key: BlockKey) -> Result<Option<Bytes>, IndexError> {
        Ok(self.blocks.get(&key).cloned())
    }

    fn remove_range(&mut self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<u64, IndexError> {
        let (first, last) = range.into_inner();
        if first > last {
            return Ok(0);
        }
        let keys = BlockKey { space, owner, first }..=BlockKey { space, owner, first: last };
        let keys: Vec<BlockKey> = self.blocks.range(keys).map(|(key, _)| *key).collect();
        for key in &keys {
            self.blocks.remove(key);
        }
        Ok(u64::try_from(keys.len()).unwrap_or(u64::MAX))
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        self.blocks.clear();
        Ok(())
    }

    fn shrink(&mut self) -> Result<bool, IndexError> {
        Ok(false)
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        Ok(())
    }

    fn len(&self) -> u64 {
        u64::try_from(self.blocks.len()).unwrap_or(u64::MAX)
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
