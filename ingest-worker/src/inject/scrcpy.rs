//! Control socket of the scrcpy server: [`Op`]s to its messages. Pure; not the socket, and not what
//! the server says (`source/scrcpy/messages.rs`). Invariant: no message type above the version's last one is ever written, because
//! an unknown type ends the server's control loop, and one op is one buffer, so one write.

use super::{Op, Position, Press};
use crate::source::scrcpy::table::ServerVersion;

/// Longest text of one INJECT_TEXT, bytes; the server cuts what is beyond.
pub const MAX_TEXT_BYTES: usize = 300;
/// Longest clipboard text either way: the 256 KiB of a message less its head.
pub const MAX_CLIPBOARD_BYTES: usize = 256 * 1024 - 14;

const INJECT_KEYCODE: u8 = 0;
const INJECT_TEXT: u8 = 1;
const INJECT_TOUCH: u8 = 2;
const INJECT_SCROLL: u8 = 3;
const BACK_OR_SCREEN_ON: u8 = 4;
const EXPAND_NOTIFICATIONS: u8 = 5;
const COLLAPSE_PANELS: u8 = 7;
const GET_CLIPBOARD: u8 = 8;
const SET_CLIPBOARD: u8 = 9;
const ROTATE_DEVICE: u8 = 11;
const RESET_VIDEO: u8 = 17;

/// Appends the message for `op`, or several where one op needs them (long text). Writes nothing and
/// returns false when this version has no message for it.
pub fn encode(version: &ServerVersion, op: &Op, out: &mut Vec<u8>) -> bool {
    let kind = kind_of(op);
    if kind > version.last_control_type {
        return false;
    }
    match op {
        Op::Text(text) if !text.is_ascii() => {
            // INJECT_TEXT reaches only what the key map has, in practice ASCII.
            set_clipboard(true, text, out);
        }
        Op::Text(text) => {
            for part in text.as_bytes().chunks(MAX_TEXT_BYTES) {
                out.push(INJECT_TEXT);
                put_bytes(part, out);
            }
        }
        Op::SetClipboard { paste, text } => set_clipboard(*paste, text, out),
        Op::Touch { press, pointer, at, pressure, buttons } => {
            out.push(INJECT_TOUCH);
            out.push(action(*press));
            out.extend_from_slice(&u64::from(*pointer).to_be_bytes());
            put_position(at, out);
            out.extend_from_slice(&pressure.to_be_bytes());
            // The button that changes: only down and up change one.
            let changed = if *press == Press::Move { 0 } else { lowest_bit(*buttons) };
            out.extend_from_slice(&changed.to_be_bytes());
            out.extend_from_slice(&buttons.to_be_bytes());
        }
        Op::Key { press, keycode, repeat, meta } => {
            out.push(INJECT_KEYCODE);
            out.push(action(*press));
            out.extend_from_slice(&keycode.to_be_bytes());
            out.extend_from_slice(&repeat.to_be_bytes());
            out.extend_from_slice(&meta.to_be_bytes());
        }
        Op::Scroll { at, dx, dy, buttons } => {
            out.push(INJECT_SCROLL);
            put_position(at, out);
            out.extend_from_slice(&dx.to_be_bytes());
            out.extend_from_slice(&dy.to_be_bytes());
            out.extend_from_slice(&buttons.to_be_bytes());
        }
        Op::GetClipboard { copy_key } => out.extend_from_slice(&[GET_CLIPBOARD, *copy_key]),
        Op::BackOrScreenOn(press) => out.extend_from_slice(&[BACK_OR_SCREEN_ON, action(*press)]),
        Op::RotateDevice | Op::ExpandNotifications | Op::CollapsePanels => out.push(kind),
    }
    true
}

/// The message that starts the device's encoder anew; `None` where the version has none.
pub fn reset_video(version: &ServerVersion) -> Option<[u8; 1]> {
    (version.last_control_type >= RESET_VIDEO).then_some([RESET_VIDEO])
}

fn kind_of(op: &Op) -> u8 {
    match op {
        Op::Touch { .. } => INJECT_TOUCH,
        Op::Key { .. } => INJECT_KEYCODE,
        Op::Scroll { .. } => INJECT_SCROLL,
        Op::Text(text) if text.is_ascii() => INJECT_TEXT,
        Op::Text(_) | Op::SetClipboard { .. } => SET_CLIPBOARD,
        Op::GetClipboard { .. } => GET_CLIPBOARD,
        Op::BackOrScreenOn(_) => BACK_OR_SCREEN_ON,
        Op::RotateDevice => ROTATE_DEVICE,
        Op::ExpandNotifications => EXPAND_NOTIFICATIONS,
        Op::CollapsePanels => COLLAPSE_PANELS,
    }
}

fn action(press: Press) -> u8 {
    match press {
        Press::Down => 0,
        Press::Up => 1,
        Press::Move => 2,
    }
}

fn lowest_bit(bits: u32) -> u32 {
    bits & bits.wrapping_neg()
}

fn put_position(at: &Position, out: &mut Vec<u8>) {
    out.extend_from_slice(&i32::from(at.x).to_be_bytes());
    out.extend_from_slice(&i32::from(at.y).to_be_bytes());
    out.extend_from_slice(&at.width.to_be_bytes());
    out.extend_from_slice(&at.height.to_be_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn set_clipboard(paste: bool, text: &str, out: &mut Vec<u8>) {
    let text = cut_at_char(text, MAX_CLIPBOARD_BYTES);
    out.push(SET_CLIPBOARD);
    out.extend_from_slice(&0u64.to_be_bytes()); // sequence 0: no acknowledgement
    out.push(u8::from(paste));
    put_bytes(text.as_bytes(), out);
}

/// The longest prefix of at most `max` bytes that ends between characters.
pub(crate) fn cut_at_char(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::scrcpy::table::{TABLE, by_name};

    const AT: Position = Position { x: 100, y: 200, width: 1080, height: 1920 };

    fn hex_of(op: &Op) -> String {
        let mut encodings = TABLE.iter().map(|v| {
            let mut out = Vec::new();
            assert!(encode(v, op, &mut out), "{op:?} on {}", v.name);
            hex::encode(out)
        });
        let first = encodings.next().unwrap();
        assert!(encodings.all(|e| e == first), "versions differ for {op:?}");
        first
    }

    /// Byte for byte, by the protocol's description. A field per group.
    #[test]
    fn messages_are_encoded_byte_by_byte() {
        let touch =
            |press, buttons| Op::Touch { press, pointer: 3, at: AT, pressure: 0xffff, buttons };
        let cases: &[(Op, &str)] = &[
            // type, action, keycode, repeat, meta
            (
                Op::Key { press: Press::Up, keycode: 66, repeat: 5, meta: 0x41 },
                "00 01 00000042 00000005 00000041",
            ),
            // type, length, text
            (Op::Text("hello".into()), "01 00000005 68656c6c6f"),
            // type, action, pointer, x, y, w, h, pressure, action button, buttons
            (
                touch(Press::Down, 1),
                "02 00 0000000000000003 00000064 000000c8 0438 0780 ffff 00000001 00000001",
            ),
            (
                touch(Press::Move, 1),
                "02 02 0000000000000003 00000064 000000c8 0438 0780 ffff 00000000 00000001",
            ),
            (
                touch(Press::Up, 0),
                "02 01 0000000000000003 00000064 000000c8 0438 0780 ffff 00000000 00000000",
            ),
            // type, x, y, w, h, horizontal, vertical, buttons
            (
                Op::Scroll { at: AT, dx: 2048, dy: -2048, buttons: 1 },
                "03 00000064 000000c8 0438 0780 0800 f800 00000001",
            ),
            (Op::BackOrScreenOn(Press::Down), "04 00"),
            (Op::BackOrScreenOn(Press::Up), "04 01"),
            (Op::ExpandNotifications, "05"),
            (Op::CollapsePanels, "07"),
            (Op::GetClipboard { copy_key: 2 }, "08 02"),
            // type, sequence, paste, length, text
            (
                Op::SetClipboard { paste: true, text: "hé".into() },
                "09 0000000000000000 01 00000003 68c3a9",
            ),
            (Op::Text("é".into()), "09 0000000000000000 01 00000002 c3a9"),
            (Op::RotateDevice, "0b"),
        ];
        for (op, expected) in cases {
            assert_eq!(hex_of(op), expected.replace(' ', ""), "{op:?}");
        }
        for v in TABLE {
            assert_eq!(reset_video(v), Some([0x11]), "{}", v.name);
        }
    }

    #[test]
    fn messages_have_the_sizes_of_the_protocol() {
        let bytes = |op: &Op| hex_of(op).len() / 2;
        assert_eq!(bytes(&Op::Key { press: Press::Down, keycode: 1, repeat: 0, meta: 0 }), 14);
        let touch = Op::Touch { press: Press::Down, pointer: 0, at: AT, pressure: 0, buttons: 0 };
        assert_eq!(bytes(&touch), 32);
        assert_eq!(bytes(&Op::Scroll { at: AT, dx: 0, dy: 0, buttons: 0 }), 21);
    }

    #[test]
    fn a_type_the_version_lacks_is_never_written() {
        let old = ServerVersion { last_control_type: 10, ..*by_name("3.3.3").unwrap() };
        let mut out = Vec::new();
        assert!(!encode(&old, &Op::RotateDevice, &mut out));
        assert!(out.is_empty());
        assert_eq!(reset_video(&old), None);
    }

    #[test]
    fn long_text_is_split_and_long_clipboards_are_cut_between_characters() {
        let mut out = Vec::new();
        assert!(encode(by_name("4.1").unwrap(), &Op::Text("a".repeat(700)), &mut out));
        assert_eq!(out.len(), 700 + 3 * 5);
        let mut out = Vec::new();
        let text = "é".repeat(200_000);
        let op = Op::SetClipboard { paste: false, text };
        assert!(encode(by_name("4.1").unwrap(), &op, &mut out));
        assert!(out.len() <= 256 * 1024);
        assert!(std::str::from_utf8(&out[14..]).is_ok());
    }
}
