//! Debian's own `adb` against our device side, and our server client through it.
//!
//! Each test starts a private adb server (own port, own HOME) and needs the `adb` binary.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{Running, SOON, start};
use fanlight_adb::{AdbDevice, AdbError, AdbKey, AdbServer, AuthPolicy, DeviceOptions, FeatureSet};
use futures::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// A private adb server, killed when dropped.
struct RealAdb {
    home: tempfile::TempDir,
    port: u16,
    _server: Child,
}

impl RealAdb {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        // adb cannot choose a port itself. Below the range from which the system gives ports to those
        // who do not care, the one found here stays free.
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let start = std::process::id() as usize * 7 + TURN.fetch_add(1, Ordering::Relaxed) * 17;
        let port = (20_000..30_000)
            .cycle()
            .skip(start % 10_000)
            .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .unwrap();
        let server = Self::command(home.path(), port)
            .args(["nodaemon", "server"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the `adb` program is needed for this test: apt-get install adb");
        let listening = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, listening).await.expect("adb server did not start listening");
        Self { home, port, _server: server }
    }

    fn command(home: &Path, port: u16) -> Command {
        let mut command = Command::new("adb");
        command
            .env("HOME", home)
            .env("ANDROID_ADB_SERVER_PORT", port.to_string())
            .env_remove("ADB_VENDOR_KEYS")
            .env_remove("ANDROID_SERIAL")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs one adb command against a device; stdout, or stderr as the error.
    async fn run(&self, serial: &str, args: &[&str]) -> (Option<i32>, Vec<u8>, String) {
        let mut command = Self::command(self.home.path(), self.port);
        let output = command.args(["-s", serial]).args(args).output();
        let output = timeout(SOON, output).await.expect("adb hangs").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, stderr)
    }

    async fn text(&self, serial: &str, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(serial, args).await;
        assert_eq!(code, Some(0), "adb {args:?}: {stderr}");
        String::from_utf8(stdout).unwrap()
    }

    async fn connect(&self, device: &Running) -> String {
        let serial = device.addr.to_string();
        let said = self.text(&serial, &["connect", &serial]).await;
        assert!(said.contains("connected to"), "{said}");
        serial
    }

    fn client(&self) -> AdbServer {
        AdbServer::new(format!("127.0.0.1:{}", self.port))
    }
}

/// Everything on, and the least a device can announce.
fn feature_sets() -> [FeatureSet; 2] {
    [FeatureSet::device_default(), FeatureSet::parse("cmd")]
}

#[tokio::test]
async fn real_adb_uses_every_service() {
    let adb = RealAdb::start().await;
    for features in feature_sets() {
        let v2 = features.has("shell_v2");
        let device = start(DeviceOptions { features, ..DeviceOptions::default() }).await;
        let serial = adb.connect(&device).await;

        let list = adb.text(&serial, &["devices", "-l"]).await;
        assert!(list.contains("product:fanlight_test model:Test_Phone device:test"), "{list}");
        let model = adb.text(&serial, &["shell", "getprop ro.product.model"]).await;
        assert_eq!(model, "Test Phone\n");
        if v2 {
            let (code, stdout, stderr) = adb.run(&serial, &["shell", "exit 7"]).await;
            assert_eq!((code, &stdout[..]), (Some(7), &b"ran exit 7\n"[..]));
            assert_eq!(stderr, "complaint\n");
        }
        assert_eq!(adb.text(&serial, &["exec-out", "thing -p"]).await, "ran thing -p\n");

        let local = adb.home.path().join("file");
        let data: Vec<u8> = (0..1_000_000u32).map(|i| i.to_le_bytes()[i as usize % 3]).collect();
        std::fs::write(&local, &data).unwrap();
        let local = local.to_str().unwrap();
        adb.text(&serial, &["push", local, "/data/local/tmp/pushed"]).await;
        assert!(device.store.get("/data/local/tmp/pushed").unwrap() == data);
        let back = format!("{local}.back");
        adb.text(&serial, &["pull", "/data/local/tmp/pushed", &back]).await;
        assert!(std::fs::read(&back).unwrap() == data);
        let listed = adb.text(&serial, &["ls", "/data/local/tmp"]).await;
        assert!(listed.contains("pushed"), "{listed}");
        adb.text(&serial, &["disconnect", &serial]).await;
    }
}

#[tokio::test]
async fn real_adb_forwards_both_ways() {
    let adb = RealAdb::start().await;
    let device = start(DeviceOptions::default()).await;
    let serial = adb.connect(&device).await;

    let port = adb.text(&serial, &["forward", "tcp:0", "localabstract:echo"]).await;
    let port: u16 = port.trim().parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for round in 0..20u8 {
        let sent = vec![round; 40_000];
        stream.write_all(&sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        timeout(SOON, stream.read_exact(&mut received)).await.unwrap().unwrap();
        assert!(received == sent);
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap().port());
    adb.text(&serial, &["reverse", "localabstract:scrcpy", &target]).await;
    let (mut back, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let mut hello = [0; 17];
    back.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello from device");
    back.write_all(b"ok").await.unwrap();
    back.read_exact(&mut hello[..2]).await.unwrap();
    assert_eq!(&hello[..2], b"ok");
}

#[tokio::test]
async fn our_client_works_through_the_real_server() {
    let adb = RealAdb::start().await;
    let server = adb.client();
    let mut tracking = Box::pin(server.track_devices().await.unwrap());
    assert_eq!(tracking.next().await.unwrap().unwrap(), []);

    let running = start(DeviceOptions::default()).await;
    let serial = running.addr.to_string();
    let said = server.connect_device(&serial).await.unwrap();
    assert!(said.contains("connected to"), "{said}");
    let usable = async {
        loop {
            let devices = tracking.next().await.unwrap().unwrap();
            if devices.iter().any(|d| d.serial == serial && d.is_usable()) {
                break;
            }
        }
    };
    timeout(SOON, usable).await.unwrap();
    let devices = server.devices().await.unwrap();
    assert_eq!(devices[0].model.as_deref(), Some("Test_Phone"));

    let device = AdbDevice::through_server(server.clone(), &serial).await.unwrap();
    assert!(device.features().has("shell_v2"));
    let output = device.shell("exit 9").await.unwrap();
    assert_eq!((output.text().as_str(), output.exit), ("ran exit 9", Some(9)));
    let refused = device.local_abstract("nobody").await.unwrap_err();
    assert!(matches!(refused, AdbError::Refused { .. }), "{refused:?}");

    let file = vec![0xa5; 200_000];
    device.sync_push("/data/local/tmp/x", 0o755, &file[..]).await.unwrap();
    assert!(running.store.get("/data/local/tmp/x").unwrap() == file);
    assert!(device.sync_pull("/data/local/tmp/x", 1 << 20).await.unwrap() == file);

    let mut echo = device.local_abstract("echo").await.unwrap();
    echo.write_all(b"through").await.unwrap();
    let mut answer = [0; 7];
    echo.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"through");

    let mut listener = device.reverse("localabstract:scrcpy").await.unwrap();
    let mut back = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let mut hello = [0; 17];
    back.read_exact(&mut hello).await.unwrap();

    let unknown = AdbDevice::through_server(server, "no-such-serial").await.unwrap_err();
    assert!(matches!(unknown, AdbError::Server { .. }), "{unknown:?}");

    // Disconnected by name: this adb tells its trackers nothing while it tries to reconnect.
    adb.text(&serial, &["disconnect", &serial]).await;
    let gone = async {
        while let Some(Ok(devices)) = tracking.next().await {
            if !devices.iter().any(fanlight_adb::DeviceEntry::is_usable) {
                break;
            }
        }
    };
    timeout(SOON, gone).await.expect("the tracker tells that the device went away");
}

#[tokio::test]
async fn real_adb_authenticates_with_its_own_key() {
    let adb = RealAdb::start().await;
    // The first command made the server write its key.
    let key_file = adb.home.path().join(".android/adbkey");
    let key_there = async {
        while !key_file.exists() {
            adb.text("none", &["devices"]).await;
        }
    };
    timeout(SOON, key_there).await.unwrap();
    let key = AdbKey::load(&key_file).unwrap();

    let trusting = AuthPolicy::Keys { trusted: vec![key.public()], accept_unknown: false };
    let device = start(DeviceOptions { auth: trusting, ..DeviceOptions::default() }).await;
    let serial = adb.connect(&device).await;
    let model = adb.text(&serial, &["shell", "getprop ro.product.model"]).await;
    assert_eq!(model, "Test Phone\n");

    let strict = AuthPolicy::Keys { trusted: Vec::new(), accept_unknown: false };
    let device = start(DeviceOptions { auth: strict, ..DeviceOptions::default() }).await;
    let serial = device.addr.to_string();
    // What connecting says depends on how fast the refusal comes; that nothing works does not.
    adb.run(&serial, &["connect", &serial]).await;
    let (code, said, _) = adb.run(&serial, &["shell", "getprop ro.product.model"]).await;
    assert_ne!(code, Some(0));
    assert!(said.is_empty(), "a stranger was served");
}
