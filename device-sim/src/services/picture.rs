//! `screencap` and `screenrecord`.
//!
//! Both show the drawn screen. Invariants: a screenshot is what a capture would show at that
//! moment; a recording keeps the size it began with, also when the device is turned.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::Services;
use super::commands::Said;
use super::output::Output;
use crate::capture::{Capture, CaptureOptions, Packet};
use crate::device::{Device, unix_us};
use crate::screen::strip::Stamp;
use crate::screen::{Moment, Renderer};

/// Android's limit on a recording, and its default.
const MAX_RECORD: Duration = Duration::from_secs(180);
/// Android's default bitrate of a recording.
const RECORD_BITRATE_BPS: u32 = 20_000_000;
/// `HAL_PIXEL_FORMAT_RGBA_8888`.
const RGBA_8888: u32 = 1;
/// The colour space in the raw header: sRGB.
const SRGB: u32 = 1;

/// A picture of the screen as it is now, RGBA.
pub(super) fn snapshot(device: &Device) -> Result<(u32, u32, Vec<u8>), String> {
    let now_us = unix_us();
    let (mut model, clock_us) = {
        let state = device.lock_state();
        (state.model.clone(), state.frozen_us.unwrap_or(now_us))
    };
    model.expire(now_us);
    let (w, h) = model.size();
    let mut renderer =
        Renderer::new(w, h, &device.identity().model).map_err(|error| error.to_string())?;
    let stamp = Stamp::new(0, now_us / 1000, model.touch_count);
    renderer.draw(&model, &Moment { now_us, clock_us, stamp });
    Ok((w, h, renderer.rgba().to_vec()))
}

/// `screencap [-p] [FILE]`: to standard output, or to a file.
pub(super) async fn screencap(services: &Services, args: &[String]) -> Said {
    let device = Arc::clone(services.device());
    let file = args.iter().find(|a| !a.starts_with('-'));
    let as_png = args.iter().any(|a| a == "-p") || file.is_some_and(|f| f.ends_with(".png"));
    let Some(permit) = device.capture_permit() else {
        return Said::fail(1, "screencap: too many captures of this screen");
    };
    // Drawing and compressing take some tens of milliseconds.
    let picture = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let (w, h, rgba) = snapshot(&device)?;
        if as_png { to_png(w, h, &rgba) } else { Ok(to_raw(w, h, &rgba)) }
    });
    let bytes = match picture.await.map_err(|error| error.to_string()).and_then(|result| result) {
        Ok(bytes) => bytes,
        Err(why) => return Said::fail(1, format!("screencap: {why}")),
    };
    let Some(path) = file else { return Said::out(bytes) };
    match services.files().put(path, 0o644, 0, bytes.into()) {
        Ok(()) => Said::default(),
        Err(why) => Said::fail(1, format!("screencap: {path}: {why}")),
    }
}

fn to_raw(w: u32, h: u32, rgba: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rgba.len() + 16);
    out.extend([w, h, RGBA_8888, SRGB].into_iter().flat_map(u32::to_le_bytes));
    out.extend(rgba);
    out
}

fn to_png(w: u32, h: u32, rgba: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, w, h);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
    writer.write_image_data(rgba).map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    Ok(out)
}

/// What `screenrecord` was asked for.
#[derive(Debug, PartialEq)]
struct Recording {
    size: Option<(u32, u32)>,
    bitrate_bps: u32,
    limit: Option<Duration>,
}

/// `screenrecord --output-format=h264 [--size WxH] [--bit-rate N] [--time-limit S] -`
pub(super) async fn screenrecord<W: AsyncWrite + Unpin + Send>(
    services: &Services,
    args: &[String],
    output: &mut Output<W>,
) -> std::io::Result<u8> {
    let recording = match parse(args) {
        Ok(recording) => recording,
        Err(why) => {
            output.stderr(format!("screenrecord: {why}\n").as_bytes()).await?;
            return Ok(1);
        }
    };
    let server = &services.server;
    let options = CaptureOptions {
        max_size: 0,
        exact_size: recording.size,
        alignment: 2,
        fps: server.fps,
        bitrate_bps: recording.bitrate_bps,
        key_interval: Some(Duration::from_secs(10)),
        follow_rotation: false,
    };
    let started = Capture::start(Arc::clone(&server.device), server.feed.clone(), options);
    let mut capture = match started {
        Ok(capture) => capture,
        Err(error) => {
            output.stderr(format!("screenrecord: {error}\n").as_bytes()).await?;
            return Ok(1);
        }
    };
    let over = async {
        match recording.limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    loop {
        let packet = tokio::select! {
            packet = capture.next() => packet,
            () = &mut over => return Ok(0),
        };
        match packet {
            Some(Packet::Config(data) | Packet::Picture { data, .. }) => {
                output.stdout(&data).await?;
            }
            Some(Packet::Session { .. }) => {}
            None => return Ok(1),
        }
    }
}

fn parse(args: &[String]) -> Result<Recording, String> {
    let mut recording =
        Recording { size: None, bitrate_bps: RECORD_BITRATE_BPS, limit: Some(MAX_RECORD) };
    let mut format = None;
    let mut target = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(option) = arg.strip_prefix("--") else {
            target = Some(arg.as_str());
            continue;
        };
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None if matches!(option, "verbose" | "bugreport" | "rotate" | "show-frame-time") => {
                continue;
            }
            None => {
                (option, rest.next().cloned().ok_or_else(|| format!("--{option} needs a value"))?)
            }
        };
        let bad = || format!("bad value for --{key}: {value}");
        match key {
            "output-format" => format = Some(value.clone()),
            "size" => recording.size = Some(size(&value).ok_or_else(bad)?),
            "bit-rate" => recording.bitrate_bps = bit_rate(&value).ok_or_else(bad)?,
            "time-limit" => recording.limit = time_limit(&value).ok_or_else(bad)?,
            "display-id" => {}
            _ => return Err(format!("unknown option --{key}")),
        }
    }
    match (format.as_deref(), target) {
        (Some("h264"), Some("-")) => Ok(recording),
        _ => Err("only `--output-format=h264 -` is simulated".to_owned()),
    }
}

fn size(text: &str) -> Option<(u32, u32)> {
    let (w, h) = text.split_once('x')?;
    let side = |s: &str| s.parse().ok().filter(|n| (32..=2160).contains(n));
    Some((side(w)?, side(h)?))
}

fn bit_rate(text: &str) -> Option<u32> {
    match text.strip_suffix(['M', 'm']) {
        Some(millions) => millions.parse::<u32>().ok()?.checked_mul(1_000_000),
        None => text.parse().ok(),
    }
}

/// 0 is no limit, as newer Androids have it; more than the limit is refused.
fn time_limit(text: &str) -> Option<Option<Duration>> {
    match text.parse().ok()? {
        0 => Some(None),
        seconds => Some(Duration::from_secs(seconds)).filter(|d| *d <= MAX_RECORD).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn recording_options_are_understood() {
        let line = "--output-format=h264 --size 360x640 --bit-rate=4M --time-limit 5 -";
        let expected = Recording {
            size: Some((360, 640)),
            bitrate_bps: 4_000_000,
            limit: Some(Duration::from_secs(5)),
        };
        assert_eq!(parse(&args(line)), Ok(expected));
        assert_eq!(parse(&args("--output-format=h264 --time-limit 0 -")).unwrap().limit, None);
    }

    #[test]
    fn what_is_not_simulated_is_refused() {
        for line in [
            "/sdcard/x.mp4",
            "--output-format=h264",
            "--output-format=mp4 -",
            "--output-format=h264 --time-limit 900 -",
            "--output-format=h264 --size 1x1 -",
            "--what -",
        ] {
            assert!(parse(&args(line)).is_err(), "{line}");
        }
    }
}
