//! Recordings that replace one another before their time limit: nothing of it is seen.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{simulator, small};
use fanlight_adb::{AdbConnection, AdbDevice, ConnectOptions};
use fanlight_ingest::{
    DeviceConfig, shared::Shared, source::screenrecord::run_with, uplink::Host as _,
};
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_replaced_recording_leaves_no_gap_and_goes_on_with_a_keyframe() {
    const LIFE: Duration = Duration::from_millis(700);
    let sim = simulator(small()).await;
    let connection =
        AdbConnection::connect(sim.adb_addr(), ConnectOptions::default()).await.unwrap();
    let device = AdbDevice::from(connection);
    let shared = Arc::new(Shared::new("pixel".into(), 4_000_000));
    let (sink, commands) = shared.start_capture();
    let mut frames = shared.feed().subscribe().frames;
    let running = tokio::spawn(async move {
        let config = DeviceConfig::default();
        run_with(&config, &device, sink, commands, LIFE).await
    });
    let end = Instant::now() + 5 * LIFE;
    let mut seen = Vec::new();
    while Instant::now() < end {
        // A keyframe's worth of drawing and encoding on a busy machine.
        let next = timeout(Duration::from_secs(2), frames.recv()).await;
        seen.push((Instant::now(), next.expect("pictures go on").unwrap()));
    }
    assert!(!running.is_finished(), "{:?}", running.await);
    assert!(seen[0].1.key);
    for pair in seen.windows(2) {
        assert_eq!(pair[1].1.index, pair[0].1.index + 1);
        assert!(pair[1].1.rtp_time > pair[0].1.rtp_time);
    }
    // The recordings made by the device within that time; the first picture of each is a keyframe.
    let keys = seen.iter().filter(|(_, f)| f.key).count();
    assert!(keys >= 3, "{keys} keyframes");
    let longest = seen.windows(2).map(|p| p[1].0 - p[0].0).max().unwrap();
    println!("{} frames, {keys} keyframes, longest gap {longest:?}", seen.len());
    shared.stop_capture();
    let ended = timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().to_string(), "stopped");
    sim.stop().await;
}
