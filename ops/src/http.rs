//! Serves an HTTP application to strangers within bounds: connections, time for a request's head,
//! time for the whole request. Not routes, not TLS. Invariant: a peer that sends nothing, or slowly,
//! holds one connection for a bounded time and nothing else.

use std::{sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Pause after a failed accept (out of descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that open connections have once the end has begun.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// Buffer of one HTTP/1.1 connection; the longest honest head carries a token of a few kilobytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 32;

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Connections at once; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Time until the head of a request has been read, and so also how long an idle HTTP/1.1
    /// connection is kept.
    pub head_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { connections_max: 4096, head_timeout: Duration::from_secs(15) }
    }
}

/// Serves until `end`, then gives open connections a moment.
pub async fn serve(
    listener: TcpListener,
    app: axum::Router,
    limits: HttpLimits,
    end: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.connections_max));
    let connections = TaskTracker::new();
    while let Some((tcp, permit)) = next(&listener, &room, &end).await {
        let (app, end) = (app.clone(), end.clone());
        connections.spawn(async move {
            connection(tcp, app, limits, end).await;
            drop(permit);
        });
    }
    connections.close();
    connections.wait().await;
}

/// The next connection and its place; none once the end has begun.
async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    end: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = tokio::select! {
        permit = Arc::clone(room).acquire_owned() => permit.ok()?,
        () = end.cancelled() => return None,
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return None,
        };
        match accepted {
            Ok((tcp, _)) => return Some((tcp, permit)),
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(tcp: TcpStream, app: axum::Router, limits: HttpLimits, end: CancellationToken) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(limits.head_timeout)
        .keep_alive_timeout(limits.head_timeout);
    let served = builder.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(app));
    tokio::pin!(served);
    // An error here is the peer's: it went away or broke the protocol, and only it is affected.
    tokio::select! {
        done = served.as_mut() => if let Err(e) = done {
            tracing::debug!(error = %e, "HTTP connection ended");
        },
        () = end.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(END_PATIENCE, served).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn start(limits: HttpLimits) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let end = CancellationToken::new();
        let app = axum::Router::new().route("/", get(|| async { "hello" }));
        tokio::spawn(serve(listener, app, limits, end.clone()));
        (addr, end)
    }

    async fn ask(tcp: &mut TcpStream) -> String {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, tcp.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_peer_that_never_finishes_its_request_loses_its_place() {
        let limits = HttpLimits { connections_max: 1, head_timeout: Duration::from_millis(200) };
        let (addr, end) = start(limits).await;
        let mut slow = TcpStream::connect(addr).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHos").await.unwrap();
        // The only place is taken; it is free again once the slow peer's time is over.
        let mut honest = TcpStream::connect(addr).await.unwrap();
        assert!(ask(&mut honest).await.ends_with("hello"));
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, slow.read_to_end(&mut rest)).await.unwrap().unwrap();
        end.cancel();
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let end = CancellationToken::new();
        let app = axum::Router::new().route("/", get(|| async { "hello" }));
        let server = tokio::spawn(serve(listener, app, HttpLimits::default(), end.clone()));
        let _idle = TcpStream::connect(addr).await.unwrap();
        end.cancel();
        tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
    }
}
