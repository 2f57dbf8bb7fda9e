//! Android key codes: their names and what they type.
//!
//! Only the keys that do something here are listed; every other code is accepted and shown on the
//! screen, as a real phone accepts keys it has no use for.

/// Names without the `KEYCODE_` prefix.
const NAMES: [(&str, u32); 27] = [
    ("HOME", HOME),
    ("BACK", BACK),
    ("DPAD_UP", 19),
    ("DPAD_DOWN", 20),
    ("DPAD_LEFT", 21),
    ("DPAD_RIGHT", 22),
    ("VOLUME_UP", 24),
    ("VOLUME_DOWN", 25),
    ("POWER", POWER),
    ("CAMERA", 27),
    ("COMMA", 55),
    ("PERIOD", 56),
    ("TAB", 61),
    ("SPACE", 62),
    ("ENTER", 66),
    ("DEL", DEL),
    ("MENU", 82),
    ("ESCAPE", 111),
    ("FORWARD_DEL", 112),
    ("VOLUME_MUTE", 164),
    ("APP_SWITCH", APP_SWITCH),
    ("SLEEP", SLEEP),
    ("WAKEUP", WAKEUP),
    ("CUT", CUT),
    ("COPY", COPY),
    ("PASTE", PASTE),
    ("SEARCH", 84),
];

/// Home button.
pub(crate) const HOME: u32 = 3;
/// Back button.
pub(crate) const BACK: u32 = 4;
/// Power button.
pub(crate) const POWER: u32 = 26;
/// Backspace.
pub(crate) const DEL: u32 = 67;
/// Recent apps.
pub(crate) const APP_SWITCH: u32 = 187;
/// Switch the screen off.
pub(crate) const SLEEP: u32 = 223;
/// Switch the screen on.
pub(crate) const WAKEUP: u32 = 224;
/// Cut to the clipboard.
pub(crate) const CUT: u32 = 277;
/// Copy to the clipboard.
pub(crate) const COPY: u32 = 278;
/// Paste from the clipboard.
pub(crate) const PASTE: u32 = 279;

/// `META_SHIFT_ON` and `META_CAPS_LOCK_ON`.
const UPPER: u32 = 0x01 | 0x10_0000;

/// A key code from its number or name, with or without `KEYCODE_`.
pub(crate) fn parse(name: &str) -> Option<u32> {
    if let Ok(code) = name.parse() {
        return Some(code);
    }
    let name = name.strip_prefix("KEYCODE_").unwrap_or(name);
    if let [only] = name.as_bytes() {
        return match only {
            b'A'..=b'Z' => Some(u32::from(only - b'A') + 29),
            b'0'..=b'9' => Some(u32::from(only - b'0') + 7),
            _ => None,
        };
    }
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, code)| *code)
}

/// A name to show for a key.
pub(crate) fn name(code: u32) -> String {
    NAMES
        .iter()
        .find(|(_, c)| *c == code)
        .map_or_else(|| format!("KEYCODE {code}"), |(n, _)| (*n).replace('_', " "))
}

/// The character a key types with this meta state, if it types one.
pub(crate) fn character(code: u32, meta: u32) -> Option<char> {
    let upper = meta & UPPER != 0;
    let offset = |from: u8, base: u32| u8::try_from(code - base).ok().map(|n| char::from(from + n));
    match code {
        7..=16 => offset(b'0', 7),
        29..=54 if upper => offset(b'A', 29),
        29..=54 => offset(b'a', 29),
        55 => Some(','),
        56 => Some('.'),
        61 | 62 | 66 => Some(' '),
        69 => Some('-'),
        70 => Some('='),
        74 => Some(';'),
        75 => Some('\''),
        76 => Some(if upper { '?' } else { '/' }),
        77 => Some('@'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_android() {
        assert_eq!(parse("KEYCODE_HOME"), Some(3));
        assert_eq!(parse("BACK"), Some(4));
        assert_eq!(parse("KEYCODE_A"), Some(29));
        assert_eq!(parse("9"), Some(9));
        assert_eq!(parse("187"), Some(187));
        assert_eq!(parse("KEYCODE_NONSENSE"), None);
    }

    #[test]
    fn letters_follow_shift() {
        assert_eq!(character(29, 0), Some('a'));
        assert_eq!(character(54, 1), Some('Z'));
        assert_eq!(character(7, 0), Some('0'));
        assert_eq!(character(3, 0), None);
    }
}
