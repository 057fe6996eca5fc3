//! Batches of operations, and the envelope by which an entry says whose operations it carries.
//!
//! A batch is the unit of retry: its origin and number make a repeated one recognisable. What the operations
//! mean is not known here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kubemq_storage::Parts;

/// Most operations of a batch, and of an entry.
pub const MAX_OPERATIONS: usize = 1024;
/// Most bytes of a batch, and of an entry, unless it is a single operation.
pub const MAX_BYTES: usize = 256 * 1024;

/// Who made a batch: a node, and which life of its process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Origin {
    /// The node's id.
    pub node: u64,
    /// The process epoch: greater for each start of the process.
    pub epoch: u64,
}

/// Operations that are applied together and retried together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who made it.
    pub origin: Origin,
    /// Its number among the batches of its origin, from 1, without gaps.
    pub number: u64,
    /// Up to [`MAX_OPERATIONS`] encoded operations of up to [`MAX_BYTES`] together, or a single one of any size.
    pub operations: Vec<Bytes>,
}

impl Batch {
    /// Returns the bytes of all operations together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.operations.iter().map(Bytes::len).sum()
    }
}

/// What part 0 of an entry says about one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Who made the batch.
    pub origin: Origin,
    /// Its number among the batches of its origin.
    pub number: u64,
    /// How many operations it has; they follow those of the batches before it.
    pub operations: u16,
}

/// Part 0 of an entry: which batches it carries, in order. Part 1 is the first operation of the first batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Envelope {
    /// The batches, in order.
    pub batches: Vec<Header>,
}

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8 + 8 + 8 + 2;

/// An entry's part 0 is not an envelope of a known version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The version is newer than this program.
    #[error("unknown version {0} of an envelope")]
    Version(u8),
    /// The bytes do not make sense.
    #[error("malformed envelope")]
    Malformed,
    /// The headers and the number of parts disagree.
    #[error("an envelope for {said} operations in an entry with {found}")]
    Count {
        /// What the headers add up to.
        said: usize,
        /// What the entry has.
        found: usize,
    },
}

impl Envelope {
    /// Returns the encoded envelope.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(3 + self.batches.len() * HEADER_BYTES);
        bytes.put_u8(VERSION);
        bytes.put_u16_le(u16::try_from(self.batches.len()).unwrap_or(u16::MAX));
        for batch in &self.batches {
            bytes.put_u64_le(batch.origin.node);
            bytes.put_u64_le(batch.origin.epoch);
            bytes.put_u64_le(batch.number);
            bytes.put_u16_le(batch.operations);
        }
        bytes.freeze()
    }

    /// Reads an encoded envelope.
    ///
    /// # Errors
    ///
    /// When the version is unknown or the bytes do not make sense.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let version = bytes.try_get_u8().map_err(|_| EnvelopeError::Malformed)?;
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let count = bytes.try_get_u16_le().map_err(|_| EnvelopeError::Malformed)?;
        if bytes.len() != usize::from(count) * HEADER_BYTES {
            return Err(EnvelopeError::Malformed);
        }
        let mut batches = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let origin = Origin { node: bytes.get_u64_le(), epoch: bytes.get_u64_le() };
            batches.push(Header { origin, number: bytes.get_u64_le(), operations: bytes.get_u16_le() });
        }
        Ok(Self { batches })
    }

    /// Reads the envelope of an entry and checks that the entry has the operations that it names.
    ///
    /// # Errors
    ///
    /// When there is no envelope, it cannot be read, or the number of operations differs.
    pub fn of(parts: &Parts) -> Result<Self, EnvelopeError> {
        let envelope = Self::decode(&parts.get(0).ok_or(EnvelopeError::Malformed)?)?;
        let said = envelope.batches.iter().map(|batch| usize::from(batch.operations)).sum();
        let found = usize::from(parts.count()) - 1;
        if said != found {
            return Err(EnvelopeError::Count { said, found });
        }
        Ok(envelope)
    }
}

/// Encodes batches as the parts of one entry.
pub(crate) fn encode<'a>(batches: impl Iterator<Item = &'a Batch> + Clone) -> Parts {
    let headers = batches.clone().map(|batch| Header {
        origin: batch.origin,
        number: batch.number,
        operations: u16::try_from(batch.operations.len()).unwrap_or(u16::MAX),
    });
    let envelope = Envelope { batches: headers.collect() }.encode();
    let mut builder = Parts::builder();
    // An entry of the usual size would otherwise be copied several times while its buffer grows.
    let (parts, bytes) = batches
        .clone()
        .fold((1, envelope.len()), |(parts, bytes), batch| (parts + batch.operations.len(), bytes + batch.bytes()));
    builder.reserve(parts, bytes);
    builder.push(&envelope);
    for operation in batches.flat_map(|batch| &batch.operations) {
        builder.push(operation);
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64, operations: &[&'static [u8]]) -> Batch {
        let operations = operations.iter().map(|bytes| Bytes::from_static(bytes)).collect();
        Batch { origin: Origin { node: 7, epoch: 3 }, number, operations }
    }

    #[test]
    fn an_entry_says_whose_operations_it_carries() {
        let batches = [batch(1, &[b"a", b"bc"]), batch(2, &[b""])];
        let parts = encode(batches.iter());
        let envelope = Envelope::of(&parts).unwrap();
        let counts: Vec<_> = envelope.batches.iter().map(|header| (header.number, header.operations)).collect();
        assert_eq!(counts, [(1, 2), (2, 1)]);
        assert_eq!(envelope.batches[1].origin, Origin { node: 7, epoch: 3 });
        assert_eq!(parts.get(2).unwrap(), Bytes::from_static(b"bc"));
        assert_eq!(parts.get(3).unwrap(), Bytes::new());
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let good = Envelope { batches: vec![Header { origin: Origin::default(), number: 1, operations: 2 }] }.encode();
        for cut in 0..good.len() {
            assert_eq!(Envelope::decode(&good[..cut]), Err(EnvelopeError::Malformed), "cut at {cut}");
        }
        let mut newer = good.to_vec();
        newer[0] = 9;
        assert_eq!(Envelope::decode(&newer), Err(EnvelopeError::Version(9)));
        let mut builder = Parts::builder();
        builder.push(&good);
        builder.push(b"only one of two");
        assert_eq!(Envelope::of(&builder.finish()), Err(EnvelopeError::Count { said: 2, found: 1 }));
    }
}
