//! Where a command writes: a plain stream, or the pieces of shell v2.

use fanlight_adb::service::shell_v2::Writer;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// A command's standard output and error.
pub(crate) enum Output<W> {
    /// One stream for both, no exit code: the old shell, and `exec`.
    Raw(W),
    /// Two streams and an exit code.
    V2(Writer<W>),
}

impl<W: AsyncWrite + Unpin + Send> Output<W> {
    pub(crate) async fn stdout(&mut self, data: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Raw(write) => write.write_all(data).await,
            Self::V2(writer) => writer.stdout(data).await,
        }
    }

    pub(crate) async fn stderr(&mut self, data: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Raw(write) => write.write_all(data).await,
            Self::V2(writer) => writer.stderr(data).await,
        }
    }

    /// Ends the command.
    pub(crate) async fn exit(self, code: u8) -> std::io::Result<()> {
        match self {
            Self::Raw(mut write) => write.shutdown().await,
            Self::V2(writer) => writer.exit(code).await,
        }
    }
}
