//! Each mode over real sockets byte for byte, and the answers of a kernel that cannot be had on
//! demand (a full buffer, refused segmentation) from a scripted one.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use fanlight_router_core::Route;

use super::*;

const MODES: [Egress; 3] = [Egress::Gso, Egress::Sendmmsg, Egress::Sendto];

fn socket(address: &str) -> UdpSocket {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    UdpSocket::from_std(socket)
}

/// A receiver that waits, with room for all that a test sends.
fn sink(address: &str) -> std::net::UdpSocket {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn take(sink: &std::net::UdpSocket, datagrams: usize) -> Vec<Vec<u8>> {
    let mut buffer = [0; 65_536];
    let mut one = || {
        let len = sink.recv(&mut buffer).expect("a datagram in time");
        buffer[..len].to_vec()
    };
    (0..datagrams).map(|_| one()).collect()
}

fn assert_nothing_more(sink: &std::net::UdpSocket) {
    sink.set_nonblocking(true).unwrap();
    assert!(sink.recv(&mut [0; 16]).is_err(), "more datagrams than were sent");
}

/// Bytes that differ everywhere.
fn payload(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + seed * 97 + n / 251) % 256).unwrap()).collect()
}

fn push(batch: &mut Batch, to: Route, segment: usize, bytes: &[u8]) {
    let run = Run {
        to,
        start: 0,
        len: bytes.len(),
        segment,
        count: bytes.len().div_ceil(segment),
        arrived: None,
        controller: false,
        viewer: batch.runs().len(),
    };
    batch.push_for_test(run, bytes);
}

fn send_all(egress: Egress, socket: &UdpSocket, batch: &Batch) -> (BatchSender, Vec<Fate>) {
    let mut sender = BatchSender::new(socket, egress).unwrap();
    let (mut cursor, mut fates) = (Cursor::default(), Vec::new());
    let flow = sender.send(socket, batch, &mut cursor, |run, fate| {
        assert_eq!(run.viewer, fates.len(), "fates come in order");
        fates.push(fate);
    });
    assert_eq!(flow, Flow::Done);
    assert!(cursor.is_done(batch));
    (sender, fates)
}

/// Viewers' runs as a frame makes them: several sizes, a shorter last datagram, single ones.
fn check_frames(from: &str, to: &str) {
    for egress in MODES {
        let socket = socket(from);
        let sinks: Vec<_> = (0..20).map(|_| sink(to)).collect();
        let mut batch = Batch::new(64, 1 << 20);
        let mut sent = Vec::new();
        for (n, sink) in sinks.iter().enumerate() {
            let len = [1_200, 4_800, 5_555, 700, 1_201][n % 5];
            let bytes = payload(n, len);
            push(&mut batch, Route::udp(sink.local_addr().unwrap()), 1_200, &bytes);
            sent.push(bytes);
        }
        let (sender, fates) = send_all(egress, &socket, &batch);
        assert_eq!(fates, vec![Fate::Sent; 20]);
        for (sink, bytes) in sinks.iter().zip(&sent) {
            let expected: Vec<Vec<u8>> = bytes.chunks(1_200).map(<[u8]>::to_vec).collect();
            assert_eq!(take(sink, expected.len()), expected, "{egress:?}");
            assert_nothing_more(sink);
        }
        let counts = sender.counts();
        let datagrams: usize = sent.iter().map(|bytes| bytes.len().div_ceil(1_200)).sum();
        assert_eq!(counts.datagrams, datagrams as u64);
        assert_eq!(counts.bytes, sent.iter().map(Vec::len).sum::<usize>() as u64);
        let calls = if egress == Egress::Sendto { datagrams as u64 } else { 1 };
        assert_eq!(counts.calls, calls, "{egress:?}");
        assert_eq!((counts.segmented_refused, counts.fallbacks), (0, 0));
    }
}

#[test]
fn frames_arrive_byte_for_byte_in_each_mode() {
    check_frames("127.0.0.1:0", "127.0.0.1:0");
}

#[test]
fn a_socket_of_both_families_reaches_both() {
    for to in ["127.0.0.1:0", "[::1]:0"] {
        check_frames("[::]:0", to);
    }
}

#[test]
fn runs_beyond_what_one_message_carries_are_split() {
    for egress in MODES {
        let (socket, many, large) =
            (socket("127.0.0.1:0"), sink("127.0.0.1:0"), sink("127.0.0.1:0"));
        let mut batch = Batch::new(4, 1 << 20);
        let (small, big) = (payload(1, 150 * 100 + 7), payload(2, 60 * 1_400));
        push(&mut batch, Route::udp(many.local_addr().unwrap()), 100, &small);
        push(&mut batch, Route::udp(large.local_addr().unwrap()), 1_400, &big);
        let (_, fates) = send_all(egress, &socket, &batch);
        assert_eq!(fates, [Fate::Sent; 2]);
        for (sink, bytes, segment) in [(&many, &small, 100), (&large, &big, 1_400)] {
            let expected: Vec<Vec<u8>> = bytes.chunks(segment).map(<[u8]>::to_vec).collect();
            assert_eq!(take(sink, expected.len()), expected, "{egress:?}");
            assert_nothing_more(sink);
        }
    }
}

#[test]
fn more_viewers_than_one_call_carries_take_several() {
    let (socket, sink) = (socket("127.0.0.1:0"), sink("127.0.0.1:0"));
    let mut batch = Batch::new(200, 1 << 20);
    for n in 0..150 {
        push(&mut batch, Route::udp(sink.local_addr().unwrap()), 500, &payload(n, 1_000));
    }
    let (sender, fates) = send_all(Egress::Auto, &socket, &batch);
    assert_eq!((sender.mode(), fates.len()), (Mode::Segmented, 150));
    assert_eq!(sender.counts().calls, 3);
    for (n, pair) in take(&sink, 300).chunks(2).enumerate() {
        assert_eq!(pair.concat(), payload(n, 1_000));
    }
}

#[test]
fn a_refused_destination_holds_up_nobody() {
    // Broadcast needs an option that is not set; nothing can be sent to port zero.
    for refused in ["255.255.255.255:9", "127.0.0.1:0"] {
        for egress in MODES {
            let (socket, sink) = (socket("127.0.0.1:0"), sink("127.0.0.1:0"));
            let good = Route::udp(sink.local_addr().unwrap());
            let mut batch = Batch::new(8, 1 << 16);
            for (n, to) in [good, Route::udp(refused.parse().unwrap()), good].iter().enumerate() {
                push(&mut batch, *to, 1_000, &payload(n, 2_500));
            }
            let (sender, fates) = send_all(egress, &socket, &batch);
            assert_eq!(fates, [Fate::Sent, Fate::Refused, Fate::Sent], "{egress:?} {refused}");
            assert_eq!(take(&sink, 6).concat(), [payload(0, 2_500), payload(2, 2_500)].concat());
            assert_nothing_more(&sink);
            assert_eq!(sender.counts().runs_refused, 1);
        }
    }
}

#[test]
fn a_bad_address_never_ends_segmentation() {
    let (socket, sink) = (socket("127.0.0.1:0"), sink("127.0.0.1:0"));
    let mut batch = Batch::new(64, 1 << 20);
    for n in 0..40 {
        push(&mut batch, Route::udp("127.0.0.1:0".parse().unwrap()), 1_000, &payload(n, 2_500));
    }
    push(&mut batch, Route::udp(sink.local_addr().unwrap()), 1_000, &payload(1, 2_500));
    let (sender, _) = send_all(Egress::Auto, &socket, &batch);
    assert_eq!((sender.mode(), sender.counts().fallbacks), (Mode::Segmented, 0));
    assert_eq!(take(&sink, 3).concat(), payload(1, 2_500));
}

#[test]
fn runs_of_tcp_viewers_are_left_to_the_caller_in_order() {
    let tcp = Route { proto: Proto::Tcp, addr: "127.0.0.1:9".parse().unwrap() };
    for egress in MODES {
        let (socket, sink) = (socket("127.0.0.1:0"), sink("127.0.0.1:0"));
        let udp = Route::udp(sink.local_addr().unwrap());
        let mut batch = Batch::new(8, 1 << 16);
        for (n, to) in [tcp, udp, tcp, tcp, udp, tcp].iter().enumerate() {
            push(&mut batch, *to, 1_000, &payload(n, 1_500));
        }
        let (_, fates) = send_all(egress, &socket, &batch);
        use Fate::{Elsewhere as E, Sent as S};
        assert_eq!(fates, [E, S, E, E, S, E]);
        assert_eq!(take(&sink, 4).concat(), [payload(1, 1_500), payload(4, 1_500)].concat());
        assert_nothing_more(&sink);
    }
}

/// A kernel whose answers are scripted; once the script is over it takes everything.
#[derive(Default)]
struct Scripted {
    answers: RefCell<VecDeque<Answer>>,
    /// Bytes and segment size of what it took.
    taken: RefCell<Vec<(Vec<u8>, Option<u16>)>>,
    /// Refuses what is segmented with this error, always.
    no_segments: Option<i32>,
}

#[derive(Clone, Copy)]
enum Answer {
    Take(usize),
    Error(i32),
}

impl Outlet for Scripted {
    fn many<'a>(&self, messages: impl Iterator<Item = Message<'a>>) -> io::Result<usize> {
        let most = match self.answers.borrow_mut().pop_front() {
            Some(Answer::Error(e)) => return Err(io::Error::from_raw_os_error(e)),
            Some(Answer::Take(n)) => n,
            None => usize::MAX,
        };
        let mut taken = 0;
        for message in messages.take(most) {
            if let (Some(error), Some(_)) = (self.no_segments, message.segment) {
                let error = io::Error::from_raw_os_error(error);
                return if taken == 0 { Err(error) } else { Ok(taken) };
            }
            self.taken.borrow_mut().push((message.bytes.to_vec(), message.segment));
            taken += 1;
        }
        Ok(taken)
    }

    fn one(&self, message: Message<'_>) -> io::Result<()> {
        self.many(std::iter::once(message)).map(drop)
    }
}

fn frames(viewers: usize) -> Batch {
    let mut batch = Batch::new(viewers, 1 << 20);
    for n in 0..viewers {
        let to = Route::udp("192.0.2.1:9".parse().unwrap());
        push(&mut batch, to, 1_000, &payload(n, 2_500));
    }
    batch
}

fn bytes_of(batch: &Batch) -> Vec<u8> {
    batch.runs().iter().flat_map(|run| batch.bytes(run).to_vec()).collect()
}

#[test]
fn a_full_socket_is_resumed_without_loss_or_repetition() {
    for mode in [Mode::Segmented, Mode::Messages, Mode::Single] {
        let batch = frames(10);
        let kernel = Scripted::default();
        // The buffer is full before, within and after runs.
        kernel.answers.borrow_mut().extend([
            Answer::Error(libc::EAGAIN),
            Answer::Take(4),
            Answer::Error(libc::EAGAIN),
            Answer::Error(libc::EINTR),
            Answer::Take(1),
            Answer::Error(libc::EAGAIN),
        ]);
        let mut sender = BatchSender::with(mode, false);
        let (mut cursor, mut fates, mut blocked) = (Cursor::default(), 0, 0);
        while sender.send_over(&kernel, &batch, &mut cursor, |run, fate| {
            assert_eq!((run.viewer, fate), (fates, Fate::Sent));
            fates += 1;
        }) == Flow::Blocked
        {
            blocked += 1;
        }
        assert_eq!((fates, blocked), (10, 3));
        let taken: Vec<u8> = kernel.taken.borrow().iter().flat_map(|(b, _)| b.clone()).collect();
        assert_eq!(taken, bytes_of(&batch), "{mode:?}");
        assert_eq!(sender.counts().datagrams, 30);
        assert_eq!(sender.counts().blocked, 3);
    }
}

#[test]
fn a_machine_that_refuses_segments_falls_back_and_loses_nothing() {
    for error in [libc::EIO, libc::EINVAL, libc::EMSGSIZE] {
        let batch = frames(20);
        let kernel = Scripted { no_segments: Some(error), ..Scripted::default() };
        let mut sender = BatchSender::with(Mode::Segmented, false);
        let mut cursor = Cursor::default();
        let flow = sender.send_over(&kernel, &batch, &mut cursor, |_, fate| {
            assert_eq!(fate, Fate::Sent);
        });
        assert_eq!(flow, Flow::Done);
        let taken: Vec<u8> = kernel.taken.borrow().iter().flat_map(|(b, _)| b.clone()).collect();
        assert_eq!(taken, bytes_of(&batch));
        assert_eq!((sender.mode(), sender.counts().fallbacks), (Mode::Messages, 1));
        assert_eq!(sender.counts().segmented_refused, u64::from(STRIKES_MAX));
    }
}

#[test]
fn one_path_without_segments_does_not_end_them_for_the_others() {
    let mut sender = BatchSender::with(Mode::Segmented, false);
    for _ in 0..100 {
        let batch = frames(4);
        let kernel = Scripted::default();
        kernel.answers.borrow_mut().extend([Answer::Take(1), Answer::Error(libc::EIO)]);
        let mut cursor = Cursor::default();
        assert_eq!(sender.send_over(&kernel, &batch, &mut cursor, |_, _| {}), Flow::Done);
        let taken: Vec<u8> = kernel.taken.borrow().iter().flat_map(|(b, _)| b.clone()).collect();
        assert_eq!(taken, bytes_of(&batch));
        let segments: Vec<_> = kernel.taken.borrow().iter().map(|(_, s)| s.is_some()).collect();
        assert_eq!(segments, [true, false, false, false, true, true]);
    }
    assert_eq!((sender.mode(), sender.counts().segmented_refused), (Mode::Segmented, 100));
}

#[test]
fn a_kernel_without_sendmmsg_gets_one_datagram_per_call() {
    let batch = frames(3);
    let kernel = Scripted::default();
    kernel.answers.borrow_mut().push_back(Answer::Error(libc::ENOSYS));
    let mut sender = BatchSender::with(Mode::Messages, false);
    let mut cursor = Cursor::default();
    assert_eq!(sender.send_over(&kernel, &batch, &mut cursor, |_, _| {}), Flow::Done);
    assert_eq!(sender.mode(), Mode::Single);
    let taken: Vec<u8> = kernel.taken.borrow().iter().flat_map(|(b, _)| b.clone()).collect();
    assert_eq!(taken, bytes_of(&batch));
}

#[test]
fn a_single_datagram_carries_no_segment_size() {
    let kernel = Scripted::default();
    let mut batch = Batch::new(2, 1 << 20);
    push(&mut batch, Route::udp("192.0.2.1:9".parse().unwrap()), 1_000, &payload(1, 1_000));
    push(&mut batch, Route::udp("192.0.2.1:9".parse().unwrap()), 1_000, &payload(2, 64_500 * 2));
    let mut sender = BatchSender::with(Mode::Segmented, false);
    sender.send_over(&kernel, &batch, &mut Cursor::default(), |_, _| {});
    let segments: Vec<_> = kernel.taken.borrow().iter().map(|(b, s)| (b.len(), *s)).collect();
    assert_eq!(
        segments,
        [(1_000, None), (64_000, Some(1_000)), (64_000, Some(1_000)), (1_000, None)]
    );
}

/// Run by hand as root, where the loopback device is made slow:
/// `unshare -n sh -c 'ip link set lo up; tc qdisc add dev lo root tbf rate 50mbit burst 100k
/// limit 100m; cargo test -p fanlight-router --lib slow_device -- --ignored'`.
#[test]
#[ignore = "needs a network namespace with a slow loopback device"]
fn a_slow_device_fills_the_socket_and_loses_nothing() {
    let mut poll = mio::Poll::new().unwrap();
    for egress in MODES {
        let (mut socket, sink) = (socket("127.0.0.1:0"), sink("127.0.0.1:0"));
        socket2::SockRef::from(&socket).set_send_buffer_size(100_000).unwrap();
        poll.registry().register(&mut socket, mio::Token(0), mio::Interest::WRITABLE).unwrap();
        let mut batch = Batch::new(500, 4 << 20);
        for n in 0..300 {
            push(&mut batch, Route::udp(sink.local_addr().unwrap()), 1_000, &payload(n, 4_500));
        }
        let mut sender = BatchSender::new(&socket, egress).unwrap();
        let (mut cursor, mut fates) = (Cursor::default(), Vec::new());
        let mut events = mio::Events::with_capacity(4);
        while sender.send(&socket, &batch, &mut cursor, |_, fate| fates.push(fate)) == Flow::Blocked
        {
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty(), "the socket never became writable again");
        }
        assert!(sender.counts().blocked > 0, "{egress:?} was never blocked");
        assert_eq!(fates, vec![Fate::Sent; 300]);
        assert_eq!(take(&sink, 1_500).concat(), bytes_of(&batch), "{egress:?}");
    }
}
