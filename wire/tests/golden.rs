//! Golden vectors: each format byte by byte, written down by hand from WIRE.md. Not a round trip:
//! a mistake made alike in both directions is found here. Invariant: a change of these bytes is a
//! change of the protocol.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use fanlight_wire::input::{
    Button, ButtonAction, CopyKey, DenyReason, DeviceBody, DeviceMessage, InputBody, InputError,
    InputMessage, Key, KeyAction, Role, Scroll, Touch, TouchAction,
};
use fanlight_wire::pack::{Depacketizer, Packetizer};
use fanlight_wire::roq::{self, ControlFramer, FlowId, FlowKind, Limits, Slot, StreamReader};
use fanlight_wire::rtp::{self, RtpBuilder, RtpTime, RtpView, SeqNo, Ssrc};
use serde_json::{Value, json};

#[test]
fn a_frame_on_a_stream() {
    let slot = Slot::new(9).unwrap();
    let mut stream = Vec::new();
    roq::write_stream_header(FlowId::video(slot), &mut stream);
    roq::write_packet(&[0xaa, 0xbb, 0xcc], &mut stream);
    roq::write_packet(&[0x55; 70], &mut stream);

    let mut expected = vec![
        0x40, 0x48, // flow id 72 = 8 * 9, two bytes
        0x03, // length 3
        0xaa, 0xbb, 0xcc, // packet
        0x40, 0x46, // length 70, two bytes
    ];
    expected.extend_from_slice(&[0x55; 70]);
    assert_eq!(stream, expected);

    let mut reader = StreamReader::new(Limits::default());
    reader.push(&stream);
    assert_eq!(reader.flow().map(FlowId::kind), Some(FlowKind::Video(slot)));
    assert_eq!(reader.next_packet().unwrap().unwrap(), [0xaa, 0xbb, 0xcc][..]);
    assert_eq!(reader.next_packet().unwrap().unwrap(), [0x55; 70][..]);
    assert_eq!(reader.next_packet(), Ok(None));
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
fn a_datagram() {
    let mut datagram = Vec::new();
    roq::write_datagram(FlowId::audio(Slot::new(1).unwrap()), &[0x80, 0x60], &mut datagram);
    assert_eq!(
        datagram,
        [
            0x09, // flow id 9 = 8 * 1 + 1
            0x80, 0x60, // packet, to the end
        ]
    );
    let (flow, packet) = roq::read_datagram(&datagram).unwrap();
    assert_eq!((flow.raw(), packet), (9, &[0x80, 0x60][..]));
}

#[test]
fn the_control_stream() {
    let mut stream = Vec::new();
    roq::write_stream_header(FlowId::CONTROL, &mut stream);
    roq::write_control_frame(b"hi", &mut stream).unwrap();
    roq::write_control_frame(b"", &mut stream).unwrap();
    assert_eq!(
        stream,
        [
            0x00, // flow id 0
            0x02, b'h', b'i', // length 2, frame
            0x00, // an empty frame
        ]
    );
    let mut framer = ControlFramer::expecting_header();
    framer.push(&stream);
    assert_eq!(framer.next(), Ok(Some(b"hi".to_vec())));
    assert_eq!(framer.next(), Ok(Some(Vec::new())));
    assert_eq!(framer.next(), Ok(None));
    assert_eq!(framer.finish(), Ok(()));
}

#[test]
fn an_rtp_packet_with_capture_time() {
    let mut packet = Vec::new();
    RtpBuilder::new(96, SeqNo(0x1234), RtpTime(0xdead_beef), Ssrc(0x0bad_cafe))
        .marker(true)
        .abs_capture_time(rtp::HOP_ABS_CAPTURE_TIME_ID, 0x0102_0304_0506_0708)
        .unwrap()
        .write(&[0x65, 0xff], &mut packet);
    assert_eq!(
        packet,
        [
            0x90, // version 2, no padding, extension, no CSRC
            0xe0, // marker, payload type 96
            0x12, 0x34, // sequence number
            0xde, 0xad, 0xbe, 0xef, // timestamp
            0x0b, 0xad, 0xca, 0xfe, // SSRC
            0xbe, 0xde, 0x00, 0x03, // one-byte extensions, 3 words
            0x17, // id 1, length 7 + 1
            0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // NTP time
            0x00, 0x00, 0x00, // padding to a word
            0x65, 0xff, // payload
        ]
    );
    let view = RtpView::parse(&packet).unwrap();
    assert_eq!(view.payload_type(), 96);
    assert!(view.marker());
    assert_eq!(view.seq(), SeqNo(0x1234));
    assert_eq!(view.timestamp(), RtpTime(0xdead_beef));
    assert_eq!(view.ssrc(), Ssrc(0x0bad_cafe));
    assert_eq!(view.abs_capture_time(1), Some(0x0102_0304_0506_0708));
    assert_eq!(view.abs_capture_time(2), None);
    assert_eq!(view.payload(), [0x65, 0xff]);
}

#[test]
fn an_rtp_packet_with_everything() {
    let packet = [
        0xb1, // version 2, padding, extension, one CSRC
        0x08, // no marker, payload type 8
        0x00, 0x01, // sequence number
        0x00, 0x00, 0x00, 0x02, // timestamp
        0x00, 0x00, 0x00, 0x03, // SSRC
        0x00, 0x00, 0x00, 0x04, // CSRC
        0x10, 0x00, 0x00, 0x02, // two-byte extensions, 2 words
        0x00, // padding
        0x05, 0x00, // id 5, no data
        0x07, 0x03, 0x0a, 0x0b, 0x0c, // id 7, three bytes
        0xca, 0xfe, // payload
        0x00, 0x00, 0x03, // padding, 3 bytes
    ];
    let view = RtpView::parse(&packet).unwrap();
    let elements: Vec<_> = view.extensions().collect();
    assert_eq!(elements, [(5, &[][..]), (7, &[0x0a, 0x0b, 0x0c][..])]);
    assert_eq!(view.payload(), [0xca, 0xfe]);
    assert!(!view.marker());
}

#[test]
fn capture_times() {
    // 2024-01-01T00:00:00.5Z is 1,704,067,200.5 s after 1970 and 3,913,056,000.5 s after 1900.
    let ntp = 3_913_056_000 << 32 | 0x8000_0000;
    assert_eq!(rtp::ntp_from_unix_us(1_704_067_200_500_000), ntp);
    assert_eq!(rtp::unix_us_from_ntp(ntp), 1_704_067_200_500_000);
    // The NTP era ends on 2036-02-07T06:28:16Z; one second later reads 1.
    assert_eq!(rtp::ntp_from_unix_us(2_085_978_497_000_000), 1 << 32);
    assert_eq!(rtp::unix_us_from_ntp(1 << 32), 2_085_978_497_000_000);
}

#[test]
fn an_idr_access_unit_in_rtp() {
    let mut au = vec![
        0x00, 0x00, 0x00, 0x01, 0x09, 0x10, // access unit delimiter, not sent
        0x00, 0x00, 0x00, 0x01, 0x67, 0x42,
        0x00, // SPS; its last byte is a zero of the next code
        0x00, 0x00, 0x01, 0x68, 0xce, // PPS
        0x00, 0x00, 0x01, 0x65, // IDR slice of 1 + 150 bytes
    ];
    au.extend((0u8..150).map(|i| i | 0x80));
    let mut payloads = Vec::new();
    Packetizer::new(64).packetize(&au, &mut payloads).unwrap();

    assert_eq!(
        payloads[0],
        [
            0x78, // STAP-A, NRI 3
            0x00, 0x02, 0x67, 0x42, // SPS, 2 bytes
            0x00, 0x02, 0x68, 0xce, // PPS, 2 bytes
        ]
    );
    // 150 bytes in pieces of at most 62: three of 50.
    for (i, (indicator, head)) in [(0x7c, 0x85), (0x7c, 0x05), (0x7c, 0x45)].iter().enumerate() {
        let piece = &payloads[i + 1];
        assert_eq!(piece[0], *indicator, "FU-A, NRI 3");
        assert_eq!(piece[1], *head, "start, middle, end of type 5");
        assert_eq!(piece[2..], au[au.len() - 150..][50 * i..][..50]);
    }
    assert_eq!(payloads.len(), 4);

    let mut depacketizer = Depacketizer::new();
    let mut whole = None;
    for (i, payload) in payloads.iter().enumerate() {
        whole = depacketizer.push(payload, i == 3).unwrap();
    }
    let mut expected = vec![0, 0, 0, 1, 0x67, 0x42, 0, 0, 0, 1, 0x68, 0xce, 0, 0, 0, 1, 0x65];
    expected.extend_from_slice(&au[au.len() - 150..]);
    assert_eq!(whole, Some(expected));
}

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("../vectors/input.json")).unwrap()
}

#[test]
fn input_messages_of_the_shared_vectors() {
    let mut seen = 0;
    for v in vectors().iter().filter(|v| v["message"].is_object()) {
        let (name, bytes) = (&v["name"], hex::decode(v["hex"].as_str().unwrap()).unwrap());
        let mut out = vec![0xee];
        let told = if bytes[0] < 0x80 {
            let message = InputMessage::decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            message.encode(&mut out).unwrap();
            tell(&message)
        } else {
            let message = DeviceMessage::decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            message.encode(&mut out).unwrap();
            tell_device(&message)
        };
        assert_eq!(told, v["message"], "{name}");
        assert_eq!(hex::encode(&out[1..]), v["hex"], "{name}");
        seen += 1;
    }
    assert!(seen >= 40, "only {seen} vectors");
}

#[test]
fn refusals_of_the_shared_vectors() {
    let mut seen = 0;
    for v in vectors().iter().filter(|v| v["error"].is_string()) {
        let bytes = hex::decode(v["hex"].as_str().unwrap()).unwrap();
        let error = match v["direction"].as_str() {
            Some("viewer") => InputMessage::decode(&bytes).unwrap_err(),
            _ => DeviceMessage::decode(&bytes).unwrap_err(),
        };
        let word = match error {
            InputError::Truncated { .. } => "truncated",
            InputError::Trailing { .. } => "trailing",
            InputError::UnknownKind(_) => "unknown_kind",
            InputError::BadValue { .. } => "bad_value",
            InputError::Outside { .. } => "outside",
            InputError::TooLong { .. } => "too_long",
            InputError::NotUtf8 { .. } => "not_utf8",
            _ => "other",
        };
        assert_eq!(v["error"], word, "{}", v["name"]);
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} refusals");
}

/// The message as the vectors write it.
fn tell(m: &InputMessage) -> Value {
    let mut told = match &m.body {
        InputBody::Touch(Touch { action, pointer_id, pressure, x, y, w, h, buttons }) => json!({
            "type": "touch", "pointer_id": pointer_id, "pressure": pressure,
            "action": match action {
                TouchAction::Down => "down",
                TouchAction::Up => "up",
                TouchAction::Move => "move",
                TouchAction::Cancel => "cancel",
            },
            "x": x, "y": y, "w": w, "h": h, "buttons": buttons,
        }),
        InputBody::Key(Key { action, repeat, keycode, meta }) => json!({
            "type": "key", "repeat": repeat, "keycode": keycode, "meta": meta,
            "action": match action { KeyAction::Down => "down", KeyAction::Up => "up" },
        }),
        InputBody::Scroll(Scroll { x, y, w, h, dx, dy, buttons }) => json!({
            "type": "scroll", "x": x, "y": y, "w": w, "h": h, "dx": dx, "dy": dy,
            "buttons": buttons,
        }),
        InputBody::Text(text) => json!({ "type": "text", "text": text }),
        InputBody::SetClipboard { paste, text } => {
            json!({ "type": "set_clipboard", "paste": paste, "text": text })
        }
        InputBody::GetClipboard { copy_key } => {
            let word = match copy_key {
                CopyKey::None => "none",
                CopyKey::Copy => "copy",
                CopyKey::Cut => "cut",
            };
            json!({ "type": "get_clipboard", "copy_key": word })
        }
        InputBody::Button { button, action } => json!({
            "type": "button", "button": button_word(*button),
            "action": match action {
                ButtonAction::Down => "down",
                ButtonAction::Up => "up",
                ButtonAction::Press => "press",
            },
        }),
        InputBody::ReleaseAll => json!({ "type": "release_all" }),
        InputBody::Ping { t_ms } => json!({ "type": "ping", "t_ms": t_ms }),
    };
    told["seq"] = json!(m.seq);
    told["lease_epoch"] = json!(m.lease_epoch);
    told
}

fn button_word(button: Button) -> &'static str {
    match button {
        Button::BackOrScreenOn => "back_or_screen_on",
        Button::Home => "home",
        Button::Recents => "recents",
        Button::Power => "power",
        Button::VolumeUp => "volume_up",
        Button::VolumeDown => "volume_down",
        Button::RotateDevice => "rotate_device",
        Button::ExpandNotifications => "expand_notifications",
        Button::CollapsePanels => "collapse_panels",
    }
}

fn tell_device(m: &DeviceMessage) -> Value {
    let mut told = match &m.body {
        DeviceBody::Session { w, h, rotation, role } => json!({
            "type": "session", "w": w, "h": h, "rotation": rotation,
            "role": match role { Role::Observer => "observer", Role::Controller => "controller" },
        }),
        DeviceBody::Clipboard(text) => json!({ "type": "clipboard", "text": text }),
        DeviceBody::Denied { reason, of_kind } => json!({
            "type": "denied", "of_kind": of_kind,
            "reason": match reason {
                DenyReason::NotController => "not_controller",
                DenyReason::RateLimited => "rate_limited",
                DenyReason::StaleSize => "stale_size",
                DenyReason::Malformed => "malformed",
                DenyReason::DeviceOffline => "device_offline",
            },
        }),
        DeviceBody::Reconnect(url) => json!({ "type": "reconnect", "url": url }),
        DeviceBody::Pong { t_ms } => json!({ "type": "pong", "t_ms": t_ms }),
    };
    told["seq"] = json!(m.seq);
    told["lease_epoch"] = json!(m.lease_epoch);
    told
}
