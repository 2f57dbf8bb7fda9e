//! Input messages: what a viewer sends on the data channels `input` and `input-moves`, what comes
//! back on them, and what the hop carries in `DeviceInput.message` and `DeviceOutput.message`. Not
//! permission, lease or rate: those are the router's. Invariant: [`InputMessage::encode`] and
//! [`InputMessage::decode`] accept exactly the same messages, and equal messages have equal bytes.

mod cursor;
mod device;
mod types;

use cursor::Cursor;
pub use device::{DenyReason, DeviceBody, DeviceMessage, RECONNECT_URL_MAX, Role};
pub use types::{Button, ButtonAction, CopyKey, Key, KeyAction, Scroll, Touch, TouchAction};

/// Length of the header that every message begins with.
pub const HEADER_LEN: usize = 12;

/// Greatest text of one [`InputBody::Text`], in bytes.
pub const TEXT_MAX: usize = 1024;

/// Greatest clipboard text either way, in bytes.
pub const CLIPBOARD_MAX: usize = 64 * 1024;

/// Greatest clipboard text towards a viewer: with its head it fits into the 65,536 bytes that every
/// WebRTC peer takes as one message (RFC 8841, 6.1).
pub const CLIPBOARD_TO_VIEWER_MAX: usize = CLIPBOARD_MAX - HEADER_LEN - 4;

/// Greatest message either way.
pub const MESSAGE_MAX: usize = HEADER_LEN + 6 + CLIPBOARD_MAX;

/// Label of the reliable, ordered data channel.
pub const CHANNEL_INPUT: &str = "input";

/// Label of the unordered data channel without retransmission.
pub const CHANNEL_MOVES: &str = "input-moves";

/// First byte of a message.
pub mod kind {
    /// A finger or pen.
    pub const TOUCH: u8 = 0x01;
    /// A key.
    pub const KEY: u8 = 0x02;
    /// A wheel.
    pub const SCROLL: u8 = 0x03;
    /// Text to type.
    pub const TEXT: u8 = 0x04;
    /// Text for the device's clipboard.
    pub const SET_CLIPBOARD: u8 = 0x05;
    /// Question for the device's clipboard.
    pub const GET_CLIPBOARD: u8 = 0x06;
    /// A button of the device or its system.
    pub const BUTTON: u8 = 0x07;
    /// Release what this viewer holds down.
    pub const RELEASE_ALL: u8 = 0x08;
    /// Question for the router's pulse.
    pub const PING: u8 = 0x09;
    /// Size, rotation, role; towards the viewer.
    pub const SESSION: u8 = 0x81;
    /// The device's clipboard; towards the viewer.
    pub const CLIPBOARD: u8 = 0x82;
    /// A message was refused; towards the viewer.
    pub const DENIED: u8 = 0x83;
    /// Answer to a ping; towards the viewer.
    pub const PONG: u8 = 0x8a;
    /// See [`DeviceBody::Reconnect`](super::DeviceBody::Reconnect).
    pub const RECONNECT: u8 = 0x84;
}

/// Why bytes are not a message, or a message cannot become bytes. The one who made it is to blame;
/// sending it again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The message ends inside a field.
    #[error("input message cut short at {field}: needs {need} bytes, has {have}")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// Message length needed.
        need: usize,
        /// Message length there.
        have: usize,
    },
    /// Bytes are left after the last field.
    #[error("{count} bytes after the end of the input message")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// The first byte is no kind of this direction.
    #[error("unknown input message kind {0:#04x}")]
    UnknownKind(u8),
    /// A field has a value that means nothing, or a reserved field is not zero.
    #[error("{field} cannot be {value}")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// A position outside the picture it is relative to.
    #[error("position {x},{y} is outside a picture of {w}x{h}")]
    Outside {
        /// Position from the left.
        x: u16,
        /// Position from the top.
        y: u16,
        /// Width of the picture.
        w: u16,
        /// Height of the picture.
        h: u16,
    },
    /// A text over its limit.
    #[error("{field} of {len} bytes is over the limit of {max}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// Its limit.
        max: usize,
    },
    /// A text that is not UTF-8.
    #[error("{field} is not UTF-8 after {valid_up_to} bytes")]
    NotUtf8 {
        /// The field.
        field: &'static str,
        /// Bytes that are well-formed.
        valid_up_to: usize,
    },
}

/// One message from a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputMessage {
    /// Counts up by one per message of a viewer, over both channels; wraps. Refusals name it.
    pub seq: u32,
    /// Epoch of the control lease that the viewer believes to hold; 0 where none is in use.
    pub lease_epoch: u32,
    /// What it says.
    pub body: InputBody,
}

/// What a viewer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputBody {
    /// A finger or pen goes down, moves, goes up.
    Touch(Touch),
    /// A key goes down or up.
    Key(Key),
    /// A wheel turns.
    Scroll(Scroll),
    /// Text to type, at most [`TEXT_MAX`] bytes.
    Text(String),
    /// Sets the device's clipboard.
    SetClipboard {
        /// Press the paste key afterwards.
        paste: bool,
        /// The text, at most [`CLIPBOARD_MAX`] bytes.
        text: String,
    },
    /// Asks for the device's clipboard.
    GetClipboard {
        /// The key to press first.
        copy_key: CopyKey,
    },
    /// A button of the device or its system.
    Button {
        /// Which.
        button: Button,
        /// What happens to it.
        action: ButtonAction,
    },
    /// Releases all pointers and keys that this viewer holds down. The router sends it to the
    /// worker when a viewer leaves.
    ReleaseAll,
    /// The router answers with [`DeviceBody::Pong`].
    Ping {
        /// The sender's clock, any unit and zero point; comes back unchanged.
        t_ms: u32,
    },
}

impl InputBody {
    /// The message's first byte.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Touch(_) => kind::TOUCH,
            Self::Key(_) => kind::KEY,
            Self::Scroll(_) => kind::SCROLL,
            Self::Text(_) => kind::TEXT,
            Self::SetClipboard { .. } => kind::SET_CLIPBOARD,
            Self::GetClipboard { .. } => kind::GET_CLIPBOARD,
            Self::Button { .. } => kind::BUTTON,
            Self::ReleaseAll => kind::RELEASE_ALL,
            Self::Ping { .. } => kind::PING,
        }
    }
}

impl InputMessage {
    /// Reads one message. Strict: exact length, known values, zero where zero is reserved,
    /// positions inside the picture.
    pub fn decode(message: &[u8]) -> Result<Self, InputError> {
        let mut c = Cursor::new(message);
        let (kind, seq, lease_epoch) = c.header()?;
        let body = match kind {
            kind::TOUCH => InputBody::Touch(Touch::read(&mut c)?),
            kind::KEY => InputBody::Key(Key::read(&mut c)?),
            kind::SCROLL => InputBody::Scroll(Scroll::read(&mut c)?),
            kind::TEXT => {
                let len = usize::from(c.u16("text length")?);
                InputBody::Text(c.text("text", len, TEXT_MAX)?)
            }
            kind::SET_CLIPBOARD => {
                let paste = c.u8("paste")?;
                c.zero("reserved byte of set clipboard", 1)?;
                InputBody::SetClipboard {
                    paste: match paste {
                        0 => false,
                        1 => true,
                        v => return Err(cursor::bad("paste", v)),
                    },
                    text: c.clipboard()?,
                }
            }
            kind::GET_CLIPBOARD => {
                let copy_key = CopyKey::from_wire(c.u8("copy key")?)?;
                c.zero("reserved bytes of get clipboard", 3)?;
                InputBody::GetClipboard { copy_key }
            }
            kind::BUTTON => {
                let button = Button::from_wire(c.u8("button")?)?;
                let action = ButtonAction::from_wire(c.u8("button action")?)?;
                c.zero("reserved bytes of button", 2)?;
                InputBody::Button { button, action }
            }
            kind::RELEASE_ALL => InputBody::ReleaseAll,
            kind::PING => InputBody::Ping { t_ms: c.u32("ping time")? },
            other => return Err(InputError::UnknownKind(other)),
        };
        c.end()?;
        Ok(Self { seq, lease_epoch, body })
    }

    /// Appends the message's bytes. Refuses what [`decode`](Self::decode) would refuse; then
    /// nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        let start = out.len();
        let done = self.encode_body(out);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        cursor::write_header(self.body.kind(), self.seq, self.lease_epoch, out);
        match &self.body {
            InputBody::Touch(touch) => touch.write(out)?,
            InputBody::Key(key) => key.write(out),
            InputBody::Scroll(scroll) => scroll.write(out)?,
            InputBody::Text(text) => {
                cursor::check_len("text", text.len(), TEXT_MAX)?;
                // Just checked: below 65,536.
                out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
            InputBody::SetClipboard { paste, text } => {
                out.extend_from_slice(&[u8::from(*paste), 0]);
                cursor::write_clipboard(text, out)?;
            }
            InputBody::GetClipboard { copy_key } => {
                out.extend_from_slice(&[*copy_key as u8, 0, 0, 0]);
            }
            InputBody::Button { button, action } => {
                out.extend_from_slice(&[*button as u8, *action as u8, 0, 0]);
            }
            InputBody::ReleaseAll => {}
            InputBody::Ping { t_ms } => out.extend_from_slice(&t_ms.to_be_bytes()),
        }
        Ok(())
    }

    /// Whether it may be dropped under load: only moves, because the next one says more. A lost
    /// down or up would leave the device in a state that nobody wants.
    pub fn is_droppable(&self) -> bool {
        matches!(self.body, InputBody::Touch(Touch { action: TouchAction::Move, .. }))
    }

    /// Whether this message makes `earlier` pointless: both are moves of the same pointer, under
    /// the same lease and over the same picture.
    pub fn coalesces_with(&self, earlier: &Self) -> bool {
        let (InputBody::Touch(a), InputBody::Touch(b)) = (&self.body, &earlier.body) else {
            return false;
        };
        self.is_droppable()
            && earlier.is_droppable()
            && self.lease_epoch == earlier.lease_epoch
            && (a.pointer_id, a.buttons, a.w, a.h) == (b.pointer_id, b.buttons, b.w, b.h)
    }
}
