//! Bytes of the scrcpy control socket, both ways. All numbers are big-endian.
//!
//! [`decode`] reads client messages from a growing buffer; [`DeviceMessage`] is what goes back. Pure:
//! no sockets, no device. Invariants: any bytes are answered with a message, "more" or an error,
//! never a panic; "more" never asks for more than [`MAX_MESSAGE`] bytes.

use super::version::ScrcpyVersion;

/// Largest message of either side, as the protocol says.
pub const MAX_MESSAGE: usize = 1 << 18;
/// Longest text to inject, in bytes.
pub const MAX_TEXT: usize = 300;
/// Longest clipboard text: the largest message less the header of SET_CLIPBOARD.
pub const MAX_CLIPBOARD: usize = MAX_MESSAGE - 14;

/// A point in a picture of a certain size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Horizontal, from the left.
    pub x: i32,
    /// Vertical, from the top.
    pub y: i32,
    /// Width of the picture.
    pub width: u16,
    /// Height of the picture.
    pub height: u16,
}

/// A message from the client.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields are those of the protocol, named as there")]
pub enum ControlMessage {
    InjectKeycode {
        action: u8,
        keycode: u32,
        repeat: u32,
        meta_state: u32,
    },
    InjectText {
        text: String,
    },
    InjectTouch {
        action: u8,
        pointer_id: u64,
        position: Position,
        pressure: u16,
        action_button: u32,
        buttons: u32,
    },
    InjectScroll {
        position: Position,
        h: f32,
        v: f32,
        buttons: u32,
    },
    BackOrScreenOn {
        action: u8,
    },
    ExpandNotifications,
    ExpandSettings,
    CollapsePanels,
    GetClipboard {
        copy_key: u8,
    },
    SetClipboard {
        sequence: u64,
        paste: bool,
        text: String,
    },
    SetDisplayPower {
        on: bool,
    },
    RotateDevice,
    UhidCreate {
        id: u16,
        vendor: u16,
        product: u16,
        name: String,
        descriptor: Vec<u8>,
    },
    UhidInput {
        id: u16,
        data: Vec<u8>,
    },
    UhidDestroy {
        id: u16,
    },
    OpenHardKeyboardSettings,
    StartApp {
        name: String,
    },
    ResetVideo,
    CameraSetTorch {
        on: bool,
    },
    CameraZoomIn,
    CameraZoomOut,
    ResizeDisplay {
        width: u16,
        height: u16,
    },
    ScanFile {
        path: String,
    },
}

/// Why the control loop ends. Always the client's doing; a new session with correct messages works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The type does not exist in this version.
    #[error("Unknown event type: {0}")]
    UnknownType(u8),
    /// A length that no message may have.
    #[error("message of type {kind} declares {length} bytes, more than {limit}")]
    TooLong {
        /// Type of the message.
        kind: u8,
        /// Declared length.
        length: usize,
        /// Bound.
        limit: usize,
    },
    /// Text that is not UTF-8.
    #[error("message of type {0} holds text that is not UTF-8")]
    NotText(u8),
}

/// Reads the first message of `bytes`: it and its length, or `None` when more bytes are needed.
pub fn decode(
    version: ScrcpyVersion,
    bytes: &[u8],
) -> Result<Option<(ControlMessage, usize)>, ControlError> {
    let Some(kind) = bytes.first().copied() else { return Ok(None) };
    if kind > version.last_control_type() {
        return Err(ControlError::UnknownType(kind));
    }
    let mut reader = Reader { kind, bytes, at: 1 };
    match reader.message() {
        Ok(message) => Ok(Some((message, reader.at))),
        Err(Stop::More) => Ok(None),
        Err(Stop::Bad(error)) => Err(error),
    }
}

/// A message to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceMessage {
    /// The clipboard's text.
    Clipboard(String),
    /// A SET_CLIPBOARD with this sequence number was done.
    AckClipboard(u64),
    /// Output for a virtual input device.
    UhidOutput {
        /// Which one.
        id: u16,
        /// The report.
        data: Vec<u8>,
    },
}

impl DeviceMessage {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Clipboard(text) => {
                // Five bytes of header before the text; the device never holds more.
                let end = text.len().min(MAX_MESSAGE - 5);
                let end = (0..=end).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
                out.push(0);
                out.extend(u32::try_from(end).unwrap_or(0).to_be_bytes());
                out.extend(&text.as_bytes()[..end]);
            }
            Self::AckClipboard(sequence) => {
                out.push(1);
                out.extend(sequence.to_be_bytes());
            }
            Self::UhidOutput { id, data } => {
                let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
                out.push(2);
                out.extend(id.to_be_bytes());
                out.extend(length.to_be_bytes());
                out.extend(&data[..usize::from(length)]);
            }
        }
        out
    }
}

enum Stop {
    More,
    Bad(ControlError),
}

struct Reader<'a> {
    kind: u8,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn message(&mut self) -> Result<ControlMessage, Stop> {
        use ControlMessage as M;
        Ok(match self.kind {
            0 => M::InjectKeycode {
                action: self.u8()?,
                keycode: self.u32()?,
                repeat: self.u32()?,
                meta_state: self.u32()?,
            },
            1 => M::InjectText { text: self.long_text(MAX_TEXT)? },
            2 => M::InjectTouch {
                action: self.u8()?,
                pointer_id: self.u64()?,
                position: self.position()?,
                pressure: self.u16()?,
                action_button: self.u32()?,
                buttons: self.u32()?,
            },
            3 => M::InjectScroll {
                position: self.position()?,
                h: self.notches()?,
                v: self.notches()?,
                buttons: self.u32()?,
            },
            4 => M::BackOrScreenOn { action: self.u8()? },
            5 => M::ExpandNotifications,
            6 => M::ExpandSettings,
            7 => M::CollapsePanels,
            8 => M::GetClipboard { copy_key: self.u8()? },
            9 => M::SetClipboard {
                sequence: self.u64()?,
                paste: self.u8()? != 0,
                text: self.long_text(MAX_CLIPBOARD)?,
            },
            10 => M::SetDisplayPower { on: self.u8()? != 0 },
            11 => M::RotateDevice,
            12 => M::UhidCreate {
                id: self.u16()?,
                vendor: self.u16()?,
                product: self.u16()?,
                name: self.short_text()?,
                descriptor: self.short_bytes()?,
            },
            13 => M::UhidInput { id: self.u16()?, data: self.short_bytes()? },
            14 => M::UhidDestroy { id: self.u16()? },
            15 => M::OpenHardKeyboardSettings,
            16 => M::StartApp { name: self.short_text()? },
            17 => M::ResetVideo,
            18 => M::CameraSetTorch { on: self.u8()? != 0 },
            19 => M::CameraZoomIn,
            20 => M::CameraZoomOut,
            21 => M::ResizeDisplay { width: self.u16()?, height: self.u16()? },
            22 => M::ScanFile { path: self.long_text(MAX_MESSAGE - 5)? },
            unknown => return Err(Stop::Bad(ControlError::UnknownType(unknown))),
        })
    }

    fn position(&mut self) -> Result<Position, Stop> {
        Ok(Position {
            x: i32::from_be_bytes(self.array()?),
            y: i32::from_be_bytes(self.array()?),
            width: self.u16()?,
            height: self.u16()?,
        })
    }

    /// A signed 16-bit fixed-point number whose full range is 16 notches each way.
    fn notches(&mut self) -> Result<f32, Stop> {
        Ok(f32::from(i16::from_be_bytes(self.array()?)) / 32768.0 * 16.0)
    }

    fn long_text(&mut self, limit: usize) -> Result<String, Stop> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if length > limit {
            return Err(Stop::Bad(ControlError::TooLong { kind: self.kind, length, limit }));
        }
        self.text(length)
    }

    fn short_text(&mut self) -> Result<String, Stop> {
        let length = usize::from(self.u8()?);
        self.text(length)
    }

    fn short_bytes(&mut self) -> Result<Vec<u8>, Stop> {
        let length = usize::from(self.u16()?);
        Ok(self.take(length)?.to_vec())
    }

    fn text(&mut self, length: usize) -> Result<String, Stop> {
        let kind = self.kind;
        let bytes = self.take(length)?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| Stop::Bad(ControlError::NotText(kind)))?;
        Ok(text.to_owned())
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (head, _) = self.bytes[self.at..].split_first_chunk::<N>().ok_or(Stop::More)?;
        self.at += N;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let taken = self.bytes.get(self.at..self.at + length).ok_or(Stop::More)?;
        self.at += length;
        Ok(taken)
    }
}
