//! Wires that can be cut: a TCP and a UDP forwarder on loopback. What is cut says nothing to either
//! end, as a broken network does. Not a model of loss or delay. Invariant: connections that were up
//! stay up while a wire is cut, and go on when it is mended.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinHandle,
};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Clients of one UDP wire; datagrams of further ones are lost.
const CLIENTS_MAX: usize = 64;

/// One forwarder; it ends when dropped.
#[derive(Debug)]
pub(super) struct Wire {
    at: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    /// Where its client connects to.
    pub(super) fn at(&self) -> SocketAddr {
        self.at
    }

    /// Cuts or mends it.
    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Forwards TCP connections.
    pub(super) async fn tcp(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a TCP forwarder")?;
        let at = listener.local_addr()?;
        let (cut, watched) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, target, watched.clone()));
            }
        });
        Ok(Self { at, cut, task })
    }

    /// Forwards datagrams, each client by a socket of its own.
    pub(super) async fn udp(target: SocketAddr) -> anyhow::Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.context("a UDP forwarder")?);
        let at = front.local_addr()?;
        let (cut, watched) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            // Ends the ways back together with the way there.
            let mut back = tokio::task::JoinSet::new();
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                // An error is that of a datagram which came back; the next one is another.
                let Ok((length, from)) = front.recv_from(&mut buffer).await else { continue };
                if *watched.borrow() {
                    continue;
                }
                let known = clients.get(&from).cloned();
                let socket = match known {
                    Some(socket) => socket,
                    None if clients.len() >= CLIENTS_MAX => continue,
                    None => {
                        let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                        if socket.connect(target).await.is_err() {
                            continue;
                        }
                        let socket = Arc::new(socket);
                        clients.insert(from, Arc::clone(&socket));
                        let way = (Arc::clone(&socket), Arc::clone(&front), watched.clone());
                        back.spawn(way_back(way, from));
                        socket
                    }
                };
                let _ = socket.send(buffer.get(..length).unwrap_or_default()).await;
            }
        });
        Ok(Self { at, cut, task })
    }
}

async fn way_back(
    (socket, front, cut): (Arc<UdpSocket>, Arc<UdpSocket>, watch::Receiver<bool>),
    to: SocketAddr,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        // Nobody listens there at the moment: the router is being started again.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        if !*cut.borrow() {
            let _ = front.send_to(buffer.get(..length).unwrap_or_default(), to).await;
        }
    }
}

async fn forward(client: TcpStream, target: SocketAddr, mut cut: watch::Receiver<bool>) {
    // A client that dials a wire that is cut hears nothing until it is mended.
    if cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let ended = Arc::new(AtomicBool::new(false));
    tokio::select! {
        () = pass(from_client, to_server, cut.clone(), &ended) => {}
        () = pass(from_server, to_client, cut, &ended) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
    ended: &AtomicBool,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while !ended.load(Ordering::Relaxed) {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Not even an end passes a wire that is cut.
        if cut.wait_for(|cut| !cut).await.is_err() || read == 0 {
            break;
        }
        if to.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    ended.store(true, Ordering::Relaxed);
}
