//! Connections that are slow, refused, lost or abused: what streams see, and what it costs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use common::{SOON, pair, start};
use fanlight_adb::{
    AdbConnection, AdbDevice, AdbError, AdbKey, AuthPolicy, ConnectOptions, Counters,
    DeviceOptions, Disconnect, FeatureSet, mux::MuxConfig,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A port of this machine nobody listens on.
async fn closed_port() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Waits for a condition that another task is about to make true.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

#[tokio::test]
async fn a_slow_reader_stops_its_writer_and_nobody_else() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let flood = connection.open("test:flood").await.unwrap();
        let window = MuxConfig::default().recv_window as usize;
        until("the window is full", || connection.buffered().0 >= window).await;
        // Others go on at full speed all the while, and the flooded stream holds its bound.
        let device = AdbDevice::from(connection.clone());
        for _ in 0..50 {
            assert_eq!(device.shell("x").await.unwrap().text(), "ran x");
            let (unread, unsent) = connection.buffered();
            assert!(unread <= window + 1024 * 1024, "{unread} bytes unread");
            assert_eq!(unsent, 0);
        }
        drop(flood);
        until("the stream is gone", || connection.stream_count() == 0).await;
        assert_eq!(connection.buffered(), (0, 0));
    }
}

#[tokio::test]
async fn a_writer_to_a_service_that_does_not_read_is_held() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let mut stream = connection.open("test:hold").await.unwrap();
        let chunk = vec![1; 256 * 1024];
        let mut written = 0;
        while let Ok(done) = timeout(Duration::from_millis(300), stream.write_all(&chunk)).await {
            done.unwrap();
            written += chunk.len();
            assert!(written < 64 * 1024 * 1024, "the writer is never held");
        }
        let (_, unsent) = connection.buffered();
        assert!(unsent <= 2 * 1024 * 1024, "{unsent} bytes unsent");
    }
}

#[tokio::test]
async fn a_dropped_connection_fails_every_stream_at_once() {
    for delayed_ack in [false, true] {
        let (running, connection) = pair(delayed_ack).await;
        let mut idle = connection.open("test:hold").await.unwrap();
        let mut blocked = connection.open("test:hold").await.unwrap();
        let reading = tokio::spawn(async move { idle.read(&mut [0; 10]).await });
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = blocked.write_all(&[0; 100_000]).await {
                    return error;
                }
            }
        });
        running.dropper.drop_all();
        let read = timeout(SOON, reading).await.unwrap().unwrap();
        // Which error depends on whether reading or writing noticed first; never end-of-file.
        assert!(read.is_err(), "{read:?}");
        timeout(SOON, writing).await.unwrap().unwrap();
        timeout(SOON, connection.closed()).await.unwrap();
        assert!(matches!(connection.open("shell:x").await, Err(AdbError::Disconnected(_))));
        // The device is still there for the next attempt.
        let again = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
        assert_eq!(AdbDevice::from(again).shell("x").await.unwrap().text(), "ran x");
    }
}

#[tokio::test]
async fn a_closed_service_is_end_of_file_after_its_last_bytes() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let mut stream = connection.open("test:greet and close").await.unwrap();
        let mut all = Vec::new();
        timeout(SOON, stream.read_to_end(&mut all)).await.unwrap().unwrap();
        assert_eq!(all, b"bye");
        // End of file stays end of file, without waiting and without spinning.
        for _ in 0..3 {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        }
        let error = stream.write_all(b"too late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn what_was_written_arrives_even_if_everything_is_dropped_at_once() {
    for delayed_ack in [false, true] {
        let (running, connection) = pair(delayed_ack).await;
        let data = vec![7; 3_000_000];
        let mut stream = connection.open("sync:").await.unwrap();
        let mut push = Vec::new();
        push.extend_from_slice(b"SEND\x0a\0\0\0/file,0644");
        for chunk in data.chunks(65_536) {
            push.extend_from_slice(b"DATA");
            push.extend_from_slice(&u32::try_from(chunk.len()).unwrap().to_le_bytes());
            push.extend_from_slice(chunk);
        }
        push.extend_from_slice(b"DONE\0\0\0\0");
        stream.write_all(&push).await.unwrap();
        drop(stream);
        drop(connection);
        until("the file is there", || running.store.get("/file").is_some()).await;
        assert_eq!(running.store.get("/file").unwrap().len(), data.len());
    }
}

#[tokio::test]
async fn a_connection_without_handles_ends() {
    let (running, connection) = pair(true).await;
    let counters = Arc::new(Counters::default());
    let options = ConnectOptions { counters: Arc::clone(&counters), ..ConnectOptions::default() };
    let second = AdbConnection::connect(running.addr, options).await.unwrap();
    let stream = second.open("test:hold").await.unwrap();
    drop(second);
    assert_eq!(counters.connections_closed.load(Ordering::Relaxed), 0, "a stream keeps it");
    drop(stream);
    until("closed", || counters.connections_closed.load(Ordering::Relaxed) == 1).await;
    assert_eq!(counters.streams_opened.load(Ordering::Relaxed), 1);
    assert_eq!(counters.streams_closed.load(Ordering::Relaxed), 1);
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn keys_open_doors_and_the_lack_of_one_is_told() {
    let key = Arc::new(AdbKey::generate("worker@test").unwrap());
    let options = |key: Option<&Arc<AdbKey>>| ConnectOptions {
        key: key.cloned(),
        ..ConnectOptions::default()
    };
    let with = |trusted: Vec<_>, accept_unknown| DeviceOptions {
        auth: AuthPolicy::Keys { trusted, accept_unknown },
        ..DeviceOptions::default()
    };

    let known = start(with(vec![key.public()], false)).await;
    assert!(AdbConnection::connect(known.addr, options(Some(&key))).await.is_ok());
    let none = AdbConnection::connect(known.addr, options(None)).await.unwrap_err();
    assert!(matches!(none, AdbError::AuthRequired), "{none:?}");
    assert!(!none.is_retryable());

    let stranger = start(with(Vec::new(), false)).await;
    let refused = AdbConnection::connect(stranger.addr, options(Some(&key))).await.unwrap_err();
    assert!(matches!(refused, AdbError::Unauthorized), "{refused:?}");

    let friendly = start(with(Vec::new(), true)).await;
    assert!(AdbConnection::connect(friendly.addr, options(Some(&key))).await.is_ok());
}

#[tokio::test]
async fn a_device_whose_user_has_not_answered_is_unauthorized() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let device = tokio::spawn(async move {
        use fanlight_adb::packet::{ChecksumRule, Command, Packet};
        let (mut tcp, _) = listener.accept().await.unwrap();
        let token = Packet::new(Command::Auth, 1, 0, vec![7; 20]);
        // Asks, is not convinced by the signature, asks again, and then waits for its user.
        tcp.write_all(&token.to_bytes(ChecksumRule::Handshake).repeat(2)).await.unwrap();
        tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await.unwrap()
    });
    let options = ConnectOptions {
        key: Some(Arc::new(AdbKey::generate("worker@test").unwrap())),
        timeout: Duration::from_millis(1500),
        ..ConnectOptions::default()
    };
    let error = AdbConnection::connect(addr, options).await.unwrap_err();
    assert!(matches!(error, AdbError::Unauthorized), "{error:?}");
    assert!(error.is_retryable());
    device.await.unwrap();
}

#[tokio::test]
async fn a_hundred_connections_leave_nothing_behind() {
    let counters = Arc::new(Counters::default());
    let running =
        start(DeviceOptions { counters: Arc::clone(&counters), ..DeviceOptions::default() }).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for i in 0..100 {
        let connection =
            AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
        let _held = connection.open("test:hold").await.unwrap();
        let device = AdbDevice::from(connection.clone());
        assert_eq!(device.shell("x").await.unwrap().text(), "ran x");
        if i % 2 == 0 {
            connection.close();
        }
    }
    until("every task has ended", || tasks() <= before).await;
    let get = |name| counters.snapshot().into_iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(get("connections_opened"), 100);
    assert_eq!(get("connections_closed"), 100);
    assert_eq!(get("streams_opened"), 200);
    assert_eq!(get("streams_closed"), 200);
}

#[tokio::test]
async fn unreachable_and_silent_devices_are_told_apart() {
    let nobody = closed_port().await;
    let error = AdbConnection::connect(nobody, ConnectOptions::default()).await.unwrap_err();
    assert!(matches!(&error, AdbError::Connect { addr, .. } if *addr == nobody.to_string()));
    assert!(error.is_retryable());

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options =
        ConnectOptions { timeout: Duration::from_millis(200), ..ConnectOptions::default() };
    let error = AdbConnection::connect(silent.local_addr().unwrap(), options).await.unwrap_err();
    assert!(matches!(error, AdbError::Timeout(_)), "{error:?}");
}

#[tokio::test]
async fn the_smaller_packet_size_counts_on_both_sides() {
    for (host, device) in [(1 << 20, 4096), (4096, 1 << 20), (300, 300)] {
        let counters = Arc::new(Counters::default());
        let running = start(DeviceOptions {
            max_payload: device,
            version: 0x0100_0000,
            counters: Arc::clone(&counters),
            ..DeviceOptions::default()
        })
        .await;
        let options = ConnectOptions { max_payload: host, ..ConnectOptions::default() };
        let connection = AdbConnection::connect(running.addr, options).await.unwrap();
        let mut stream = connection.open("localabstract:echo").await.unwrap();
        let sent = vec![3; 100_000];
        stream.write_all(&sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        timeout(SOON, stream.read_exact(&mut received)).await.unwrap().unwrap();
        assert!(received == sent);
        let packets = counters.packets_in.load(Ordering::Relaxed);
        assert!(packets >= 100_000 / u64::from(host.min(device)), "{packets} packets");
    }
}

#[tokio::test]
async fn one_write_is_one_packet_when_the_way_is_free() {
    let counters = Arc::new(Counters::default());
    let running =
        start(DeviceOptions { counters: Arc::clone(&counters), ..DeviceOptions::default() }).await;
    let connection = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
    let mut stream = connection.open("localabstract:echo").await.unwrap();
    let before = counters.packets_in.load(Ordering::Relaxed);
    stream.write_all(&vec![1; 1024 * 1024]).await.unwrap();
    let mut received = vec![0; 1024 * 1024];
    timeout(SOON, stream.read_exact(&mut received)).await.unwrap().unwrap();
    let data_and_acks = counters.packets_in.load(Ordering::Relaxed) - before;
    let acks_max = 8;
    assert!(data_and_acks <= 1 + acks_max, "{data_and_acks} packets for one write");
}

#[tokio::test]
async fn a_device_with_the_old_shell_is_used_with_the_old_shell() {
    let running =
        start(DeviceOptions { features: FeatureSet::parse("cmd"), ..DeviceOptions::default() })
            .await;
    let connection = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
    let device = AdbDevice::from(connection);
    let output = device.shell("old").await.unwrap();
    assert_eq!((output.text().as_str(), output.exit), ("ran old", None));
    // The old stat says "nothing there" with a mode of 0.
    assert_eq!(device.sync_stat("/none").await.unwrap(), None);
    assert!(device.sync_stat("/data/local/tmp").await.unwrap().unwrap().is_dir());
}

#[tokio::test]
async fn a_failed_push_says_why() {
    let (running, connection) = pair(true).await;
    let device = AdbDevice::from(connection);
    let too_large = tokio::io::repeat(0).take(100 * 1024 * 1024);
    let error = device.sync_push("/big", 0o644, too_large).await.unwrap_err();
    assert_eq!(error.to_string(), "sync failed: No space left on device");
    let error = device.sync_push("relative", 0o644, &b"x"[..]).await.unwrap_err();
    assert!(matches!(error, AdbError::Failed { .. }));
    assert!(running.store.get("/big").is_none());
}

#[tokio::test]
async fn too_many_connections_are_closed_and_the_rest_lives() {
    let running = start(DeviceOptions { connections_max: 2, ..DeviceOptions::default() }).await;
    let first = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
    let second = AdbConnection::connect(running.addr, ConnectOptions::default()).await.unwrap();
    let third = AdbConnection::connect(running.addr, ConnectOptions::default()).await;
    assert!(third.is_err());
    for connection in [first, second] {
        assert_eq!(AdbDevice::from(connection).shell("x").await.unwrap().text(), "ran x");
    }
}

#[tokio::test]
async fn an_end_of_file_costs_no_cpu() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let device = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; 24]).await.unwrap();
        let cnxn = fanlight_adb::packet::Packet::new(
            fanlight_adb::packet::Command::Cnxn,
            0x0100_0001,
            4096,
            &b"device::features=cmd"[..],
        );
        tcp.write_all(&cnxn.to_bytes(fanlight_adb::packet::ChecksumRule::Handshake)).await.unwrap();
        // Half-closed: the host reads end-of-file while its own direction stays open.
        tcp.shutdown().await.unwrap();
        tcp
    });
    let connection = AdbConnection::connect(addr, ConnectOptions::default()).await.unwrap();
    let reason = timeout(SOON, connection.closed()).await.unwrap();
    assert!(matches!(reason, Disconnect::ByPeer));
    let _tcp: TcpStream = device.await.unwrap();
    let before = cpu_ticks();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = cpu_ticks() - before;
    // A tick is 10 ms; a spinning task would take 50.
    assert!(used < 45, "{used} ticks of CPU in half a second of nothing");
}

/// CPU time of this thread, user and system, in clock ticks. The test's runtime is this thread.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
