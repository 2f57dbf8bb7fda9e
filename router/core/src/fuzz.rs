//! The bodies of the fuzz targets: each feeds a stranger's bytes to the core and panics where a
//! promise is broken. Here rather than in `fuzz/`, so that ordinary tests run them over seeds.
//!
//! The fuzzer's own panic hook ends the process even on a caught panic, so that a panic within the
//! protocol library shows, though the core would survive it.
#![allow(clippy::unwrap_used, reason = "a surprise is a finding")]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use crate::counters::Counters;
use crate::input::{Inputs, Standing};
use crate::limits::{HELD_POINTERS_MAX, Limits, OFFER_BYTES_MAX};
use crate::world::{SERVER, STREAM, Source, World, epoch};
use crate::{
    Core, CoreConfig, JoinError, JoinRequest, Role, Route, SessionId, SpsFacts, StreamInfo,
    parse_offer,
};

/// An offer: read, and answered if it can be. A refused one leaves nothing behind, an answered one
/// has as many sections as the offer.
pub fn offer(bytes: &[u8]) {
    thread_local!(static CORE: RefCell<Option<Core>> = const { RefCell::new(None) });
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = match parse_offer(text) {
        Ok(parsed) => parsed,
        Err(JoinError::Internal) => panic!("the protocol library panicked on a canonical offer"),
        Err(error) => {
            assert!(error.to_string().len() < 16_384, "a refusal is short");
            return;
        }
    };
    CORE.with_borrow_mut(|core| {
        let now = epoch();
        let core = core.get_or_insert_with(|| {
            let mut core = Core::new(CoreConfig::new(vec![SERVER.parse().unwrap()]), now, 1);
            core.stream_up(now, STREAM, StreamInfo::new("streams/fuzz", 1));
            core
        });
        let request = JoinRequest {
            id: SessionId(1),
            stream: STREAM,
            offer: parsed,
            viewer: "fuzz".into(),
            role: Role::Observer,
            max_session: None,
            user_agent: None,
        };
        match core.join(now, request) {
            Ok(answer) => {
                let sections = |sdp: &str| sdp.lines().filter(|l| l.starts_with("m=")).count();
                assert_eq!(sections(&answer.sdp), sections(text));
                assert!(answer.sdp.lines().all(|l| !l.contains('\n')));
            }
            Err(JoinError::Internal) => panic!("the protocol library panicked"),
            Err(_) => {}
        }
        core.leave(now, SessionId(1), crate::LeaveReason::Deleted);
        while core.poll_output().is_some() {}
        assert_eq!(core.viewer_entries(), 0);
        assert_eq!(core.counters().viewer_panics, 0);
    });
}

struct Connected {
    world: World,
    source: Source,
}

impl Connected {
    fn new() -> Self {
        let mut world = World::new();
        let mut source = Source::new(1);
        world.frame(source.next(true));
        world.join_connected(Role::Controller);
        Self { world, source }
    }
}

/// Datagrams into a core with a connected viewer: from a stranger, and from the viewer's own
/// address. Each is preceded by a byte that says from where, and one of length.
pub fn datagram(mut bytes: &[u8]) {
    thread_local!(static WORLD: RefCell<Option<Connected>> = const { RefCell::new(None) });
    WORLD.with_borrow_mut(|slot| {
        let here = slot.get_or_insert_with(Connected::new);
        let world = &mut here.world;
        while let [from, len, rest @ ..] = bytes {
            let (datagram, tail) = rest.split_at(rest.len().min(usize::from(*len)));
            bytes = tail;
            let from = match from % 3 {
                0 => "203.0.113.9:999".parse().unwrap(),
                _ => world.clients[0].address,
            };
            world.core.datagram(world.now, Route::udp(from), SERVER.parse().unwrap(), datagram);
            world.drain_core();
        }
        let frame = here.source.next(false);
        world.frame(frame);
        world.now += Duration::from_millis(1);
        world.core.timeout(world.now);
        world.drain_core();
        assert_eq!(world.core.counters().viewer_panics, 0);
        assert!(world.core.viewer_entries() < 64);
        assert!(world.gone.is_empty(), "forged bytes ended a viewer: {:?}", world.gone);
        // The viewer's own clock does not run here, so that it would time out at some point.
        if world.now - world.start > Duration::from_secs(5) {
            *slot = None;
        }
    });
}

/// Input messages of a controller, each preceded by a byte of waiting time and one of length.
pub fn input(mut bytes: &[u8]) {
    let limits = Limits { input_rate: 50, input_burst: 10, ..Limits::default() };
    let mut now = epoch();
    let mut inputs = Inputs::new(now, &limits);
    let mut counters = Counters::default();
    let (mut total, mut sent) = (0u64, 0u64);
    while let [wait, len, rest @ ..] = bytes {
        let (message, tail) = rest.split_at(rest.len().min(usize::from(*len)));
        bytes = tail;
        now += Duration::from_millis(u64::from(*wait));
        if inputs.wake().is_some_and(|at| at <= now) {
            sent += inputs.release_waiting(now, &limits, &mut counters).len() as u64;
        }
        let role = if wait % 5 == 0 { Role::Observer } else { Role::Controller };
        let standing = Standing { role, online: wait % 7 != 0 };
        total += 1;
        let handled = inputs.handle(now, standing, message, &limits, &mut counters);
        if standing.role == Role::Observer || !standing.online {
            assert!(handled.to_device.is_empty(), "without permission nothing is sent");
        }
        sent += handled.to_device.len() as u64;
        assert!(handled.to_device.len() <= HELD_POINTERS_MAX + 1);
    }
    assert!(sent <= total, "nothing is sent twice");
    assert_eq!(sent, counters.inputs_forwarded);
    let _ = inputs.release_all();
    assert_eq!(inputs.release_all(), None);
}

/// Facts about a stream that nobody could decode choose no format, and never panic.
pub fn codec(bytes: &[u8]) {
    let [a, b, c, rest @ ..] = bytes else { return };
    let facts = SpsFacts {
        width: 16,
        height: 16,
        profile_idc: *a,
        constraint_flags: *b,
        level_idc: *c,
        max_num_reorder_frames: None,
    };
    let offered: Vec<crate::codec::OfferedH264> = rest
        .chunks_exact(3)
        .take(32)
        .zip(96..)
        .map(|(id, pt)| crate::codec::OfferedH264 {
            pt,
            rtx: None,
            id: [id[0], id[1], id[2]],
            level_asymmetry: true,
            nack: true,
            pli: true,
            twcc: true,
            fir: true,
        })
        .collect();
    let chosen = crate::codec::choose(&offered, &[], Some(&Arc::new(facts)), None);
    assert!(chosen.is_err() || !offered.is_empty());
}

/// Largest input that a target makes use of.
pub const MAX_LEN: usize = OFFER_BYTES_MAX + 1;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const VIDEO_DATA: &str = include_str!("../testdata/chromium-156-video-data.sdp");
    const AUDIO_VIDEO: &str = include_str!("../testdata/chromium-156-audio-video.sdp");

    #[test]
    fn mutated_offers_break_no_promise() {
        let mut random = StdRng::seed_from_u64(11);
        for text in [VIDEO_DATA, AUDIO_VIDEO] {
            super::offer(text.as_bytes());
            let lines: Vec<&str> = text.lines().collect();
            for _ in 0..400 {
                let mut lines = lines.clone();
                for _ in 0..random.random_range(1..4) {
                    let (a, b) =
                        (random.random_range(0..lines.len()), random.random_range(0..lines.len()));
                    match random.random_range(0..4) {
                        0 => drop(lines.remove(a)),
                        1 => lines.swap(a, b),
                        2 => lines.insert(a, lines[b]),
                        _ => lines[a] = &lines[a][..lines[a].len() / 2],
                    }
                }
                super::offer((lines.join("\r\n") + "\r\n").as_bytes());
            }
        }
    }

    #[test]
    fn random_datagrams_inputs_and_profiles_break_no_promise() {
        let mut random = StdRng::seed_from_u64(12);
        for round in 0..300 {
            let mut bytes = vec![0u8; random.random_range(0..400)];
            random.fill(&mut bytes[..]);
            if round % 2 == 0 && bytes.len() > 2 {
                bytes[2] = [0, 20, 23, 128][round / 2 % 4];
            }
            super::datagram(&bytes);
            super::input(&bytes);
            super::codec(&bytes);
        }
    }
}
