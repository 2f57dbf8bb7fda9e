//! Where pictures come from. A source runs until it fails or its command queue ends, writes to a
//! [`Sink`] and does what [`Command`]s say. Not the restart of a source (`life.rs`). Invariant: a
//! source owns everything it opened on the device and leaves nothing behind when it is dropped.
//!
//! [`Command`]: crate::shared::Command

pub mod scrcpy;
pub mod screenrecord;

use fanlight_adb::{AdbDevice, AdbError};
use tokio::sync::mpsc;

use crate::{
    config::{DeviceConfig, JarProblem, SourceKind},
    shared::{Command, Sink},
    source::scrcpy::stream::StreamError,
};

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It was asked to.
    #[error("stopped")]
    Stopped,
    /// The server jar cannot be used. A person has to mend it.
    #[error("{0}")]
    Jar(#[from] JarProblem),
    /// An ADB operation failed; a retry may help.
    #[error("{doing}")]
    Adb {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: AdbError,
    },
    /// The server on the device ended by itself.
    #[error("the scrcpy server ended: {0}")]
    ServerEnded(String),
    /// The server never listened.
    #[error("the scrcpy server did not open its sockets in time: {0}")]
    NoSockets(String),
    /// The video socket cannot be read.
    #[error("the video stream cannot be read: {0}")]
    Stream(#[from] StreamError),
    /// Reading or writing one of its sockets failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The device closed a socket.
    #[error("the device closed the {0} socket")]
    Closed(&'static str),
    /// What the device says cannot be understood.
    #[error("the device sent nonsense: {0}")]
    Nonsense(String),
    /// The device does not take what is written to it.
    #[error("the device does not take input")]
    Stuck,
}

impl SourceError {
    /// Whether only a person can mend it.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Jar(_))
    }

    pub(crate) fn adb(doing: &'static str) -> impl FnOnce(AdbError) -> Self {
        move |source| Self::Adb { doing, source }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Name of a kind, as a metric label.
pub fn label(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Scrcpy => "scrcpy",
        SourceKind::Screenrecord => "screenrecord",
    }
}

/// Runs the configured source until it ends; it always ends with a reason.
pub async fn run(
    config: &DeviceConfig,
    device: &AdbDevice,
    sink: Sink,
    commands: mpsc::Receiver<Command>,
) -> SourceError {
    let ended = match config.source {
        SourceKind::Scrcpy => scrcpy::run(config, device, sink, commands).await,
        SourceKind::Screenrecord => screenrecord::run(config, device, sink, commands).await,
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
