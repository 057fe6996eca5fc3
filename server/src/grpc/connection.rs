//! A connection that tells the calls made over it when it is lost.
//!
//! A stream that its client ended and one whose client vanished look alike to whoever serves it. The difference is
//! seen here, where bytes arrive: a stream is ended while its connection lives. A client that ends its streams and
//! then its connection does both at once, so the end of a connection is held back for a moment, in which the streams
//! that were ended before it come to their end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubemq_runtime::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::gateway::subscription::Connection;

/// How long the end of a connection is held back.
const HELD_BACK: Duration = Duration::from_millis(20);

/// The bytes of a connection. Calls find a [`Connection`] among the extensions of their request.
pub(crate) struct Watched<T> {
    bytes: T,
    clock: Clock,
    connection: Connection,
    /// Nothing more will come or go: runs until that may be told.
    ended: Option<BoxFuture<'static, ()>>,
}

impl<T> Watched<T> {
    pub(crate) fn new(bytes: T, clock: Clock) -> Self {
        Self { bytes, clock, connection: Connection::default(), ended: None }
    }

    /// Holds back the end of the connection, if it has come to it.
    fn poll_held_back(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ended) = &mut self.ended else { return Poll::Ready(()) };
        if !self.connection.is_lost() {
            ready!(ended.as_mut().poll(cx));
            self.connection.lose();
        }
        Poll::Ready(())
    }

    /// Returns whether the end that was met is to be held back.
    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let clock = self.clock.clone();
        self.ended = Some(Box::pin(async move { clock.sleep(HELD_BACK).await }));
        self.poll_held_back(cx).is_pending()
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        // Given up, for instance because nobody answered pings: streams that are still open have lost it.
        self.connection.lose();
    }
}

impl<T> Connected for Watched<T> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held_back(cx));
        let (room, before) = (buf.remaining(), buf.filled().len());
        let result = ready!(Pin::new(&mut self.bytes).poll_read(cx, buf));
        let is_end = result.is_err() || (room > 0 && buf.filled().len() == before);
        if is_end && self.has_ended(cx) { Poll::Pending } else { Poll::Ready(result) }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_held_back(cx));
        let result = ready!(Pin::new(&mut self.bytes).poll_write(cx, buf));
        if result.is_err() && self.has_ended(cx) { Poll::Pending } else { Poll::Ready(result) }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_held_back(cx));
        let result = ready!(Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs));
        if result.is_err() && self.has_ended(cx) { Poll::Pending } else { Poll::Ready(result) }
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_end_is_told_after_what_came_before_it() {
        let (bytes, mut client) = tokio::io::duplex(64);
        let clock = Clock::real();
        let mut watched = Watched::new(bytes, clock.clone());
        let connection = watched.connect_info();
        client.write_all(b"ab").await.unwrap();
        drop(client);
        let mut read = [0; 8];
        assert_eq!(watched.read(&mut read).await.unwrap(), 2);
        assert!(!connection.is_lost());
        let begin = clock.now();
        assert_eq!(watched.read(&mut read).await.unwrap(), 0);
        assert!(connection.is_lost() && clock.now().since(begin) >= HELD_BACK);
        assert!(watched.write(b"x").await.is_err());
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_is_lost() {
        let (bytes, _client) = tokio::io::duplex(64);
        let watched = Watched::new(bytes, Clock::real());
        let connection = watched.connect_info();
        drop(watched);
        assert!(connection.is_lost());
    }
}
