//! The honesty check: Debian's own `adb` takes the simulator for a device.
//!
//! Each test runs its own adb server on a free port with its own HOME, so that no other adb on the
//! machine is touched. Without the `adb` program these tests fail; `cargo xtask test` installs it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fanlight_device_sim::scrcpy::placeholder_jar;
use fanlight_device_sim::screen::strip;
use fanlight_device_sim::{ScrcpyVersion, SimConfig, Simulator};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

/// An adb server of our own, ended when dropped.
struct Adb {
    home: tempfile::TempDir,
    port: u16,
    serial: String,
}

impl Adb {
    fn new(device: &Simulator) -> Self {
        // Below the range from which the system gives ports to those who do not care, the one found
        // here stays free.
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let start = std::process::id() as usize * 7 + TURN.fetch_add(1, Ordering::Relaxed) * 17;
        let port = (10_000..20_000)
            .cycle()
            .skip(start % 10_000)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .unwrap();
        let home = tempfile::tempdir().unwrap();
        Self { home, port, serial: device.adb_addr().to_string() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("adb");
        command.env("ANDROID_ADB_SERVER_PORT", self.port.to_string());
        command.env("HOME", self.home.path()).env_remove("ANDROID_SERIAL").stdin(Stdio::null());
        command.env("TMPDIR", self.home.path()).kill_on_drop(true);
        command
    }

    /// Runs adb with these arguments; fails the test when adb fails.
    async fn run(&self, args: &[&str]) -> Vec<u8> {
        let mut command = self.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::time::timeout(Duration::from_secs(20), command.output())
            .await
            .expect("adb in time")
            .expect("the program adb");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "adb {args:?}: {} {said}", output.status);
        output.stdout
    }

    async fn text(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args).await).unwrap()
    }

    /// The same, for our device.
    async fn on_device(&self, args: &[&str]) -> Vec<u8> {
        self.run(&[&["-s", &self.serial], args].concat()).await
    }

    async fn device_text(&self, args: &[&str]) -> String {
        String::from_utf8(self.on_device(args).await).unwrap()
    }

    async fn connect(&self) {
        // A device that asks for a key is first reported as not authenticated, and then is.
        self.text(&["connect", &self.serial]).await;
        self.on_device(&["wait-for-device"]).await;
    }

    fn file(&self, name: &str, data: &[u8]) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, data).unwrap();
        path.display().to_string()
    }
}

impl Drop for Adb {
    fn drop(&mut self) {
        let mut kill = std::process::Command::new("adb");
        kill.env("ANDROID_ADB_SERVER_PORT", self.port.to_string()).env("HOME", self.home.path());
        let _ = kill.arg("kill-server").stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

async fn phone(change: impl FnOnce(&mut SimConfig)) -> Simulator {
    let mut config = SimConfig::on_free_port();
    change(&mut config);
    Simulator::start(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_connected_listed_and_answers() {
    for (delayed_ack, require_auth) in [(true, false), (false, true)] {
        let device = phone(|c| (c.delayed_ack, c.require_auth) = (delayed_ack, require_auth)).await;
        let adb = Adb::new(&device);
        adb.connect().await;
        let devices = adb.text(&["devices", "-l"]).await;
        let line = devices.lines().find(|l| l.starts_with(&adb.serial)).unwrap_or_default();
        for part in [" device ", "product:fanlight_sim", "model:Fanlight_Phone"] {
            assert!(line.contains(part), "{devices}");
        }
        let model = adb.device_text(&["shell", "getprop", "ro.product.model"]).await;
        assert_eq!(model.trim(), "Fanlight Phone");
        let failed = adb.command().args(["-s", &adb.serial, "shell", "exit", "3"]).status().await;
        assert_eq!(failed.unwrap().code(), Some(3), "exit codes come through");
        device.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screenshot_is_the_drawn_screen() {
    let device = phone(|_| ()).await;
    let adb = Adb::new(&device);
    adb.connect().await;
    adb.on_device(&["shell", "input", "tap", "360", "900"]).await;
    let before_ms = fanlight_device_sim::device::unix_us() / 1000;
    let png = adb.on_device(&["exec-out", "screencap", "-p"]).await;
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (720, 1280));
    let stamp = strip::read(720, |x, y| pixels[(y * 720 + x) * 4]).expect("the strip");
    assert_eq!(stamp.touch_count, 1);
    assert!((0..5_000).contains(&-stamp.age_ms(before_ms)), "{stamp:?} against {before_ms}");
    let raw = adb.on_device(&["exec-out", "screencap"]).await;
    assert_eq!(raw.len(), 16 + 720 * 1280 * 4);
    assert_eq!(raw[..16], [720u32, 1280, 1, 1].map(u32::to_le_bytes).concat());
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_file_arrives_whole_and_comes_back() {
    for delayed_ack in [true, false] {
        let device = phone(|c| c.delayed_ack = delayed_ack).await;
        let adb = Adb::new(&device);
        adb.connect().await;
        let data: Vec<u8> = (0..200_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes().into_iter().take(1))
            .collect();
        let local = adb.file("data.bin", &data);
        adb.on_device(&["push", &local, "/data/local/tmp/data.bin"]).await;
        let sum = adb.device_text(&["shell", "sha256sum", "/data/local/tmp/data.bin"]).await;
        let expected: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sum.split_whitespace().next(), Some(expected.as_str()));
        let back = format!("{local}.back");
        adb.on_device(&["pull", "/data/local/tmp/data.bin", &back]).await;
        assert!(std::fs::read(Path::new(&back)).unwrap() == data);
        device.stop().await;
    }
}

/// A scrcpy video socket with its decoder.
struct Video {
    socket: TcpStream,
    v4: bool,
    decoder: Decoder,
    config: Vec<u8>,
}

impl Video {
    fn new(socket: TcpStream, v4: bool) -> Self {
        Self { socket, v4, decoder: Decoder::new().unwrap(), config: Vec::new() }
    }

    /// Reads up to the next picture, decodes it and returns its strip.
    async fn next(&mut self) -> strip::Stamp {
        loop {
            let mut header = [0; 12];
            self.socket.read_exact(&mut header).await.unwrap();
            if self.v4 && header[0] & 0x80 != 0 {
                continue;
            }
            let size = u32::from_be_bytes(header[8..].try_into().unwrap());
            let mut unit = vec![0; usize::try_from(size).unwrap()];
            self.socket.read_exact(&mut unit).await.unwrap();
            if header[0] & if self.v4 { 0x40 } else { 0x80 } != 0 {
                self.config = unit;
                continue;
            }
            let bytes = [std::mem::take(&mut self.config), unit].concat();
            let picture = self.decoder.decode(&bytes).unwrap().expect("a picture");
            let ((width, _), (stride, _, _)) = (picture.dimensions(), picture.strides());
            let luma = |x: usize, y: usize| picture.y()[y * stride + x];
            return strip::read(u32::try_from(width).unwrap(), luma).expect("a strip");
        }
    }
}

async fn scrcpy_session(version: ScrcpyVersion, delayed_ack: bool) {
    let v4 = version >= ScrcpyVersion::V4_0;
    let device = phone(|c| c.delayed_ack = delayed_ack).await;
    let adb = Adb::new(&device);
    adb.connect().await;
    let jar = adb.file("server.jar", &placeholder_jar(version));
    adb.on_device(&["push", &jar, "/data/local/tmp/scrcpy-server.jar"]).await;
    let local = adb.device_text(&["forward", "tcp:0", "localabstract:scrcpy_00001234"]).await;
    let line = format!(
        "CLASSPATH=/data/local/tmp/scrcpy-server.jar app_process / com.genymobile.scrcpy.Server \
         {version} scid=00001234 audio=false tunnel_forward=true log_level=info"
    );
    let server =
        adb.command().args(["-s", &adb.serial, "shell", &line]).stdout(Stdio::null()).spawn();
    let mut server = server.unwrap();
    let address = format!("127.0.0.1:{}", local.trim());
    // `adb forward` accepts before it knows whether anybody listens: the dummy byte tells.
    let mut video = loop {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        if socket.read_u8().await.is_ok() {
            break socket;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut control = TcpStream::connect(&address).await.unwrap();
    let mut meta = vec![0; if v4 { 68 } else { 76 }];
    video.read_exact(&mut meta).await.unwrap();
    assert!(meta.starts_with(b"Fanlight Phone\0"));
    assert_eq!(&meta[64..68], b"h264");
    let mut video = Video::new(video, v4);
    let mut last = video.next().await;
    for _ in 0..10 {
        let next = video.next().await;
        assert!(next.frame_number > last.frame_number);
        last = next;
    }
    let mut touch = vec![2, 0];
    touch.extend(0u64.to_be_bytes());
    touch.extend([360i32, 640].map(i32::to_be_bytes).concat());
    touch.extend([720u16, 1280, 0xffff].map(u16::to_be_bytes).concat());
    touch.extend([0; 8]);
    control.write_all(&touch).await.unwrap();
    while last.touch_count == 0 {
        last = video.next().await;
    }
    assert_eq!(last.touch_count, 1, "the touch is seen in the pictures");
    assert_eq!((device.inputs()[0].x, device.inputs()[0].y), (Some(360), Some(640)));
    drop((video, control));
    let ended = tokio::time::timeout(Duration::from_secs(10), server.wait()).await;
    assert!(ended.expect("the server ends with its sockets").is_ok());
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrcpy_3_session_runs_through_a_forward() {
    in_time(scrcpy_session(ScrcpyVersion::V3_3_4, true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrcpy_4_session_runs_through_a_forward() {
    in_time(scrcpy_session(ScrcpyVersion::V4_1, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrcpy_server_connects_back_through_a_reverse_tunnel() {
    let device = phone(|_| ()).await;
    let adb = Adb::new(&device);
    adb.connect().await;
    let jar = adb.file("server.jar", &placeholder_jar(ScrcpyVersion::V4_1));
    adb.on_device(&["push", &jar, "/data/local/tmp/s.jar"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap().port());
    adb.on_device(&["reverse", "localabstract:scrcpy_00000007", &target]).await;
    let listed = adb.device_text(&["reverse", "--list"]).await;
    assert!(listed.contains("localabstract:scrcpy_00000007"), "{listed}");
    let line = "CLASSPATH=/data/local/tmp/s.jar app_process / com.genymobile.scrcpy.Server 4.1 scid=00000007 audio=false";
    let mut shell = adb.command();
    let _server =
        shell.args(["-s", &adb.serial, "shell", line]).stdout(Stdio::null()).spawn().unwrap();
    in_time(async {
        let (mut video, _) = listener.accept().await.unwrap();
        let (_control, _) = listener.accept().await.unwrap();
        let mut meta = [0; 68];
        video.read_exact(&mut meta).await.unwrap();
        assert!(meta.starts_with(b"Fanlight Phone"), "no dummy byte here");
        let mut video = Video::new(video, true);
        let first = video.next().await;
        assert!(video.next().await.frame_number > first.frame_number);
    })
    .await;
    adb.on_device(&["reverse", "--remove-all"]).await;
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_streams_through_exec_out() {
    let device = phone(|c| c.static_screen = true).await;
    let adb = Adb::new(&device);
    adb.connect().await;
    let args = [
        "exec-out",
        "screenrecord",
        "--output-format=h264",
        "--time-limit",
        "1",
        "--bit-rate",
        "2M",
        "-",
    ];
    let bytes = adb.on_device(&args).await;
    let pictures = fanlight_device_sim::h264::split_pictures(&bytes);
    assert!(pictures[0].key && pictures[0].config.is_some());
    assert_eq!(pictures.len(), 2, "a still screen: one picture and its repeat");
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connection_can_be_made_again() {
    let device = phone(|_| ()).await;
    let adb = Adb::new(&device);
    adb.connect().await;
    device.drop_adb();
    in_time(async {
        loop {
            let _ = adb.text(&["connect", &adb.serial]).await;
            if adb.text(&["devices"]).await.contains(&format!("{}\tdevice", adb.serial)) {
                break;
            }
        }
    })
    .await;
    assert_eq!(adb.device_text(&["shell", "echo", "back"]).await.trim(), "back");
    device.stop().await;
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}
