//! Over real connections, with a clock of the test's own for what takes time.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use mio::{Events, Poll};

use super::{
    connection::{IDLE_TIME, PROOF_TIME, UNSENT_BYTES_MAX},
    framer::{self, FRAME_BYTES_MAX},
    *,
};

/// A STUN binding request without attributes.
const GREETING: [u8; 20] =
    [0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const FIRST: Token = Token(7);

/// A listener and its poll.
struct Side {
    side: TcpSide,
    poll: Poll,
    now: Instant,
}

impl Side {
    fn new() -> Self {
        Self::bound("127.0.0.1")
    }

    fn bound(ip: &str) -> Self {
        let bind = ip.parse().unwrap();
        let ice = IceConfig { bind, tcp: true, ..IceConfig::default() };
        let mut side = TcpSide::listen(&ice, SocketAddr::new(bind, 0)).unwrap();
        let poll = Poll::new().unwrap();
        side.register(poll.registry(), FIRST).unwrap();
        Self { side, poll, now: Instant::now() }
    }

    fn address(&self) -> SocketAddr {
        self.side.listener.local_addr().unwrap()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Waits for events and takes what comes, until `enough` says so.
    fn until(
        &mut self,
        mut enough: impl FnMut(&TcpSide, &[(SocketAddr, Vec<u8>)]) -> bool,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut got = Vec::new();
        let mut events = Events::with_capacity(64);
        let port = self.side.candidates[0].port();
        loop {
            while let Some((from, to, bytes)) = self.side.receive(self.now) {
                assert_eq!(to.port(), port);
                got.push((from, bytes.to_vec()));
            }
            if enough(&self.side, &got) {
                return got;
            }
            if self.side.has_more() {
                continue;
            }
            self.poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty(), "nothing happened; so far {got:?}");
            for event in &events {
                assert!(self.side.ready(event));
            }
        }
    }

    /// A viewer whose greeting was taken and answered.
    fn viewer(&mut self) -> (TcpStream, SocketAddr) {
        let mut stream = self.connect();
        let peer = stream.local_addr().unwrap();
        stream.write_all(&framed(&[&GREETING])).unwrap();
        self.until(|_, got| got.contains(&(peer, GREETING.to_vec())));
        assert_eq!(self.side.send(peer, b"answer", 1_200), Sent::Done);
        assert_eq!(read_frame(&mut stream).unwrap(), b"answer");
        (stream, peer)
    }
}

fn framed(frames: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        assert!(framer::write(frame, &mut out));
    }
    out
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Whether the other side has closed, with or without a reset.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(len) => len == 0,
        Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn datagrams_go_both_ways_as_frames() {
    let mut side = Side::new();
    let (mut stream, peer) = side.viewer();
    let long = vec![5; FRAME_BYTES_MAX];
    stream.write_all(&framed(&[b"one", b"", &long, b"three"])).unwrap();
    let got = side.until(|_, got| got.len() == 3);
    let expected = [b"one".to_vec(), long, b"three".to_vec()].map(|bytes| (peer, bytes));
    assert_eq!(got, expected);
    let run: Vec<u8> = (0..2_500u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    assert_eq!(side.side.send(peer, &run, 1_000), Sent::Done);
    for datagram in run.chunks(1_000) {
        assert_eq!(read_frame(&mut stream).unwrap(), datagram);
    }
}

#[test]
fn a_frame_in_many_pieces_arrives_whole() {
    let mut side = Side::new();
    let (mut stream, peer) = side.viewer();
    for byte in framed(&[b"slowly", b"but surely"]) {
        stream.write_all(&[byte]).unwrap();
        stream.flush().unwrap();
    }
    let got = side.until(|_, got| got.len() == 2);
    assert_eq!(got, [(peer, b"slowly".to_vec()), (peer, b"but surely".to_vec())]);
}

#[test]
fn viewers_of_both_families_have_plain_addresses() {
    let mut side = Side::bound("::");
    let port = side.address().port();
    for ip in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        assert!(side.side.candidates().contains(&to));
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&framed(&[&GREETING])).unwrap();
        let got = side.until(|_, got| got.len() == 1);
        assert_eq!(got[0].0, stream.local_addr().unwrap());
        assert_eq!(side.side.send(got[0].0, b"x", 9), Sent::Done);
        assert_eq!(read_frame(&mut stream).unwrap(), b"x");
    }
}

#[test]
fn whoever_does_not_begin_with_stun_is_closed_unheard() {
    let mut wrong_cookie = GREETING;
    wrong_cookie[4] = 0;
    let mut wrong_length = GREETING;
    wrong_length[3] = 4;
    let mut response = GREETING;
    response[0] = 1;
    let starts: [&[u8]; 6] =
        [b"GET / HTTP/1.1", &wrong_cookie, &wrong_length, &response, &GREETING[..19], &[0; 20]];
    let mut side = Side::new();
    for (n, start) in (1..).zip(starts) {
        let mut stream = side.connect();
        stream.write_all(&framed(&[start, b"more"])).unwrap();
        let got = side.until(|side, _| side.counts().misused == n);
        assert!(got.is_empty(), "{start:?} was handed out");
        assert!(is_closed(&mut stream));
    }
    assert_eq!(side.side.connections(), 0);
}

#[test]
fn a_frame_beyond_the_bound_ends_the_connection() {
    let mut side = Side::new();
    let (mut stream, peer) = side.viewer();
    stream.write_all(&framed(&[b"last"])).unwrap();
    stream.write_all(&2_049u16.to_be_bytes()).unwrap();
    let got = side.until(|side, _| side.counts().misused == 1);
    assert_eq!(got, [(peer, b"last".to_vec())]);
    assert!(is_closed(&mut stream));
    assert_eq!(side.side.send(peer, b"x", 9), Sent::Refused);
}

#[test]
fn a_connection_without_proof_is_closed_after_five_seconds() {
    let mut side = Side::new();
    let mut silent = side.connect();
    let mut unanswered = side.connect();
    unanswered.write_all(&framed(&[&GREETING])).unwrap();
    side.until(|side, got| got.len() == 1 && side.connections() == 2);
    assert_eq!(side.side.next_timeout(), Some(side.now + PROOF_TIME));
    side.side.close_late(side.now + PROOF_TIME - Duration::from_millis(1));
    assert_eq!(side.side.connections(), 2);
    side.side.close_late(side.now + PROOF_TIME);
    assert_eq!((side.side.connections(), side.side.counts().timed_out), (0, 2));
    assert!(is_closed(&mut silent));
    assert!(is_closed(&mut unanswered));
    assert_eq!(side.side.next_timeout(), None);
}

#[test]
fn a_silent_viewer_is_closed_after_thirty_seconds_and_a_speaking_one_is_not() {
    let mut side = Side::new();
    let (_silent, _) = side.viewer();
    let (mut speaking, _) = side.viewer();
    let start = side.now;
    for _ in 0..5 {
        side.now += IDLE_TIME / 4;
        speaking.write_all(&framed(&[b"here"])).unwrap();
        side.until(|_, got| got.len() == 1);
        side.side.close_late(side.now);
    }
    assert!(side.now > start + IDLE_TIME);
    assert_eq!((side.side.connections(), side.side.counts().timed_out), (1, 1));
    side.side.close_late(side.now + IDLE_TIME);
    assert_eq!(side.side.connections(), 0);
}

#[test]
fn connections_of_one_address_are_bounded_and_given_back() {
    let mut side = Side::new();
    let most = u64::from(CONNECTIONS_PER_IP_MAX);
    let mut streams: Vec<_> = (0..most).map(|_| side.connect()).collect();
    side.until(|side, _| side.counts().opened == most);
    let mut refused = side.connect();
    side.until(|side, _| side.counts().turned_away == 1);
    assert!(is_closed(&mut refused));
    streams.pop().unwrap().shutdown(Shutdown::Both).unwrap();
    side.until(|side, _| side.counts().ended == 1);
    let _again = side.connect();
    side.until(|side, _| side.counts().opened == most + 1);
    assert_eq!(side.side.slots.len(), usize::try_from(most).unwrap());
    drop(streams);
    side.side.close_late(side.now + PROOF_TIME);
    assert_eq!(side.side.connections(), 0);
    assert!(side.side.per_ip.is_empty() && side.side.looks.is_empty());
    assert!(side.side.readable.is_empty());
}

#[test]
fn connections_of_all_addresses_are_bounded() {
    let mut side = Side::new();
    side.side.connections_max = 3;
    let _held: Vec<_> = (0..3).map(|_| side.connect()).collect();
    side.until(|side, _| side.counts().opened == 3);
    let mut refused = side.connect();
    side.until(|side, _| side.counts().turned_away == 1);
    assert!(is_closed(&mut refused));
    assert_eq!(side.side.connections(), 3);
}

#[test]
fn a_viewer_that_does_not_read_loses_whole_frames_and_is_resumed() {
    let mut side = Side::new();
    let (mut stream, peer) = side.viewer();
    let datagram = |n: u32| [&n.to_be_bytes()[..], &[7; 996]].concat();
    let mut taken = Vec::new();
    let full = (0..100_000).find(|n| match side.side.send(peer, &datagram(*n), 1_000) {
        Sent::Done => {
            taken.push(*n);
            false
        }
        other => {
            assert_eq!(other, Sent::Full);
            true
        }
    });
    assert!(full.is_some(), "a viewer that never reads took everything");
    let slot = side.side.by_peer[&peer];
    let waiting = |side: &Side| side.side.slots[slot].as_ref().unwrap().waiting();
    assert!(waiting(&side) <= UNSENT_BYTES_MAX);
    assert_eq!(side.side.counts().full, 1);
    // It reads again: what was taken arrives whole and in order.
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        while let Ok(frame) = read_frame(&mut stream) {
            let (number, rest) = frame.split_first_chunk::<4>().unwrap();
            if number == b"last" {
                break;
            }
            assert_eq!(rest, &[7; 996]);
            got.push(u32::from_be_bytes(*number));
        }
        got
    });
    let mut events = Events::with_capacity(8);
    while waiting(&side) > 0 {
        side.poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(!events.is_empty(), "the connection never became writable again");
        for event in &events {
            side.side.ready(event);
        }
    }
    assert_eq!(side.side.send(peer, b"last", 1_000), Sent::Done);
    assert_eq!(reader.join().unwrap(), taken);
}

#[test]
fn a_busy_connection_leaves_turns_to_the_others() {
    let mut side = Side::new();
    let (mut busy, loud) = side.viewer();
    let (mut other, quiet) = side.viewer();
    busy.write_all(&framed(&vec![&b"flood"[..]; 400])).unwrap();
    other.write_all(&framed(&[b"me too"])).unwrap();
    let mut events = Events::with_capacity(8);
    while side.side.readable.len() < 2 {
        side.poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(!events.is_empty(), "only {:?} may be read", side.side.readable);
        for event in &events {
            side.side.ready(event);
        }
    }
    let got = side.until(|_, got| got.len() == 401);
    let before = got.iter().take_while(|(from, _)| *from == loud).count();
    assert!(before <= 2 * FRAMES_PER_TURN, "{before} frames before the other one's turn");
    assert!(got.iter().any(|(from, _)| *from == quiet));
}

#[test]
fn a_viewer_that_leaves_is_forgotten() {
    let mut side = Side::new();
    let (stream, peer) = side.viewer();
    drop(stream);
    side.until(|side, _| side.counts().ended == 1);
    assert_eq!(side.side.send(peer, b"x", 9), Sent::Refused);
    assert_eq!(side.side.connections(), 0);
    assert_eq!(side.side.next_timeout(), None);
}
