//! [`AdbStream`]: one byte stream to or from a service, whichever way the connection goes.
//!
//! Not here: flow control (`mux`), what the bytes mean (`service`). ADB has no half-close: shutting
//! the writing side down closes the stream, after what was written is sent.
//! Invariant: a stream that is dropped is closed; nothing waits for it any more.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{link::LinkHandle, mux::StreamId};

/// A byte stream to a service. Reading ends with end-of-file when the other end closes it and with
/// an error when the connection is lost; each write that finds the way free travels as one packet.
/// Use [`tokio::io::split`] to read and write from two places.
#[derive(Debug)]
pub struct AdbStream(Inner);

#[derive(Debug)]
enum Inner {
    /// A stream of our own multiplexer.
    Mux(MuxStream),
    /// A connection through an adb server, which multiplexes for us.
    Tcp(TcpStream),
}

/// The multiplexed form.
pub(crate) struct MuxStream {
    handle: Arc<LinkHandle>,
    id: StreamId,
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxStream").field("id", &self.id.get()).finish_non_exhaustive()
    }
}

impl MuxStream {
    pub(crate) fn new(handle: Arc<LinkHandle>, id: StreamId) -> Self {
        Self { handle, id }
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.handle.link().release(self.id);
    }
}

impl From<MuxStream> for AdbStream {
    fn from(stream: MuxStream) -> Self {
        Self(Inner::Mux(stream))
    }
}

impl From<TcpStream> for AdbStream {
    fn from(stream: TcpStream) -> Self {
        Self(Inner::Tcp(stream))
    }
}

impl AsyncRead for AdbStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Mux(stream) => {
                if buf.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
                stream.handle.link().poll_read(cx, stream.id, |unread| {
                    let n = unread.len().min(buf.remaining());
                    buf.put_slice(&unread[..n]);
                    n
                })
            }
            Inner::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for AdbStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Mux(stream) => stream.handle.link().poll_write(cx, stream.id, data),
            Inner::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            // Nothing is ever held back to gather more.
            Inner::Mux(_) => Poll::Ready(Ok(())),
            Inner::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Mux(stream) => stream.handle.link().poll_close(cx, stream.id),
            Inner::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
