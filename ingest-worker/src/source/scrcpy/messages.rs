//! What the scrcpy server says on the control socket. Pure and incremental; not the socket, and not
//! what is said to it (`inject/scrcpy.rs`). Invariant: a length the device declares is checked
//! before anything is kept for it.

use bytes::{Buf, BytesMut};

/// Largest clipboard that is read; a whole message has at most 256 KiB.
const MAX_CLIPBOARD_BYTES: usize = 256 * 1024;

/// What the server says on the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The device's clipboard, asked for or changed.
    Clipboard(String),
    /// A SET_CLIPBOARD with a sequence was done.
    AckClipboard(u64),
    /// A report of a UHID device; nobody here makes one.
    UhidOutput,
}

/// Why the control socket cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerMessageError {
    /// A type no known version sends.
    #[error("the scrcpy server sent message type {0}, which no known version has")]
    UnknownType(u8),
    /// A clipboard longer than the protocol allows.
    #[error("the scrcpy server declared {0} bytes of clipboard, at most 256 KiB are read")]
    TooLarge(u32),
}

/// Incremental reader of [`ServerMessage`]s. Push, then drain; holds at most one message plus one
/// read.
#[derive(Debug, Default)]
pub struct ServerMessageReader {
    buffer: BytesMut,
}

impl ServerMessageReader {
    /// Bytes waiting for the rest of their message.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, or `None` when more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<ServerMessage>, ServerMessageError> {
        let b = &self.buffer;
        match b.first() {
            None => Ok(None),
            Some(0) => {
                let Some(length) = be_u32(b, 1) else { return Ok(None) };
                let size = length as usize;
                if size > MAX_CLIPBOARD_BYTES {
                    return Err(ServerMessageError::TooLarge(length));
                }
                if b.len() < 5 + size {
                    return Ok(None);
                }
                self.buffer.advance(5);
                let text = String::from_utf8_lossy(&self.buffer.split_to(size)).into_owned();
                Ok(Some(ServerMessage::Clipboard(text)))
            }
            Some(1) if b.len() < 9 => Ok(None),
            Some(1) => {
                self.buffer.advance(1);
                Ok(Some(ServerMessage::AckClipboard(self.buffer.get_u64())))
            }
            Some(2) => {
                let Some(size) = b.get(3..5).map(|l| usize::from(u16::from_be_bytes([l[0], l[1]])))
                else {
                    return Ok(None);
                };
                if b.len() < 5 + size {
                    return Ok(None);
                }
                self.buffer.advance(5 + size);
                Ok(Some(ServerMessage::UhidOutput))
            }
            Some(other) => Err(ServerMessageError::UnknownType(*other)),
        }
    }
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn server_messages_are_read_at_any_split() {
        let mut bytes = vec![0, 0, 0, 0, 3, b'a', b'b', b'c'];
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 1, 2]);
        bytes.extend([2, 0, 1, 0, 2, 9, 9]);
        let expected = [
            ServerMessage::Clipboard("abc".into()),
            ServerMessage::AckClipboard(0x102),
            ServerMessage::UhidOutput,
        ];
        for step in 1..bytes.len() {
            let mut reader = ServerMessageReader::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(step) {
                reader.push(chunk);
                while let Some(m) = reader.next_message().unwrap() {
                    seen.push(m);
                }
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn server_messages_beyond_the_protocol_are_refused() {
        let mut reader = ServerMessageReader::default();
        reader.push(&[0, 0xff, 0, 0, 0]);
        assert_eq!(reader.next_message(), Err(ServerMessageError::TooLarge(0xff00_0000)));
        let mut reader = ServerMessageReader::default();
        reader.push(&[9]);
        assert_eq!(reader.next_message(), Err(ServerMessageError::UnknownType(9)));
    }

    proptest! {
        #[test]
        fn random_bytes_neither_panic_nor_pile_up(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut reader = ServerMessageReader::default();
            for chunk in bytes.chunks(5) {
                reader.push(chunk);
                while let Ok(Some(_)) = reader.next_message() {}
            }
            prop_assert!(reader.buffered() <= bytes.len());
        }
    }
}
