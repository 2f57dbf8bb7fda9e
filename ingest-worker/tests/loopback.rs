//! Simulated devices over real ADB, through the worker, into a router made for the test. Real
//! sockets, real encoder; no part of the product's router.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Bench, router::TestRouter, simulator, small, until};
use fanlight_device_sim::{SimConfig, Simulator};
use fanlight_ingest::SourceKind;
use fanlight_ops::link::LinkHandler as _;
use fanlight_proto::{node::v1::device_status, types::v1::StreamState};
use fanlight_wire::{
    h264::ParameterSets,
    input::{
        Button, ButtonAction, CopyKey, DeviceBody, DeviceMessage, InputBody, Touch, TouchAction,
    },
};

fn touch(action: TouchAction, x: u16, y: u16, (w, h): (u16, u16)) -> InputBody {
    InputBody::Touch(Touch { action, pointer_id: 0, pressure: 0xffff, x, y, w, h, buttons: 0 })
}

fn touches(sim: &Simulator) -> Vec<(String, i32, i32)> {
    let records = sim.inputs();
    let touches = records.iter().filter(|r| r.kind == "touch" && r.ignored.is_none());
    touches.map(|r| (r.action.clone().unwrap(), r.x.unwrap(), r.y.unwrap())).collect()
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

/// Frames decode one by one, in order, with their parameter sets, and a tap lands where it was meant.
async fn video_and_input(version: &str, delayed_ack: bool) {
    let mut bench = Bench::new();
    let sim = simulator(SimConfig { delayed_ack, ..small() }).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), version)]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("30 frames", || router.frames("pixel").len() >= 30).await;
    let frames = router.frames("pixel");
    assert!(frames[0].info.key, "the first frame is a keyframe");
    for pair in frames.windows(2) {
        let next = pair[0].first_seq.wrapping_add(u16::try_from(pair[0].packets).unwrap());
        assert_eq!(pair[1].first_seq, next, "sequence numbers have no gap");
        assert!(pair[1].rtp_time.wrapping_sub(pair[0].rtp_time) < 90_000);
    }
    let last = frames.last().unwrap();
    assert!(unix_us().abs_diff(last.capture_unix_us) < 5_000_000);
    let mut sets = ParameterSets::new();
    sets.absorb(&frames[0].access_unit);
    let facts = sets.facts().unwrap().unwrap();
    assert_eq!((facts.width, facts.height), (320, 480));
    let publish = router.seen.lock().publishes[0].clone();
    assert_eq!((publish.width, publish.height, publish.epoch), (320, 480, 1));
    assert_eq!(publish.push_token, common::token("pixel"));
    assert_eq!(worker.fleet().running()[0].state(), StreamState::Live);

    router.input("pixel", 1, touch(TouchAction::Down, 100, 200, (320, 480)));
    router.input("pixel", 1, touch(TouchAction::Up, 100, 200, (320, 480)));
    let home = InputBody::Button { button: Button::Home, action: ButtonAction::Press };
    router.input("pixel", 1, home);
    until("the tap", || touches(&sim).len() >= 2).await;
    let expected = [("down".to_owned(), 100, 200), ("up".to_owned(), 100, 200)];
    assert_eq!(touches(&sim), expected);
    until("the key", || sim.inputs().iter().any(|r| r.keycode == Some(3))).await;
    assert_eq!(router.seen.lock().broken, Vec::<String>::new());
    until("statistics", || router.seen.lock().stats.contains_key("streams/pixel")).await;

    // The end is told, not found out.
    let seen = std::sync::Arc::clone(&router.seen);
    bench.end().await;
    until("the unpublish", || !seen.lock().unpublished.is_empty()).await;
    router.kill().await;
    sim.stop().await;
}

#[tokio::test]
async fn video_and_input_with_the_3_x_layout() {
    video_and_input("3.3.4", true).await;
}

#[tokio::test]
async fn video_and_input_with_the_4_x_layout() {
    video_and_input("4.1", true).await;
}

#[tokio::test]
async fn video_and_input_with_a_device_that_knows_no_delayed_ack() {
    video_and_input("4.0", false).await;
}

#[tokio::test]
async fn a_restarted_router_has_a_keyframe_at_once_even_of_a_still_screen() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let identity = bench.identity("router-1");
    let router = TestRouter::start(&identity);
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 10).await;
    sim.set_static(true);
    // Still: as many frames as a moment ago.
    let mut count = 0;
    until("stillness", || {
        let now = router.frames("pixel").len();
        let still = now == count
            && router.frames("pixel").last().unwrap().at.elapsed() > Duration::from_millis(500);
        count = now;
        still
    })
    .await;
    let addr = router.kill().await;
    let router = TestRouter::start_on(&identity, addr).await;
    until("the publish", || !router.seen.lock().publishes.is_empty()).await;
    let published = Instant::now();
    until("a picture", || !router.frames("pixel").is_empty()).await;
    assert!(published.elapsed() < Duration::from_millis(300), "{:?}", published.elapsed());
    until("the whole group", || router.frames("pixel").iter().any(|f| f.info.key)).await;
    let resets = sim.inputs().iter().filter(|r| r.kind == "reset_video").count();
    assert_eq!(resets, 0, "the encoder was left alone");
    // And it goes on from there.
    let before = router.frames("pixel").len();
    sim.set_static(false);
    until("more frames", || router.frames("pixel").len() > before + 10).await;
    assert_eq!(router.seen.lock().broken, Vec::<String>::new());
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_killed_device_comes_back_and_the_other_one_never_notices() {
    let mut bench = Bench::new();
    let (a, b) = (simulator(small()).await, simulator(small()).await);
    let router = TestRouter::start(&bench.identity("router-1"));
    let devices = vec![
        bench.device("a", a.adb_addr(), "4.1"),
        bench.device("b", b.adb_addr(), "3.3.4"),
        // Nobody listens on port 1.
        bench.device("c", "127.0.0.1:1".parse().unwrap(), "4.1"),
    ];
    let worker = bench.worker(devices).await;
    bench.want(&worker, router.addr, 1, &["a", "b", "c"]);
    until("both", || router.frames("a").len() >= 10 && router.frames("b").len() >= 10).await;
    assert_eq!(router.seen.lock().connections, 1, "one connection for all devices");
    let status = |name: &str| {
        let name = format!("devices/{name}");
        worker.fleet().devices().into_iter().find(|d| d.device == name).unwrap()
    };
    assert_eq!(status("c").state(), device_status::State::Offline);
    assert!(status("c").reason.starts_with("cannot connect to 127.0.0.1:1: Connection refused"));

    let addr = a.adb_addr();
    a.stop().await;
    until("the report", || status("a").state() == device_status::State::Offline).await;
    until("the unpublish", || {
        let seen = router.seen.lock();
        seen.unpublished.contains(&("streams/a".into(), "DEVICE_OFFLINE".into()))
    })
    .await;
    let running = worker.fleet().running();
    let state = |s: &str| {
        running.iter().find(|r| r.assignment.as_ref().unwrap().stream == s).unwrap().state()
    };
    assert_eq!(state("streams/a"), StreamState::Assigned);
    assert_eq!(state("streams/b"), StreamState::Live);

    let a = simulator(SimConfig { adb_listen: addr, ..small() }).await;
    until("a again", || router.frames("a").iter().any(|f| f.publish == 1)).await;
    let again: Vec<_> = router.frames("a").into_iter().filter(|f| f.publish == 1).collect();
    assert!(again[0].info.key);
    assert_eq!(status("a").state(), device_status::State::Online);

    // b went on all the while, on its one publish, with no frame missing.
    let b_frames = router.frames("b");
    assert!(b_frames.iter().all(|f| f.publish == 0));
    for pair in b_frames.windows(2) {
        let next = pair[0].first_seq.wrapping_add(u16::try_from(pair[0].packets).unwrap());
        assert_eq!(pair[1].first_seq, next);
    }
    bench.end().await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_dropped_adb_connection_resumes_with_a_keyframe() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    sim.drop_adb();
    until("frames again", || router.frames("pixel").iter().filter(|f| f.publish == 1).count() >= 5)
        .await;
    let frames = router.frames("pixel");
    assert!(frames.iter().find(|f| f.publish == 1).unwrap().info.key);
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn screenrecord_shows_the_screen_and_taps_by_shell() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let mut device = bench.device("pixel", sim.adb_addr(), "4.1");
    device.source = SourceKind::Screenrecord;
    device.server_jar = None;
    let worker = bench.worker(vec![device]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 20).await;
    assert!(router.frames("pixel")[0].info.key);
    router.input("pixel", 1, touch(TouchAction::Down, 50, 60, (320, 480)));
    router.input("pixel", 1, touch(TouchAction::Up, 50, 60, (320, 480)));
    until("the tap", || touches(&sim).iter().any(|t| (t.1, t.2) == (50, 60))).await;
    assert_eq!(router.seen.lock().broken, Vec::<String>::new());
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_viewer_that_leaves_and_a_router_that_dies_lift_their_fingers() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    router.input("pixel", 7, touch(TouchAction::Down, 10, 20, (320, 480)));
    router.input("pixel", 7, InputBody::ReleaseAll);
    until("the release", || touches(&sim).len() == 2).await;
    assert_eq!(touches(&sim)[1].0, "up");
    router.input("pixel", 8, touch(TouchAction::Down, 30, 40, (320, 480)));
    until("another finger", || touches(&sim).len() == 3).await;
    router.kill().await;
    until("its release", || touches(&sim).len() == 4).await;
    assert_eq!(touches(&sim)[3], ("up".to_owned(), 30, 40));
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn after_a_rotation_only_touches_on_the_new_picture_count() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "3.3.4")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    sim.rotate();
    let size = |unit: &[u8]| {
        let mut sets = ParameterSets::new();
        sets.absorb(unit);
        sets.facts().unwrap().map(|f| (f.width, f.height)).unwrap()
    };
    until("the wide picture", || {
        router.frames("pixel").iter().any(|f| f.info.key && size(&f.access_unit) == (480, 320))
    })
    .await;
    router.input("pixel", 1, touch(TouchAction::Down, 10, 400, (320, 480)));
    router.input("pixel", 1, touch(TouchAction::Down, 400, 10, (480, 320)));
    until("the touch", || !touches(&sim).is_empty()).await;
    assert_eq!(touches(&sim), [("down".to_owned(), 400, 10)]);
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn the_devices_clipboard_reaches_the_router() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    router.input("pixel", 1, InputBody::Text("typed".into()));
    router.input("pixel", 1, InputBody::GetClipboard { copy_key: CopyKey::Copy });
    until("the clipboard", || router.seen.lock().outputs.len() == 1).await;
    router.input("pixel", 1, InputBody::GetClipboard { copy_key: CopyKey::None });
    until("the clipboard again", || router.seen.lock().outputs.len() == 2).await;
    for output in &router.seen.lock().outputs {
        let message = DeviceMessage::decode(output).unwrap();
        assert_eq!(message.body, DeviceBody::Clipboard("typed".into()));
    }
    let text = InputBody::SetClipboard { paste: true, text: "gr\u{fc}n".into() };
    router.input("pixel", 1, text);
    until("the paste", || sim.inputs().iter().any(|r| r.text.as_deref() == Some("gr\u{fc}n")))
        .await;
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_keyframe_asked_for_on_a_still_screen_comes_within_two_seconds() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    sim.set_static(true);
    until("stillness", || {
        router.frames("pixel").last().unwrap().at.elapsed() > Duration::from_millis(500)
    })
    .await;
    let keys = || router.frames("pixel").iter().filter(|f| f.info.key).count();
    let before = keys();
    let asked = Instant::now();
    for _ in 0..5 {
        router.ask_keyframe("pixel");
    }
    until("a keyframe", || keys() > before).await;
    assert!(asked.elapsed() < Duration::from_secs(3));
    let resets = sim.inputs().iter().filter(|r| r.kind == "reset_video").count();
    assert_eq!(resets, 1, "five requests are one reset");
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_jar_that_cannot_be_used_is_the_devices_reason_and_mended_while_running() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let jar = bench.dir.path().join("mended.jar");
    let mut device = bench.device("pixel", sim.adb_addr(), "4.1");
    device.server_jar = Some(jar.clone());
    let worker = bench.worker(vec![device]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    let reason = || worker.fleet().devices()[0].reason.clone();
    until("missing", || reason().contains("cannot be read: No such file")).await;
    std::fs::write(&jar, b"PK not a server").unwrap();
    until("wrong", || reason().contains("which is no official scrcpy 4.1 server")).await;
    std::fs::copy(bench.jar("3.3.4"), &jar).unwrap();
    until("other", || reason().contains("is scrcpy 3.3.4, but server_version says 4.1")).await;
    std::fs::copy(bench.jar("4.1"), &jar).unwrap();
    until("frames", || router.frames("pixel").len() >= 5).await;
    assert_eq!(reason(), "");
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_publish_that_comes_before_its_assignment_is_tried_again() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    router.seen.lock().reject_first = 3;
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    assert_eq!(router.seen.lock().reject_first, 0);
    // A higher epoch takes over; what is not wanted any more ends.
    bench.want(&worker, router.addr, 2, &["pixel"]);
    until("the new epoch", || router.frames("pixel").iter().any(|f| f.publish == 1)).await;
    assert_eq!(router.seen.lock().publishes.last().unwrap().epoch, 2);
    assert_eq!(router.seen.lock().connections, 1, "a new epoch needs no new connection");
    bench.want(&worker, router.addr, 2, &[]);
    until("the end", || router.seen.lock().unpublished.len() >= 2).await;
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_router_with_another_name_gets_nothing() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let impostor = TestRouter::start(&bench.identity("router-2"));
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, impostor.addr, 1, &["pixel"]);
    until("the device", || worker.fleet().devices()[0].state() == device_status::State::Online)
        .await;
    let addr = impostor.kill().await;
    let router = TestRouter::start_on(&bench.identity("router-1"), addr).await;
    until("frames", || router.frames("pixel").len() >= 5).await;
    bench.end().await;
    sim.stop().await;
}

#[tokio::test]
async fn a_device_that_asks_for_a_key_gets_the_workers() {
    let mut bench = Bench::new();
    let sim = simulator(SimConfig { require_auth: true, ..small() }).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let devices = vec![bench.device("pixel", sim.adb_addr(), "4.1")];
    let without = bench.worker(devices.clone()).await;
    let reason = || without.fleet().devices()[0].reason.clone();
    until("the reason", || reason().contains("asks for an ADB key and none is configured")).await;
    let config = fanlight_ingest::IngestConfig {
        adb_key: Some(bench.dir.path().join("adbkey")),
        devices,
        ..fanlight_ingest::IngestConfig::default()
    };
    let identity = bench.identity("worker-1");
    let worker =
        fanlight_ingest::Worker::start_as(config, identity, 2, &bench.shutdown).await.unwrap();
    bench.want(&worker, router.addr, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 5).await;
    bench.end().await;
    sim.stop().await;
}
