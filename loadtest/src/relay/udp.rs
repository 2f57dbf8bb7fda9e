//! The relay's sockets: one thread, two sockets per path, a [`Link`] each way. Invariant: the
//! client's address is the last that a datagram came from at the path's front.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, net::UdpSocket};
use parking_lot::Mutex;
use serde::Serialize;

use super::{Impairment, Link, LinkCounts};

const WAKE: Token = Token(usize::MAX);
/// Largest datagram.
const DATAGRAM_BYTES: usize = 65_536;
/// Socket buffers asked for.
const BUFFER_BYTES: usize = 4 << 20;
/// Longest sleep.
const NAP: Duration = Duration::from_millis(200);
/// Paths of one relay; more are refused.
const PATHS_MAX: usize = 4_096;

/// What went over one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathCounts {
    /// From the client to the router.
    pub up: LinkCounts,
    /// From the router to the client.
    pub down: LinkCounts,
}

struct Path {
    front: UdpSocket,
    back: UdpSocket,
    target: SocketAddr,
    client: Option<SocketAddr>,
    up: Link,
    down: Link,
}

enum Command {
    Open(Box<Path>),
    Aim { front: SocketAddr, target: SocketAddr },
    Change { up: Impairment, down: Impairment },
    Stop,
}

struct Shared {
    commands: crossbeam_channel::Sender<Command>,
    waker: Waker,
    counts: Mutex<Vec<PathCounts>>,
    rules: Mutex<(Impairment, Impairment)>,
    opened: Mutex<u64>,
    seed: u64,
}

/// A running relay; its thread ends with the last handle.
#[derive(Clone)]
pub struct Relay(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("paths", &*self.0.shared.opened.lock()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.shared.commands.send(Command::Stop);
        let _ = self.shared.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Relay {
    /// Starts the thread. Paths that are opened get these rules.
    ///
    /// # Errors
    /// No poller or no thread.
    pub fn start(up: Impairment, down: Impairment, seed: u64) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (commands, queue) = crossbeam_channel::unbounded();
        let shared = Arc::new(Shared {
            commands,
            waker,
            counts: Mutex::default(),
            rules: Mutex::new((up, down)),
            opened: Mutex::new(0),
            seed,
        });
        let run = Run { poll, queue, shared: Arc::clone(&shared), paths: Vec::new() };
        let thread =
            std::thread::Builder::new().name("relay".to_owned()).spawn(move || run.run())?;
        Ok(Self(Arc::new(Handle { shared, thread: Some(thread) })))
    }

    /// Opens a path to an address on this machine; gives where its client sends to.
    ///
    /// # Errors
    /// No socket, or too many paths.
    pub fn open(&self, target: SocketAddr) -> io::Result<SocketAddr> {
        self.open_path(target)
    }

    /// Opens a path whose end is not known yet: what comes goes nowhere until the returned
    /// [`Aim`] is used.
    ///
    /// # Errors
    /// No socket, or too many paths.
    pub fn open_ahead(&self) -> io::Result<(SocketAddr, Aim)> {
        // Nothing is sent to port 0, and nothing comes from it.
        let at = self.open_path(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok((at, Aim { relay: self.clone(), front: at }))
    }

    fn open_path(&self, target: SocketAddr) -> io::Result<SocketAddr> {
        let shared = &self.0.shared;
        let n = {
            let mut opened = shared.opened.lock();
            if *opened >= PATHS_MAX as u64 {
                return Err(io::Error::other("too many paths"));
            }
            *opened += 1;
            *opened
        };
        let (front, back) = (bind()?, bind()?);
        let at = front.local_addr()?;
        let (up, down) = *shared.rules.lock();
        let seed = shared.seed.wrapping_add(n << 8);
        let path = Path {
            front: UdpSocket::from_std(front),
            back: UdpSocket::from_std(back),
            target,
            client: None,
            up: Link::new(up, seed),
            down: Link::new(down, seed + 1),
        };
        let gone = || io::Error::other("the relay has ended");
        shared.commands.send(Command::Open(Box::new(path))).map_err(|_| gone())?;
        shared.waker.wake()?;
        Ok(at)
    }

    /// Makes all paths, and those to come, better or worse.
    pub fn change(&self, up: Impairment, down: Impairment) {
        let shared = &self.0.shared;
        *shared.rules.lock() = (up, down);
        let _ = shared.commands.send(Command::Change { up, down });
        let _ = shared.waker.wake();
    }

    /// What went over each path, at most 200 ms ago.
    pub fn counts(&self) -> Vec<PathCounts> {
        self.0.shared.counts.lock().clone()
    }
}

/// The end of a path that was opened ahead.
#[derive(Debug)]
pub struct Aim {
    relay: Relay,
    front: SocketAddr,
}

impl Aim {
    /// From now on the path leads to this address.
    pub fn at(&self, target: SocketAddr) {
        let shared = &self.relay.0.shared;
        let _ = shared.commands.send(Command::Aim { front: self.front, target });
        let _ = shared.waker.wake();
    }
}

fn bind() -> io::Result<StdSocket> {
    let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(BUFFER_BYTES)?;
    options.set_send_buffer_size(BUFFER_BYTES)?;
    Ok(socket)
}

struct Run {
    poll: Poll,
    queue: crossbeam_channel::Receiver<Command>,
    shared: Arc<Shared>,
    paths: Vec<Path>,
}

impl Run {
    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let mut told = Instant::now();
        loop {
            let now = Instant::now();
            let due = self.paths.iter().flat_map(|p| [p.up.due(), p.down.due()]).flatten().min();
            let wait = due.map_or(NAP, |at| at.saturating_duration_since(now).min(NAP));
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the relay's poller failed");
                return;
            }
            for event in &events {
                if event.token() != WAKE {
                    self.receive(event.token().0, &mut buffer);
                }
            }
            if !self.commands() {
                return;
            }
            let now = Instant::now();
            for path in &mut self.paths {
                path.deliver(now);
            }
            if now.duration_since(told) >= NAP {
                told = now;
                let counts = self.paths.iter().map(Path::counts).collect();
                *self.shared.counts.lock() = counts;
            }
        }
    }

    /// `false`: the end.
    fn commands(&mut self) -> bool {
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Open(mut path) => {
                    let at = 2 * self.paths.len();
                    let registry = self.poll.registry();
                    let readable = Interest::READABLE;
                    let front = registry.register(&mut path.front, Token(at), readable);
                    let back = registry.register(&mut path.back, Token(at + 1), readable);
                    if let Err(error) = front.and(back) {
                        tracing::error!(%error, "a path cannot be watched");
                    }
                    self.paths.push(*path);
                }
                Command::Aim { front, target } => {
                    let is = |p: &&mut Path| p.front.local_addr().is_ok_and(|at| at == front);
                    if let Some(path) = self.paths.iter_mut().find(is) {
                        path.target = target;
                    }
                }
                Command::Change { up, down } => {
                    for path in &mut self.paths {
                        path.up.change(up);
                        path.down.change(down);
                    }
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn receive(&mut self, token: usize, buffer: &mut [u8]) {
        let Some(path) = self.paths.get_mut(token / 2) else { return };
        let now = Instant::now();
        loop {
            let from_client = token.is_multiple_of(2);
            let socket = if from_client { &path.front } else { &path.back };
            let (len, from) = match socket.recv_from(buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A datagram of ours came back as unreachable; the next may be fine.
                Err(_) => continue,
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            if from_client {
                path.client = Some(from);
                path.up.push(now, bytes);
            } else if from == path.target {
                path.down.push(now, bytes);
            }
        }
    }
}

impl Path {
    fn deliver(&mut self, now: Instant) {
        while let Some(bytes) = self.up.pop(now) {
            let _ = self.back.send_to(&bytes, self.target);
        }
        while let Some(bytes) = self.down.pop(now) {
            if let Some(client) = self.client {
                let _ = self.front.send_to(&bytes, client);
            }
        }
    }

    fn counts(&self) -> PathCounts {
        PathCounts { up: self.up.counts(), down: self.down.counts() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_go_there_and_back_and_are_delayed() {
        let server = StdSocket::bind("127.0.0.1:0").unwrap();
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let rules = Impairment { delay_ms: 15.0, ..Impairment::default() };
        let relay = Relay::start(rules, rules, 1).unwrap();
        let front = relay.open(server.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 64];
        let sent = Instant::now();
        client.send_to(b"ping", front).unwrap();
        let (len, back) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"ping");
        server.send_to(b"pong", back).unwrap();
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"pong"[..], front));
        assert!(sent.elapsed() >= Duration::from_millis(30));
    }
}
