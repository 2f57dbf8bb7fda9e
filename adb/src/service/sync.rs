//! The bytes of the sync protocol, for both ends.
//!
//! ```text
//!  request: id 4 ASCII | length u32 LE | body        SEND path,mode · DATA ≤ 64 KiB · DONE mtime · QUIT
//!  answer : OKAY 0 · FAIL length message · STAT mode size mtime · STA2/LST2 68 bytes · DATA … DONE
//! ```
//! Not here: the host's client (`sync_host`) and the device's server (`sync_device`). Invariant: a
//! length above its bound ends the session; nothing is reserved for it.

use bytes::{Buf as _, Bytes, BytesMut};

/// Largest DATA body, fixed by adbd.
pub const DATA_MAX: usize = 64 * 1024;
/// Longest path, fixed by adbd.
pub const PATH_MAX: usize = 1024;

/// What a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Type and permission bits; 0 when the file does not exist (old form).
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
}

impl FileStat {
    /// Bytes of STAT's body.
    pub const V1_LEN: usize = 12;
    /// Bytes of STA2's and LST2's body.
    pub const V2_LEN: usize = 68;

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// The old body; `None` means "does not exist".
    #[must_use]
    pub fn encode_v1(stat: Option<Self>) -> [u8; Self::V1_LEN] {
        let stat = stat.unwrap_or_default();
        let mut body = [0; Self::V1_LEN];
        body[..4].copy_from_slice(&stat.mode.to_le_bytes());
        body[4..8].copy_from_slice(&saturate_u32(stat.size).to_le_bytes());
        body[8..].copy_from_slice(&saturate_u32(stat.mtime.unsigned_abs()).to_le_bytes());
        body
    }

    /// Reads the old body.
    #[must_use]
    pub fn parse_v1(body: &[u8; Self::V1_LEN]) -> Option<Self> {
        let body: &mut &[u8] = &mut &body[..];
        let stat = Self {
            mode: body.get_u32_le(),
            size: body.get_u32_le().into(),
            mtime: body.get_u32_le().into(),
        };
        (stat.mode != 0).then_some(stat)
    }

    /// The new body: error, dev, ino, mode, nlink, uid, gid, size, atime, mtime, ctime.
    #[must_use]
    pub fn encode_v2(stat: Result<Self, u32>) -> [u8; Self::V2_LEN] {
        let (error, stat) = match stat {
            Ok(stat) => (0, stat),
            Err(errno) => (errno, Self::default()),
        };
        let mut body = Vec::with_capacity(Self::V2_LEN);
        body.extend_from_slice(&error.to_le_bytes());
        body.extend_from_slice(&1u64.to_le_bytes());
        body.extend_from_slice(&1u64.to_le_bytes());
        for word in [stat.mode, 1, 0, 0] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(&stat.size.to_le_bytes());
        for _ in 0..3 {
            body.extend_from_slice(&stat.mtime.to_le_bytes());
        }
        let mut out = [0; Self::V2_LEN];
        out.copy_from_slice(&body);
        out
    }

    /// Reads the new body; an error number of the device instead of a file.
    pub fn parse_v2(body: &[u8; Self::V2_LEN]) -> Result<Self, u32> {
        let body: &mut &[u8] = &mut &body[..];
        let error = body.get_u32_le();
        body.advance(16);
        let mode = body.get_u32_le();
        body.advance(12);
        let size = body.get_u64_le();
        body.advance(8);
        let mtime = body.get_i64_le();
        if error == 0 { Ok(Self { mode, size, mtime }) } else { Err(error) }
    }
}

/// Error number "no such file or directory", alike on every Linux.
pub const ENOENT: u32 = 2;

fn saturate_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A request as the device reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Old stat, following links.
    Stat(String),
    /// New stat, following links.
    Stat2(String),
    /// New stat of the link itself.
    Lstat2(String),
    /// Directory entries, old form.
    List(String),
    /// Directory entries, new form.
    List2(String),
    /// Read a file.
    Recv(String),
    /// Begin writing a file.
    Send {
        /// Where.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Bytes of the file being written.
    Data(Bytes),
    /// The file being written is complete.
    Done {
        /// Modification time, seconds since 1970.
        mtime: u32,
    },
    /// End of the session.
    Quit,
}

/// A session has to end: what follows cannot be told apart any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// No such request.
    #[error("unknown sync request {0:?}")]
    UnknownId([u8; 4]),
    /// Body above its bound.
    #[error("sync {what} of {len} bytes exceeds {max}")]
    TooLong {
        /// Which body.
        what: &'static str,
        /// Announced length.
        len: u32,
        /// The bound.
        max: usize,
    },
    /// Path is not UTF-8 or SEND has no mode.
    #[error("unreadable sync path")]
    BadPath,
}

/// Cuts a byte stream into requests. Holds at most one request and what was pushed with it.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    buffer: BytesMut,
}

impl RequestDecoder {
    /// A decoder at the start of a session.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next request, if it is complete. After an error the session is over.
    pub fn next_request(&mut self) -> Result<Option<Request>, SyncError> {
        let Some((id, len)) = header(&self.buffer) else { return Ok(None) };
        match &id {
            b"DONE" => {
                self.buffer.advance(8);
                return Ok(Some(Request::Done { mtime: len }));
            }
            b"QUIT" => {
                self.buffer.advance(8);
                return Ok(Some(Request::Quit));
            }
            _ => {}
        }
        let (what, max) = match &id {
            b"DATA" => ("data", DATA_MAX),
            b"STAT" | b"STA2" | b"LST2" | b"LIST" | b"LIS2" | b"RECV" | b"SEND" => {
                ("path", PATH_MAX)
            }
            _ => return Err(SyncError::UnknownId(id)),
        };
        if len as usize > max {
            return Err(SyncError::TooLong { what, len, max });
        }
        if self.buffer.len() < 8 + len as usize {
            return Ok(None);
        }
        self.buffer.advance(8);
        let body = self.buffer.split_to(len as usize).freeze();
        if &id == b"DATA" {
            return Ok(Some(Request::Data(body)));
        }
        let path = std::str::from_utf8(&body).map_err(|_| SyncError::BadPath)?.to_owned();
        Ok(Some(match &id {
            b"STAT" => Request::Stat(path),
            b"STA2" => Request::Stat2(path),
            b"LST2" => Request::Lstat2(path),
            b"LIST" => Request::List(path),
            b"LIS2" => Request::List2(path),
            b"RECV" => Request::Recv(path),
            _ => {
                let (path, mode) = path.rsplit_once(',').ok_or(SyncError::BadPath)?;
                let mode = mode.parse().map_err(|_| SyncError::BadPath)?;
                Request::Send { path: path.to_owned(), mode }
            }
        }))
    }
}

fn header(buffer: &[u8]) -> Option<([u8; 4], u32)> {
    let header: &[u8; 8] = buffer.first_chunk()?;
    let [a, b, c, d, length @ ..] = *header;
    Some(([a, b, c, d], u32::from_le_bytes(length)))
}

/// An id, a length or other word, and a body.
pub fn encode(id: &[u8; 4], word: u32, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(id);
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(body);
}

/// An id, the length of a body, and the body.
pub fn encode_request(id: &[u8; 4], body: &[u8], out: &mut Vec<u8>) {
    encode(id, saturate_u32(body.len() as u64), body, out);
}

/// A file in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name, without the directory.
    pub name: String,
    /// What it is.
    pub stat: FileStat,
}
