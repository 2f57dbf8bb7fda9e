//! Tests of the capture: what a reader of its packets sees.

use super::*;
use crate::device::test_device;
use crate::screen::model::TouchAction;
use std::time::Duration;

const SIZE: (u32, u32) = (192, 320);

fn options() -> CaptureOptions {
    CaptureOptions {
        max_size: 0,
        exact_size: None,
        alignment: 8,
        fps: 60.0,
        bitrate_bps: 1_000_000,
        key_interval: Some(Duration::from_secs(10)),
        follow_rotation: true,
    }
}

async fn next(capture: &mut Capture) -> Packet {
    tokio::time::timeout(Duration::from_secs(10), capture.next())
        .await
        .expect("a packet in time")
        .expect("a running capture")
}

async fn expect_session(capture: &mut Capture, size: (u32, u32)) {
    // Pictures that were queued before the change may come first.
    loop {
        match next(capture).await {
            Packet::Picture { key: false, .. } => {}
            Packet::Session { width, height, .. } => {
                assert_eq!((width, height), size);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(matches!(next(capture).await, Packet::Config(_)));
    assert!(matches!(next(capture).await, Packet::Picture { key: true, .. }));
}

#[tokio::test]
async fn a_moving_screen_gives_pictures_all_the_time() {
    let device = test_device(SIZE);
    let mut capture = Capture::start(device, Feed::Screen, options()).unwrap();
    expect_session(&mut capture, SIZE).await;
    let mut last = 0;
    for _ in 0..20 {
        let Packet::Picture { pts_us, key, .. } = next(&mut capture).await else {
            panic!("only pictures follow")
        };
        assert!(!key && pts_us > last);
        last = pts_us;
    }
}

#[tokio::test]
async fn a_still_screen_repeats_once_and_goes_silent() {
    let device = test_device(SIZE);
    device.set_static(true);
    let mut capture = Capture::start(Arc::clone(&device), Feed::Screen, options()).unwrap();
    expect_session(&mut capture, SIZE).await;
    assert!(matches!(next(&mut capture).await, Packet::Picture { key: false, .. }), "the repeat");
    let silence = tokio::time::timeout(Duration::from_millis(400), capture.next()).await;
    assert!(silence.is_err(), "nothing moves, nothing comes");
    let now = unix_us();
    device.change(|m| m.touch(TouchAction::Down, 0, 0.5, 0.5, now));
    assert!(matches!(next(&mut capture).await, Packet::Picture { key: false, .. }));
}

#[tokio::test]
async fn rotation_and_reset_start_a_new_session() {
    let device = test_device(SIZE);
    let mut capture = Capture::start(Arc::clone(&device), Feed::Screen, options()).unwrap();
    expect_session(&mut capture, SIZE).await;
    device.rotate();
    expect_session(&mut capture, (SIZE.1, SIZE.0)).await;
    assert_eq!(capture.handle().video_size(), (SIZE.1, SIZE.0));
    device.set_static(true);
    capture.handle().reset();
    expect_session(&mut capture, (SIZE.1, SIZE.0)).await;
}

#[tokio::test]
async fn keyframes_come_at_their_interval() {
    let device = test_device(SIZE);
    let options = CaptureOptions { key_interval: Some(Duration::from_millis(100)), ..options() };
    let mut capture = Capture::start(device, Feed::Screen, options).unwrap();
    expect_session(&mut capture, SIZE).await;
    let mut keys = 0;
    for _ in 0..30 {
        match next(&mut capture).await {
            Packet::Picture { key, .. } => keys += u32::from(key),
            other => panic!("parameter sets do not repeat: {other:?}"),
        }
    }
    assert!((3..=8).contains(&keys), "{keys} keyframes in half a second");
}

#[tokio::test]
async fn a_clip_loops_with_its_keyframes() {
    let mut bytes = Vec::new();
    let record =
        crate::clip::RecordOptions { size: SIZE, seconds: 1, fps: 5, ..Default::default() };
    crate::clip::record(&record, &mut bytes).unwrap();
    let clip = Clip::parse(&bytes).unwrap();
    let options = CaptureOptions { fps: 100.0, ..options() };
    let mut capture = Capture::start(test_device((720, 1280)), Feed::Clip(clip), options).unwrap();
    expect_session(&mut capture, SIZE).await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.push(match next(&mut capture).await {
            Packet::Picture { key: true, .. } => 'K',
            Packet::Picture { key: false, .. } => 'p',
            Packet::Config(_) => 'c',
            Packet::Session { .. } => 's',
        });
    }
    assert_eq!(String::from_iter(seen), "ppppcKpppp");
}

#[tokio::test]
async fn too_many_captures_are_refused_and_ended_ones_make_room() {
    let device = test_device(SIZE);
    let start = || Capture::start(Arc::clone(&device), Feed::Screen, options());
    let mut running: Vec<_> = (0..8).map(|_| start().unwrap()).collect();
    assert!(start().is_err());
    running.pop();
    let again = async {
        while start().is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("room again");
}

#[test]
fn video_sizes_follow_the_servers_rule() {
    assert_eq!(video_size((720, 1280), 0, 8), (720, 1280));
    assert_eq!(video_size((1080, 2400), 1280, 8), (576, 1280));
    assert_eq!(video_size((1081, 2401), 0, 8), (1080, 2400));
    assert_eq!(video_size((1280, 720), 1024, 8), (1024, 576));
    assert_eq!(video_size((721, 1281), 0, 1), (720, 1280));
    assert_eq!(video_size((3, 3), 0, 8), (16, 16));
}
