//! The framing inside `shell,v2` streams, for both ends.
//!
//! ```text
//!  id u8 (0 stdin, 1 stdout, 2 stderr, 3 exit code, 4 close stdin, 5 window size) | length u32 LE | data
//! ```
//! Invariant: a piece is handed on as it arrives, so an announced length reserves nothing.

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Bytes in front of each piece.
pub const HEADER_LEN: usize = 5;
/// Largest piece written; adb's own buffers are this size at least.
const PIECE_MAX: usize = 32 * 1024;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Host to device.
    Stdin,
    /// Device to host.
    Stdout,
    /// Device to host.
    Stderr,
    /// Device to host, one byte, last.
    Exit,
    /// Host to device: no more stdin.
    CloseStdin,
    /// Host to device: terminal size.
    WindowSize,
    /// Anything newer; skipped.
    Other(u8),
}

impl Kind {
    fn from_id(id: u8) -> Self {
        match id {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Exit,
            4 => Self::CloseStdin,
            5 => Self::WindowSize,
            other => Self::Other(other),
        }
    }

    fn id(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Exit => 3,
            Self::CloseStdin => 4,
            Self::WindowSize => 5,
            Self::Other(id) => id,
        }
    }
}

/// Writes a header and its data as one buffer.
pub fn encode(kind: Kind, data: &[u8], out: &mut Vec<u8>) {
    out.push(kind.id());
    // Callers cut pieces at PIECE_MAX; anything larger than u32 cannot be in memory here.
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(data);
}

/// Cuts a byte stream into pieces; a piece may come in several parts.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    have: usize,
    left: u32,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next part off the front of `input`. `None`: all of it is used up. An empty piece
    /// comes as one part without bytes.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<(Kind, &'a [u8])> {
        if self.have < HEADER_LEN {
            let n = input.len().min(HEADER_LEN - self.have);
            self.header[self.have..self.have + n].copy_from_slice(&input[..n]);
            self.have += n;
            *input = &input[n..];
            if self.have < HEADER_LEN {
                return None;
            }
            let [_, length @ ..] = self.header;
            self.left = u32::from_le_bytes(length);
        } else if input.is_empty() {
            return None;
        }
        let kind = Kind::from_id(self.header[0]);
        let n = input.len().min(self.left as usize);
        let (part, rest) = input.split_at(n);
        *input = rest;
        // `n` is at most `left`, which is a u32.
        self.left -= u32::try_from(n).unwrap_or(self.left);
        if self.left == 0 {
            self.have = 0;
        } else if part.is_empty() {
            return None;
        }
        Some((kind, part))
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.have == 0
    }
}

/// The device's end: output pieces into a stream.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes into `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, buffer: Vec::new() }
    }

    /// Standard output.
    pub async fn stdout(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.pieces(Kind::Stdout, data).await
    }

    /// Standard error.
    pub async fn stderr(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.pieces(Kind::Stderr, data).await
    }

    /// Standard input, from the host's end.
    pub async fn stdin(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.pieces(Kind::Stdin, data).await
    }

    /// No more standard input, from the host's end.
    pub async fn close_stdin(&mut self) -> std::io::Result<()> {
        self.piece(Kind::CloseStdin, &[]).await
    }

    /// The exit code; the stream is closed after it.
    pub async fn exit(mut self, code: u8) -> std::io::Result<()> {
        self.piece(Kind::Exit, &[code]).await?;
        self.inner.shutdown().await
    }

    /// The stream underneath.
    pub fn into_inner(self) -> W {
        self.inner
    }

    async fn pieces(&mut self, kind: Kind, data: &[u8]) -> std::io::Result<()> {
        for piece in data.chunks(PIECE_MAX) {
            self.piece(kind, piece).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, kind: Kind, data: &[u8]) -> std::io::Result<()> {
        self.buffer.clear();
        encode(kind, data, &mut self.buffer);
        self.inner.write_all(&self.buffer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], step: usize) -> Vec<(Kind, Vec<u8>)> {
        let mut decoder = Decoder::new();
        let mut out: Vec<(Kind, Vec<u8>)> = Vec::new();
        let mut begun = false;
        for chunk in bytes.chunks(step) {
            let mut input = chunk;
            while let Some((kind, part)) = decoder.next(&mut input) {
                match out.last_mut() {
                    Some((_, data)) if begun => data.extend_from_slice(part),
                    _ => out.push((kind, part.to_vec())),
                }
                begun = !decoder.at_boundary();
            }
        }
        assert!(decoder.at_boundary());
        out
    }

    #[test]
    fn pieces_survive_any_chunking() {
        let mut bytes = Vec::new();
        encode(Kind::Stdout, b"hello", &mut bytes);
        encode(Kind::Stdout, b"", &mut bytes);
        encode(Kind::Stderr, &[9; 300], &mut bytes);
        encode(Kind::Exit, &[3], &mut bytes);
        for step in [1, 2, 5, 6, 7, 1000] {
            assert_eq!(
                decode(&bytes, step),
                [
                    (Kind::Stdout, b"hello".to_vec()),
                    (Kind::Stdout, Vec::new()),
                    (Kind::Stderr, vec![9; 300]),
                    (Kind::Exit, vec![3]),
                ],
                "step {step}"
            );
        }
    }

    #[test]
    fn an_enormous_length_reserves_nothing() {
        let mut decoder = Decoder::new();
        let mut input = &[1, 0xff, 0xff, 0xff, 0xff, b'x'][..];
        assert_eq!(decoder.next(&mut input), Some((Kind::Stdout, &b"x"[..])));
        assert_eq!(decoder.next(&mut input), None);
        assert!(!decoder.at_boundary());
    }

    #[tokio::test]
    async fn the_writer_makes_what_the_decoder_reads() {
        let mut writer = Writer::new(Vec::new());
        writer.stdout(&[1; PIECE_MAX + 1]).await.unwrap();
        writer.stderr(b"bad").await.unwrap();
        let bytes = writer.into_inner();
        let pieces = decode(&bytes, 4096);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[2], (Kind::Stderr, b"bad".to_vec()));
    }
}
