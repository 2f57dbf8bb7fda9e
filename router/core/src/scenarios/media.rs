//! Promises about the picture.

use std::sync::Arc;
use std::time::Duration;

use fanlight_wire::input::DeviceBody;

use crate::world::{Link, STREAM, Source, World};
use crate::{DownReason, KeyframeReason, LeaveReason, Role, StreamInfo};

#[test]
fn late_joiner_gets_keyframe() {
    let mut w = World::new();
    let mut source = Source::new(1);
    source.play(&mut w, 60, true);
    let late = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(200));
    let frames = w.clients[late].frames();
    let indices: Vec<u64> = frames.iter().map(|f| f.0).collect();
    assert_eq!(indices, (0..60).collect::<Vec<u64>>(), "the whole group of pictures");
    let span = frames[59].1.wrapping_sub(frames[0].1);
    assert!(span < 90 * 20, "the past is compressed to less than 20 ms, not {span} ticks");
    assert!(w.keyframe_requests.is_empty(), "and the encoder was asked for nothing");
    // Live goes on from there.
    source.play(&mut w, 10, false);
    w.drive(Duration::from_millis(50));
    assert_eq!(w.clients[late].indices(), (0..70).collect::<Vec<u64>>());
}

#[test]
fn static_screen_join_shows_the_last_picture() {
    let mut w = World::new();
    let mut source = Source::new(1);
    source.play(&mut w, 1, true);
    w.drive(Duration::from_secs(30));
    let late = w.join_connected(Role::Observer);
    w.drive(Duration::from_secs(2));
    assert_eq!(w.clients[late].indices(), [0]);
    assert!(w.keyframe_requests.is_empty());
}

#[test]
fn joiner_without_cache_asks_once_and_again_only_if_unanswered() {
    let mut w = World::with(|c| c.limits.gop_frames_max = 10);
    let mut source = Source::new(1);
    source.play(&mut w, 20, true);
    assert_eq!(w.core.counters().gop_overflows, 1);
    for _ in 0..3 {
        w.join_connected(Role::Observer);
    }
    assert_eq!(w.keyframe_requests.len(), 1);
    assert_eq!(w.keyframe_requests[0].2, KeyframeReason::Join);
    w.drive(Duration::from_millis(1_500));
    assert_eq!(w.keyframe_requests.len(), 2, "the request may have been lost");
    source.play(&mut w, 5, true);
    w.drive(Duration::from_secs(5));
    assert_eq!(w.keyframe_requests.len(), 2, "answered");
    for client in &w.clients {
        assert_eq!(client.indices(), [20, 21, 22, 23, 24]);
    }
}

#[test]
fn pli_storm_is_one_request() {
    let mut w = World::new();
    let mut source = Source::new(1);
    let viewers: Vec<usize> = (0..8).map(|_| w.join_connected(Role::Observer)).collect();
    source.play(&mut w, 200, true); // past the age at which the cache answers
    let before = w.keyframe_requests.len();
    for round in 0..6 {
        for viewer in &viewers {
            w.pli(*viewer);
        }
        w.drive(Duration::from_millis(20));
        let _ = round;
    }
    assert!(w.core.counters().keyframe_wanted >= 40, "{:?}", w.core.counters());
    assert_eq!(w.keyframe_requests.len() - before, 1);
    assert_eq!(w.keyframe_requests.last().unwrap().2, KeyframeReason::Loss);
    // The keyframe answers all of them.
    source.play(&mut w, 1, true);
    w.drive(Duration::from_secs(3));
    assert_eq!(w.keyframe_requests.len() - before, 1);
}

#[test]
fn a_joiners_pli_is_answered_from_the_cache() {
    let mut w = World::new();
    let mut source = Source::new(1);
    source.play(&mut w, 30, true);
    let v = w.join_connected(Role::Observer);
    source.play(&mut w, 30, false);
    w.pli(v);
    w.drive(Duration::from_millis(300));
    assert!(w.keyframe_requests.is_empty());
    assert_eq!(w.core.counters().gop_replays, 2);
    // First the group as of the join, live after it, then the whole group again, seamlessly.
    let got = w.clients[v].indices();
    assert_eq!(got.len(), 60 + 60);
    assert_eq!(&got[60..], (0..60).collect::<Vec<u64>>());
}

#[test]
fn source_restart_is_seamless() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    Source::new(1).play(&mut w, 30, true);
    w.core.stream_down(w.now, STREAM, DownReason::Offline);
    w.drive(Duration::from_secs(2));
    w.core.stream_up(w.now, STREAM, StreamInfo::new("streams/test", 2));
    w.drain_core();
    // The old source's last words are ignored, the new one begins with other numbers.
    let mut old = Source::new(1);
    old.index = 30;
    w.frame(old.next(true));
    let mut new = Source::new(2);
    new.rtp_time += 90_000 * 1_800; // half an hour ahead: another clock, not a pause
    new.index = 1_000;
    new.play(&mut w, 30, true);
    w.drive(Duration::from_millis(100));
    // `frames` checks continuity of sequence numbers and time stamps.
    let frames = w.clients[v].frames();
    assert_eq!(frames.len(), 60);
    let jump = frames[30].1.wrapping_sub(frames[29].1);
    assert!((170_000..200_000).contains(&jump), "two seconds on the wall, {jump} ticks");
    assert_eq!(w.core.counters().frames_refused, 1);
    assert!(w.gone.is_empty());
}

#[test]
fn a_lost_source_frame_freezes_until_the_next_keyframe() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 10, true);
    let _lost = source.next(false);
    source.play(&mut w, 5, false);
    assert_eq!(w.keyframe_requests.len(), 2, "one for the join, one for the gap");
    assert_eq!(w.keyframe_requests[1].2, KeyframeReason::Gap);
    let late = w.join_connected(Role::Observer);
    source.play(&mut w, 5, true);
    w.drive(Duration::from_millis(100));
    assert_eq!(w.clients[v].indices(), (0..10).chain(16..21).collect::<Vec<u64>>());
    assert_eq!(w.clients[late].indices(), (16..21).collect::<Vec<u64>>());
}

#[test]
fn a_source_that_resumes_within_a_group_is_asked_for_a_keyframe() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 5, true);
    w.core.stream_down(w.now, STREAM, DownReason::Offline);
    w.drain_core();
    w.core.stream_up(w.now, STREAM, StreamInfo::new("streams/test", 1));
    w.drain_core();
    let before = w.keyframe_requests.len();
    w.drive(Duration::from_secs(1));
    source.play(&mut w, 5, false);
    assert_eq!(w.keyframe_requests.len(), before + 1);
    source.play(&mut w, 2, true);
    w.drive(Duration::from_millis(50));
    assert_eq!(w.clients[v].indices(), [0, 1, 2, 3, 4, 10, 11]);
}

#[test]
fn media_does_not_touch_the_protocol_library() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    w.clients[v].dead = true; // no feedback that would cause polls
    let mut source = Source::new(1);
    let before = w.core.counters().rtc_polls;
    source.play(&mut w, 90, true);
    let busy = w.core.counters().rtc_polls - before;
    assert!(busy < 30, "{busy} polls for 90 frames");
    w.drive(Duration::from_secs(5));
    let idle = w.core.counters().rtc_polls - before - busy;
    assert!(idle < 60, "{idle} polls in five idle seconds");
}

#[test]
fn loss_is_repaired_without_the_encoder() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 1, true);
    w.drive(Duration::from_millis(50));
    w.link = Link { loss: 0.05, ..Link::default() };
    source.play(&mut w, 300, false);
    w.link = Link::default();
    w.drive(Duration::from_secs(1));
    let got = w.clients[v].indices();
    assert_eq!(got.len(), 301, "every frame is complete");
    assert_eq!(w.keyframe_requests.len(), 1, "only the join's");
}

#[test]
fn what_a_source_sends_at_once_after_a_pause_reaches_everyone() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 1, true);
    w.drive(Duration::from_secs(2));
    for _ in 0..60 {
        let frame = source.next(false);
        w.offer(frame);
    }
    w.drain_core();
    w.drive(Duration::from_millis(300));
    assert_eq!(w.clients[v].indices(), (0..61).collect::<Vec<u64>>());
    assert_eq!(w.core.counters().viewers_lagged, 0);
}

#[test]
fn a_shard_that_was_late_moves_its_viewers_on_to_the_newest_keyframe() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 5, true);
    let before = w.keyframe_requests.len();
    for i in 0..30 {
        let frame = source.next(i == 20);
        w.offer(frame);
        w.now += Duration::from_micros(33_333);
    }
    w.drain_core();
    w.drive(Duration::from_millis(100));
    assert_eq!(w.clients[v].indices(), (0..5).chain(25..35).collect::<Vec<u64>>());
    assert_eq!(w.keyframe_requests.len(), before, "there is one already");
    // Without a keyframe among what waits, it is sent late, ...
    for _ in 0..30 {
        let frame = source.next(false);
        w.offer(frame);
        w.now += Duration::from_micros(33_333);
    }
    w.drain_core();
    w.drive(Duration::from_millis(100));
    assert_eq!(w.clients[v].indices(), (0..5).chain(25..65).collect::<Vec<u64>>());
    assert_eq!(w.keyframe_requests.len(), before);
    // ... unless it is of the day before yesterday.
    for _ in 0..70 {
        let frame = source.next(false);
        w.offer(frame);
        w.now += Duration::from_micros(33_333);
    }
    w.drain_core();
    assert_eq!(w.keyframe_requests.len(), before + 1);
    assert_eq!(w.core.counters().viewers_lagged, 1);
    source.play(&mut w, 2, true);
    w.drive(Duration::from_millis(50));
    assert_eq!(*w.clients[v].indices().last().unwrap(), 136);
    assert!(w.gone.is_empty());
}

#[test]
fn a_dead_viewer_does_not_delay_the_others() {
    let mut w = World::new();
    let dead = w.join_connected(Role::Controller);
    let alive = w.join_connected(Role::Observer);
    w.clients[dead].dead = true;
    let mut source = Source::new(1);
    for i in 0..120 {
        let sent = w.now;
        w.frame(source.next(i == 0));
        w.drive(Duration::from_micros(33_333));
        let (at, packet) = w.clients[alive].packets.last().unwrap();
        let index = u64::from_be_bytes(packet.payload[1..9].try_into().unwrap());
        assert_eq!(index, i);
        assert_eq!(*at, sent + Duration::from_millis(5), "exactly the link's delay");
    }
}

#[test]
fn a_large_replay_is_paced_and_complete() {
    let mut w = World::new();
    let mut source = Source::new(1);
    source.packets = 10;
    source.play(&mut w, 100, true); // 1,000 packets
    let v = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(300));
    assert_eq!(w.clients[v].indices(), (0..100).collect::<Vec<u64>>());
    // Never more than the pacing allows in any tick.
    let mut at: Vec<_> = w.clients[v].packets.iter().map(|(at, _)| *at).collect();
    at.sort();
    for window in at.windows(97) {
        assert!(window[96] - window[0] >= Duration::from_millis(4));
    }
}

#[test]
fn a_new_size_is_told_to_everyone() {
    let mut w = World::new();
    let v = w.join_connected(Role::Controller);
    let mut source = Source::new(1);
    source.play(&mut w, 2, true);
    let mut turned = *source.params;
    (turned.width, turned.height) = (1280, 720);
    source.params = Arc::new(turned);
    source.play(&mut w, 2, true);
    source.play(&mut w, 2, true);
    let sizes: Vec<(u16, u16)> = w.clients[v]
        .messages
        .iter()
        .map(|m| match m.body {
            DeviceBody::Session { w, h, .. } => (w, h),
            _ => panic!("only session messages are expected"),
        })
        .collect();
    assert_eq!(sizes, [(0, 0), (720, 1280), (1280, 720)]);
}

#[test]
fn a_controllers_frame_leaves_before_observers_fill_the_batch() {
    let mut w = World::new();
    let mut source = Source::new(1);
    for role in [Role::Observer, Role::Observer, Role::Controller, Role::Observer] {
        w.join_connected(role);
    }
    source.play(&mut w, 2, true);
    w.drive(Duration::from_millis(50));
    let frame = source.next(false);
    w.core.frame(w.now, STREAM, frame);
    assert!(w.core.controllers_wait());
    let mut batch = crate::Batch::new(16, 96 * 1024);
    assert!(w.core.poll_media(w.now, &mut batch));
    let controllers: Vec<bool> = batch.runs().iter().map(|run| run.controller).collect();
    assert_eq!(controllers, [true], "the first batch is the controller's alone");
    assert!(!w.core.controllers_wait());
    assert!(w.core.poll_media(w.now, &mut batch));
    let controllers: Vec<bool> = batch.runs().iter().map(|run| run.controller).collect();
    assert_eq!(controllers, [false; 3]);
}

#[test]
fn playout_delay_is_zero_for_controllers_and_bounded_for_observers() {
    let mut w = World::new();
    let controller = w.join_connected(Role::Controller);
    let observer = w.join_connected(Role::Observer);
    Source::new(1).play(&mut w, 40, true);
    for (viewer, max_ms) in [(controller, 0), (observer, 100)] {
        let packets = &w.clients[viewer].packets;
        for (_, packet) in packets {
            let values = &packet.header.ext_vals;
            let ms = |t: Option<str0m::media::MediaTime>| t.unwrap().as_micros() / 1_000;
            assert_eq!((ms(values.play_delay_min), ms(values.play_delay_max)), (0, max_ms));
        }
        let stamped =
            packets.iter().filter(|(_, p)| p.header.ext_vals.abs_capture_time.is_some()).count();
        assert_eq!(stamped, 2, "the capture time, once a second");
    }
}

#[test]
fn frames_beyond_a_bound_are_refused() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    let mut huge = (*source.next(true)).clone();
    huge.payloads[0] = vec![0; 3_000].into();
    w.frame(Arc::new(huge.clone()));
    huge.payloads.clear();
    w.frame(Arc::new(huge));
    w.core.frame(w.now, crate::StreamKey(99), source.next(true));
    w.drive(Duration::from_millis(50));
    assert_eq!(w.core.counters().frames_refused, 3);
    assert!(w.clients[v].packets.is_empty());
    w.core.leave(w.now, w.clients[v].session, LeaveReason::Kicked);
    w.drain_core();
}
