//! Golden vectors of the scrcpy protocol, byte by byte with a comment per field, written from the
//! protocol's description and independently of any client.

#![allow(clippy::unwrap_used, reason = "tests")]

use fanlight_device_sim::ScrcpyVersion;
use fanlight_device_sim::scrcpy::control::{
    ControlError, ControlMessage as M, DeviceMessage, MAX_CLIPBOARD, MAX_MESSAGE, Position, decode,
};
use fanlight_device_sim::scrcpy::stream::{
    self, PacketKind, device_meta, packet_header, session_packet, video_header,
};

/// Hexadecimal with spaces; what follows `//` on a line is a comment.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(str::split_whitespace)
        .collect();
    hex::decode(digits).unwrap()
}

/// The vector is exactly this message, in every version that has it and in no older one; every
/// proper prefix asks for more.
fn message(since: ScrcpyVersion, vector: &str, expected: &M) {
    let bytes = hex(vector);
    for version in ScrcpyVersion::ALL {
        let result = decode(version, &bytes);
        if version < since {
            assert_eq!(result, Err(ControlError::UnknownType(bytes[0])), "{version}");
            continue;
        }
        assert_eq!(result, Ok(Some((expected.clone(), bytes.len()))), "{version}");
        for cut in 0..bytes.len() {
            assert_eq!(decode(version, &bytes[..cut]), Ok(None), "{version}, cut at {cut}");
        }
    }
}

const FIRST: ScrcpyVersion = ScrcpyVersion::V3_3_3;
const V4_0: ScrcpyVersion = ScrcpyVersion::V4_0;
const V4_1: ScrcpyVersion = ScrcpyVersion::V4_1;

#[test]
fn keys_and_text() {
    message(
        FIRST,
        "00          // type: INJECT_KEYCODE
         01          // action: up
         00000042    // key code: 66, ENTER
         00000005    // repeat
         00000041    // meta state: shift on, shift left on",
        &M::InjectKeycode { action: 1, keycode: 66, repeat: 5, meta_state: 0x41 },
    );
    message(
        FIRST,
        "01          // type: INJECT_TEXT
         00000005    // length in bytes
         68 c3a9 6c6c // 'héll'",
        &M::InjectText { text: "héll".into() },
    );
}

#[test]
fn touch_and_scroll() {
    message(
        FIRST,
        "02               // type: INJECT_TOUCH
         00               // action: down
         1234567887654321 // pointer id
         00000064         // x: 100
         fffffffe         // y: -2
         0438             // width: 1080
         0780             // height: 1920
         ffff             // pressure: 1.0
         00000001         // action button: primary
         00000003         // buttons: primary, secondary",
        &M::InjectTouch {
            action: 0,
            pointer_id: 0x1234_5678_8765_4321,
            position: Position { x: 100, y: -2, width: 1080, height: 1920 },
            pressure: 0xffff,
            action_button: 1,
            buttons: 3,
        },
    );
    message(
        FIRST,
        "03        // type: INJECT_SCROLL
         00000104  // x: 260
         00000402  // y: 1026
         0438      // width: 1080
         0780      // height: 1920
         0800      // horizontal: 2048/32768 of 16 notches = 1
         8000      // vertical: full range down = -16
         00000001  // buttons: primary",
        &M::InjectScroll {
            position: Position { x: 260, y: 1026, width: 1080, height: 1920 },
            h: 1.0,
            v: -16.0,
            buttons: 1,
        },
    );
}

#[test]
fn buttons_and_panels() {
    message(FIRST, "04 01 // BACK_OR_SCREEN_ON, action: up", &M::BackOrScreenOn { action: 1 });
    message(FIRST, "05 // EXPAND_NOTIFICATIONS", &M::ExpandNotifications);
    message(FIRST, "06 // EXPAND_SETTINGS", &M::ExpandSettings);
    message(FIRST, "07 // COLLAPSE_PANELS", &M::CollapsePanels);
    message(FIRST, "0a 00 // SET_DISPLAY_POWER, off", &M::SetDisplayPower { on: false });
    message(FIRST, "0b // ROTATE_DEVICE", &M::RotateDevice);
    message(FIRST, "0f // OPEN_HARD_KEYBOARD_SETTINGS", &M::OpenHardKeyboardSettings);
    message(FIRST, "11 // RESET_VIDEO", &M::ResetVideo);
}

#[test]
fn clipboard() {
    message(FIRST, "08 02 // GET_CLIPBOARD, copy key: cut", &M::GetClipboard { copy_key: 2 });
    message(
        FIRST,
        "09               // type: SET_CLIPBOARD
         0102030405060708 // sequence
         01               // paste
         00000003         // length in bytes
         616263           // 'abc'",
        &M::SetClipboard { sequence: 0x0102_0304_0506_0708, paste: true, text: "abc".into() },
    );
}

#[test]
fn virtual_devices_and_apps() {
    message(
        FIRST,
        "0c      // type: UHID_CREATE
         002a    // id: 42
         1234    // vendor
         5678    // product
         03      // length of the name
         4b6264  // 'Kbd'
         0002    // length of the report descriptor
         0501    // descriptor",
        &M::UhidCreate {
            id: 42,
            vendor: 0x1234,
            product: 0x5678,
            name: "Kbd".into(),
            descriptor: vec![5, 1],
        },
    );
    message(
        FIRST,
        "0d      // type: UHID_INPUT
         002a    // id: 42
         0003    // length
         010203  // report",
        &M::UhidInput { id: 42, data: vec![1, 2, 3] },
    );
    message(FIRST, "0e 002a // UHID_DESTROY, id: 42", &M::UhidDestroy { id: 42 });
    message(FIRST, "10 02 6162 // START_APP, length, 'ab'", &M::StartApp { name: "ab".into() });
}

#[test]
fn what_4x_added() {
    message(V4_0, "12 01 // CAMERA_SET_TORCH, on", &M::CameraSetTorch { on: true });
    message(V4_0, "13 // CAMERA_ZOOM_IN", &M::CameraZoomIn);
    message(V4_0, "14 // CAMERA_ZOOM_OUT", &M::CameraZoomOut);
    message(
        V4_0,
        "15    // type: RESIZE_DISPLAY
         0500  // width: 1280
         02d0  // height: 720",
        &M::ResizeDisplay { width: 1280, height: 720 },
    );
    message(
        V4_1,
        "16        // type: SCAN_FILE
         00000004  // length
         2f612f62  // '/a/b'",
        &M::ScanFile { path: "/a/b".into() },
    );
}

#[test]
fn malformed_messages_are_errors_before_they_are_buffered() {
    let too_long = |kind, length, limit| Err(ControlError::TooLong { kind, length, limit });
    assert_eq!(decode(V4_1, &hex("01 0000012d")), too_long(1, 301, 300));
    let set = format!("09 0000000000000000 00 {:08x}", MAX_CLIPBOARD + 1);
    assert_eq!(decode(V4_1, &hex(&set)), too_long(9, MAX_CLIPBOARD + 1, MAX_CLIPBOARD));
    assert_eq!(decode(V4_1, &hex("16 ffffffff")), too_long(22, 0xffff_ffff, MAX_MESSAGE - 5));
    assert_eq!(decode(V4_1, &hex("01 00000002 c328")), Err(ControlError::NotText(1)));
    assert_eq!(decode(V4_1, &hex("10 01 ff")), Err(ControlError::NotText(16)));
    assert_eq!(decode(V4_1, &hex("17")), Err(ControlError::UnknownType(23)));
    assert_eq!(decode(V4_1, &[]), Ok(None));
}

#[test]
fn messages_follow_each_other_in_one_buffer() {
    let bytes = hex("0b 04 00 08 01");
    let (first, used) = decode(FIRST, &bytes).unwrap().unwrap();
    assert_eq!((first, used), (M::RotateDevice, 1));
    let (second, more) = decode(FIRST, &bytes[used..]).unwrap().unwrap();
    assert_eq!((second, more), (M::BackOrScreenOn { action: 0 }, 2));
}

#[test]
fn messages_to_the_client() {
    assert_eq!(
        DeviceMessage::Clipboard("abc".into()).encode(),
        hex("00        // type: CLIPBOARD
             00000003  // length
             616263")
    );
    assert_eq!(
        DeviceMessage::AckClipboard(0x0102_0304_0506_0708).encode(),
        hex("01 0102030405060708 // ACK_CLIPBOARD, sequence")
    );
    assert_eq!(
        DeviceMessage::UhidOutput { id: 42, data: vec![1, 2] }.encode(),
        hex("02 002a 0002 0102 // UHID_OUTPUT, id, length, report")
    );
    let long = DeviceMessage::Clipboard("é".repeat(MAX_MESSAGE)).encode();
    assert!(long.len() <= MAX_MESSAGE);
}

#[test]
fn media_of_3x() {
    let v = ScrcpyVersion::V3_3_4;
    assert_eq!(
        video_header(v, 720, 1280),
        hex("68323634  // codec: 'h264'
             000002d0  // width
             00000500  // height")
    );
    assert_eq!(session_packet(v, 720, 1280, false), None);
    assert_eq!(
        packet_header(v, PacketKind::Config, 30).to_vec(),
        hex("8000000000000000  // config flag (bit 63), no time
             0000001e          // size")
    );
    assert_eq!(
        packet_header(v, PacketKind::Picture { pts_us: 0x0001_0203, key: true }, 0x1234).to_vec(),
        hex("4000000000010203  // key flag (bit 62), time
             00001234          // size")
    );
    assert_eq!(
        packet_header(v, PacketKind::Picture { pts_us: 7, key: false }, 1).to_vec(),
        hex("0000000000000007 00000001")
    );
}

#[test]
fn media_of_4x() {
    for v in [V4_0, V4_1] {
        assert_eq!(video_header(v, 720, 1280), hex("68323634 // codec: 'h264'"));
        assert_eq!(
            session_packet(v, 1280, 720, false).unwrap().to_vec(),
            hex("80000000  // session flag (bit 31)
                 00000500  // width
                 000002d0  // height")
        );
        assert_eq!(
            session_packet(v, 16, 32, true).unwrap().to_vec(),
            hex("80000001  // session flag, client resized (bit 0)
                 00000010 00000020")
        );
        assert_eq!(
            packet_header(v, PacketKind::Config, 30).to_vec(),
            hex("4000000000000000 0000001e // config flag (bit 62)")
        );
        assert_eq!(
            packet_header(v, PacketKind::Picture { pts_us: 0x0001_0203, key: true }, 5).to_vec(),
            hex("2000000000010203 00000005 // key flag (bit 61)")
        );
    }
}

#[test]
fn times_never_reach_the_flags() {
    for v in ScrcpyVersion::ALL {
        let header = packet_header(v, PacketKind::Picture { pts_us: u64::MAX, key: false }, 0);
        let free = if v < V4_0 { 0x3f } else { 0x1f };
        assert_eq!(header[0], free, "{v}");
    }
}

#[test]
fn device_names_are_cut_at_a_character() {
    assert_eq!(device_meta("Phone")[..6], *b"Phone\0");
    let meta = device_meta(&"é".repeat(40));
    assert_eq!((meta[61], meta[62], meta[63]), (0xa9, 0, 0));
    assert_eq!(stream::DEVICE_NAME_LEN, 64);
}
