//! One large message, sent without ever being in memory as a whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, anyhow, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use kubemq_proto::kubemq::SendQueueMessageResult;
use kubemq_server::cli::client::{connect, endpoint};
use prost::Message as _;
use tonic::Status;
use tonic::codegen::{Service as _, http};

use super::traffic;

/// Bytes that are handed to the connection at a time.
const PIECE: usize = 64 * 1024;

/// The key of a message's body on the wire: field 5, with a length.
const BODY: u8 = 0x2A;

/// Sends a message of `size` zeros to `channel` on a connection of its own.
///
/// # Errors
///
/// When it is refused, or the connection fails.
pub(super) async fn send(address: &str, channel: String, size: usize) -> anyhow::Result<()> {
    let endpoint = endpoint(address).map_err(|failure| anyhow!("{failure}"))?;
    let mut connection = connect(&endpoint, address).await.map_err(|failure| anyhow!("{failure}"))?;
    let request = http::Request::post(format!("http://{address}/kubemq.kubemq/SendQueueMessage"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Large::new(&channel, size)?))?;
    std::future::poll_fn(|context| connection.poll_ready(context)).await?;
    let answer = connection.call(request).await.context("could not upload")?.into_body();
    let answer = answer.collect().await.context("could not read the answer to an upload")?;
    let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
    if status.is_some_and(|status| status != "0") {
        bail!("an upload ended with status {status:?}");
    }
    // Before the answer stand a byte that says whether it is compressed, and its length.
    let answer = answer.to_bytes();
    let answer = SendQueueMessageResult::decode(answer.get(5..).context("an upload has no answer")?)?;
    if answer.is_error {
        bail!("an upload was refused: {}", answer.error);
    }
    Ok(())
}

/// The request: what stands before the body, then zeros.
struct Large {
    head: Bytes,
    left: usize,
    piece: Bytes,
}

impl Large {
    fn new(channel: &str, size: usize) -> anyhow::Result<Self> {
        let mut message = BytesMut::from(&traffic::message(channel, Bytes::new()).encode_to_vec()[..]);
        message.put_u8(BODY);
        prost::encoding::encode_varint(size as u64, &mut message);
        let mut head = BytesMut::new();
        head.put_u8(0);
        head.put_u32(u32::try_from(message.len() + size)?);
        head.put(message);
        Ok(Self { head: head.freeze(), left: size, piece: Bytes::from(vec![0; PIECE]) })
    }
}

impl Body for Large {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.head.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.head)))));
        }
        let length = self.left.min(PIECE);
        if length == 0 {
            return Poll::Ready(None);
        }
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(self.piece.slice(..length)))))
    }
}

#[cfg(test)]
mod tests {
    use kubemq_proto::kubemq::QueueMessage;

    use super::*;

    #[tokio::test]
    async fn the_pieces_are_one_message() {
        let size = 3 * PIECE + 5;
        let bytes = Large::new("large", size).unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(bytes[..5], [&[0][..], &u32::try_from(bytes.len() - 5).unwrap().to_be_bytes()].concat());
        let message = QueueMessage::decode(bytes.slice(5..)).unwrap();
        assert_eq!((message.channel.as_str(), message.body.len()), ("large", size));
    }
}
