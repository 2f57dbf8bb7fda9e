//! A peer that sends any packets in any order, against an application that uses its streams: the
//! multiplexer keeps its bounds and never sends what was not agreed.
#![no_main]

use std::sync::Arc;

use fanlight_adb::{
    Counters,
    mux::{Event, Mux, MuxConfig, StreamId},
    packet::{Command, Packet},
};
use libfuzzer_sys::fuzz_target;

const STREAMS_MAX: usize = 8;
const BUDGET: usize = 5000;

fuzz_target!(|data: &[u8]| {
    let [flags, data @ ..] = data else { return };
    let delayed_ack = flags & 1 != 0;
    let config = MuxConfig {
        delayed_ack,
        max_payload: 500,
        recv_window: 1000,
        send_buffer: 700,
        streams_max: STREAMS_MAX,
        unread_budget: BUDGET,
    };
    let mut mux = Mux::new(config, Arc::new(Counters::default()));
    let mut held: Vec<StreamId> = Vec::new();
    for step in data.chunks_exact(4) {
        let [what, a, b, n] = [step[0], step[1], step[2], step[3]];
        let pick = held.get(usize::from(a) % held.len().max(1)).copied();
        match (what % 12, pick) {
            (0, _) => {
                if let Ok(id) = mux.open("x:") {
                    held.push(id);
                }
            }
            (1, Some(id)) => _ = mux.write(id, &vec![n; usize::from(b) * 8]),
            (2, Some(id)) => mux.consume(id, usize::from(n) * 8),
            (3, Some(id)) => mux.close(id),
            (4, Some(id)) => {
                mux.release(id);
                held.retain(|other| *other != id);
            }
            (5, _) => {
                while let Some(packet) = mux.poll_packet() {
                    assert!(packet.payload.len() <= 500);
                    let agreed = if delayed_ack { 4 } else { 0 };
                    assert!(packet.command != Command::Okay || packet.payload.len() == agreed);
                }
            }
            (kind, _) => {
                let command = [Command::Open, Command::Okay, Command::Wrte, Command::Clse]
                    [usize::from(kind) % 4];
                let len = if command == Command::Okay { usize::from(n % 6) } else { n.into() };
                let packet = Packet::new(command, a.into(), b.into(), vec![n; len]);
                if mux.on_packet(packet).is_err() {
                    break;
                }
            }
        }
        while let Some(event) = mux.poll_event() {
            if let Event::Incoming { id, .. } = event {
                if n % 4 == 0 || !mux.accept(id) {
                    mux.refuse(id);
                    mux.release(id);
                } else {
                    held.push(id);
                }
            }
        }
        let (unread, unsent) = mux.buffered();
        assert!(unread <= BUDGET);
        assert!(unsent <= STREAMS_MAX * (700 + 500));
        assert!(mux.streams() <= STREAMS_MAX);
    }
    for id in held.drain(..) {
        mux.release(id);
    }
    mux.disconnect();
    while mux.poll_event().is_some() {}
    assert_eq!((mux.streams(), mux.buffered()), (0, (0, 0)));
});
