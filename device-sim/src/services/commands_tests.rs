//! Tests of the shell's commands, through the shell.

use std::sync::Arc;

use super::*;
use crate::capture::Feed;
use crate::device::{Device, test_device};
use crate::services::shell;
use bytes::Bytes;

fn phone() -> (Services, Arc<Device>) {
    let device = test_device((360, 640));
    (Services::new(Arc::clone(&device), Feed::Screen, 30.0, 1_000_000, None), device)
}

/// Runs a line on the old shell, where both outputs are one.
async fn sh(services: &Services, line: &str) -> (u8, Vec<u8>) {
    let mut out = Vec::new();
    let code = shell::run(services, line, &mut Output::Raw(&mut out)).await.unwrap();
    (code, out)
}

async fn text(services: &Services, line: &str) -> String {
    String::from_utf8(sh(services, line).await.1).unwrap()
}

#[tokio::test]
async fn properties_and_sizes_are_those_of_the_device() {
    let (services, device) = phone();
    assert_eq!(text(&services, "getprop ro.product.model").await, "Test Phone\n");
    assert!(text(&services, "getprop").await.contains("[ro.serialno]: [test0001]"));
    assert_eq!(text(&services, "getprop no.such default").await, "default\n");
    device.rotate();
    assert_eq!(text(&services, "wm size").await, "Physical size: 360x640\n");
    assert!(text(&services, "dumpsys window displays").await.contains("cur=640x360"));
}

#[tokio::test]
async fn input_commands_reach_the_screen_and_the_log() {
    let (services, device) = phone();
    assert_eq!(sh(&services, "input tap 100 200").await.0, 0);
    assert_eq!(sh(&services, "input text hello%sworld && input keyevent KEYCODE_A").await.0, 0);
    let seen = device.inputs().snapshot();
    let kinds: Vec<_> = seen.iter().map(|r| r.kind.as_str()).collect();
    assert_eq!(kinds, ["touch", "touch", "text", "key", "key"]);
    assert_eq!((seen[0].x, seen[0].y, seen[0].w), (Some(100), Some(200), Some(360)));
    assert_eq!(device.lock_state().model.text, "hello worlda");
    let (code, usage) = sh(&services, "input tap here there").await;
    assert_eq!(code, 255);
    assert!(usage.starts_with(b"usage: input"));
}

#[tokio::test(start_paused = true)]
async fn a_stroke_ends_where_it_was_told_to() {
    let (services, device) = phone();
    assert_eq!(sh(&services, "input swipe 10 300 200 310 100").await.0, 0);
    let seen = device.inputs().snapshot();
    assert!(seen.len() >= 4, "{} events", seen.len());
    let last = seen.last().unwrap();
    assert_eq!((last.action.as_deref(), last.x, last.y), (Some("up"), Some(200), Some(310)));
    assert!(device.lock_state().model.touches.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stroke_that_is_cut_short_lifts_the_finger() {
    let (services, device) = phone();
    let line = sh(&services, "input swipe 10 300 200 310 5000");
    let cut = tokio::time::timeout(std::time::Duration::from_millis(200), line).await;
    assert!(cut.is_err());
    assert!(device.lock_state().model.touches.is_empty());
}

#[tokio::test]
async fn screenshots_hold_the_drawn_screen() {
    let (services, _) = phone();
    let (code, raw) = sh(&services, "screencap").await;
    assert_eq!(code, 0);
    let words: Vec<_> =
        raw[..16].chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(words, [360, 640, 1, 1]);
    assert_eq!(raw.len(), 16 + 360 * 640 * 4);
    let strip = crate::screen::strip::read(360, |x, y| raw[16 + (y * 360 + x) * 4]);
    assert!(strip.is_some());
    assert_eq!(sh(&services, "screencap -p /sdcard/s.png").await.0, 0);
    assert!(services.files().get("/sdcard/s.png").unwrap().starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn files_can_be_listed_checked_and_removed() {
    let (services, _) = phone();
    services.files().put("/data/local/tmp/a", 0o644, 0, Bytes::from_static(b"abc")).unwrap();
    let sum = text(&services, "sha256sum /data/local/tmp/a").await;
    assert!(sum.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  "));
    assert_eq!(text(&services, "ls /data/local/tmp").await, "a\n");
    assert_eq!(sh(&services, "rm /data/local/tmp/a").await.0, 0);
    assert_eq!(sh(&services, "rm /data/local/tmp/a").await.0, 1);
    assert_eq!(sh(&services, "rm -f /data/local/tmp/a; true").await.0, 0);
}

#[tokio::test]
async fn unknown_programs_are_not_found() {
    let (services, _) = phone();
    let (code, out) = sh(&services, "frobnicate --now").await;
    assert_eq!(code, 127);
    assert!(String::from_utf8(out).unwrap().contains("not found"));
    assert_eq!(sh(&services, "frobnicate 2>/dev/null || echo no").await, (0, b"no\n".to_vec()));
}

#[tokio::test]
async fn a_jar_that_is_not_there_aborts() {
    let (services, _) = phone();
    let line = "CLASSPATH=/data/local/tmp/no.jar app_process / com.genymobile.scrcpy.Server 4.1";
    let (code, out) = sh(&services, line).await;
    assert_eq!(code, 134);
    assert!(String::from_utf8(out).unwrap().contains("ClassNotFoundException"));
}

#[tokio::test]
async fn a_client_of_another_version_is_refused_in_the_servers_words() {
    let (services, _) = phone();
    let jar = crate::scrcpy::placeholder_jar(ScrcpyVersion::V3_3_4);
    services.files().put("/data/local/tmp/s.jar", 0o644, 0, jar.into()).unwrap();
    let line =
        "CLASSPATH=/data/local/tmp/s.jar app_process / com.genymobile.scrcpy.Server 4.1 scid=1";
    let (code, out) = sh(&services, line).await;
    assert_eq!(code, 1);
    let said = String::from_utf8(out).unwrap();
    assert!(said.contains("The server version (3.3.4) does not match the client (4.1)"), "{said}");
}

#[tokio::test]
async fn a_recording_is_an_annex_b_stream() {
    let (services, _) = phone();
    let (code, out) = sh(&services, "screenrecord --output-format=h264 --time-limit 1 -").await;
    assert_eq!(code, 0);
    let pictures = crate::h264::split_pictures(&out);
    assert!(pictures.len() > 10 && pictures[0].key);
}

use crate::scrcpy::ScrcpyVersion;
