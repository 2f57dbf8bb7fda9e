//! Bytes that are not ADB, against both ends: the connection closes with a typed error and the
//! other connections of a device do not notice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, atomic::Ordering};

use common::{SOON, start};
use fanlight_adb::{
    AdbConnection, AdbDevice, AdbError, ConnectOptions, Counters, DeviceOptions, Disconnect,
    ProtocolError,
    packet::{ChecksumRule, Command, Packet},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const VERSION: u32 = 0x0100_0001;

fn cnxn(version: u32, max_payload: u32, banner: &[u8]) -> Vec<u8> {
    Packet::new(Command::Cnxn, version, max_payload, banner.to_vec())
        .to_bytes(ChecksumRule::Handshake)
}

fn wrte(len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Packet::new(Command::Wrte, 1, 1, payload.to_vec()).to_bytes(ChecksumRule::Skip);
    bytes[12..16].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// Connects our host to a peer that writes `bytes` and closes; gives what the host makes of it.
async fn host_against(bytes: Vec<u8>) -> Result<AdbConnection, AdbError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; 24]).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        tcp.shutdown().await.unwrap();
        // Reads on, so that the host never fails in writing.
        let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
    });
    timeout(SOON, AdbConnection::connect(addr, ConnectOptions::default())).await.unwrap()
}

/// The same, for bytes that come after a good handshake.
async fn host_after_handshake(bytes: &[u8]) -> Disconnect {
    let mut all = cnxn(VERSION, 1 << 20, b"device::features=cmd");
    all.extend_from_slice(bytes);
    let connection = host_against(all).await.unwrap();
    timeout(SOON, connection.closed()).await.unwrap()
}

fn protocol(reason: Disconnect) -> ProtocolError {
    match reason {
        Disconnect::Protocol(error) => error,
        other => panic!("expected a protocol error, got {other:?}"),
    }
}

#[tokio::test]
async fn a_host_names_what_was_wrong_with_the_handshake() {
    let error = host_against(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec()).await.unwrap_err();
    assert!(matches!(error, AdbError::Protocol(ProtocolError::BadMagic { .. })), "{error:?}");
    let error = host_against(Vec::new()).await.unwrap_err();
    assert!(matches!(error, AdbError::Disconnected(Disconnect::ByPeer)), "{error:?}");
    let error = host_against(cnxn(VERSION, 4096, b"device::")[..30].to_vec()).await.unwrap_err();
    assert!(
        matches!(error, AdbError::Protocol(ProtocolError::Truncated { have: 30 })),
        "{error:?}"
    );
    let error = host_against(cnxn(VERSION, 4096, b"host::features=cmd")).await.unwrap_err();
    assert!(matches!(error, AdbError::Protocol(ProtocolError::BadBanner(_))), "{error:?}");
    let error = host_against(cnxn(VERSION, 4096, &[b'x'; 5000])).await.unwrap_err();
    assert!(matches!(error, AdbError::Protocol(ProtocolError::Oversized { .. })), "{error:?}");
    for (version, max_payload) in [(0x0100_0001, 0), (0, 4096)] {
        let error = host_against(cnxn(version, max_payload, b"device::")).await.unwrap_err();
        assert!(matches!(error, AdbError::Protocol(ProtocolError::Unusable { .. })), "{error:?}");
    }
    let stls = Packet::new(Command::Stls, VERSION, 0, Vec::new()).to_bytes(ChecksumRule::Handshake);
    let error = host_against(stls).await.unwrap_err();
    assert!(matches!(error, AdbError::TlsRequired), "{error:?}");
    let open = Packet::new(Command::Open, 1, 0, b"x\0".to_vec()).to_bytes(ChecksumRule::Handshake);
    let error = host_against(open).await.unwrap_err();
    assert!(matches!(error, AdbError::Protocol(ProtocolError::Unexpected { .. })), "{error:?}");
}

#[tokio::test]
async fn a_host_closes_on_bytes_that_are_no_packets() {
    let mut magic = wrte(0, &[]);
    magic[20] ^= 0xff;
    assert!(matches!(protocol(host_after_handshake(&magic).await), ProtocolError::BadMagic { .. }));
    let oversized = wrte(1024 * 1024 + 1, &[]);
    let error = protocol(host_after_handshake(&oversized).await);
    assert_eq!(error, ProtocolError::Oversized { len: 1024 * 1024 + 1, max: 1024 * 1024 });
    let half = protocol(host_after_handshake(&wrte(100, &[1; 10])).await);
    assert_eq!(half, ProtocolError::Truncated { have: 34 });
    let again = cnxn(VERSION, 4096, b"device::");
    let error = protocol(host_after_handshake(&again).await);
    assert!(matches!(error, ProtocolError::Unexpected { command: "CNXN", .. }));
    // Well-formed packets for streams that do not exist are late, not wrong.
    let late = wrte(3, b"abc");
    assert!(matches!(host_after_handshake(&late).await, Disconnect::ByPeer));
}

#[tokio::test]
async fn an_old_peers_checksums_are_checked() {
    let old = cnxn(0x0100_0000, 4096, b"device::");
    let mut good = old.clone();
    good.extend_from_slice(
        &Packet::new(Command::Wrte, 1, 1, b"abc".to_vec()).to_bytes(ChecksumRule::Verify),
    );
    let connection = host_against(good).await.unwrap();
    assert!(matches!(connection.closed().await, Disconnect::ByPeer));
    let mut bad = old;
    bad.extend_from_slice(&wrte(3, b"abc"));
    let connection = host_against(bad).await.unwrap();
    let error = protocol(connection.closed().await);
    assert_eq!(error, ProtocolError::BadChecksum { expected: 0, actual: 294 });
}

#[tokio::test]
async fn a_device_survives_noise_on_its_port() {
    let counters = Arc::new(Counters::default());
    let running =
        start(DeviceOptions { counters: Arc::clone(&counters), ..DeviceOptions::default() }).await;
    let bystander = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
    let mut garbage = Vec::new();
    let mut state = 0x1234_5678u32;
    for _ in 0..10_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        garbage.push(state.to_be_bytes()[0]);
    }
    let hello = cnxn(VERSION, 1 << 20, b"host::features=shell_v2,delayed_ack");
    let after_hello = |bytes: &[u8]| [&hello[..], bytes].concat();
    let attacks = [
        b"GET / HTTP/1.1\r\nHost: phone\r\n\r\n".to_vec(),
        garbage.clone(),
        cnxn(VERSION, 1 << 20, b"device::"),
        hello[..10].to_vec(),
        after_hello(&garbage),
        after_hello(&wrte(u32::MAX, &[])),
        after_hello(&hello),
        after_hello(
            &Packet::new(Command::Open, 0, 1, b"shell:\0".to_vec()).to_bytes(ChecksumRule::Skip),
        ),
    ];
    for (i, attack) in attacks.iter().enumerate() {
        let mut tcp = TcpStream::connect(running.addr).await.unwrap();
        // The device may hang up while we still write.
        let _ = tcp.write_all(attack).await;
        let _ = tcp.shutdown().await;
        let closed = timeout(SOON, tokio::io::copy(&mut tcp, &mut tokio::io::sink())).await;
        assert!(closed.is_ok(), "attack {i} leaves the connection open");
    }
    let failed = counters.handshakes_failed.load(Ordering::Relaxed);
    let violations = counters.protocol_errors.load(Ordering::Relaxed);
    assert_eq!((failed, violations), (4, 4));
    assert_eq!(AdbDevice::from(bystander).shell("x").await.unwrap().text(), "ran x");
}

#[tokio::test]
async fn sync_requests_that_make_no_sense_end_the_session() {
    let (_running, connection) = common::pair(true).await;
    for (request, message) in [
        (&b"NOPE\0\0\0\0"[..], "unknown sync request"),
        (b"STAT\xff\xff\xff\xff", "exceeds"),
        (b"DATA\x01\x00\x01\x00", "exceeds"),
        (b"SEND\x05\0\0\0/file", "unreadable sync path"),
        (b"STAT\x01\0\0\0\xff", "unreadable sync path"),
    ] {
        let mut stream = connection.open("sync:").await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer[..4], b"FAIL");
        let text = String::from_utf8_lossy(&answer[8..]).into_owned();
        assert!(text.contains(message), "{text}");
    }
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn a_lying_adb_server_is_told_so() {
    for (answer, expected) in [
        (&b"NOPE"[..], "answered nonsense"),
        (b"FAIL0005sorry", "sorry"),
        (b"OKAYzzzz", "answered nonsense"),
        (b"OKAYffffshort", "reading from the adb server"),
        (b"", "adb server"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = fanlight_adb::AdbServer::new(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.read_exact(&mut [0; 4]).await.unwrap();
            tcp.write_all(answer).await.unwrap();
            tcp.shutdown().await.unwrap();
            let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
        });
        let error = timeout(SOON, server.devices()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
