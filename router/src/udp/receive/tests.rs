//! Over real sockets: joined datagrams, each way of receiving, what is cut off.

use std::time::Duration;

use super::*;

fn socket(address: &str) -> UdpSocket {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    socket.set_nonblocking(true).unwrap();
    UdpSocket::from_std(socket)
}

/// All that is there; loopback delivers within the call that sends.
fn take(receiver: &mut BatchReceiver, socket: &UdpSocket) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((from, bytes)) = receiver.next(socket).unwrap() {
        all.push((from, bytes.to_vec()));
    }
    all
}

fn each_way(socket: &UdpSocket) -> [BatchReceiver; 3] {
    [
        BatchReceiver::with(true, STRIDE_WITHOUT),
        BatchReceiver::with(false, STRIDE_WITHOUT),
        BatchReceiver::new(socket),
    ]
}

#[test]
fn each_way_of_receiving_gives_the_same_datagrams() {
    let socket = socket("127.0.0.1:0");
    for mut receiver in each_way(&socket) {
        let senders: Vec<_> =
            (0..3).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let mut sent = Vec::new();
        for n in 0..100usize {
            let sender = &senders[n % 3];
            let bytes = vec![u8::try_from(n).unwrap(); 1 + n * 14];
            sender.send_to(&bytes, socket.local_addr().unwrap()).unwrap();
            sent.push((sender.local_addr().unwrap(), bytes));
        }
        assert_eq!(take(&mut receiver, &socket), sent);
        assert_eq!(receiver.counts().datagrams, 100);
        assert_eq!(receiver.counts().oversized, 0);
        assert!(receiver.next(&socket).unwrap().is_none());
    }
}

#[test]
fn joined_datagrams_are_cut_apart() {
    let socket = socket("127.0.0.1:0");
    let mut receiver = BatchReceiver::new(&socket);
    assert_eq!(receiver.stride, STRIDE_WITH_GRO, "this kernel joins datagrams");
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let bytes: Vec<u8> = (0..5_300usize).map(|n| u8::try_from(n % 256).unwrap()).collect();
    // One segmented message: on loopback it arrives as one joined message.
    let message =
        kernel::Message { to: socket.local_addr().unwrap(), bytes: &bytes, segment: Some(1_000) };
    let sent = kernel::send_messages(sender.as_fd(), [message, message].into_iter()).unwrap();
    assert_eq!(sent, 2);
    let got = take(&mut receiver, &socket);
    let expected: Vec<Vec<u8>> =
        bytes.chunks(1_000).chain(bytes.chunks(1_000)).map(<[u8]>::to_vec).collect();
    assert_eq!(got.iter().map(|(_, b)| b.clone()).collect::<Vec<_>>(), expected);
    assert!(got.iter().all(|(from, _)| *from == sender.local_addr().unwrap()));
    assert!(receiver.counts().calls <= 2, "{:?}", receiver.counts());
}

#[test]
fn what_comes_while_datagrams_are_handed_out_is_not_forgotten() {
    let socket = socket("127.0.0.1:0");
    let mut receiver = BatchReceiver::new(&socket);
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |byte: u8| sender.send_to(&[byte; 3], socket.local_addr().unwrap()).unwrap();
    send(1);
    // Of another size than the first, or they would be joined.
    sender.send_to(&[2; 9], socket.local_addr().unwrap()).unwrap();
    assert_eq!(receiver.next(&socket).unwrap().unwrap().1, [1; 3]);
    send(3);
    receiver.look_again();
    assert_eq!(receiver.next(&socket).unwrap().unwrap().1, [2; 9]);
    assert_eq!(receiver.next(&socket).unwrap().unwrap().1, [3; 3]);
    let calls = receiver.counts().calls;
    assert!(receiver.next(&socket).unwrap().is_none());
    assert_eq!(receiver.counts().calls, calls, "it is known to be empty");
    send(4);
    assert_eq!(receiver.next(&socket).unwrap().unwrap().1, [4; 3]);
}

#[test]
fn what_is_too_long_is_dropped_and_the_next_one_is_not() {
    let socket = socket("127.0.0.1:0");
    for mut receiver in each_way(&socket) {
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        for len in [2_048, 2_049, 9_000, 60_000, 5] {
            sender.send_to(&vec![7; len], to).unwrap();
        }
        let lens: Vec<_> = take(&mut receiver, &socket).iter().map(|(_, b)| b.len()).collect();
        assert_eq!(lens, [2_048, 5]);
        assert_eq!(receiver.counts().oversized, 3);
    }
}

#[test]
fn senders_of_both_families_are_named_plainly() {
    let socket = socket("[::]:0");
    for mut receiver in each_way(&socket) {
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let sender = std::net::UdpSocket::bind((ip, 0)).unwrap();
            let to = SocketAddr::new(ip, socket.local_addr().unwrap().port());
            sender.send_to(b"hello", to).unwrap();
            let got = take(&mut receiver, &socket);
            assert_eq!(got, [(sender.local_addr().unwrap(), b"hello".to_vec())]);
        }
    }
}

#[test]
fn empty_datagrams_are_passed_over() {
    let socket = socket("127.0.0.1:0");
    for mut receiver in each_way(&socket) {
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for bytes in [&b""[..], b"a", b""] {
            sender.send_to(bytes, socket.local_addr().unwrap()).unwrap();
        }
        let got = take(&mut receiver, &socket);
        assert_eq!(got.len(), 1);
    }
}

#[test]
fn many_that_wait_are_taken_in_few_calls() {
    let socket = socket("127.0.0.1:0");
    let mut receiver = BatchReceiver::new(&socket);
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..4 + 3 * RECEIVE_MESSAGES_MAX {
        sender.send_to(b"one of many", socket.local_addr().unwrap()).unwrap();
    }
    assert_eq!(take(&mut receiver, &socket).len(), 4 + 3 * RECEIVE_MESSAGES_MAX);
    assert_eq!(receiver.counts().calls, 5, "one small, three full, one in vain");
}

#[test]
fn an_empty_socket_does_not_wait() {
    let socket = socket("127.0.0.1:0");
    for mut receiver in each_way(&socket) {
        let start = std::time::Instant::now();
        assert!(receiver.next(&socket).unwrap().is_none());
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
