//! A path that stalls: the worker cancels what is late and goes on at a keyframe, so that the router
//! never gets a picture whose reference is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{Bench, router::TestRouter, simulator, small, until};
use tokio::net::UdpSocket;

/// A UDP relay for one client that can be shut. While it is shut everything is lost.
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    back.connect(to).await.unwrap();
    let addr = front.local_addr().unwrap();
    let shut = Arc::new(AtomicBool::new(false));
    let client = Arc::new(parking_lot::Mutex::new(None));
    {
        let (front, back) = (Arc::clone(&front), Arc::clone(&back));
        let (shut, client) = (Arc::clone(&shut), Arc::clone(&client));
        tokio::spawn(async move {
            let mut buf = vec![0; 65_536];
            while let Ok((n, from)) = front.recv_from(&mut buf).await {
                *client.lock() = Some(from);
                if !shut.load(Ordering::Relaxed) {
                    let _ = back.send(&buf[..n]).await;
                }
            }
        });
    }
    let gate = Arc::clone(&shut);
    tokio::spawn(async move {
        let mut buf = vec![0; 65_536];
        while let Ok(n) = back.recv(&mut buf).await {
            let to = *client.lock();
            if let (Some(to), false) = (to, gate.load(Ordering::Relaxed)) {
                let _ = front.send_to(&buf[..n], to).await;
            }
        }
    });
    (addr, shut)
}

#[tokio::test]
async fn after_a_stall_the_first_picture_is_a_keyframe() {
    let mut bench = Bench::new();
    let sim = simulator(small()).await;
    let router = TestRouter::start(&bench.identity("router-1"));
    let (front, shut) = relay(router.addr).await;
    let worker = bench.worker(vec![bench.device("pixel", sim.adb_addr(), "4.1")]).await;
    bench.want(&worker, front, 1, &["pixel"]);
    until("frames", || router.frames("pixel").len() >= 10).await;
    shut.store(true, Ordering::Relaxed);
    // Longer than a frame may be late, shorter than the connection's idle time.
    tokio::time::sleep(Duration::from_millis(600)).await;
    shut.store(false, Ordering::Relaxed);
    let newest = router.frames("pixel").last().map(|f| (f.publish, f.rtp_time));
    until("frames after it", || {
        let frames = router.frames("pixel");
        let at = frames.iter().position(|f| Some((f.publish, f.rtp_time)) == newest);
        at.is_some_and(|at| frames.len() > at + 20)
    })
    .await;
    let frames = router.frames("pixel");
    let mut holes = 0;
    for pair in frames.windows(2) {
        let next = pair[0].first_seq.wrapping_add(u16::try_from(pair[0].packets).unwrap());
        if pair[1].first_seq != next {
            holes += 1;
            assert!(pair[1].info.key, "a picture came whose reference is missing");
        }
    }
    assert!(holes >= 1, "the stall was not long enough to cancel anything");
    assert_eq!(router.seen.lock().broken, Vec::<String>::new());
    bench.end().await;
    sim.stop().await;
}
