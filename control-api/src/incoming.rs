//! Connections of a listener: bounded in number, TLS done, peer named. Not the protocol on them.
//! Invariant: a connection that does not finish its handshake in time, or shows no certificate of
//! our CA that names a node, never reaches a service.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fanlight_ops::pki::peer_node;
use fanlight_proto::id::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::metrics as m;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that are set up and wait for the server to take them.
const READY: usize = 16;
/// Pause after a failed accept (out of descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end; in the extensions of each request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// The node named by its certificate; `None` on a plaintext listener.
    pub node: Option<NodeId>,
}

/// A connection that counts against the listener's bound for as long as it lives.
#[derive(Debug)]
pub struct Admitted<IO> {
    io: IO,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl<IO> Connected for Admitted<IO> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Plaintext connections.
pub fn plain(
    listener: TcpListener,
    max: usize,
    end: CancellationToken,
) -> ReceiverStream<io::Result<Admitted<TcpStream>>> {
    let (tx, rx) = mpsc::channel(READY);
    tokio::spawn(accept(listener, max, end, move |tcp, addr, permit| {
        let peer = Peer { addr, node: None };
        let tx = tx.clone();
        async move {
            // An error means that the server is gone.
            let _ = tx.send(Ok(Admitted { io: tcp, peer, _permit: permit })).await;
        }
    }));
    ReceiverStream::new(rx)
}

/// Connections of nodes.
pub fn mtls(
    listener: TcpListener,
    max: usize,
    tls: Arc<rustls::ServerConfig>,
    end: CancellationToken,
) -> ReceiverStream<io::Result<Admitted<TlsStream<TcpStream>>>> {
    let (tx, rx) = mpsc::channel(READY);
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(accept(listener, max, end, move |tcp, addr, permit| {
        let (acceptor, tx) = (acceptor.clone(), tx.clone());
        async move {
            match handshake(acceptor, tcp, addr).await {
                Ok((io, peer)) => {
                    let _ = tx.send(Ok(Admitted { io, peer, _permit: permit })).await;
                }
                Err(why) => {
                    m::count_by(m::LINKS_REFUSED, "why", "handshake");
                    tracing::info!(%addr, why, "a node's connection is refused");
                }
            }
        }
    }));
    ReceiverStream::new(rx)
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    addr: SocketAddr,
) -> Result<(TlsStream<TcpStream>, Peer), String> {
    let tls = timeout(HANDSHAKE, acceptor.accept(tcp))
        .await
        .map_err(|_| "no TLS handshake in time".to_owned())?
        .map_err(|e| e.to_string())?;
    let cert = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let node = cert.and_then(peer_node).ok_or("its certificate names no node")?;
    Ok((tls, Peer { addr, node: Some(node) }))
}

/// Accepts until the end; each connection is set up in its own task and holds one permit.
async fn accept<F, Fut>(listener: TcpListener, max: usize, end: CancellationToken, set_up: F)
where
    F: Fn(TcpStream, SocketAddr, OwnedSemaphorePermit) -> Fut + Send,
    Fut: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(max));
    loop {
        // At the bound nothing is accepted: connections wait in the kernel's backlog.
        let permit = tokio::select! {
            permit = Arc::clone(&room).acquire_owned() => permit,
            () = end.cancelled() => return,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((tcp, addr)) => {
                // Small messages both ways: never wait to fill a segment. If the socket is already
                // dead the handshake or the first read says so.
                let _ = tcp.set_nodelay(true);
                tokio::spawn(set_up(tcp, addr, permit));
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Admitted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Admitted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
