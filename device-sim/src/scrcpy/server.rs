//! One scrcpy server process: start-up order, the session, its end.
//!
//! Sockets are accepted in the order video, audio, control, only those that are enabled, and nothing
//! but the dummy byte is sent before all of them are there. Then no more are accepted, so a second
//! client cannot join. Invariant: when any part ends (a socket closes, a message is wrong, the
//! encoder fails, the shell goes away), the whole server ends and its name is free.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{broadcast, mpsc};

use super::control::{self, DeviceMessage, MAX_MESSAGE};
use super::controller::Controller;
use super::options::{LogLevel, ServerOptions};
use super::sockets::{Socket, Sockets};
use super::stream::{self, PacketKind};
use super::version::ScrcpyVersion;
use crate::capture::{Capture, CaptureOptions, Feed, Packet};
use crate::device::Device;

/// Messages to the client that may wait; more are dropped with a warning, as in the real server.
const DEVICE_MESSAGES: usize = 16;
/// Lines of the log that may wait for the shell; more are lost.
const LOG_LINES: usize = 256;

/// What servers on this device are started with.
#[derive(Debug, Clone)]
pub struct ServerContext {
    /// The device.
    pub device: Arc<Device>,
    /// Its abstract socket names.
    pub sockets: Sockets,
    /// What the pictures come from.
    pub feed: Feed,
    /// Pictures per second at most.
    pub fps: f32,
    /// Bitrate for clients that do not ask for one.
    pub bitrate_bps: u32,
}

/// Lines for the shell that started the server.
#[derive(Debug, Clone)]
pub struct Log {
    level: LogLevel,
    lines: mpsc::Sender<String>,
}

impl Log {
    /// A log and the lines that come out of it.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<String>) {
        let (lines, receiver) = mpsc::channel(LOG_LINES);
        (Self { level: LogLevel::Debug, lines }, receiver)
    }

    /// Says something if the client wants to hear it.
    pub(super) fn say(&self, level: LogLevel, text: &str) {
        if level < self.level {
            return;
        }
        let name = match level {
            LogLevel::Verbose => "VERBOSE",
            LogLevel::Debug => "DEBUG",
            LogLevel::Info => "INFO",
            LogLevel::Warn => "WARN",
            LogLevel::Error => "ERROR",
        };
        // A shell that does not read loses lines, not the server.
        let _ = self.lines.try_send(format!("[server] {name}: {text}\n"));
    }
}

/// Runs a server of `version` with its command line arguments (version first) until it ends; drop
/// the future to kill it, as Android does when the shell goes. Returns the exit code.
pub async fn run(
    context: &ServerContext,
    version: ScrcpyVersion,
    args: &[String],
    mut log: Log,
) -> u8 {
    let options = match start(version, args, &mut log) {
        Ok(options) => options,
        Err(why) => {
            log.say(LogLevel::Error, &why);
            return 1;
        }
    };
    let id = context.device.identity();
    log.say(
        LogLevel::Info,
        &format!("Device: [Fanlight] {} {} (Android 14)", id.product, id.model),
    );
    if let Some(list) = &options.list {
        log.say(LogLevel::Info, &listing(list, context.device.size()));
        return 0;
    }
    match session(context, version, &options, &log).await {
        Ok(()) => 0,
        Err(why) => {
            log.say(LogLevel::Error, &why);
            1
        }
    }
}

/// Parses the command line; the error is what the real server says.
fn start(version: ScrcpyVersion, args: &[String], log: &mut Log) -> Result<ServerOptions, String> {
    let Some((client, rest)) = args.split_first() else {
        return Err("java.lang.IllegalArgumentException: Missing client version".to_owned());
    };
    if client != version.as_str() {
        return Err(format!(
            "java.lang.IllegalArgumentException: The server version ({version}) does not match \
             the client ({client})"
        ));
    }
    let (options, warnings) = ServerOptions::parse(version, rest.iter().map(String::as_str))
        .map_err(|error| format!("java.lang.IllegalArgumentException: {error}"))?;
    log.level = options.log_level;
    for warning in warnings {
        log.say(LogLevel::Warn, &warning);
    }
    if !(options.video || options.audio || options.control) {
        return Err("No stream is enabled: video, audio and control are all false".to_owned());
    }
    if options.video && !options.display {
        return Err("Camera capture is not simulated".to_owned());
    }
    Ok(options)
}

fn listing(list: &str, (w, h): (u32, u32)) -> String {
    match list {
        "list_encoders" => "List of video encoders:\n    --video-codec=h264 --video-encoder=OMX.openh264.encoder (sw)\nList of audio encoders:\n    (none)".to_owned(),
        "list_displays" => format!("List of displays:\n    --display-id=0    ({w}x{h})"),
        "list_apps" => "List of apps:\n * Settings                       com.android.settings".to_owned(),
        _ => "List of cameras:\n    (none)".to_owned(),
    }
}

/// The enabled sockets.
struct Connected {
    video: Option<Socket>,
    audio: Option<Socket>,
    control: Option<Socket>,
}

async fn session(
    context: &ServerContext,
    version: ScrcpyVersion,
    options: &ServerOptions,
    log: &Log,
) -> Result<(), String> {
    let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut connected = connect(context, options).await.map_err(io("Cannot connect"))?;
    if options.send_device_meta {
        let first = [&mut connected.video, &mut connected.audio, &mut connected.control];
        if let Some(socket) = first.into_iter().find_map(Option::as_mut) {
            let meta = stream::device_meta(&context.device.identity().model);
            socket.write_all(&meta).await.map_err(io("Cannot send the device name"))?;
        }
    }
    metrics::counter!("fanlight_sim_scrcpy_sessions_opened_total").increment(1);
    let ended = serve(context, version, options, connected, log).await;
    metrics::counter!("fanlight_sim_scrcpy_sessions_closed_total").increment(1);
    ended
}

async fn connect(context: &ServerContext, options: &ServerOptions) -> std::io::Result<Connected> {
    let name = options.socket_name();
    let taken = || std::io::Error::new(std::io::ErrorKind::AddrInUse, "Address already in use");
    let mut listener = match options.tunnel_forward {
        true => Some(context.sockets.listen(&name).ok_or_else(taken)?),
        false => None,
    };
    let mut dummy = options.tunnel_forward && options.send_dummy_byte;
    let mut sockets = [None, None, None];
    for (slot, enabled) in sockets.iter_mut().zip([options.video, options.audio, options.control]) {
        if !enabled {
            continue;
        }
        let mut socket = match &mut listener {
            Some(listener) => listener.accept().await.ok_or_else(taken)?,
            None => context.sockets.dial(&name).await?,
        };
        if std::mem::take(&mut dummy) {
            socket.write_all(&[0]).await?;
        }
        *slot = Some(socket);
    }
    let [video, audio, control] = sockets;
    Ok(Connected { video, audio, control })
}

/// Runs all parts of a session until the first one ends.
async fn serve(
    context: &ServerContext,
    version: ScrcpyVersion,
    options: &ServerOptions,
    connected: Connected,
    log: &Log,
) -> Result<(), String> {
    let capture = match connected.video {
        Some(_) if options.h264 => {
            let capture = Capture::start(
                Arc::clone(&context.device),
                context.feed.clone(),
                capture_options(context, options),
            );
            Some(capture.map_err(|error| format!("Cannot start the capture: {error}"))?)
        }
        _ => None,
    };
    let handle = capture.as_ref().map(Capture::handle);
    let controller = Controller::new(Arc::clone(&context.device), handle, options, log.clone());
    let (send, messages) = mpsc::channel(DEVICE_MESSAGES);
    let changes =
        (options.control && options.clipboard_autosync).then(|| context.device.clipboard_changes());
    let mut audio = connected.audio;
    if let Some(audio) = &mut audio {
        // No microphone, no audio: the client goes on without.
        audio.write_all(&stream::STREAM_DISABLED.to_be_bytes()).await.map_err(|e| e.to_string())?;
    }
    let (control_read, control_write) =
        connected.control.map(tokio::io::split).map_or((None, None), |(r, w)| (Some(r), Some(w)));
    // Whatever ends first ends the server: each of these runs for as long as its socket is open.
    tokio::select! {
        ended = when(connected.video, |v| stream_video(v, capture, version, options)) => ended,
        ended = when(control_read, |r| read_control(r, version, controller, &send, log)) => ended,
        ended = when(control_write, |w| write_control(w, messages)) => ended,
        ended = when(changes, |c| forward_clipboard(c, &send, log)) => ended,
        // A client may close the audio socket after reading that it is disabled.
        ended = when(audio, |_| std::future::pending()) => ended,
    }
}

/// Runs a part if there is one, and otherwise never ends.
async fn when<T, F: Future<Output = Result<(), String>>>(
    part: Option<T>,
    run: impl FnOnce(T) -> F,
) -> Result<(), String> {
    match part {
        Some(part) => run(part).await,
        None => std::future::pending().await,
    }
}

fn capture_options(context: &ServerContext, options: &ServerOptions) -> CaptureOptions {
    let fps = if options.max_fps > 0.0 { options.max_fps.min(context.fps) } else { context.fps };
    CaptureOptions {
        max_size: options.max_size,
        exact_size: None,
        alignment: options.alignment,
        fps,
        bitrate_bps: options.video_bit_rate.unwrap_or(context.bitrate_bps),
        key_interval: options.key_interval,
        follow_rotation: true,
    }
}

async fn stream_video(
    socket: Socket,
    capture: Option<Capture>,
    version: ScrcpyVersion,
    options: &ServerOptions,
) -> Result<(), String> {
    let (mut read, mut write) = tokio::io::split(socket);
    let Some(mut capture) = capture else {
        let _ = write.write_all(&stream::STREAM_ERROR.to_be_bytes()).await;
        return Err("Unsupported video codec; only h264 is simulated".to_owned());
    };
    let mut started = false;
    let mut unread = [0; 64];
    loop {
        let packet = tokio::select! {
            packet = capture.next() => packet.ok_or("Video encoding failed")?,
            // Nothing is ever sent to this socket; what ends is the stream.
            read = read.read(&mut unread) => match read {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => continue,
            },
        };
        if write_packet(&mut write, packet, version, options, &mut started).await.is_err() {
            // The client went away, which is how sessions end.
            return Ok(());
        }
    }
}

async fn write_packet(
    write: &mut WriteHalf<Socket>,
    packet: Packet,
    version: ScrcpyVersion,
    options: &ServerOptions,
    started: &mut bool,
) -> std::io::Result<()> {
    let (kind, payload) = match packet {
        Packet::Session { width, height, client_resized } => {
            if !options.send_stream_meta {
                return Ok(());
            }
            if !std::mem::replace(started, true) {
                write.write_all(&stream::video_header(version, width, height)).await?;
            }
            if let Some(packet) = stream::session_packet(version, width, height, client_resized) {
                write.write_all(&packet).await?;
            }
            return Ok(());
        }
        Packet::Config(data) => (PacketKind::Config, data),
        Packet::Picture { pts_us, key, data } => (PacketKind::Picture { pts_us, key }, data),
    };
    // Header and payload in two writes, as the real server does; over ADB that is two packets.
    if options.send_frame_meta {
        write.write_all(&stream::packet_header(version, kind, payload.len())).await?;
    }
    write.write_all(&payload).await
}

async fn read_control(
    mut read: ReadHalf<Socket>,
    version: ScrcpyVersion,
    mut controller: Controller,
    send: &mpsc::Sender<DeviceMessage>,
    log: &Log,
) -> Result<(), String> {
    let mut buffer = Vec::with_capacity(4096);
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let mut used = 0;
        loop {
            match control::decode(version, &buffer[used..]) {
                Ok(Some((message, length))) => {
                    used += length;
                    if let Some(reply) = controller.apply(message) {
                        offer(send, reply, log);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    metrics::counter!("fanlight_sim_control_errors_total").increment(1);
                    return Err(format!("Controller error: {error}"));
                }
            }
        }
        buffer.drain(..used);
        // What is left is the beginning of one message, and none is longer than this.
        debug_assert!(buffer.len() <= MAX_MESSAGE, "decode asked for too much");
        match read.read(&mut chunk).await {
            Ok(0) | Err(_) => {
                log.say(LogLevel::Debug, "Controller stopped");
                return Ok(());
            }
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
        }
    }
}

async fn write_control(
    mut write: WriteHalf<Socket>,
    mut messages: mpsc::Receiver<DeviceMessage>,
) -> Result<(), String> {
    while let Some(message) = messages.recv().await {
        if write.write_all(&message.encode()).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn forward_clipboard(
    mut changes: broadcast::Receiver<String>,
    send: &mpsc::Sender<DeviceMessage>,
    log: &Log,
) -> Result<(), String> {
    loop {
        match changes.recv().await {
            Ok(text) => offer(send, DeviceMessage::Clipboard(text), log),
            // The newest is still to come.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

fn offer(send: &mpsc::Sender<DeviceMessage>, message: DeviceMessage, log: &Log) {
    if send.try_send(message).is_err() {
        log.say(LogLevel::Warn, "Device message dropped");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
