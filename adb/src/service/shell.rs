//! Running a command from the host: `shell,v2` where the device has it, `shell` otherwise.
//!
//! Not here: opening the stream (`access`), the framing (`shell_v2`). Invariant: collected output
//! is bounded; a command that says more is cut off with an error, not swallowed.

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::shell_v2::{Decoder, Kind};
use crate::{
    error::AdbError,
    features::{FeatureSet, SHELL_V2},
    stream::AdbStream,
};

/// Bound on what a collected command may print on each of its outputs. A raw screenshot of the
/// largest phone (1440 × 3200 × 4 bytes) fits.
pub const OUTPUT_MAX: u64 = 32 * 1024 * 1024;

/// What a finished command printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShellOutput {
    /// Standard output; with the old shell, everything.
    pub stdout: Vec<u8>,
    /// Standard error; empty with the old shell.
    pub stderr: Vec<u8>,
    /// Exit code; unknown with the old shell.
    pub exit: Option<u8>,
}

impl ShellOutput {
    /// Standard output as text, without surrounding white space.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// The service name of a command for a device with these features, and whether it is the new one.
#[must_use]
pub fn service_name(features: &FeatureSet, command: &str) -> (String, bool) {
    if features.has(SHELL_V2) {
        (format!("shell,v2,raw:{command}"), true)
    } else {
        (format!("shell:{command}"), false)
    }
}

/// Something a running command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellEvent {
    /// It printed on standard output.
    Stdout(Vec<u8>),
    /// It printed on standard error.
    Stderr(Vec<u8>),
    /// It ended with this code.
    Exit(u8),
}

/// A running command whose output is read as it comes. Dropping it ends the command.
#[derive(Debug)]
pub struct ShellStream<S = AdbStream> {
    stream: S,
    decoder: Option<Decoder>,
    buffer: Vec<u8>,
    at: usize,
}

/// Bytes read at once.
const READ_CHUNK: usize = 16 * 1024;

impl<S: AsyncRead + Unpin> ShellStream<S> {
    /// Reads `stream` as the output of the new shell (`v2`) or the old one.
    pub fn new(stream: S, v2: bool) -> Self {
        Self { stream, decoder: v2.then(Decoder::new), buffer: Vec::new(), at: 0 }
    }

    /// The next event; `None` when the stream ended. With the old shell there is no exit event.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<ShellEvent>, AdbError> {
        loop {
            let mut input = &self.buffer[self.at..];
            if let Some(decoder) = &mut self.decoder {
                while let Some((kind, part)) = decoder.next(&mut input) {
                    let event = match (kind, part) {
                        (Kind::Stdout, part) if !part.is_empty() => {
                            ShellEvent::Stdout(part.to_vec())
                        }
                        (Kind::Stderr, part) if !part.is_empty() => {
                            ShellEvent::Stderr(part.to_vec())
                        }
                        (Kind::Exit, [code, ..]) => ShellEvent::Exit(*code),
                        _ => continue,
                    };
                    self.at = self.buffer.len() - input.len();
                    return Ok(Some(event));
                }
            } else if !input.is_empty() {
                let event = ShellEvent::Stdout(input.to_vec());
                self.at = self.buffer.len();
                return Ok(Some(event));
            }
            self.buffer.clear();
            self.at = 0;
            self.buffer.reserve(READ_CHUNK);
            let read = self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .map_err(|source| AdbError::io("reading a command's output", source))?;
            if read == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads to the end and returns everything.
    pub async fn collect(mut self) -> Result<ShellOutput, AdbError> {
        let mut output = ShellOutput::default();
        while let Some(event) = self.next().await? {
            match event {
                ShellEvent::Stdout(part) => append(&mut output.stdout, &part)?,
                ShellEvent::Stderr(part) => append(&mut output.stderr, &part)?,
                ShellEvent::Exit(code) => {
                    output.exit = Some(code);
                    break;
                }
            }
        }
        if self.decoder.is_some() && output.exit.is_none() {
            return Err(AdbError::BadReply {
                service: "shell",
                what: "the stream ended before the command did".into(),
            });
        }
        Ok(output)
    }
}

fn append(to: &mut Vec<u8>, part: &[u8]) -> Result<(), AdbError> {
    if (to.len() + part.len()) as u64 > OUTPUT_MAX {
        return Err(AdbError::TooLarge { what: "a command's output", max: OUTPUT_MAX });
    }
    to.extend_from_slice(part);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::shell_v2::encode, *};

    #[tokio::test]
    async fn outputs_and_exit_code_are_told_apart() {
        let mut bytes = Vec::new();
        encode(Kind::Stdout, b"a", &mut bytes);
        encode(Kind::Stderr, b"b", &mut bytes);
        encode(Kind::Stdout, b"c", &mut bytes);
        encode(Kind::Exit, &[7], &mut bytes);
        let output = ShellStream::new(&bytes[..], true).collect().await.unwrap();
        let expected = ShellOutput { stdout: b"ac".to_vec(), stderr: b"b".to_vec(), exit: Some(7) };
        assert_eq!(output, expected);
    }

    #[tokio::test]
    async fn a_new_shell_that_ends_without_a_code_is_an_error() {
        let mut bytes = Vec::new();
        encode(Kind::Stdout, b"half", &mut bytes);
        let error = ShellStream::new(&bytes[..], true).collect().await.unwrap_err();
        assert!(matches!(error, AdbError::BadReply { .. }));
    }

    #[tokio::test]
    async fn the_old_shell_has_one_output_and_no_code() {
        let output = ShellStream::new(&b"plain"[..], false).collect().await.unwrap();
        assert_eq!(output.text(), "plain");
        assert_eq!(output.exit, None);
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let endless = tokio::io::repeat(b'x');
        let error = ShellStream::new(endless, false).collect().await.unwrap_err();
        assert!(matches!(error, AdbError::TooLarge { .. }));
    }
}
