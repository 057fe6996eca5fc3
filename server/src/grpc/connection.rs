//! A connection that tells the calls made over it when it is lost.
//!
//! A stream that its client ended and one whose client vanished look alike to whoever serves it. The difference is
//! seen here, where bytes arrive: a stream is ended while its connection lives, or by a client that says goodbye with
//! a GOAWAY frame. A client that ends its streams and then its connection without a word does both at once, so the
//! end of a connection is held back for a moment, in which the streams that were ended before it come to their end.

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
    goodbye: Goodbye,
    end: End,
}

/// How far a connection is in ending.
enum End {
    No,
    /// Nothing more will come or go: runs until that may be told.
    HeldBack(BoxFuture<'static, ()>),
    Told,
}

impl<T> Watched<T> {
    pub(crate) fn new(bytes: T, clock: Clock) -> Self {
        Self { bytes, clock, connection: Connection::default(), goodbye: Goodbye::default(), end: End::No }
    }

    /// Holds back the end of the connection, if it has come to it.
    fn poll_held_back(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let End::HeldBack(moment) = &mut self.end {
            ready!(moment.as_mut().poll(cx));
            self.end = End::Told;
            self.lose();
        }
        Poll::Ready(())
    }

    fn lose(&self) {
        if !self.goodbye.was_said {
            self.connection.lose();
        }
    }

    /// Returns whether the end that was met is to be held back.
    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        if !matches!(self.end, End::No) {
            return false;
        }
        let clock = self.clock.clone();
        self.end = End::HeldBack(Box::pin(async move { clock.sleep(HELD_BACK).await }));
        self.poll_held_back(cx).is_pending()
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        // Given up, for instance because nobody answered pings: streams that are still open have lost it.
        self.lose();
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
        let read = &buf.filled()[before..];
        self.goodbye.look_at(read);
        let is_end = result.is_err() || (room > 0 && read.is_empty());
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

/// Looks through what a client sends for the frame that says goodbye: a GOAWAY without an error. Everything else is
/// passed over by its length.
#[derive(Default)]
struct Goodbye {
    was_said: bool,
    /// What has come of the head of a frame: its header and, of a GOAWAY, the last stream and the error.
    head: [u8; FRAME_HEADER + 8],
    filled: usize,
    /// Bytes to come of what is passed over.
    rest: usize,
    has_begun: bool,
}

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const FRAME_HEADER: usize = 9;
const GOAWAY: u8 = 7;
const NO_ERROR: [u8; 4] = [0; 4];

impl Goodbye {
    fn look_at(&mut self, mut bytes: &[u8]) {
        if !self.has_begun {
            (self.has_begun, self.rest) = (true, PREFACE);
        }
        while !bytes.is_empty() {
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = &bytes[passed..];
            let wanted = if self.filled >= FRAME_HEADER { self.head.len() } else { FRAME_HEADER };
            let (more, later) = bytes.split_at(bytes.len().min(wanted - self.filled));
            self.head[self.filled..self.filled + more.len()].copy_from_slice(more);
            self.filled += more.len();
            bytes = later;
            if self.filled == wanted {
                self.look_at_head();
            }
        }
    }

    fn look_at_head(&mut self) {
        let [high, middle, low, kind, ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let beyond = self.filled - FRAME_HEADER;
        if kind == GOAWAY && length >= self.head.len() - FRAME_HEADER && beyond == 0 {
            // The rest of its head is to come.
            return;
        }
        if beyond > 0 {
            self.was_said |= self.head.ends_with(&NO_ERROR);
        }
        self.rest = length - beyond;
        self.filled = 0;
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

    /// A client's preface and frames: of a kind, with a payload.
    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut all = vec![b'P'; PREFACE];
        for (kind, payload) in frames {
            all.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
            all.extend_from_slice(&[*kind, 0, 0, 0, 0, 1]);
            all.extend_from_slice(payload);
        }
        all
    }

    #[test]
    fn goodbye_is_found_wherever_it_is_cut() {
        let goodbye: (u8, &[u8]) = (GOAWAY, b"\0\0\0\x05\0\0\0\0client closed");
        for (of, expected) in [
            (frames(&[(4, &[]), (0, &[7; 300]), goodbye, (6, &[0; 8])]), true),
            (frames(&[goodbye]), true),
            // With an error; too short to be one; its bytes within another frame.
            (frames(&[(GOAWAY, b"\0\0\0\0\0\0\0\x02"), (0, &[0; 70_000])]), false),
            (frames(&[(GOAWAY, &[0; 4]), (3, &[0; 4]), (8, &[0; 4])]), false),
            (frames(&[(0, &frames(&[goodbye])[PREFACE..])]), false),
            (frames(&[]), false),
        ] {
            for size in [1, 2, 7, 9, 17, 64, of.len()] {
                let mut found = Goodbye::default();
                of.chunks(size).for_each(|bytes| found.look_at(bytes));
                assert_eq!(found.was_said, expected, "in pieces of {size} bytes");
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_says_goodbye_loses_nothing() {
        let (bytes, mut client) = tokio::io::duplex(128);
        let mut watched = Watched::new(bytes, Clock::real());
        let connection = watched.connect_info();
        client.write_all(&frames(&[(GOAWAY, &[0; 8])])).await.unwrap();
        assert_eq!(watched.read(&mut [0; 128]).await.unwrap(), PREFACE + 17);
        drop(client);
        for _ in 0..2 {
            assert_eq!(watched.read(&mut [0; 128]).await.unwrap(), 0);
        }
        assert!(watched.write(b"x").await.is_err());
        drop(watched);
        assert!(!connection.is_lost());
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
