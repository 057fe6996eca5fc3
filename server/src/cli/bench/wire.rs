//! The codec of the load: requests written from parts that are encoded once, answers read in place.
//!
//! A load generator on the broker's own machine competes with it for the processor, so this one does per
//! message only what a message needs: sixty-four bytes of ids are written, the rest is copied from a template,
//! and of an answer only its ids and errors are read. The bytes are those of the generated types (a test
//! compares them). Ids carry the intended send time, so that no table of requests in flight is kept.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use kubemq_proto::kubemq as proto;
use kubemq_runtime::Instant;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// The length of an id: two numbers of 16 hexadecimal digits.
const ID_LENGTH: usize = 32;

/// How much is gathered before it is handed to HTTP/2.
const GATHERED: usize = 64 * 1024;

/// A request that is written to the wire.
pub(super) trait Outgoing: Send + Sync + 'static {
    fn write(&self, buffer: &mut EncodeBuf<'_>);
}

/// An answer that is read from the wire.
pub(super) trait Incoming: Send + Sync + Sized + 'static {
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// A codec of requests `E` and answers `D`.
pub(super) struct Wire<E, D>(PhantomData<fn() -> (E, D)>);

impl<E, D> Default for Wire<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Outgoing, D: Incoming> Codec for Wire<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<E: Outgoing, D: Incoming> Encoder for Wire<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(GATHERED, GATHERED)
    }
}

impl<E: Outgoing, D: Incoming> Decoder for Wire<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let length = buffer.remaining();
        // tonic hands out one contiguous message.
        let item = D::read(buffer.chunk()).ok_or_else(|| Status::internal("could not read the broker's answer"));
        buffer.advance(length);
        item.map(Some)
    }
}

/// A time and a number, which travel as the id of a request or message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) intended: Instant,
    pub(super) number: u64,
}

impl Id {
    fn write(self, buffer: &mut impl BufMut) {
        buffer.put_slice(&hexadecimal(self.intended.as_nanos()));
        buffer.put_slice(&hexadecimal(self.number));
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (intended, number) = bytes.split_at_checked(ID_LENGTH / 2)?;
        Some(Self { intended: Instant::from_nanos(from_hexadecimal(intended)?), number: from_hexadecimal(number)? })
    }
}

fn hexadecimal(number: u64) -> [u8; ID_LENGTH / 2] {
    let mut digits = [0; ID_LENGTH / 2];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
    digits
}

fn from_hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.len() != ID_LENGTH / 2 {
        return None;
    }
    digits.iter().try_fold(0, |number: u64, &digit| Some((number << 4) | u64::from(char::from(digit).to_digit(16)?)))
}

/// Everything of a message, an event or a request but its id, encoded. Messages and events have the same fields
/// here.
#[derive(Clone, Debug)]
pub(super) struct Template(Bytes);

impl Template {
    pub(super) fn new(client_id: &str, channel: &str, body: Bytes) -> Self {
        let message = proto::QueueMessage {
            client_id: client_id.to_owned(),
            channel: channel.to_owned(),
            body,
            ..proto::QueueMessage::default()
        };
        Self(message.encode_to_vec().into())
    }

    /// Returns that of a request which waits for so many milliseconds.
    pub(super) fn request(
        kind: proto::request::RequestType,
        client_id: &str,
        channel: &str,
        body: Bytes,
        timeout: i32,
    ) -> Self {
        let request = proto::Request {
            request_type_data: kind.into(),
            client_id: client_id.to_owned(),
            channel: channel.to_owned(),
            body,
            timeout,
            ..proto::Request::default()
        };
        Self(request.encode_to_vec().into())
    }

    /// A stored event instead of a message.
    pub(super) fn stored_event(client_id: &str, channel: &str, body: Bytes) -> Self {
        let event = proto::Event {
            client_id: client_id.to_owned(),
            channel: channel.to_owned(),
            body,
            store: true,
            ..proto::Event::default()
        };
        Self(event.encode_to_vec().into())
    }

    fn message_length(&self) -> usize {
        2 + ID_LENGTH + self.0.len()
    }

    fn write(&self, id: Id, buffer: &mut impl BufMut) {
        write_id(id, buffer);
        buffer.put_slice(&self.0);
    }
}

/// Writes an id as field 1.
fn write_id(id: Id, buffer: &mut impl BufMut) {
    buffer.put_slice(&[0x0A, ID_LENGTH as u8]);
    id.write(buffer);
}

/// One message, event or request by itself.
pub(super) struct Single {
    pub(super) id: Id,
    pub(super) template: Template,
}

impl Outgoing for Single {
    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        self.template.write(self.id, buffer);
    }
}

/// Messages of one channel on an upstream stream. Their ids count from the request's.
pub(super) struct Upstream {
    pub(super) id: Id,
    pub(super) count: u64,
    pub(super) template: Template,
}

impl Outgoing for Upstream {
    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        write_id(self.id, buffer);
        for offset in 0..self.count {
            buffer.put_u8(0x12);
            prost::encoding::encode_varint(self.template.message_length() as u64, buffer);
            self.template.write(Id { number: self.id.number + offset, ..self.id }, buffer);
        }
    }
}

impl Outgoing for proto::Subscribe {
    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        write_message(self, buffer);
    }
}

impl Outgoing for proto::QueuesDownstreamRequest {
    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        write_message(self, buffer);
    }
}

impl Outgoing for proto::Response {
    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        write_message(self, buffer);
    }
}

fn write_message(message: &impl prost::Message, buffer: &mut EncodeBuf<'_>) {
    // A BytesMut grows as needed.
    message.encode(buffer).ok();
}

/// The answer to one upstream request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UpstreamAnswer {
    pub(super) id: Option<Id>,
    pub(super) results: u64,
    pub(super) refused: u64,
    pub(super) error: Option<String>,
}

impl Incoming for UpstreamAnswer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        let mut is_error = false;
        let mut text = None;
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(id)) => answer.id = Id::read(id),
                (2, Value::Bytes(result)) => {
                    answer.results += 1;
                    let result = SendAnswer::read(result)?;
                    if let Some(error) = result.error {
                        answer.refused += 1;
                        answer.error = Some(error);
                    }
                }
                (3, Value::Number(number)) => is_error = number != 0,
                (4, Value::Bytes(error)) => text = Some(String::from_utf8_lossy(error).into_owned()),
                _ => {}
            }
        }
        if is_error {
            answer.error = Some(text.unwrap_or_default());
        }
        Some(answer)
    }
}

/// The answer to a unary send.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SendAnswer {
    pub(super) error: Option<String>,
}

impl Incoming for SendAnswer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut is_error = false;
        let mut text = None;
        for field in Fields(bytes) {
            match field? {
                (5, Value::Number(number)) => is_error = number != 0,
                (6, Value::Bytes(error)) => text = Some(String::from_utf8_lossy(error).into_owned()),
                _ => {}
            }
        }
        Some(Self { error: is_error.then(|| text.unwrap_or_default()) })
    }
}

/// An event, of which only the id counts; one that somebody else published has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received(pub(super) Option<Id>);

impl Incoming for Received {
    fn read(bytes: &[u8]) -> Option<Self> {
        // The id is the first field that every encoder writes; what follows need not be read.
        match Fields(bytes).next()? {
            Some((1, Value::Bytes(id))) => Some(Self(Id::read(id))),
            field => field.map(|_| Self(None)),
        }
    }
}

/// What a responder needs of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) request_id: String,
    pub(super) reply_channel: String,
}

impl Incoming for Asked {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut asked = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(id)) => asked.request_id = String::from_utf8_lossy(id).into_owned(),
                (7, Value::Bytes(token)) => asked.reply_channel = String::from_utf8_lossy(token).into_owned(),
                _ => {}
            }
        }
        Some(asked)
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestAnswer {
    pub(super) error: Option<String>,
}

impl Incoming for RequestAnswer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut executed = false;
        let mut text = String::new();
        for field in Fields(bytes) {
            match field? {
                (8, Value::Number(number)) => executed = number != 0,
                (9, Value::Bytes(error)) => text = String::from_utf8_lossy(error).into_owned(),
                _ => {}
            }
        }
        Some(Self { error: (!executed).then_some(text) })
    }
}

/// An answer that says nothing.
pub(super) struct Nothing;

impl Incoming for Nothing {
    fn read(_: &[u8]) -> Option<Self> {
        Some(Self)
    }
}

/// The answer to a call with one message.
pub(super) trait Answer: Incoming {
    /// Returns why the message was refused.
    fn error(self) -> Option<String>;
}

impl Answer for SendAnswer {
    fn error(self) -> Option<String> {
        self.error
    }
}

impl Answer for RequestAnswer {
    fn error(self) -> Option<String> {
        self.error
    }
}

/// The answer to one event: to one that is not stored only when it is refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EventAnswer {
    pub(super) id: Option<Id>,
    pub(super) error: Option<String>,
}

impl Incoming for EventAnswer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        let mut is_sent = false;
        let mut text = None;
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(id)) => answer.id = Id::read(id),
                (2, Value::Number(number)) => is_sent = number != 0,
                (3, Value::Bytes(error)) => text = Some(String::from_utf8_lossy(error).into_owned()),
                _ => {}
            }
        }
        answer.error = (!is_sent).then(|| text.unwrap_or_default());
        Some(answer)
    }
}

/// What is looked at of a stored event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sequence: u64,
}

impl Incoming for Seen {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut seen = Self::default();
        for field in Fields(bytes) {
            if let (6, Value::Number(sequence)) = field? {
                seen.sequence = sequence;
            }
        }
        Some(seen)
    }
}

/// Messages that a Get brought, or what was wrong with a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) is_get: bool,
    pub(super) transaction: String,
    /// One for each message that this load sent; a message of somebody else has none.
    pub(super) ids: Vec<Option<Id>>,
    pub(super) error: Option<String>,
}

impl Incoming for Given {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut given = Self::default();
        let mut is_error = false;
        let mut text = None;
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(id)) => given.transaction = String::from_utf8_lossy(id).into_owned(),
                (3, Value::Number(kind)) => given.is_get = kind == proto::QueuesDownstreamRequestType::Get as u64,
                (4, Value::Bytes(message)) => {
                    // The id is the first field that every encoder writes; what follows need not be read.
                    let id = Fields(message).find_map(|field| match field {
                        Some((1, Value::Bytes(id))) => Some(Id::read(id)),
                        _ => None,
                    });
                    given.ids.push(id.flatten());
                }
                (6, Value::Number(number)) => is_error = number != 0,
                (7, Value::Bytes(error)) => text = Some(String::from_utf8_lossy(error).into_owned()),
                _ => {}
            }
        }
        given.error = is_error.then(|| text.unwrap_or_default());
        Some(given)
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of an encoded message, in order. Yields `None` and ends where the bytes make no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        prost::encoding::decode_varint(&mut self.0).ok()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { intended: Instant::from_nanos(0x1234_5678_9ABC), number: 41 };

    #[test]
    fn a_template_with_an_id_is_the_message() {
        let template = Template::new("me", "orders", Bytes::from_static(b"body"));
        let mut bytes = Vec::new();
        template.write(ID, &mut bytes);
        assert_eq!(bytes.len(), template.message_length());
        let message = proto::QueueMessage::decode(bytes.as_slice()).unwrap();
        assert_eq!(message.message_id, "0000123456789abc0000000000000029");
        assert_eq!(
            (message.client_id.as_str(), message.channel.as_str(), &message.body[..]),
            ("me", "orders", &b"body"[..])
        );
        assert_eq!(Id::read(message.message_id.as_bytes()), Some(ID));
    }

    #[test]
    fn foreign_ids_are_recognised() {
        for id in ["", "short", "0000123456789abc00000000000000zz", "0000123456789abc00000000000000290"] {
            assert_eq!(Id::read(id.as_bytes()), None, "{id:?}");
        }
    }

    #[test]
    fn answers_are_read_as_the_generated_types_write_them() {
        let refusal = proto::SendQueueMessageResult { is_error: true, error: "no".into(), ..Default::default() };
        let stored = proto::SendQueueMessageResult { message_id: "x".into(), sent_at: -1, ..Default::default() };
        assert_eq!(SendAnswer::read(&refusal.encode_to_vec()), Some(SendAnswer { error: Some("no".into()) }));
        assert_eq!(SendAnswer::read(&stored.encode_to_vec()), Some(SendAnswer { error: None }));
        let answer = proto::QueuesUpstreamResponse {
            ref_request_id: "0000123456789abc0000000000000029".into(),
            results: vec![stored, refusal],
            ..Default::default()
        };
        let wanted = UpstreamAnswer { id: Some(ID), results: 2, refused: 1, error: Some("no".into()) };
        assert_eq!(UpstreamAnswer::read(&answer.encode_to_vec()), Some(wanted));

        let message = |id: &str| proto::QueueMessage { message_id: id.into(), body: "b".into(), ..Default::default() };
        let given = proto::QueuesDownstreamResponse {
            transaction_id: "t".into(),
            request_type_data: proto::QueuesDownstreamRequestType::Get.into(),
            messages: vec![message("0000123456789abc0000000000000029"), message("foreign")],
            ..Default::default()
        };
        let wanted = Given { is_get: true, transaction: "t".into(), ids: vec![Some(ID), None], error: None };
        assert_eq!(Given::read(&given.encode_to_vec()), Some(wanted));
    }

    #[test]
    fn stored_events_are_read_as_the_generated_types_write_them() {
        let result = |sent: bool, error: &str| {
            let result =
                proto::Result { event_id: "0000123456789abc0000000000000029".into(), sent, error: error.into() };
            EventAnswer::read(&result.encode_to_vec())
        };
        assert_eq!(result(true, ""), Some(EventAnswer { id: Some(ID), error: None }));
        assert_eq!(result(false, "no"), Some(EventAnswer { id: Some(ID), error: Some("no".into()) }));
        let event = proto::EventReceive { sequence: 7, body: "b".into(), timestamp: 9, ..Default::default() };
        assert_eq!(Seen::read(&event.encode_to_vec()), Some(Seen { sequence: 7 }));
        let mut bytes = Vec::new();
        Template::stored_event("me", "orders", Bytes::from_static(b"body")).write(ID, &mut bytes);
        let event = proto::Event::decode(bytes.as_slice()).unwrap();
        assert_eq!((event.event_id.len(), event.store, event.channel.as_str()), (ID_LENGTH, true, "orders"));
    }

    #[test]
    fn events_and_requests_are_read_as_the_generated_types_write_them() {
        let id = "0000123456789abc0000000000000029".to_owned();
        let event = proto::EventReceive { event_id: id.clone(), body: "b".into(), ..Default::default() };
        assert_eq!(Received::read(&event.encode_to_vec()), Some(Received(Some(ID))));
        let foreign = proto::EventReceive { channel: "a".into(), ..Default::default() };
        assert_eq!(Received::read(&foreign.encode_to_vec()), Some(Received(None)));

        let template = Template::request(proto::request::RequestType::Query, "me", "a", Bytes::from_static(b"b"), 7);
        let mut bytes = Vec::new();
        template.write(ID, &mut bytes);
        let request = proto::Request::decode(bytes.as_slice()).unwrap();
        assert_eq!((request.request_id.as_str(), request.timeout, request.channel.as_str()), (id.as_str(), 7, "a"));
        let asked = proto::Request { reply_channel: "token".into(), ..request };
        let wanted = Asked { request_id: id, reply_channel: "token".into() };
        assert_eq!(Asked::read(&asked.encode_to_vec()), Some(wanted));
        for (executed, error) in [(true, None), (false, Some("no".to_owned()))] {
            let response = proto::Response { executed, error: "no".into(), ..Default::default() };
            assert_eq!(RequestAnswer::read(&response.encode_to_vec()), Some(RequestAnswer { error }));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&[0x0A, 0x05, 0x00][..], &[0xFF], &[0x0B, 0x00]] {
            assert_eq!(UpstreamAnswer::read(bytes), None, "{bytes:?}");
        }
    }
}
