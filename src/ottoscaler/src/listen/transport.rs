//! The bytes of one connection, with the deadlines of what a peer must send.
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{
    either::Either,
    sync::{CancellationToken, WaitForCancellationFutureOwned},
};

use super::limits::ConnectionLimits;

/// TCP, or TLS over it.
pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// A `Transport` is the stream of a connection. It fails once the connection is given up, and when
/// the peer is silent for too long.
#[derive(Debug)]
pub(super) struct Transport {
    stream: Stream,
    /// The number of first bytes that the peer has yet to send.
    opening_bytes_missing: usize,
    /// The time at which the connection ends if nothing is received before. There is none where
    /// the protocol itself finds dead peers.
    idle_deadline: Option<Pin<Box<Sleep>>>,
    idle_timeout: Option<Duration>,
    close_requested: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Transport {
    /// `opened_by` is when the peer must have sent its first bytes. `close` gives the connection up.
    pub(super) fn new(
        stream: Stream,
        limits: &ConnectionLimits,
        opened_by: Instant,
        close: CancellationToken,
    ) -> Self {
        Self {
            stream,
            opening_bytes_missing: limits.opening_bytes,
            idle_deadline: Some(Box::pin(sleep_until(opened_by))),
            idle_timeout: limits.idle_timeout,
            close_requested: Box::pin(close.cancelled_owned()),
        }
    }

    /// Returns ready with the reason once the connection must end.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.close_requested.as_mut().poll(cx).is_ready() {
            let why = "closed, for others need its room";
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if let Some(idle_deadline) = &mut self.idle_deadline
            && idle_deadline.as_mut().poll(cx).is_ready()
        {
            let why = "the peer was silent for too long";
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Poll::Pending
    }

    /// Extends the deadline once the peer has sent its first bytes.
    fn bytes_received(&mut self, bytes: usize) {
        self.opening_bytes_missing = self.opening_bytes_missing.saturating_sub(bytes);
        if bytes == 0 || self.opening_bytes_missing > 0 {
            return;
        }
        match (self.idle_timeout, &mut self.idle_deadline) {
            (None, idle_deadline) => *idle_deadline = None,
            (Some(idle_timeout), Some(idle_deadline)) => {
                idle_deadline.as_mut().reset(Instant::now() + idle_timeout)
            }
            (Some(idle_timeout), idle_deadline @ None) => {
                *idle_deadline = Some(Box::pin(sleep(idle_timeout)))
            }
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = read {
            self.bytes_received(buffer.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // HTTP/1 does not read while it writes to a peer that does not read.
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_close(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
