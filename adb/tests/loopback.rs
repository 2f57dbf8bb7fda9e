//! Host and device against each other over loopback TCP, with and without delayed acks.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{SOON, pair};
use fanlight_adb::{AdbDevice, AdbError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

#[tokio::test]
async fn shell_tells_outputs_and_exit_code() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        assert_eq!(connection.banner().model, "Test Phone");
        let device = AdbDevice::from(connection);
        let output = device.shell("exit 3").await.unwrap();
        assert_eq!(output.text(), "ran exit 3");
        assert_eq!(output.stderr, b"complaint\n");
        assert_eq!(output.exit, Some(3));
    }
}

#[tokio::test]
async fn a_service_nobody_serves_is_refused() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let device = AdbDevice::from(connection.clone());
        let error = device.local_abstract("scrcpy_00000001").await.unwrap_err();
        assert!(
            matches!(&error, AdbError::Refused { service } if service == "localabstract:scrcpy_00000001")
        );
        assert!(error.is_retryable());
        assert!(!connection.is_closed());
    }
}

#[tokio::test]
async fn bytes_come_back_unchanged_in_any_amount() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let stream = AdbDevice::from(connection.clone()).local_abstract("echo").await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent: Vec<u8> = (0..5_000_000u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            for chunk in sent.chunks(77_777) {
                writer.write_all(chunk).await.unwrap();
            }
            writer
        });
        let mut received = vec![0; expected.len()];
        timeout(SOON, reader.read_exact(&mut received)).await.unwrap().unwrap();
        assert!(received == expected);
        drop((writing.await.unwrap(), reader));
    }
}

#[tokio::test]
async fn sync_pushes_stats_lists_and_pulls() {
    for delayed_ack in [false, true] {
        let (running, connection) = pair(delayed_ack).await;
        let device = AdbDevice::from(connection);
        let file: Vec<u8> = (0..300_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let path = "/data/local/tmp/file.bin";
        assert_eq!(device.sync_stat(path).await.unwrap(), None);
        assert_eq!(device.sync_push(path, 0o644, &file[..]).await.unwrap(), 300_000);
        assert!(running.store.get(path).unwrap() == file);
        let stat = device.sync_stat(path).await.unwrap().unwrap();
        assert_eq!((stat.size, stat.mode), (300_000, 0o100_644));
        let entries = device.sync_list("/data/local/tmp").await.unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].name, "file.bin");
        assert!(device.sync_pull(path, 1 << 20).await.unwrap() == file);
        assert!(matches!(device.sync_pull(path, 1000).await, Err(AdbError::TooLarge { .. })));
        assert!(matches!(device.sync_pull("/none", 1000).await, Err(AdbError::Failed { .. })));
    }
}

#[tokio::test]
async fn the_device_opens_streams_it_was_asked_for() {
    for delayed_ack in [false, true] {
        let (_device, connection) = pair(delayed_ack).await;
        let device = AdbDevice::from(connection);
        let mut listener = device.reverse("localabstract:scrcpy_1").await.unwrap();
        let mut stream = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        let mut hello = [0; 17];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello from device");
        stream.write_all(b"ok").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"ok");
        assert!(device.reverse_remove("localabstract:x").await.is_err());
    }
}
