//! ICE-TCP: the TCP listener of a shard and its viewers' connections, each carrying datagrams
//! framed by RFC 4571. For viewers whose network lets no UDP through. Not a demultiplexer:
//! datagrams are opaque, and which viewer they are of is the core's matter. Invariant: nothing
//! here blocks, and every connection is bounded in time and memory:
//!
//! | bound | at the bound |
//! |---|---|
//! | [`CONNECTIONS_MAX`] of a shard, [`CONNECTIONS_PER_IP_MAX`] of an address | a new one is closed at once |
//! | 5 s until a STUN binding request came first and was answered | closed |
//! | 30 s of silence | closed |
//! | frames of 2 KiB inbound | closed |
//! | 256 KiB unsent | whole frames are dropped |
//!
//! All counted. Readiness is told by events of a poll and remembered here, as a socket tells of it
//! only when it changes: [`TcpSide::ready`] for each event, then [`TcpSide::receive`] until it has
//! nothing, [`TcpSide::close_late`] at [`TcpSide::next_timeout`].

mod connection;
pub(crate) mod framer;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use mio::{Interest, Registry, Token, event::Event, net::TcpListener};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    config::IceConfig,
    error::RouterError,
    udp::{Sent, candidates},
};
use connection::{Closed, Connection, Progress};

/// Most connections of a shard.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;
/// Most connections of one address; many viewers may share one.
pub(crate) const CONNECTIONS_PER_IP_MAX: u32 = 64;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 128;
/// Connections accepted per turn, so that a flood of them starves nobody.
const ACCEPTS_PER_TURN: usize = 32;
/// Frames taken from one connection before the next one's turn.
const FRAMES_PER_TURN: usize = 32;
/// What the kernel keeps for a slow viewer: little, because what waits there is late.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpCounts {
    /// Connections taken.
    pub(crate) opened: u64,
    /// Connections closed at once because of a bound on their number, or failed accepts.
    pub(crate) turned_away: u64,
    /// Connections that did not begin with a STUN binding request or broke the framing.
    pub(crate) misused: u64,
    /// Connections closed because they were not answered in time or fell silent.
    pub(crate) timed_out: u64,
    /// Connections ended by the viewer or the network.
    pub(crate) ended: u64,
    /// Sends dropped because too much waited.
    pub(crate) full: u64,
}

/// The listener and the connections.
#[derive(Debug)]
pub(crate) struct TcpSide {
    listener: TcpListener,
    candidates: Vec<SocketAddr>,
    /// The poll's registry and the first token; set by `register`.
    registered: Option<(Registry, usize)>,
    acceptable: bool,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    by_peer: HashMap<SocketAddr, usize>,
    per_ip: HashMap<IpAddr, u32>,
    /// When to look at which connection; one entry for each.
    looks: BTreeSet<(Instant, usize)>,
    /// Connections that may have something to read, in turns.
    readable: VecDeque<usize>,
    /// Frames taken in the present turn of the first of `readable`.
    taken: usize,
    connections_max: usize,
    counts: TcpCounts,
}

impl TcpSide {
    /// Listens beside the UDP socket of a shard: on its port if that is free, so that one number
    /// stands in firewalls; where the system chose the port, on another one if it is not.
    pub(crate) fn listen(ice: &IceConfig, udp: SocketAddr) -> Result<Self, RouterError> {
        let beside = SocketAddr::new(udp.ip(), udp.port());
        let listener = match bound(beside) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && ice.port == 0 => {
                bound(SocketAddr::new(udp.ip(), 0))
            }
            other => other,
        };
        let failed = |source| RouterError::Bind { what: "viewers' TCP", address: beside, source };
        let listener = listener.map_err(failed)?;
        let candidates = candidates::all(ice, listener.local_addr().map_err(failed)?);
        Ok(Self {
            listener,
            candidates,
            registered: None,
            acceptable: false,
            slots: Vec::new(),
            free: Vec::new(),
            by_peer: HashMap::new(),
            per_ip: HashMap::new(),
            looks: BTreeSet::new(),
            readable: VecDeque::new(),
            taken: 0,
            connections_max: CONNECTIONS_MAX,
            counts: TcpCounts::default(),
        })
    }

    /// What is put in answers, as passive TCP candidates.
    pub(crate) fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Takes the tokens from `first` on, [`CONNECTIONS_MAX`] and one of them.
    pub(crate) fn register(&mut self, registry: &Registry, first: Token) -> io::Result<()> {
        registry.register(&mut self.listener, first, Interest::READABLE)?;
        self.registered = Some((registry.try_clone()?, first.0));
        Ok(())
    }

    /// Totals so far.
    pub(crate) fn counts(&self) -> TcpCounts {
        self.counts
    }

    /// Connections now open.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.by_peer.len()
    }

    /// Hears an event. False when it is of none of this side's tokens. An event of a connection
    /// that is gone may reach its successor, which only looks in vain.
    pub(crate) fn ready(&mut self, event: &Event) -> bool {
        let Some((_, first)) = self.registered else { return false };
        let Some(n) = event.token().0.checked_sub(first) else { return false };
        if n > CONNECTIONS_MAX {
            return false;
        }
        let Some(slot) = n.checked_sub(1) else {
            self.acceptable = true;
            return true;
        };
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return true };
        if event.is_writable()
            && let Err(why) = connection.flush()
        {
            self.close(slot, why);
        } else if !connection.queued {
            connection.queued = true;
            self.readable.push_back(slot);
        }
        true
    }

    /// The next datagram: sender, the candidate it was sent to, bytes. None when there is nothing
    /// more to do until the next event.
    pub(crate) fn receive(&mut self, now: Instant) -> Option<(SocketAddr, SocketAddr, &[u8])> {
        self.accept(now);
        loop {
            let slot = self.next_with_a_frame(now)?;
            let begins_well = match self.slots.get_mut(slot)? {
                Some(connection) => connection.greet(),
                None => return None,
            };
            if let Err(why) = begins_well {
                self.close(slot, why);
                continue;
            }
            let connection = self.slots.get_mut(slot)?.as_mut()?;
            let peer = connection.peer;
            let to = candidates::used_by(&self.candidates, peer);
            return connection.take_frame().map(|bytes| (peer, to, bytes));
        }
    }

    /// Whether [`Self::receive`] may have more without another event.
    pub(crate) fn has_more(&self) -> bool {
        self.acceptable || !self.readable.is_empty()
    }

    /// Sends datagrams of `segment` bytes each, the last one may be shorter: all or none of them.
    /// Refused when the viewer's connection is gone.
    pub(crate) fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        let Some(&slot) = self.by_peer.get(&to) else { return Sent::Refused };
        let Some(Some(connection)) = self.slots.get_mut(slot) else { return Sent::Refused };
        match connection.send(bytes, segment) {
            Ok(sent) => {
                self.counts.full += u64::from(sent == Sent::Full);
                sent
            }
            Err(why) => {
                self.close(slot, why);
                Sent::Refused
            }
        }
    }

    /// When [`Self::close_late`] is to be called next.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.looks.first().map(|(at, _)| *at)
    }

    /// Closes the connections whose time is over.
    pub(crate) fn close_late(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.looks.first()
            && at <= now
        {
            self.looks.pop_first();
            let Some(Some(connection)) = self.slots.get_mut(slot) else { continue };
            let deadline = connection.deadline();
            if deadline > now {
                connection.look = deadline;
                self.looks.insert((deadline, slot));
            } else {
                self.close(slot, Closed::Late);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.acceptable {
                return;
            }
            match self.listener.accept() {
                Ok((stream, peer)) => self.open(Connection::new(stream, peer, now)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.acceptable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The viewer was gone before its turn, or no descriptor is left; in the latter
                // case the next connection's event brings those that wait with it.
                Err(_) => {
                    self.counts.turned_away += 1;
                    self.acceptable = false;
                }
            }
        }
    }

    fn open(&mut self, mut connection: Connection) {
        let peer = connection.peer;
        if let Some(&former) = self.by_peer.get(&peer) {
            // Its end was not heard yet, but one address has one connection.
            self.close(former, Closed::ByPeer);
        }
        let same_ip = self.per_ip.get(&peer.ip()).copied().unwrap_or(0);
        let is_full =
            self.by_peer.len() >= self.connections_max || same_ip >= CONNECTIONS_PER_IP_MAX;
        if is_full || !self.set_up(&mut connection) {
            self.counts.turned_away += 1;
            return;
        }
        let Some(slot) = self.free.pop() else { return };
        connection.queued = true;
        self.looks.insert((connection.look, slot));
        self.by_peer.insert(peer, slot);
        *self.per_ip.entry(peer.ip()).or_default() += 1;
        self.slots[slot] = Some(connection);
        // What came before it was registered is told by no event.
        self.readable.push_back(slot);
        self.counts.opened += 1;
    }

    /// Socket options and registration. Makes sure that a slot is free.
    fn set_up(&mut self, connection: &mut Connection) -> bool {
        let Some((registry, first)) = &self.registered else { return false };
        if self.free.is_empty() {
            self.free.push(self.slots.len());
            self.slots.push(None);
        }
        let Some(slot) = self.free.last() else { return false };
        let stream = connection.source();
        let options = SockRef::from(&*stream);
        let set = options.set_tcp_nodelay(true);
        // A hint: without it the system keeps more.
        let _ = options.set_send_buffer_size(SEND_BUFFER_BYTES);
        let both = Interest::READABLE | Interest::WRITABLE;
        set.and_then(|()| registry.register(stream, Token(first + 1 + slot), both)).is_ok()
    }

    /// The connection whose turn it is and that has a whole frame.
    fn next_with_a_frame(&mut self, now: Instant) -> Option<usize> {
        loop {
            let slot = *self.readable.front()?;
            if self.taken >= FRAMES_PER_TURN {
                self.readable.rotate_left(1);
                self.taken = 0;
                continue;
            }
            let Some(Some(connection)) = self.slots.get_mut(slot) else {
                self.next_turn(false);
                continue;
            };
            match connection.read(now) {
                Ok(Progress::Frame) => {
                    self.taken += 1;
                    return Some(slot);
                }
                Ok(Progress::Later) => {
                    self.next_turn(true);
                    return None;
                }
                Ok(Progress::Dry) => {
                    connection.queued = false;
                    self.next_turn(false);
                }
                Err(why) => self.close(slot, why),
            }
        }
    }

    /// Ends the turn of the first readable connection, which may have another one later.
    fn next_turn(&mut self, again: bool) {
        self.taken = 0;
        if let Some(slot) = self.readable.pop_front()
            && again
        {
            self.readable.push_back(slot);
        }
    }

    fn close(&mut self, slot: usize, why: Closed) {
        let Some(mut connection) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        if let Some((registry, _)) = &self.registered {
            // It is closed in any case.
            let _ = registry.deregister(connection.source());
        }
        self.free.push(slot);
        self.looks.remove(&(connection.look, slot));
        self.by_peer.remove(&connection.peer);
        let ip = connection.peer.ip();
        if let Some(count) = self.per_ip.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_ip.remove(&ip);
            }
        }
        if connection.queued {
            if self.readable.front() == Some(&slot) {
                self.taken = 0;
            }
            self.readable.retain(|s| *s != slot);
        }
        match why {
            Closed::ByPeer => self.counts.ended += 1,
            Closed::NotStun | Closed::TooLong => self.counts.misused += 1,
            Closed::Late => self.counts.timed_out += 1,
        }
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restarted router takes its port again although old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests;
