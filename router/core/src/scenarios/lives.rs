//! Promises about the lives of viewers: they come, go, fall silent, misbehave, and leave nothing.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::world::{Link, STREAM, Source, World};
use crate::{DownReason, GoneReason, JoinError, LeaveReason, Role, Route, StreamKey};

#[test]
fn join_then_leave_200_times_leaves_no_state() {
    let mut w = World::new();
    Source::new(1).play(&mut w, 2, true);
    let before = w.core.viewer_entries();
    for i in 0..200 {
        let v = w.join_connected(if i % 2 == 0 { Role::Controller } else { Role::Observer });
        match i % 4 {
            0 | 1 => w.core.leave(w.now, w.clients[v].session, LeaveReason::Deleted),
            2 => w.client_closes(v),
            _ => {
                // Leaves before it ever connected.
                let early = w.join(Role::Observer);
                let session = w.clients[early].session;
                w.core.leave(w.now, session, LeaveReason::Deleted);
                w.clients[early].dead = true;
                w.core.leave(w.now, w.clients[v].session, LeaveReason::Kicked);
            }
        }
        w.drain_core();
        w.drive(Duration::from_millis(40));
        w.clients[v].dead = true;
    }
    w.drive(Duration::from_secs(2));
    assert_eq!(w.core.viewer_count(), 0);
    assert_eq!(w.core.viewer_entries(), before);
    assert_eq!(w.gone.len(), 250);
    let counters = w.core.counters();
    assert_eq!(counters.viewers_joined, counters.viewers_gone);
    assert_eq!(w.gone.iter().filter(|g| g.1 == GoneReason::ClosedByViewer).count(), 50);
}

#[test]
fn silent_viewer_is_dropped_after_deadline() {
    let mut w = World::new();
    let v = w.join(Role::Observer);
    w.clients[v].dead = true;
    w.drive(Duration::from_millis(14_900));
    assert!(w.gone.is_empty());
    w.drive(Duration::from_millis(200));
    assert_eq!(w.gone, [(w.clients[v].session, GoneReason::NeverConnected)]);
    assert_eq!(w.core.viewer_entries(), 0);
}

#[test]
fn a_viewer_that_falls_silent_is_dropped() {
    let mut w = World::new();
    let silent = w.join_connected(Role::Observer);
    let other = w.join_connected(Role::Observer);
    w.clients[silent].dead = true;
    w.drive(Duration::from_secs(40));
    assert_eq!(w.gone, [(w.clients[silent].session, GoneReason::ConnectionLost)]);
    assert_eq!(w.core.viewers_of(STREAM), 1);
    assert!(w.core.viewer_stats(w.clients[other].session).is_some());
}

#[test]
fn a_session_ends_when_its_time_is_over() {
    let mut w = World::new();
    w.max_session = Some(Duration::from_secs(20));
    let v = w.join_connected(Role::Observer);
    w.max_session = None;
    let other = w.join_connected(Role::Observer);
    w.drive(Duration::from_secs(19));
    assert!(w.gone.is_empty());
    w.drive(Duration::from_secs(2));
    assert_eq!(w.gone, [(w.clients[v].session, GoneReason::SessionOver)]);
    assert!(!w.clients[v].rtc.is_alive(), "the client heard the farewell");
    assert!(w.clients[other].rtc.is_alive());
}

#[test]
fn a_viewer_that_makes_the_library_panic_is_dropped_alone() {
    let mut w = World::new();
    let bad = w.join_connected(Role::Controller);
    let good = w.join_connected(Role::Observer);
    let mut source = Source::new(1);
    source.play(&mut w, 5, true);
    w.core.provoke_panic(w.clients[bad].session);
    w.drain_core();
    source.play(&mut w, 5, false);
    w.drive(Duration::from_millis(50));
    assert_eq!(w.gone, [(w.clients[bad].session, GoneReason::ProtocolError)]);
    assert_eq!(w.core.counters().viewer_panics, 1);
    assert_eq!(w.clients[good].indices(), (0..10).collect::<Vec<u64>>());
    assert_eq!(w.core.viewers_of(STREAM), 1);
}

#[test]
fn garbage_datagrams_change_nothing() {
    let mut w = World::new();
    let v = w.join_connected(Role::Controller);
    let mut source = Source::new(1);
    source.play(&mut w, 5, true);
    let entries = |w: &World| (w.core.viewer_count(), w.core.viewers_of(STREAM));
    let before = entries(&w);
    let mut random = StdRng::seed_from_u64(3);
    let stranger = "203.0.113.9:999".parse().unwrap();
    let server = crate::world::SERVER.parse().unwrap();
    for round in 0..4_000u32 {
        let mut bytes = vec![0u8; random.random_range(0..200)];
        random.fill(&mut bytes[..]);
        if let Some(first) = bytes.first_mut() {
            *first = [0, 1, 20, 22, 23, 63, 128, 200, 255][round as usize % 9];
        }
        w.core.datagram(w.now, Route::udp(stranger), server, &bytes);
        // The same from the viewer's own (forged) address.
        let own = w.clients[v].address;
        w.core.datagram(w.now, Route::udp(own), server, &bytes);
        w.drain_core();
    }
    assert_eq!(entries(&w), before);
    assert!(w.gone.is_empty(), "{:?}", w.gone);
    assert_eq!(w.core.counters().viewer_panics, 0);
    // And the viewer still sees its picture.
    source.play(&mut w, 5, false);
    w.drive(Duration::from_millis(100));
    assert_eq!(w.clients[v].indices(), (0..10).collect::<Vec<u64>>());
}

#[test]
fn stun_with_a_wrong_password_teaches_no_address() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    // A check as the client makes it, replayed from elsewhere with one byte of its integrity off.
    let ufrag = w.clients[v]
        .answer
        .lines()
        .find_map(|l| l.strip_prefix("a=ice-ufrag:"))
        .unwrap()
        .to_owned();
    let name = format!("{ufrag}:remote");
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.extend([7u8; 12]);
    stun.extend([0, 6, 0, u8::try_from(name.len()).unwrap()]);
    stun.extend(name.as_bytes());
    stun.resize(stun.len().next_multiple_of(4), 0);
    stun.extend([0, 0x24, 0, 4, 0, 0, 0, 1]);
    stun.extend([0, 8, 0, 20]);
    stun.extend([9u8; 20]);
    stun[3] = u8::try_from(stun.len() - 20).unwrap();
    let stranger = "203.0.113.9:999".parse().unwrap();
    let before = w.core.viewer_entries();
    w.core.datagram(w.now, Route::udp(stranger), crate::world::SERVER.parse().unwrap(), &stun);
    w.drain_core();
    assert_eq!(w.core.counters().stun_rejected, 1);
    assert_eq!(w.core.viewer_entries(), before);
}

#[test]
fn a_removed_stream_closes_its_viewers() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    let early = w.join(Role::Observer);
    w.core.stream_removed(w.now, STREAM, DownReason::Deleted);
    w.drain_core();
    w.drive(Duration::from_secs(2));
    let reason = GoneReason::StreamRemoved(DownReason::Deleted);
    let mut gone = w.gone.clone();
    gone.sort_by_key(|g| g.0);
    assert_eq!(gone, [(w.clients[v].session, reason), (w.clients[early].session, reason)]);
    assert_eq!((w.core.stream_count(), w.core.viewer_entries()), (0, 0));
}

#[test]
fn joins_are_refused_in_words() {
    let mut w = World::with(|c| c.limits.viewers_max = 1);
    w.core.stream_down(w.now, STREAM, DownReason::Offline);
    assert_eq!(w.try_join(Role::Observer).unwrap_err(), JoinError::DeviceOffline);
    w.core.stream_removed(w.now, STREAM, DownReason::Deleted);
    assert_eq!(w.try_join(Role::Observer).unwrap_err(), JoinError::UnknownStream);
    w.core.stream_up(w.now, STREAM, crate::StreamInfo::new("streams/test", 5));
    w.join(Role::Observer);
    assert_eq!(w.try_join(Role::Observer).unwrap_err(), JoinError::Full);
    assert_eq!(w.core.counters().joins_refused, 3);
    assert_eq!(w.core.viewer_count(), 1);
}

#[test]
fn joins_succeed_over_a_bad_network() {
    let mut w = World::new();
    w.link =
        Link { loss: 0.1, delay: Duration::from_millis(40), jitter: Duration::from_millis(30) };
    let mut source = Source::new(1);
    source.play(&mut w, 10, true);
    let viewers: Vec<usize> = (0..5).map(|_| w.join(Role::Observer)).collect();
    w.drive_until(Duration::from_secs(14), |w| viewers.iter().all(|v| w.clients[*v].connected));
    assert_eq!(w.connected.len(), 5);
}

#[test]
fn streams_have_a_bound() {
    let mut w = World::with(|c| c.limits.streams_max = 3);
    for key in 10..20 {
        w.core.stream_up(w.now, StreamKey(key), crate::StreamInfo::new("streams/x", 1));
    }
    assert_eq!(w.core.stream_count(), 3);
    assert_eq!(w.core.counters().streams_refused, 8);
}

#[test]
fn a_viewer_with_too_many_channels_is_dropped() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    for i in 0..20 {
        let mut changes = w.clients[v].rtc.sdp_api();
        changes.add_channel(format!("more-{i}"));
        assert!(changes.apply().is_none(), "no renegotiation for a further channel");
    }
    w.drive(Duration::from_secs(1));
    assert_eq!(w.gone, [(w.clients[v].session, GoneReason::ProtocolError)]);
    assert_eq!(w.core.viewer_entries(), 0);
}
