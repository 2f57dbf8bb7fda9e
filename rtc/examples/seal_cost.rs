//! What sealing and opening cost in each profile, and how large the contexts are: run it with
//! `cargo run --release -p fanlight-rtc --example seal_cost`. Not a benchmark of the router: one
//! core, no sockets. Invariant: each figure is the best of several repeats.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring tool")]

use std::hint::black_box;
use std::time::Instant;

use fanlight_rtc::srtp::{Contexts, Keying, Profile, RtcpOpener, RtcpSealer, RtpOpener, RtpSealer};

const HEADER: usize = 28;
const PAYLOAD: usize = 1_172;
const REPEATS: usize = 15;

/// Nanoseconds of one call, the best of some runs of so many calls.
fn best(calls: u32, mut run: impl FnMut(u32)) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..REPEATS {
        let start = Instant::now();
        run(calls);
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(calls));
    }
    best
}

fn keying(profile: Profile, seed: u8, active: bool) -> Keying {
    let material: Vec<u8> = (0..profile.material_len())
        .map(|i| u8::try_from(i).unwrap_or(0).wrapping_mul(29).wrapping_add(seed))
        .collect();
    Keying::new(profile, &material, active).unwrap()
}

fn rtp(profile: Profile) {
    let payload = vec![0x5a; PAYLOAD];
    let mut datagram = vec![0x80; HEADER + PAYLOAD + 16];
    let one = RtpSealer::derive(&keying(profile, 0, false)).unwrap();
    let hot = best(20_000, |calls| {
        for index in 0..calls {
            let len = one.seal(u64::from(index), 9, HEADER, &payload, &mut datagram);
            assert!(black_box(len).is_some());
        }
    });
    // As in a fan-out: the packets of a frame for one viewer, then for the next.
    let many: Vec<RtpSealer> = (0..=u8::MAX)
        .cycle()
        .take(2_000)
        .map(|i| RtpSealer::derive(&keying(profile, i, false)).unwrap())
        .collect();
    let mut buffer = vec![0x80; 16 * 5 * (HEADER + PAYLOAD + 16)];
    let mut frame = 0;
    let round_robin = best(10_000, |_| {
        frame += 1;
        for (viewer, sealer) in many.iter().enumerate() {
            let slot = viewer % 16 * 5;
            for packet in 0..5 {
                let at = (slot + packet) * (HEADER + PAYLOAD + 16);
                let index = frame * 5 + packet as u64;
                let len = sealer.seal(index, 9, HEADER, &payload, &mut buffer[at..]);
                assert!(black_box(len).is_some());
            }
        }
    });
    println!(
        "{profile:?}: seal of {PAYLOAD} B {hot:.0} ns; 2,000 keys, 5 in a row {round_robin:.0} ns"
    );
}

fn rtcp(profile: Profile) {
    let compound = vec![0x80; 72];
    let derive = best(200, |calls| {
        for _ in 0..calls {
            black_box(Contexts::derive(&keying(profile, 0, false)).unwrap());
        }
    });
    let mut sealer = RtcpSealer::derive(&keying(profile, 0, false)).unwrap();
    let mut opener = RtcpOpener::derive(&keying(profile, 0, true)).unwrap();
    let mut packets = vec![Vec::new(); 5_000];
    let (mut protect, mut open) = (f64::MAX, f64::MAX);
    let mut clear = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        for packet in &mut packets {
            sealer.protect(&compound, packet).unwrap();
        }
        protect = protect.min(start.elapsed().as_secs_f64() * 1e9 / 5_000.0);
        let start = Instant::now();
        for packet in &packets {
            opener.open(packet, &mut clear).unwrap();
        }
        open = open.min(start.elapsed().as_secs_f64() * 1e9 / 5_000.0);
    }
    println!(
        "{profile:?}: RTCP of 72 B protect {protect:.0} ns, open {open:.0} ns; all four contexts \
         {:.1} us",
        derive / 1e3
    );
}

fn main() {
    println!(
        "size_of: RtpSealer {}, RtcpSealer {}, RtcpOpener {}, RtpOpener {}",
        size_of::<RtpSealer>(),
        size_of::<RtcpSealer>(),
        size_of::<RtcpOpener>(),
        size_of::<RtpOpener>(),
    );
    for profile in Profile::ALL {
        rtp(profile);
        rtcp(profile);
    }
}
