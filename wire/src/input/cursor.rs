//! Reading and writing of the fields that input messages share. Not a general reader. Invariant:
//! every read checks the length first and names the field when it fails.

use super::{CLIPBOARD_MAX, HEADER_LEN, InputError};

pub(super) struct Cursor<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], InputError> {
        let need = self.at + len;
        let have = self.message.len();
        let bytes = self.message.get(self.at..need);
        self.at = need;
        bytes.ok_or(InputError::Truncated { field, need, have })
    }

    /// Kind, sequence number and lease epoch.
    pub(super) fn header(&mut self) -> Result<(u8, u32, u32), InputError> {
        if self.message.len() < HEADER_LEN {
            let (need, have) = (HEADER_LEN, self.message.len());
            return Err(InputError::Truncated { field: "header", need, have });
        }
        let kind = self.u8("kind")?;
        self.zero("flags", 1)?;
        self.zero("reserved bytes of header", 2)?;
        Ok((kind, self.u32("sequence number")?, self.u32("lease epoch")?))
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, InputError> {
        Ok(self.take(field, 1)?[0])
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, InputError> {
        let b = self.take(field, 2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    pub(super) fn i16(&mut self, field: &'static str) -> Result<i16, InputError> {
        Ok(self.u16(field)?.cast_signed())
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, InputError> {
        let b = self.take(field, 4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(super) fn zero(&mut self, field: &'static str, len: usize) -> Result<(), InputError> {
        match self.take(field, len)?.iter().find(|b| **b != 0) {
            Some(b) => Err(bad(field, *b)),
            None => Ok(()),
        }
    }

    pub(super) fn text(
        &mut self,
        field: &'static str,
        len: usize,
        max: usize,
    ) -> Result<String, InputError> {
        check_len(field, len, max)?;
        match std::str::from_utf8(self.take(field, len)?) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(InputError::NotUtf8 { field, valid_up_to: e.valid_up_to() }),
        }
    }

    pub(super) fn clipboard(&mut self) -> Result<String, InputError> {
        let len = usize::try_from(self.u32("clipboard length")?).unwrap_or(usize::MAX);
        self.text("clipboard", len, CLIPBOARD_MAX)
    }

    pub(super) fn end(&self) -> Result<(), InputError> {
        match self.message.len() - self.at {
            0 => Ok(()),
            count => Err(InputError::Trailing { count }),
        }
    }
}

pub(super) fn bad(field: &'static str, value: impl Into<u32>) -> InputError {
    InputError::BadValue { field, value: value.into() }
}

pub(super) fn check_len(field: &'static str, len: usize, max: usize) -> Result<(), InputError> {
    if len > max { Err(InputError::TooLong { field, len, max }) } else { Ok(()) }
}

pub(super) fn check_position(x: u16, y: u16, w: u16, h: u16) -> Result<(), InputError> {
    if x < w && y < h { Ok(()) } else { Err(InputError::Outside { x, y, w, h }) }
}

pub(super) fn write_header(kind: u8, seq: u32, lease_epoch: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(&lease_epoch.to_be_bytes());
}

pub(super) fn write_clipboard(text: &str, out: &mut Vec<u8>) -> Result<(), InputError> {
    check_len("clipboard", text.len(), CLIPBOARD_MAX)?;
    // Just checked: far below 2^32.
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}
