//! A connection that tells the calls made over it when it is lost.
//!
//! A stream that its client ended and one whose client vanished look alike to whoever serves it. The difference is
//! seen here, where bytes arrive: a stream is ended while its connection lives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::gateway::subscription::Connection;

/// The bytes of a connection. Calls find a [`Connection`] among the extensions of their request.
pub(crate) struct Watched<T> {
    bytes: T,
    connection: Connection,
}

impl<T> Watched<T> {
    pub(crate) fn new(bytes: T) -> Self {
        Self { bytes, connection: Connection::default() }
    }

    fn note<R>(&self, result: &io::Result<R>) {
        if result.is_err() {
            self.connection.lose();
        }
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
        let (room, before) = (buf.remaining(), buf.filled().len());
        let result = ready!(Pin::new(&mut self.bytes).poll_read(cx, buf));
        self.note(&result);
        if room > 0 && buf.filled().len() == before {
            self.connection.lose();
        }
        Poll::Ready(result)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.bytes).poll_write(cx, buf));
        self.note(&result);
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.bytes).poll_write_vectored(cx, bufs));
        self.note(&result);
        Poll::Ready(result)
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
