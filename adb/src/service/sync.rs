//! The sync protocol: its bytes for both ends, and the host's client (push, pull, stat, list).
//!
//! ```text
//!  request: id 4 ASCII | length u32 LE | body        SEND path,mode · DATA ≤ 64 KiB · DONE mtime · QUIT
//!  answer : OKAY 0 · FAIL length message · STAT mode size mtime · STA2/LST2 68 bytes · DATA … DONE
//! ```
//! Not here: the device's server (`sync_device`). Invariant: a length above its bound ends the
//! session; nothing is reserved for it.

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    error::{AdbError, clip},
    features::{FeatureSet, STAT_V2},
};

/// Largest DATA body, fixed by adbd.
pub const DATA_MAX: usize = 64 * 1024;
/// Longest path, fixed by adbd.
pub const PATH_MAX: usize = 1024;
/// Longest message taken from a FAIL.
const MESSAGE_MAX: usize = 4096;
/// Most directory entries taken from one LIST.
const ENTRIES_MAX: usize = 65_536;

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

fn encode_request(id: &[u8; 4], body: &[u8], out: &mut Vec<u8>) {
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

/// The host's end of one sync session.
#[derive(Debug)]
pub struct SyncClient<S> {
    stream: S,
    stat_v2: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> SyncClient<S> {
    /// A session on an opened `sync:` stream of a device with these features.
    pub fn new(stream: S, features: &FeatureSet) -> Self {
        Self { stream, stat_v2: features.has(STAT_V2) }
    }

    /// What is at `path`; `None` when nothing is.
    pub async fn stat(&mut self, path: &str) -> Result<Option<FileStat>, AdbError> {
        let id = if self.stat_v2 { b"STA2" } else { b"STAT" };
        self.request(id, path).await?;
        let mut answer = [0; 4];
        self.read(&mut answer).await?;
        if &answer != id {
            return Err(self.unexpected(answer).await);
        }
        if self.stat_v2 {
            let mut body = [0; FileStat::V2_LEN];
            self.read(&mut body).await?;
            match FileStat::parse_v2(&body) {
                Ok(stat) => Ok(Some(stat)),
                Err(ENOENT) => Ok(None),
                Err(errno) => Err(failed(format!("stat of {path}: error number {errno}"))),
            }
        } else {
            let mut body = [0; FileStat::V1_LEN];
            self.read(&mut body).await?;
            Ok(FileStat::parse_v1(&body))
        }
    }

    /// The entries of a directory; a missing one has none.
    pub async fn list(&mut self, path: &str) -> Result<Vec<DirEntry>, AdbError> {
        self.request(b"LIST", path).await?;
        let mut entries = Vec::new();
        loop {
            let mut id = [0; 4];
            self.read(&mut id).await?;
            if &id != b"DENT" && &id != b"DONE" {
                return Err(self.unexpected(id).await);
            }
            let mut body = [0; FileStat::V1_LEN];
            self.read(&mut body).await?;
            let name_len = self.read_word().await? as usize;
            if &id == b"DONE" {
                return Ok(entries);
            }
            if name_len > PATH_MAX {
                return Err(bad_reply("a file name is too long"));
            }
            if entries.len() >= ENTRIES_MAX {
                return Err(AdbError::TooLarge { what: "a directory", max: ENTRIES_MAX as u64 });
            }
            let mut name = vec![0; name_len];
            self.read(&mut name).await?;
            let name = String::from_utf8_lossy(&name).into_owned();
            entries.push(DirEntry { name, stat: FileStat::parse_v1(&body).unwrap_or_default() });
        }
    }

    /// Writes a file on the device from `source`; returns how many bytes it was.
    pub async fn push(
        &mut self,
        path: &str,
        mode: u32,
        mtime: u32,
        source: impl AsyncRead + Unpin,
    ) -> Result<u64, AdbError> {
        let target = format!("{path},{}", mode & 0o7777 | 0o100_000);
        check_path(&target)?;
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        // Both at once: a device that fails in the middle says so while we still send.
        let sending = send_file(&mut writer, &target, mtime, source);
        let answering = read_verdict(&mut reader);
        tokio::pin!(sending, answering);
        tokio::select! {
            biased;
            verdict = &mut answering => {
                verdict?;
                Err(bad_reply("the push was acknowledged before it was complete"))
            }
            sent = &mut sending => {
                match sent {
                    Ok(sent) => answering.await.map(|()| sent),
                    // What the device said is the better reason.
                    Err(error @ AdbError::Disconnected(_)) => answering.await.and(Err(error)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Reads a file of the device into `sink`; returns how many bytes it was.
    pub async fn pull(
        &mut self,
        path: &str,
        mut sink: impl AsyncWrite + Unpin,
        bytes_max: u64,
    ) -> Result<u64, AdbError> {
        self.request(b"RECV", path).await?;
        let mut total = 0;
        let mut chunk = vec![0; DATA_MAX];
        loop {
            let mut id = [0; 4];
            self.read(&mut id).await?;
            match &id {
                b"DONE" => {
                    self.read_word().await?;
                    return Ok(total);
                }
                b"DATA" => {
                    let len = self.read_word().await? as usize;
                    if len > DATA_MAX {
                        return Err(bad_reply("a piece of the file is too long"));
                    }
                    total += len as u64;
                    if total > bytes_max {
                        return Err(AdbError::TooLarge { what: "the pulled file", max: bytes_max });
                    }
                    self.read(&mut chunk[..len]).await?;
                    sink.write_all(&chunk[..len]).await.map_err(|source| AdbError::Io {
                        doing: "storing a pulled file",
                        source,
                    })?;
                }
                _ => return Err(self.unexpected(id).await),
            }
        }
    }

    /// Ends the session.
    pub async fn quit(mut self) {
        let mut bytes = Vec::new();
        encode(b"QUIT", 0, &[], &mut bytes);
        // The session is over either way.
        let _ = self.stream.write_all(&bytes).await;
        let _ = self.stream.shutdown().await;
    }

    async fn request(&mut self, id: &[u8; 4], path: &str) -> Result<(), AdbError> {
        check_path(path)?;
        let mut bytes = Vec::new();
        encode_request(id, path.as_bytes(), &mut bytes);
        self.stream
            .write_all(&bytes)
            .await
            .map_err(|source| AdbError::io("writing a sync request", source))
    }

    async fn read(&mut self, into: &mut [u8]) -> Result<(), AdbError> {
        read(&mut self.stream, into).await
    }

    async fn read_word(&mut self) -> Result<u32, AdbError> {
        read_word(&mut self.stream).await
    }

    async fn unexpected(&mut self, id: [u8; 4]) -> AdbError {
        verdict(id, &mut self.stream).await.err().unwrap_or_else(|| bad_reply("OKAY out of place"))
    }
}

fn check_path(path: &str) -> Result<(), AdbError> {
    if path.len() > PATH_MAX {
        return Err(AdbError::TooLarge { what: "a path on the device", max: PATH_MAX as u64 });
    }
    Ok(())
}

fn failed(message: String) -> AdbError {
    AdbError::Failed { service: "sync", message }
}

fn bad_reply(what: &str) -> AdbError {
    AdbError::BadReply { service: "sync", what: what.into() }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> Result<(), AdbError> {
    let read = stream.read_exact(into).await;
    read.map(|_| ()).map_err(|source| AdbError::io("reading a sync answer", source))
}

async fn read_word(stream: &mut (impl AsyncRead + Unpin)) -> Result<u32, AdbError> {
    let mut word = [0; 4];
    read(stream, &mut word).await?;
    Ok(u32::from_le_bytes(word))
}

async fn send_file(
    writer: &mut (impl AsyncWrite + Unpin),
    target: &str,
    mtime: u32,
    mut source: impl AsyncRead + Unpin,
) -> Result<u64, AdbError> {
    let failed = |error| AdbError::io("pushing a file", error);
    let mut bytes = Vec::with_capacity(DATA_MAX + 8);
    encode_request(b"SEND", target.as_bytes(), &mut bytes);
    writer.write_all(&bytes).await.map_err(failed)?;
    let mut chunk = vec![0; DATA_MAX];
    let mut total = 0;
    loop {
        let n = source
            .read(&mut chunk)
            .await
            .map_err(|source| AdbError::Io { doing: "reading the file to push", source })?;
        bytes.clear();
        if n == 0 {
            encode(b"DONE", mtime, &[], &mut bytes);
            writer.write_all(&bytes).await.map_err(failed)?;
            return Ok(total);
        }
        total += n as u64;
        encode_request(b"DATA", &chunk[..n], &mut bytes);
        writer.write_all(&bytes).await.map_err(failed)?;
    }
}

async fn read_verdict(reader: &mut (impl AsyncRead + Unpin)) -> Result<(), AdbError> {
    let mut id = [0; 4];
    read(reader, &mut id).await?;
    verdict(id, reader).await
}

async fn verdict(id: [u8; 4], reader: &mut (impl AsyncRead + Unpin)) -> Result<(), AdbError> {
    match &id {
        b"OKAY" => read_word(reader).await.map(|_| ()),
        b"FAIL" => {
            let len = read_word(reader).await? as usize;
            if len > MESSAGE_MAX {
                return Err(bad_reply("an error message is too long"));
            }
            let mut message = vec![0; len];
            read(reader, &mut message).await?;
            Err(failed(clip(&message)))
        }
        _ => Err(bad_reply(&format!("unexpected {:?}", String::from_utf8_lossy(&id)))),
    }
}
