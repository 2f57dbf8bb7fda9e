//! The device's sync server over a file store, and a bounded store in memory.
//!
//! Not here: opening the stream; whoever serves `sync:` runs [`serve`] in its own task.
//! Invariant: a failed push is read to its end before the next request, so that the host's bytes
//! are never taken for requests.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::sync::{DATA_MAX, DirEntry, ENOENT, FileStat, Request, RequestDecoder, encode};

/// Where pushed files go and pulled files come from. Calls must not block.
pub trait FileStore: Send + Sync {
    /// What is at `path`.
    fn stat(&self, path: &str) -> Option<FileStat>;
    /// The entries of a directory.
    fn list(&self, path: &str) -> Vec<DirEntry>;
    /// The whole of a file.
    fn read(&self, path: &str) -> Result<Bytes, String>;
    /// Begins a file; nothing is visible before [`FileSink::finish`].
    fn create(&self, path: &str, mode: u32) -> Result<Box<dyn FileSink>, String>;
}

/// A file being written. Dropping it unfinished discards it.
pub trait FileSink: Send {
    /// Appends.
    fn write(&mut self, data: &[u8]) -> Result<(), String>;
    /// Completes the file.
    fn finish(self: Box<Self>, mtime: u32) -> Result<(), String>;
}

/// A push in progress.
enum Push {
    Into(Box<dyn FileSink>),
    /// It failed for this reason; the rest of it is read and dropped.
    Failed(String),
}

/// Serves one sync session until the host ends it.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    store: &dyn FileStore,
) -> std::io::Result<()> {
    let mut decoder = RequestDecoder::new();
    let mut push = None;
    loop {
        let request = match decoder.next_request() {
            Ok(Some(request)) => request,
            Ok(None) => {
                decoder.buffer().reserve(DATA_MAX / 4);
                if stream.read_buf(decoder.buffer()).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(error) => {
                stream.write_all(&fail(&error.to_string())).await?;
                return stream.shutdown().await;
            }
        };
        match answer(request, &mut push, store, &mut stream).await? {
            Next::Go => {}
            Next::Stop => return stream.shutdown().await,
        }
    }
}

enum Next {
    Go,
    Stop,
}

async fn answer<S: AsyncWrite + Unpin>(
    request: Request,
    push: &mut Option<Push>,
    store: &dyn FileStore,
    stream: &mut S,
) -> std::io::Result<Next> {
    let mut out = Vec::new();
    match request {
        Request::Stat(path) => {
            out.extend_from_slice(b"STAT");
            out.extend_from_slice(&FileStat::encode_v1(store.stat(&path)));
        }
        Request::Stat2(path) => stat_v2(b"STA2", store.stat(&path), &mut out),
        Request::Lstat2(path) => stat_v2(b"LST2", store.stat(&path), &mut out),
        Request::List(path) => list_v1(&store.list(&path), &mut out),
        Request::List2(path) => list_v2(&store.list(&path), &mut out),
        Request::Recv(path) => match store.read(&path) {
            Ok(file) => {
                for chunk in file.chunks(DATA_MAX) {
                    out.clear();
                    encode(b"DATA", len_of(chunk), chunk, &mut out);
                    stream.write_all(&out).await?;
                }
                out.clear();
                encode(b"DONE", 0, &[], &mut out);
            }
            Err(message) => out = fail(&message),
        },
        Request::Send { path, mode } => {
            *push = Some(match store.create(&path, mode) {
                Ok(sink) => Push::Into(sink),
                Err(message) => Push::Failed(message),
            });
        }
        Request::Data(data) => match push {
            Some(Push::Into(sink)) => {
                if let Err(message) = sink.write(&data) {
                    *push = Some(Push::Failed(message));
                }
            }
            Some(Push::Failed(_)) => {}
            None => out = fail("DATA without SEND"),
        },
        Request::Done { mtime } => {
            let done = match push.take() {
                Some(Push::Into(sink)) => sink.finish(mtime),
                Some(Push::Failed(message)) => Err(message),
                None => Err("DONE without SEND".into()),
            };
            match done {
                Ok(()) => encode(b"OKAY", 0, &[], &mut out),
                Err(message) => out = fail(&message),
            }
        }
        Request::Quit => return Ok(Next::Stop),
    }
    if !out.is_empty() {
        stream.write_all(&out).await?;
    }
    Ok(Next::Go)
}

fn stat_v2(id: &[u8; 4], stat: Option<FileStat>, out: &mut Vec<u8>) {
    out.extend_from_slice(id);
    out.extend_from_slice(&FileStat::encode_v2(stat.ok_or(ENOENT)));
}

fn list_v1(entries: &[DirEntry], out: &mut Vec<u8>) {
    for entry in entries {
        out.extend_from_slice(b"DENT");
        out.extend_from_slice(&FileStat::encode_v1(Some(entry.stat)));
        out.extend_from_slice(&len_of(entry.name.as_bytes()).to_le_bytes());
        out.extend_from_slice(entry.name.as_bytes());
    }
    out.extend_from_slice(b"DONE");
    out.extend_from_slice(&[0; FileStat::V1_LEN + 4]);
}

fn list_v2(entries: &[DirEntry], out: &mut Vec<u8>) {
    for entry in entries {
        out.extend_from_slice(b"DNT2");
        out.extend_from_slice(&FileStat::encode_v2(Ok(entry.stat)));
        out.extend_from_slice(&len_of(entry.name.as_bytes()).to_le_bytes());
        out.extend_from_slice(entry.name.as_bytes());
    }
    out.extend_from_slice(b"DONE");
    out.extend_from_slice(&[0; FileStat::V2_LEN + 4]);
}

fn fail(message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(b"FAIL", len_of(message.as_bytes()), message.as_bytes(), &mut out);
    out
}

fn len_of(bytes: &[u8]) -> u32 {
    // Names, messages and chunks are all far below 4 GiB.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// Files in memory, for simulated devices. Every directory exists.
#[derive(Debug, Clone)]
pub struct MemoryStore(Arc<Mutex<Files>>);

#[derive(Debug)]
struct Files {
    files: BTreeMap<String, (FileStat, Bytes)>,
    /// Bytes of all files together; a push that would exceed it fails like a full disk.
    bytes_max: usize,
}

/// Files a store holds; a push of one more fails like a full disk.
const FILES_MAX: usize = 4096;

impl MemoryStore {
    /// A store that holds at most this much.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Mutex::new(Files { files: BTreeMap::new(), bytes_max })))
    }

    /// A file's bytes.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Bytes> {
        self.lock().files.get(path).map(|(_, data)| data.clone())
    }

    /// Puts a file there, as a push would.
    pub fn put(&self, path: &str, mode: u32, mtime: u32, data: Bytes) -> Result<(), String> {
        let mut files = self.lock();
        let used: usize = files.files.values().map(|(_, data)| data.len()).sum();
        let freed = files.files.get(path).map_or(0, |(_, old)| old.len());
        let new = !files.files.contains_key(path);
        if used - freed + data.len() > files.bytes_max || (new && files.files.len() >= FILES_MAX) {
            return Err("No space left on device".into());
        }
        let mode = mode & 0o7777 | 0o100_000;
        let stat = FileStat { mode, size: data.len() as u64, mtime: mtime.into() };
        files.files.insert(path.to_owned(), (stat, data));
        Ok(())
    }

    /// Removes a file; false when there was none.
    pub fn remove(&self, path: &str) -> bool {
        self.lock().files.remove(path).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileStore for MemoryStore {
    fn stat(&self, path: &str) -> Option<FileStat> {
        let files = self.lock();
        if let Some((stat, _)) = files.files.get(path) {
            return Some(*stat);
        }
        // Directories that a phone has, and those that hold a file.
        let folder = format!("{}/", path.trim_end_matches('/'));
        let known = ["/", "/sdcard/", "/data/", "/data/local/", "/data/local/tmp/"];
        let exists = known.contains(&folder.as_str())
            || files.files.keys().any(|file| file.starts_with(&folder));
        exists.then_some(FileStat { mode: 0o040_771, size: 4096, mtime: 0 })
    }

    fn list(&self, path: &str) -> Vec<DirEntry> {
        let folder = format!("{}/", path.trim_end_matches('/'));
        let files = self.lock();
        let inside = files.files.iter().filter_map(|(file, (stat, _))| {
            let name = file.strip_prefix(&folder)?;
            (!name.contains('/')).then(|| DirEntry { name: name.to_owned(), stat: *stat })
        });
        inside.collect()
    }

    fn read(&self, path: &str) -> Result<Bytes, String> {
        self.get(path).ok_or_else(|| "No such file or directory".into())
    }

    fn create(&self, path: &str, mode: u32) -> Result<Box<dyn FileSink>, String> {
        if !path.starts_with('/') {
            return Err("path is not absolute".into());
        }
        let bytes_max = self.lock().bytes_max;
        let (store, path) = (self.clone(), path.to_owned());
        Ok(Box::new(MemorySink { store, path, mode, bytes_max, data: Vec::new() }))
    }
}

struct MemorySink {
    store: MemoryStore,
    path: String,
    mode: u32,
    bytes_max: usize,
    data: Vec<u8>,
}

impl FileSink for MemorySink {
    fn write(&mut self, data: &[u8]) -> Result<(), String> {
        if self.data.len() + data.len() > self.bytes_max {
            return Err("No space left on device".into());
        }
        self.data.extend_from_slice(data);
        Ok(())
    }

    fn finish(self: Box<Self>, mtime: u32) -> Result<(), String> {
        self.store.put(&self.path, self.mode, mtime, self.data.into())
    }
}
