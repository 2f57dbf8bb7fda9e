//! The host's end of the sync protocol: push, pull, stat, list.
//!
//! Not here: the bytes (`sync`), opening the stream (`access`). Invariant: whatever the device
//! answers, memory is bounded by constants here or by what the caller allows.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::sync::{DATA_MAX, DirEntry, ENOENT, FileStat, PATH_MAX, encode, encode_request};
use crate::{
    error::{AdbError, clip},
    features::{FeatureSet, STAT_V2},
};

/// Longest message taken from a FAIL.
const MESSAGE_MAX: usize = 4096;
/// Most directory entries taken from one LIST.
const ENTRIES_MAX: usize = 65_536;
/// What a push was doing when its stream broke.
const PUSHING: &str = "pushing a file";

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
                    // The stream broke under us: what the device said before is the better reason.
                    Err(error @ (AdbError::Disconnected(_) | AdbError::Io { doing: PUSHING, .. })) => {
                        answering.await.and(Err(error))
                    }
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
    let failed = |error| AdbError::io(PUSHING, error);
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
