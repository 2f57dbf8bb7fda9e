//! Tests of a server's life, over in-memory sockets.

use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;
use crate::device::test_device;
use crate::scrcpy::version::Layout;

const SIZE: (u32, u32) = (192, 320);

struct Running {
    context: ServerContext,
    server: JoinHandle<u8>,
    lines: mpsc::Receiver<String>,
}

fn start_server(version: ScrcpyVersion, args: &str) -> Running {
    start_with(version, version.as_str(), args)
}

fn start_with(version: ScrcpyVersion, client: &str, args: &str) -> Running {
    let context = ServerContext {
        device: test_device(SIZE),
        sockets: Sockets::default(),
        feed: Feed::Screen,
        fps: 60.0,
        bitrate_bps: 1_000_000,
    };
    let (log, lines) = Log::new();
    let mut all =
        vec![client.to_owned(), "scid=0000002a".to_owned(), "tunnel_forward=true".to_owned()];
    all.extend(args.split_whitespace().map(str::to_owned));
    let held = context.clone();
    let server = tokio::spawn(async move { run(&held, version, &all, log).await });
    Running { context, server, lines }
}

impl Running {
    async fn connect(&self) -> DuplexStream {
        let name = "scrcpy_0000002a";
        in_time(async {
            while !self.context.sockets.accepts(name) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        assert!(self.context.sockets.connect(name, Box::new(theirs)));
        ours
    }

    async fn ended(self) -> (u8, String) {
        let code = in_time(self.server).await.unwrap();
        let mut lines = self.lines;
        let mut all = String::new();
        while let Some(line) = lines.recv().await {
            all += &line;
        }
        (code, all)
    }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("in time")
}

async fn bytes<const N: usize>(socket: &mut DuplexStream) -> [u8; N] {
    let mut buffer = [0; N];
    in_time(socket.read_exact(&mut buffer)).await.unwrap();
    buffer
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// What comes on a media socket after its header.
#[derive(Debug, PartialEq)]
enum Item {
    Session(u32, u32, u32),
    Packet { config: bool, key: bool, first_nal: u8 },
}

async fn item(socket: &mut DuplexStream, layout: Layout) -> Item {
    let header: [u8; 12] = bytes(socket).await;
    if layout == Layout::V4 && header[0] & 0x80 != 0 {
        return Item::Session(be32(&header[..4]), be32(&header[4..8]), be32(&header[8..]));
    }
    let bits = if layout == Layout::V4 { header[0] << 1 } else { header[0] };
    let mut payload = vec![0; be32(&header[8..]) as usize];
    in_time(socket.read_exact(&mut payload)).await.unwrap();
    assert_eq!(payload[..4], [0, 0, 0, 1], "Annex B");
    Item::Packet { config: bits & 0x80 != 0, key: bits & 0x40 != 0, first_nal: payload[4] & 0x1F }
}

const CONFIG: Item = Item::Packet { config: true, key: false, first_nal: 7 };
const KEY: Item = Item::Packet { config: false, key: true, first_nal: 5 };

/// Reads until the config packet of the next session and its keyframe.
async fn next_session(socket: &mut DuplexStream, layout: Layout) -> Option<(u32, u32)> {
    let mut size = None;
    loop {
        match item(socket, layout).await {
            Item::Session(flags, w, h) => {
                assert_eq!(flags, 1 << 31);
                size = Some((w, h));
            }
            CONFIG => break,
            Item::Packet { key, .. } => assert!(!key, "a keyframe without its session"),
        }
    }
    assert_eq!(item(socket, layout).await, KEY);
    size
}

#[tokio::test]
async fn a_3x_session_has_its_size_in_the_header() {
    let running = start_server(ScrcpyVersion::V3_3_4, "audio=false");
    let mut video = running.connect().await;
    assert_eq!(bytes(&mut video).await, [0u8], "the dummy byte comes at once");
    let _control = running.connect().await;
    let name: [u8; 64] = bytes(&mut video).await;
    assert!(name.starts_with(b"Test Phone\0"));
    let header: [u8; 12] = bytes(&mut video).await;
    assert_eq!((&header[..4], be32(&header[4..8]), be32(&header[8..])), (&b"h264"[..], 192, 320));
    assert_eq!(item(&mut video, Layout::V3).await, CONFIG);
    assert_eq!(item(&mut video, Layout::V3).await, KEY);
    running.context.device.rotate();
    assert_eq!(next_session(&mut video, Layout::V3).await, None);
}

#[tokio::test]
async fn a_4x_session_announces_each_size_in_a_packet() {
    let running = start_server(ScrcpyVersion::V4_1, "audio=false");
    let mut video = running.connect().await;
    let _control = running.connect().await;
    let _: [u8; 65] = bytes(&mut video).await;
    assert_eq!(&bytes::<4>(&mut video).await, b"h264");
    assert_eq!(item(&mut video, Layout::V4).await, Item::Session(1 << 31, 192, 320));
    assert_eq!(item(&mut video, Layout::V4).await, CONFIG);
    assert_eq!(item(&mut video, Layout::V4).await, KEY);
    running.context.device.rotate();
    assert_eq!(next_session(&mut video, Layout::V4).await, Some((320, 192)));
}

#[tokio::test]
async fn sockets_come_in_order_and_audio_is_disabled() {
    let running = start_server(ScrcpyVersion::V4_0, "audio=true");
    let mut video = running.connect().await;
    let mut audio = running.connect().await;
    let mut control = running.connect().await;
    let _: [u8; 65] = bytes(&mut video).await;
    assert_eq!(bytes::<4>(&mut audio).await, [0; 4]);
    assert!(!running.context.sockets.accepts("scrcpy_0000002a"), "no second client");
    control.write_all(&[8, 0]).await.unwrap();
    drop(audio);
    assert_eq!(&bytes::<4>(&mut video).await, b"h264");
    drop(control);
    assert_eq!(running.ended().await.0, 0);
}

#[tokio::test]
async fn raw_stream_is_h264_and_nothing_else() {
    let running = start_server(ScrcpyVersion::V4_1, "audio=false control=false raw_stream=true");
    let mut video = running.connect().await;
    assert_eq!(bytes::<5>(&mut video).await, [0, 0, 0, 1, 0x67]);
}

#[tokio::test]
async fn another_codec_is_answered_with_the_error_id() {
    let running = start_server(ScrcpyVersion::V3_3_4, "audio=false video_codec=h265");
    let mut video = running.connect().await;
    let _control = running.connect().await;
    let _: [u8; 65] = bytes(&mut video).await;
    assert_eq!(bytes::<4>(&mut video).await, [0, 0, 0, 1]);
    assert_eq!(running.ended().await.0, 1);
}

#[tokio::test]
async fn a_wrong_version_is_refused() {
    let (code, said) = start_with(ScrcpyVersion::V4_1, "3.3.4", "").ended().await;
    assert_eq!(code, 1);
    assert!(said.contains("ERROR: java.lang.IllegalArgumentException: The server version (4.1) does not match the client (3.3.4)"), "{said}");
}

#[tokio::test]
async fn unknown_options_are_warned_about() {
    let running = start_server(ScrcpyVersion::V4_1, "max_sise=5 list_displays=true");
    let (code, said) = running.ended().await;
    assert_eq!(code, 0);
    assert!(said.contains("WARN: Unknown server option: max_sise"), "{said}");
    assert!(said.contains("192x320"), "{said}");
}

async fn control_only(version: ScrcpyVersion, args: &str) -> (Running, DuplexStream) {
    let running = start_server(version, &format!("video=false audio=false {args}"));
    let mut control = running.connect().await;
    let _: [u8; 65] = bytes(&mut control).await;
    (running, control)
}

#[tokio::test]
async fn an_unknown_message_ends_the_server() {
    // 18 exists since 4.0.
    for (version, message, known) in [
        (ScrcpyVersion::V3_3_4, &[18, 1][..], false),
        (ScrcpyVersion::V4_0, &[18, 1], true),
        (ScrcpyVersion::V4_0, &[22, 0, 0, 0, 0], false),
        (ScrcpyVersion::V4_1, &[22, 0, 0, 0, 0], true),
        (ScrcpyVersion::V4_1, &[23], false),
        (ScrcpyVersion::V4_1, &[1, 0xff, 0xff, 0xff, 0xff], false),
    ] {
        let (running, mut control) = control_only(version, "").await;
        control.write_all(message).await.unwrap();
        // GET_CLIPBOARD after it is only recorded when the loop went on.
        let _ = control.write_all(&[8, 0]).await;
        if known {
            let mut inputs = running.context.device.inputs().subscribe();
            let all = running.context.device.inputs().snapshot();
            if !all.iter().any(|r| r.kind == "get_clipboard") {
                while in_time(inputs.recv()).await.unwrap().kind != "get_clipboard" {}
            }
            running.server.abort();
        } else {
            let (code, said) = running.ended().await;
            assert_eq!(code, 1, "{version} {message:?}");
            assert!(said.contains("Controller error"), "{said}");
        }
    }
}

#[tokio::test]
async fn the_clipboard_is_set_acknowledged_and_sent_back() {
    let (_running, mut control) =
        control_only(ScrcpyVersion::V4_1, "clipboard_autosync=false").await;
    let mut set = vec![9];
    set.extend(77u64.to_be_bytes());
    set.extend([0, 0, 0, 0, 2]);
    set.extend(b"hi");
    control.write_all(&set).await.unwrap();
    assert_eq!(bytes::<9>(&mut control).await, [1, 0, 0, 0, 0, 0, 0, 0, 77]);
    control.write_all(&[8, 0]).await.unwrap();
    assert_eq!(bytes::<7>(&mut control).await, [0, 0, 0, 0, 2, b'h', b'i']);
}

#[tokio::test]
async fn with_autosync_a_copy_is_sent_once_and_asking_sends_nothing() {
    let (running, mut control) = control_only(ScrcpyVersion::V3_3_4, "").await;
    running.context.device.type_text("xyz");
    control.write_all(&[8, 0, 8, 1]).await.unwrap();
    assert_eq!(bytes::<8>(&mut control).await, [0, 0, 0, 0, 3, b'x', b'y', b'z']);
    let mut more = [0; 1];
    let silence = tokio::time::timeout(Duration::from_millis(100), control.read(&mut more)).await;
    assert!(silence.is_err());
}

#[tokio::test]
async fn a_reset_starts_a_new_session_and_touches_of_another_size_are_dropped() {
    let running = start_server(ScrcpyVersion::V4_1, "audio=false");
    let mut video = running.connect().await;
    let mut control = running.connect().await;
    let _: [u8; 69] = bytes(&mut video).await;
    assert_eq!(next_session(&mut video, Layout::V4).await, Some(SIZE));
    let mut inputs = running.context.device.inputs().subscribe();
    for (width, height) in [(192u16, 320u16), (320, 192)] {
        let mut touch = vec![2, 0];
        touch.extend(0u64.to_be_bytes());
        touch.extend(96i32.to_be_bytes());
        touch.extend(160i32.to_be_bytes());
        touch.extend(width.to_be_bytes());
        touch.extend(height.to_be_bytes());
        touch.extend([0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 1]);
        control.write_all(&touch).await.unwrap();
    }
    let seen = in_time(inputs.recv()).await.unwrap();
    assert_eq!((seen.action.as_deref(), seen.x, seen.ignored), (Some("down"), Some(96), None));
    let dropped = in_time(inputs.recv()).await.unwrap();
    assert!(dropped.ignored.unwrap().contains("stale size 320x192"));
    assert_eq!(running.context.device.lock_state().model.touches.len(), 1);
    control.write_all(&[17]).await.unwrap();
    assert_eq!(next_session(&mut video, Layout::V4).await, Some(SIZE));
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_name() {
    let running = start_server(ScrcpyVersion::V4_1, "audio=false");
    let mut video = running.connect().await;
    let control = running.connect().await;
    let _: [u8; 65] = bytes(&mut video).await;
    drop(video);
    let sockets = running.context.sockets.clone();
    assert_eq!(running.ended().await.0, 0);
    assert!(sockets.listen("scrcpy_0000002a").is_some());
    drop(control);
}

#[tokio::test]
async fn a_taken_name_is_an_error() {
    let running = start_server(ScrcpyVersion::V4_1, "");
    let _video = running.connect().await;
    let (log, _lines) = Log::new();
    let args = ["4.1", "scid=0000002a", "tunnel_forward=true"].map(str::to_owned);
    assert_eq!(run(&running.context, ScrcpyVersion::V4_1, &args, log).await, 1);
}
