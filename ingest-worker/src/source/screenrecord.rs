//! The last resort: Android's own `screenrecord`, pictures over `exec:`, input by shell commands.
//! Not for latency: there is no control of keyframes and each input starts a process. Invariant:
//! the next recording already delivers keyframes before the old one is let go, so that its time
//! limit never shows.

use std::{convert::Infallible, time::Duration};

use fanlight_adb::{AdbDevice, AdbStream};
use fanlight_wire::h264::{AccessUnitInfo, AnnexBSplitter};
use tokio::{
    io::AsyncReadExt as _,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::SourceError;
use crate::{
    config::DeviceConfig,
    hygiene::Arrival,
    inject::shell::ShellGestures,
    shared::{Command, Sink},
};

/// `screenrecord` ends by itself after this.
const TIME_LIMIT: Duration = Duration::from_secs(180);
/// A recording is replaced after this; the rest of its time is for the next one to start.
const REPLACE_AFTER: Duration = Duration::from_secs(165);
/// A picture is whole when nothing more of it came for this long: the format has no lengths, and on
/// a still screen no next picture would end it.
const QUIET: Duration = Duration::from_millis(8);
/// Commands for the shell that may wait; a tap takes about a second on a device.
const SHELL_QUEUE: usize = 16;
/// How long a shell command may take.
const SHELL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Runs until something fails or the commands end.
pub async fn run(
    config: &DeviceConfig,
    device: &AdbDevice,
    sink: Sink,
    commands: mpsc::Receiver<Command>,
) -> Result<Infallible, SourceError> {
    run_with(config, device, sink, commands, REPLACE_AFTER).await
}

/// As [`run`], with another time of life per recording.
pub async fn run_with(
    config: &DeviceConfig,
    device: &AdbDevice,
    sink: Sink,
    commands: mpsc::Receiver<Command>,
    replace_after: Duration,
) -> Result<Infallible, SourceError> {
    let screen = screen_size(device).await?;
    tracing::info!(device = sink.name(), width = screen.0, height = screen.1, "recording");
    tokio::select! {
        Err(error) = record(config, device, screen, &sink, replace_after) => Err(error),
        Err(error) = inject(device, screen, commands) => Err(error),
    }
}

async fn screen_size(device: &AdbDevice) -> Result<(u16, u16), SourceError> {
    let doing = "cannot ask for the screen's size";
    let output = timeout(SHELL_TIMEOUT, device.shell("wm size"))
        .await
        .map_err(|_| SourceError::Nonsense("wm size does not answer".to_owned()))?
        .map_err(SourceError::adb(doing))?;
    parse_size(&output.text())
        .ok_or_else(|| SourceError::Nonsense("wm size prints no size".to_owned()))
}

/// `Physical size: 720x1280`, and `Override size: …` after it where there is one, which counts.
fn parse_size(text: &str) -> Option<(u16, u16)> {
    let line = text.lines().rfind(|l| l.contains(" size: "))?;
    let (w, h) = line.split_once(" size: ")?.1.trim().split_once('x')?;
    Some((w.parse().ok()?, h.parse().ok()?)).filter(|(w, h)| *w > 0 && *h > 0)
}

/// Size of the recording: the screen's, its longer side at most `max_size`, both even.
fn record_size((w, h): (u16, u16), max_size: u32) -> (u32, u32) {
    let (w, h) = (u32::from(w), u32::from(h));
    let longer = w.max(h);
    let even = |v: u32| (v & !1).max(2);
    if max_size == 0 || longer <= max_size {
        return (even(w), even(h));
    }
    (even(w * max_size / longer), even(h * max_size / longer))
}

struct Recording {
    stream: AdbStream,
    splitter: AnnexBSplitter,
    /// Whether bytes came that are not a whole picture yet.
    pending: bool,
    until: Instant,
}

impl Recording {
    async fn start(
        config: &DeviceConfig,
        device: &AdbDevice,
        screen: (u16, u16),
        replace_after: Duration,
    ) -> Result<Self, SourceError> {
        let (w, h) = record_size(screen, config.max_size);
        let command = format!(
            "screenrecord --output-format=h264 --bit-rate {} --size {w}x{h} --time-limit {} -",
            config.bitrate_bps,
            TIME_LIMIT.as_secs()
        );
        let stream =
            device.exec(&command).await.map_err(SourceError::adb("cannot start screenrecord"))?;
        let until = Instant::now() + replace_after;
        Ok(Self { stream, splitter: AnnexBSplitter::new(), pending: false, until })
    }

    /// The next whole access unit. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        loop {
            let unit = self.splitter.next().map_err(|e| SourceError::Nonsense(e.to_string()))?;
            if let Some(unit) = unit {
                return Ok(unit);
            }
            bytes.clear();
            bytes.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut bytes);
            let read = if self.pending {
                let Ok(read) = timeout(QUIET, read).await else {
                    self.pending = false;
                    match self.splitter.flush() {
                        Some(unit) => return Ok(unit),
                        None => continue,
                    }
                };
                read
            } else {
                read.await
            };
            if read.map_err(SourceError::io("recording"))? == 0 {
                return Err(SourceError::Closed("recording"));
            }
            self.splitter.push(&bytes);
            self.pending = true;
        }
    }
}

async fn record(
    config: &DeviceConfig,
    device: &AdbDevice,
    screen: (u16, u16),
    sink: &Sink,
    replace_after: Duration,
) -> Result<Infallible, SourceError> {
    let start = Instant::now();
    let show = |unit: &[u8]| {
        let pts_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        sink.picture(Arrival::now(), pts_us, unit);
    };
    let mut current = Recording::start(config, device, screen, replace_after).await?;
    let mut next: Option<Recording> = None;
    loop {
        let (due, idle) = (current.until, next.is_none());
        tokio::select! {
            unit = current.next() => match (unit, next.take()) {
                (Ok(unit), other) => {
                    next = other;
                    show(&unit);
                }
                // It ended first: whatever the next one has is better.
                (Err(_), Some(other)) => {
                    sink.restarted();
                    current = other;
                }
                (Err(error), None) => return Err(error),
            },
            () = sleep_until(due), if idle => {
                next = Some(Recording::start(config, device, screen, replace_after).await?);
            }
            unit = next_unit(&mut next) => {
                let unit = unit?;
                // The old one goes on until the new one has a picture to start with.
                if AccessUnitInfo::inspect(&unit).is_ok_and(|i| i.key)
                    && let Some(other) = next.take()
                {
                    sink.restarted();
                    show(&unit);
                    current = other;
                    tracing::debug!(device = sink.name(), "recording replaced");
                }
            }
        }
    }
}

async fn next_unit(recording: &mut Option<Recording>) -> Result<Vec<u8>, SourceError> {
    match recording {
        Some(recording) => recording.next().await,
        None => std::future::pending().await,
    }
}

/// Turns ops into shell commands, one at a time.
async fn inject(
    device: &AdbDevice,
    screen: (u16, u16),
    mut commands: mpsc::Receiver<Command>,
) -> Result<Infallible, SourceError> {
    let mut gestures = ShellGestures::new(Some(screen));
    let (sender, mut lines) = mpsc::channel::<String>(SHELL_QUEUE);
    let run = async {
        while let Some(line) = lines.recv().await {
            match timeout(SHELL_TIMEOUT, device.shell(&line)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return SourceError::adb("cannot run an input command")(error),
                Err(_) => return SourceError::Stuck,
            }
        }
        SourceError::Stopped
    };
    let take = async {
        while let Some(command) = commands.recv().await {
            // There is no encoder to reset: a keyframe comes with the next recording.
            let Command::Op(op) = command else { continue };
            if let Some(line) = gestures.command(std::time::Instant::now(), &op)
                && sender.try_send(line).is_err()
            {
                metrics::counter!("fanlight_ingest_input_refused_total", "reason" => "shell_busy")
                    .increment(1);
            }
        }
        SourceError::Stopped
    };
    Err(tokio::select! {
        error = run => error,
        error = take => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_override_size_counts() {
        assert_eq!(parse_size("Physical size: 720x1280"), Some((720, 1280)));
        assert_eq!(
            parse_size("Physical size: 720x1280\nOverride size: 540x960\n"),
            Some((540, 960))
        );
        for bad in ["", "size", "Physical size: x", "Physical size: 0x5", "Physical size: 99999x1"]
        {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn recordings_are_even_and_keep_the_shape() {
        assert_eq!(record_size((721, 1281), 0), (720, 1280));
        assert_eq!(record_size((720, 1280), 640), (360, 640));
        assert_eq!(record_size((1280, 720), 1280), (1280, 720));
    }
}
