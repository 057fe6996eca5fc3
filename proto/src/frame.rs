//! What a subscriber is sent, encoded once for everybody who gets it.
//!
//! In the server's code a [`Frame`] stands where the API streams an `EventReceive` or a `Request` to subscribers
//! (`build.rs` arranges it); clients use the generated types. Everything that is small lies in one buffer of
//! exactly its size, so that a frame that waits keeps no larger buffer of the connection it came over alive. A
//! large body is a slice of what arrived and is not copied before it is written to the wire.

use bytes::{BufMut, Bytes, BytesMut};
use prost::DecodeError;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint, key_len, skip_field};

use crate::kubemq::{Event, EventReceive, Request};

/// From here on a body is not copied: what it keeps alive beside itself is small in comparison.
const LARGE_BODY: usize = 16 * 1024;
/// The field of the body in an `EventReceive`.
const EVENT_BODY: u32 = 4;
/// The fields that the place of a stored event says.
const EVENT_CHANNEL: u32 = 2;
const EVENT_TIME: u32 = 5;
const EVENT_SEQUENCE: u32 = 6;
/// The field of the body in a `Request`.
const REQUEST_BODY: u32 = 6;

/// An encoded message. Clones share the bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// All fields, without the contents of a large body or what is stored.
    head: Bytes,
    /// The contents of a large body, which is the last field, or all fields of a stored event but those of its place.
    body: Bytes,
}

impl Frame {
    /// Returns what the receivers of an event that is not stored are sent.
    #[must_use]
    pub fn event(event: Event) -> Self {
        let Event { event_id, channel, metadata, body, tags, .. } = event;
        Self::new(&EventReceive { event_id, channel, metadata, tags, ..EventReceive::default() }, EVENT_BODY, body)
    }

    /// Returns what the responders to a request are sent.
    #[must_use]
    pub fn request(mut request: Request) -> Self {
        let body = std::mem::take(&mut request.body);
        Self::new(&request, REQUEST_BODY, body)
    }

    /// Returns what the receivers of a stored event are sent: `stored`, as [`store_event`] wrote it, and its place.
    #[must_use]
    pub fn stored_event(channel: &str, time: u64, sequence: u64, stored: Bytes) -> Self {
        let length = u64::try_from(channel.len()).unwrap_or(u64::MAX);
        // Keys of one byte, and numbers of ten at most.
        let mut head = Vec::with_capacity(channel.len() + 35);
        encode_key(EVENT_CHANNEL, WireType::LengthDelimited, &mut head);
        encode_varint(length, &mut head);
        head.put_slice(channel.as_bytes());
        for (field, value) in [(EVENT_TIME, time), (EVENT_SEQUENCE, sequence)] {
            encode_key(field, WireType::Varint, &mut head);
            encode_varint(value, &mut head);
        }
        Self { head: head.into(), body: stored }
    }

    /// Encodes `rest`, which has no body, and the body after it.
    fn new(rest: &impl Message, field: u32, body: Bytes) -> Self {
        let is_large = body.len() >= LARGE_BODY;
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let mut size = rest.encoded_len();
        if !body.is_empty() {
            size += key_len(field) + encoded_len_varint(length);
        }
        if !is_large {
            size += body.len();
        }
        let mut head = Vec::with_capacity(size);
        rest.encode_raw(&mut head);
        if !body.is_empty() {
            encode_key(field, WireType::LengthDelimited, &mut head);
            encode_varint(length, &mut head);
        }
        if is_large {
            return Self { head: head.into(), body };
        }
        head.extend_from_slice(&body);
        Self { head: head.into(), body: Bytes::new() }
    }

    /// Returns how many bytes the message has on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Returns whether the message has no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends an event as it is stored: an `EventReceive` without what its place says. Its channel is given back.
pub fn store_event(event: Event, out: &mut BytesMut) -> String {
    let Event { event_id, channel, metadata, body, tags, .. } = event;
    EventReceive { event_id, metadata, body, tags, ..EventReceive::default() }.encode_raw(out);
    channel
}

/// A frame is written where a message is; it cannot be read back field by field, and nothing reads one.
impl Message for Frame {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.head);
        buf.put_slice(&self.body);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl bytes::Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn event(body: Bytes) -> Event {
        Event {
            event_id: "e".to_owned(),
            client_id: "not told".to_owned(),
            channel: "a.b".to_owned(),
            metadata: "m".to_owned(),
            body,
            store: false,
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        }
    }

    #[test]
    fn receivers_read_what_was_sent() {
        for size in [0, 1, 127, 128, LARGE_BODY - 1, LARGE_BODY, 5 * LARGE_BODY] {
            let sent = event(vec![7; size].into());
            let frame = Frame::event(sent.clone());
            let bytes = frame.encode_to_vec();
            assert_eq!((bytes.len(), frame.len()), (frame.encoded_len(), frame.encoded_len()), "{size}");
            let Event { event_id, channel, metadata, body, tags, .. } = sent;
            let expected = EventReceive { event_id, channel, metadata, body, tags, ..EventReceive::default() };
            assert_eq!(EventReceive::decode(bytes.as_slice()).unwrap(), expected.clone());
            let mut stored = BytesMut::new();
            assert_eq!(store_event(event(vec![7; size].into()), &mut stored), "a.b");
            let stored = stored.freeze();
            let frame = Frame::stored_event("a.b", u64::MAX >> 1, u64::MAX, stored.clone());
            assert_eq!(frame.body.as_ptr(), stored.as_ptr(), "nothing is copied");
            let placed = EventReceive { timestamp: i64::MAX, sequence: u64::MAX, ..expected };
            assert_eq!(EventReceive::decode(frame.encode_to_vec().as_slice()).unwrap(), placed);
        }
    }

    #[test]
    fn responders_read_the_whole_request() {
        let sent = Request {
            request_id: "r".to_owned(),
            request_type_data: 2,
            client_id: "c".to_owned(),
            channel: "q".to_owned(),
            metadata: "m".to_owned(),
            body: Bytes::from_static(b"body"),
            reply_channel: "token".to_owned(),
            timeout: 1000,
            cache_key: "key".to_owned(),
            cache_ttl: 3,
            span: Bytes::from_static(b"span"),
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        };
        let bytes = Frame::request(sent.clone()).encode_to_vec();
        assert_eq!(Request::decode(bytes.as_slice()).unwrap(), sent);
    }

    #[test]
    fn only_a_large_body_is_shared_with_what_arrived() {
        let arrived = Bytes::from(vec![7; 4 * LARGE_BODY]);
        let range = arrived.as_ptr_range();
        let small = Frame::event(event(arrived.slice(..100)));
        assert!(small.body.is_empty() && !range.contains(&small.head.as_ptr()));
        let large = Frame::event(event(arrived.slice(..LARGE_BODY)));
        assert!(range.contains(&large.body.as_ptr()) && large.head.len() < 100);
    }
}
