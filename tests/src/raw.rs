//! Calls whose messages are raw bytes, to send what no honest client sends.

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// Takes and gives messages as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw {
    /// Each message that is sent has a frame of its own, however small it is.
    pub one_per_frame: bool,
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Whatever is there is handed over at once.
        if self.one_per_frame { BufferSettings::new(1024, 1) } else { BufferSettings::default() }
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Makes a unary call of `method` with `body` as its message.
///
/// # Errors
///
/// The status that the server answers.
pub async fn unary(channel: &Channel, method: &'static str, body: Bytes) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    grpc.unary(Request::new(body), PathAndQuery::from_static(method), Raw::default())
        .await
        .map(tonic::Response::into_inner)
}

/// Opens a stream of `method`, sends `bodies` as its messages, and returns the first answer or how it ended.
///
/// # Errors
///
/// The status that the server answers.
pub async fn streaming(channel: &Channel, method: &'static str, bodies: Vec<Bytes>) -> Result<Option<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let requests = futures_util::StreamExt::chain(tokio_stream::iter(bodies), futures_util::stream::pending());
    let path = PathAndQuery::from_static(method);
    grpc.streaming(Request::new(requests), path, Raw::default()).await?.into_inner().message().await
}
