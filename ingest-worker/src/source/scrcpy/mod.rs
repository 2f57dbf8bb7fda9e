//! The scrcpy source: puts the server on the device, starts it, opens its two sockets, reads video,
//! writes control. Not the byte formats (`stream.rs`, `inject/scrcpy.rs`). Invariant: both sockets
//! are opened before either is read, because the server accepts all of them before it says more.

pub mod messages;
pub mod stream;
pub mod table;

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use fanlight_adb::{AdbDevice, AdbError, AdbStream, ShellEvent, ShellStream};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};

use self::{
    messages::{ServerMessage, ServerMessageReader},
    stream::{StreamEvent, StreamReader},
    table::{Layout, ServerVersion},
};
use super::SourceError;
use crate::{
    config::{DeviceConfig, Jar},
    hygiene::Arrival,
    inject::scrcpy::{encode, reset_video},
    shared::{Command, Sink},
};

/// How long the server may take from its start to listening; a cold Java process on a slow device
/// takes seconds.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two attempts to open a socket: first, and at most.
const SOCKET_RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));
/// How long pushing the jar may take.
const PUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one write of input may take before the device counts as stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read from the video socket at once.
const READ_BYTES: usize = 64 * 1024;
/// Longest line of the server's log that is kept.
const LOG_LINE_BYTES: usize = 512;

/// Runs until something fails or the commands end.
pub async fn run(
    config: &DeviceConfig,
    device: &AdbDevice,
    sink: Sink,
    commands: mpsc::Receiver<Command>,
) -> Result<Infallible, SourceError> {
    let jar = {
        let config = config.clone();
        let read = tokio::task::spawn_blocking(move || config.read_jar()).await;
        read.map_err(|e| SourceError::Nonsense(format!("reading the jar: {e}")))??
    };
    let version = jar.version;
    let remote = push(device, &jar, sink.name()).await?;
    // 31 bits: the server reads it as a signed number.
    let scid = rand::random::<u32>() & 0x7fff_ffff;
    let command = command_line(config, version, &remote, scid);
    tracing::debug!(device = sink.name(), %command, "starting scrcpy server");
    let shell = device
        .shell_stream(&command)
        .await
        .map_err(SourceError::adb("cannot start the scrcpy server"))?;
    let log = ServerLog::new(sink.name());
    let server = log.follow(shell);
    tokio::pin!(server);
    // The server says why it ends on its shell, so that reason goes first.
    let sockets = tokio::select! {
        biased;
        ended = &mut server => return Err(ended),
        opened = open_sockets(device, scid, &log) => opened?,
    };
    let (control_in, control_out) = split(sockets.control);
    tokio::select! {
        biased;
        Err(error) = write_commands(control_out, commands, version) => Err(error),
        Err(error) = read_video(sockets.video, version.layout, &sink) => {
            Err(log.why(error, &mut server).await)
        }
        Err(error) = read_control(control_in, &sink) => Err(log.why(error, &mut server).await),
        ended = &mut server => Err(ended),
    }
}

/// Puts the jar on the device unless a file of its size is there already under its own name.
async fn push(device: &AdbDevice, jar: &Jar, name: &str) -> Result<String, SourceError> {
    let remote = format!("/data/local/tmp/fanlight-scrcpy-server-{}.jar", jar.version.name);
    let failed = || SourceError::adb("cannot push the scrcpy server");
    let work = async {
        let there = device.sync_stat(&remote).await.map_err(failed())?;
        if there.is_some_and(|stat| stat.size == jar.bytes.len() as u64) {
            return Ok(());
        }
        tracing::info!(device = name, version = jar.version.name, "pushing scrcpy server");
        device.sync_push(&remote, 0o644, jar.bytes.as_slice()).await.map_err(failed())?;
        Ok(())
    };
    match timeout(PUSH_TIMEOUT, work).await {
        Ok(done) => done.map(|()| remote),
        Err(_) => Err(failed()(AdbError::Timeout("pushing a file"))),
    }
}

/// The server's command line. Nothing in it comes from a viewer; the remote path is ours.
fn command_line(config: &DeviceConfig, version: &ServerVersion, remote: &str, scid: u32) -> String {
    let mut line = format!(
        "CLASSPATH={remote} app_process / com.genymobile.scrcpy.Server {} scid={scid:08x} \
         log_level=info tunnel_forward=true audio=false control=true \
         video_bit_rate={} video_codec_options=i-frame-interval={}",
        version.name, config.bitrate_bps, config.i_frame_interval_s
    );
    if config.max_fps > 0 {
        let _ = write!(line, " max_fps={}", config.max_fps);
    }
    if config.max_size > 0 {
        let _ = write!(line, " max_size={}", config.max_size);
    }
    line
}

struct Sockets {
    video: AdbStream,
    control: AdbStream,
}

async fn open_sockets(
    device: &AdbDevice,
    scid: u32,
    log: &ServerLog,
) -> Result<Sockets, SourceError> {
    let name = format!("scrcpy_{scid:08x}");
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    let video = open(device, &name, deadline, log).await?;
    let control = open(device, &name, deadline, log).await?;
    Ok(Sockets { video, control })
}

/// Opens a socket that may not listen yet. Only a refusal is tried again.
async fn open(
    device: &AdbDevice,
    name: &str,
    deadline: Instant,
    log: &ServerLog,
) -> Result<AdbStream, SourceError> {
    let (mut pause, longest) = SOCKET_RETRY;
    loop {
        match timeout_at(deadline, device.local_abstract(name)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(AdbError::Refused { .. })) if Instant::now() + pause < deadline => {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            Ok(Err(AdbError::Refused { .. })) | Err(_) => {
                return Err(SourceError::NoSockets(log.last()));
            }
            Ok(Err(error)) => {
                return Err(SourceError::adb("cannot open a socket of the scrcpy server")(error));
            }
        }
    }
}

async fn read_video(
    mut socket: AdbStream,
    layout: Layout,
    sink: &Sink,
) -> Result<Infallible, SourceError> {
    let mut reader = StreamReader::new(layout);
    loop {
        reader.buffer_mut().reserve(READ_BYTES);
        let read = socket.read_buf(reader.buffer_mut()).await;
        if read.map_err(SourceError::io("video socket"))? == 0 {
            return Err(SourceError::Closed("video"));
        }
        let arrival = Arrival::now();
        while let Some(event) = reader.next_event()? {
            match event {
                StreamEvent::DeviceName(name) => {
                    tracing::info!(device = sink.name(), model = %name, "capturing");
                }
                StreamEvent::Started { size: Some((w, h)) }
                | StreamEvent::Session { width: w, height: h, .. } => {
                    tracing::info!(device = sink.name(), width = w, height = h, "video session");
                    sink.declared_size(w, h);
                }
                StreamEvent::Started { size: None } => {}
                StreamEvent::Config(data) => sink.parameter_sets(&data),
                StreamEvent::Frame { pts_us, data, .. } => sink.picture(arrival, pts_us, &data),
            }
        }
    }
}

async fn read_control(
    mut socket: ReadHalf<AdbStream>,
    sink: &Sink,
) -> Result<Infallible, SourceError> {
    let mut reader = ServerMessageReader::default();
    let mut bytes = vec![0; 4096];
    loop {
        let read = socket.read(&mut bytes).await.map_err(SourceError::io("control socket"))?;
        if read == 0 {
            return Err(SourceError::Closed("control"));
        }
        reader.push(&bytes[..read]);
        while let Some(message) =
            reader.next_message().map_err(|e| SourceError::Nonsense(e.to_string()))?
        {
            if let ServerMessage::Clipboard(text) = message {
                sink.clipboard(&text);
            }
        }
    }
}

/// Writes what is queued; several messages that wait go in one write, since ADB may answer each
/// write with a round trip.
async fn write_commands(
    mut socket: WriteHalf<AdbStream>,
    mut commands: mpsc::Receiver<Command>,
    version: &ServerVersion,
) -> Result<Infallible, SourceError> {
    const AT_ONCE: usize = 64;
    let mut batch = Vec::with_capacity(AT_ONCE);
    let mut bytes = Vec::new();
    while commands.recv_many(&mut batch, AT_ONCE).await > 0 {
        for command in batch.drain(..) {
            match command {
                Command::Op(op) => {
                    if !encode(version, &op, &mut bytes) {
                        tracing::debug!(?op, version = version.name, "not in this version");
                    }
                }
                Command::ResetVideo => bytes.extend(reset_video(version).into_iter().flatten()),
            }
        }
        match timeout(WRITE_TIMEOUT, socket.write_all(&bytes)).await {
            Ok(written) => written.map_err(SourceError::io("control socket"))?,
            Err(_) => return Err(SourceError::Stuck),
        }
        bytes.clear();
    }
    Err(SourceError::Stopped)
}

/// What the server prints on its shell: logged, and the last line kept as the reason of its end.
struct ServerLog {
    device: String,
    last: Mutex<String>,
}

impl ServerLog {
    fn new(device: &str) -> Self {
        Self { device: device.to_owned(), last: Mutex::default() }
    }

    fn last(&self) -> String {
        let last = self.last.lock();
        if last.is_empty() { "it printed nothing".to_owned() } else { last.clone() }
    }

    /// Logs until the server ends.
    async fn follow(&self, mut shell: ShellStream) -> SourceError {
        let mut line = Vec::new();
        loop {
            match shell.next().await {
                Ok(Some(ShellEvent::Stdout(part) | ShellEvent::Stderr(part))) => {
                    for byte in part {
                        if byte == b'\n' {
                            self.line(&line);
                            line.clear();
                        } else if line.len() < LOG_LINE_BYTES {
                            line.push(byte);
                        }
                    }
                }
                Ok(Some(ShellEvent::Exit(code))) => {
                    self.line(&line);
                    return SourceError::ServerEnded(format!("{} (exit {code})", self.last()));
                }
                Ok(None) => {
                    self.line(&line);
                    return SourceError::ServerEnded(self.last());
                }
                Err(error) => return SourceError::adb("scrcpy server's shell")(error),
            }
        }
    }

    fn line(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() {
            return;
        }
        if text.contains("ERROR") {
            tracing::warn!(device = %self.device, "scrcpy server: {text}");
        } else {
            tracing::debug!(device = %self.device, "scrcpy server: {text}");
        }
        *self.last.lock() = text;
    }

    /// A socket that closes is a symptom: the server's own last words, if they come, are the cause.
    async fn why(
        &self,
        symptom: SourceError,
        server: &mut (impl Future<Output = SourceError> + Unpin),
    ) -> SourceError {
        if !matches!(symptom, SourceError::Closed(_)) {
            return symptom;
        }
        timeout(Duration::from_millis(200), server).await.unwrap_or(symptom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_starts_with_the_version_and_has_no_option_of_another_version() {
        let config = DeviceConfig { max_size: 1280, ..DeviceConfig::default() };
        let line = command_line(&config, table::by_name("4.1").unwrap(), "/data/x.jar", 0x7b);
        assert_eq!(
            line,
            "CLASSPATH=/data/x.jar app_process / com.genymobile.scrcpy.Server 4.1 scid=0000007b \
             log_level=info tunnel_forward=true audio=false control=true video_bit_rate=4000000 \
             video_codec_options=i-frame-interval=2 max_fps=60 max_size=1280"
        );
    }
}
