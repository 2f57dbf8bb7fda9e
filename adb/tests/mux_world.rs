//! Two multiplexers joined by two queues of packets, driven in any order proptest can think of.
//!
//! A monitor reads every packet on the way and knows the rules of flow control on its own account.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use fanlight_adb::{
    Counters,
    mux::{End, Event, Mux, MuxConfig, Status, StreamId},
    packet::{Command, Packet},
};
use proptest::prelude::*;

const WINDOW: u32 = 1000;
const STREAMS_MAX: usize = 8;
/// Either way the world must come to rest within this many packets: else it is a livelock.
const PACKETS_MAX: usize = 200_000;

#[derive(Debug, Clone)]
enum Op {
    Open { side: usize },
    Write { side: usize, which: usize, len: usize },
    Read { side: usize, which: usize, len: usize },
    Close { side: usize, which: usize },
    Release { side: usize, which: usize },
    Send { side: usize, packets: usize },
    Deliver { side: usize, packets: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (side, which) = (0..2usize, 0..STREAMS_MAX);
    prop_oneof![
        2 => side.clone().prop_map(|side| Op::Open { side }),
        6 => (side.clone(), which.clone(), 1..900usize)
            .prop_map(|(side, which, len)| Op::Write { side, which, len }),
        6 => (side.clone(), which.clone(), 1..900usize)
            .prop_map(|(side, which, len)| Op::Read { side, which, len }),
        1 => (side.clone(), which.clone()).prop_map(|(side, which)| Op::Close { side, which }),
        1 => (side.clone(), which).prop_map(|(side, which)| Op::Release { side, which }),
        8 => (side.clone(), 1..6usize).prop_map(|(side, packets)| Op::Send { side, packets }),
        8 => (side, 1..6usize).prop_map(|(side, packets)| Op::Deliver { side, packets }),
    ]
}

/// One application's view of one stream.
#[derive(Debug, Clone, Copy)]
struct Handle {
    id: StreamId,
    serial: usize,
    opener: bool,
    sent: usize,
    received: usize,
    closed: bool,
    released: bool,
    refused: bool,
}

/// The byte at an offset of a stream's direction.
fn pattern(serial: usize, from_opener: bool, offset: usize) -> u8 {
    (serial * 31 + offset * 7 + usize::from(from_opener) * 101).to_le_bytes()[0]
}

/// What the rules of flow control say each sender may do.
#[derive(Debug, Default)]
struct Monitor {
    /// Windows of openers that wait for their answer: (opening side, its id).
    offered: HashMap<(usize, u32), i64>,
    balance: HashMap<(usize, u32), i64>,
    in_flight: HashMap<(usize, u32), bool>,
}

struct World {
    delayed_ack: bool,
    max_payload: [u32; 2],
    mux: [Mux; 2],
    /// `wire[side]` is on its way to `side`.
    wire: [VecDeque<Packet>; 2],
    handles: [Vec<Handle>; 2],
    serials: usize,
    monitor: Monitor,
}

impl World {
    fn new(delayed_ack: bool, max_payload: [u32; 2]) -> Self {
        let mux = |side: usize| {
            let config = MuxConfig {
                delayed_ack,
                max_payload: max_payload[1 - side],
                recv_window: WINDOW,
                send_buffer: 700,
                streams_max: STREAMS_MAX,
                ..MuxConfig::default()
            };
            Mux::new(config, Arc::new(Counters::default()))
        };
        Self {
            delayed_ack,
            max_payload,
            mux: [mux(0), mux(1)],
            wire: [VecDeque::new(), VecDeque::new()],
            handles: [Vec::new(), Vec::new()],
            serials: 0,
            monitor: Monitor::default(),
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Open { side } => {
                let serial = self.serials;
                if let Ok(id) = self.mux[side].open(&format!("test:{serial}")) {
                    self.serials += 1;
                    self.handles[side].push(Handle::new(id, serial, true));
                }
            }
            Op::Write { side, which, len } => self.write(side, which, len),
            Op::Read { side, which, len } => self.read(side, which, len),
            Op::Close { side, which } => {
                if let Some(handle) = self.handles[side].get_mut(which) {
                    if self.mux[side].status(handle.id) == Status::Open {
                        handle.closed = true;
                    }
                    self.mux[side].close(handle.id);
                }
            }
            Op::Release { side, which } => self.release(side, which),
            Op::Send { side, packets } => {
                (0..packets).for_each(|_| _ = self.send(side));
            }
            Op::Deliver { side, packets } => {
                (0..packets).for_each(|_| _ = self.deliver(side));
            }
        }
        self.events();
        self.check_bounds();
    }

    fn write(&mut self, side: usize, which: usize, len: usize) {
        let Some(handle) = self.handles[side].get_mut(which).filter(|h| !h.released) else {
            return;
        };
        let data: Vec<u8> = (handle.sent..handle.sent + len)
            .map(|offset| pattern(handle.serial, handle.opener, offset))
            .collect();
        if let Ok(n) = self.mux[side].write(handle.id, &data) {
            assert!(n <= len);
            handle.sent += n;
        }
    }

    fn read(&mut self, side: usize, which: usize, len: usize) {
        let Some(handle) = self.handles[side].get_mut(which).filter(|h| !h.released) else {
            return;
        };
        let unread = self.mux[side].peek(handle.id);
        let n = unread.len().min(len);
        for (i, byte) in unread[..n].iter().enumerate() {
            let expected = pattern(handle.serial, !handle.opener, handle.received + i);
            assert_eq!(*byte, expected, "byte {} of {handle:?}", handle.received + i);
        }
        handle.received += n;
        self.mux[side].consume(handle.id, n);
    }

    fn release(&mut self, side: usize, which: usize) {
        if let Some(handle) = self.handles[side].get_mut(which).filter(|h| !h.released) {
            handle.released = true;
            self.mux[side].release(handle.id);
        }
    }

    fn events(&mut self) {
        for side in 0..2 {
            while let Some(event) = self.mux[side].poll_event() {
                match event {
                    Event::Incoming { id, service } => {
                        let serial: usize = service.strip_prefix("test:").unwrap().parse().unwrap();
                        if serial % 5 == 4 {
                            self.mux[side].refuse(id);
                            self.mux[side].release(id);
                        } else {
                            assert!(self.mux[side].accept(id));
                            self.handles[side].push(Handle::new(id, serial, false));
                        }
                    }
                    Event::Refused(id) => {
                        let of = |h: &&mut Handle| h.id == id && h.opener && !h.released;
                        if let Some(handle) = self.handles[side].iter_mut().find(of) {
                            handle.refused = true;
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// One packet from a multiplexer onto the wire, past the monitor.
    fn send(&mut self, side: usize) -> bool {
        let Some(packet) = self.mux[side].poll_packet() else { return false };
        let (max, us) = (self.max_payload[1 - side], (side, packet.arg0));
        assert!(packet.payload.len() <= max as usize, "packet exceeds what the peer takes");
        match packet.command {
            Command::Open => {
                assert_eq!(packet.arg1 != 0, self.delayed_ack, "window present exactly if agreed");
                assert_eq!(packet.payload.last(), Some(&0), "service names end with NUL");
                self.monitor.offered.insert(us, packet.arg1.into());
            }
            Command::Okay => {
                assert_eq!(packet.payload.len(), if self.delayed_ack { 4 } else { 0 });
                if let Some(window) = self.monitor.offered.remove(&(1 - side, packet.arg1)) {
                    self.monitor.balance.insert(us, window);
                }
            }
            Command::Wrte if self.delayed_ack => {
                let balance = self.monitor.balance.get_mut(&us).unwrap();
                assert!(*balance > 0, "sent beyond the window");
                *balance -= i64::try_from(packet.payload.len()).unwrap();
            }
            Command::Wrte => {
                let before = self.monitor.in_flight.insert(us, true);
                assert_ne!(before, Some(true), "two packets in flight");
            }
            _ => {}
        }
        self.wire[1 - side].push_back(packet);
        true
    }

    fn deliver(&mut self, side: usize) -> bool {
        let Some(packet) = self.wire[side].pop_front() else { return false };
        if packet.command == Command::Okay {
            let us = (side, packet.arg1);
            if let Ok(delta) = <[u8; 4]>::try_from(&packet.payload[..]) {
                let delta = i64::from(i32::from_le_bytes(delta));
                *self.monitor.balance.entry(us).or_insert(0) += delta;
            }
            self.monitor.in_flight.insert(us, false);
        }
        self.mux[side].on_packet(packet).unwrap();
        true
    }

    fn check_bounds(&self) {
        for side in 0..2 {
            let (unread, unsent) = self.mux[side].buffered();
            let per_stream = WINDOW as usize + self.max_payload[side] as usize;
            assert!(unread <= STREAMS_MAX * per_stream, "{unread} unread");
            let per_stream = 700 + self.max_payload[1 - side] as usize;
            assert!(unsent <= STREAMS_MAX * per_stream, "{unsent} unsent");
            assert!(self.mux[side].streams() <= STREAMS_MAX);
        }
    }

    /// Everybody reads everything until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..PACKETS_MAX {
            let mut moved = false;
            for side in 0..2 {
                for which in 0..self.handles[side].len() {
                    self.read(side, which, usize::MAX);
                }
                moved |= self.send(side) | self.deliver(side);
            }
            self.events();
            self.check_bounds();
            if !moved {
                return;
            }
        }
        panic!("the two ends never come to rest");
    }

    fn peer(&self, side: usize, handle: &Handle) -> Option<&Handle> {
        let peers = &self.handles[1 - side];
        peers.iter().find(|p| p.serial == handle.serial && p.opener != handle.opener)
    }

    /// With everything delivered, each end has what the other wrote.
    fn check_delivery(&self) {
        for side in 0..2 {
            for handle in &self.handles[side] {
                let Some(peer) = self.peer(side, handle) else {
                    if handle.opener && !handle.released {
                        assert!(handle.refused, "{handle:?} is neither accepted nor refused");
                    }
                    continue;
                };
                assert!(peer.received <= handle.sent);
                // Closing in order loses nothing, unless the other end closed as well.
                if !peer.released && !peer.closed {
                    assert_eq!(peer.received, handle.sent, "{peer:?} misses bytes of {handle:?}");
                    if handle.closed || handle.released {
                        let status = self.mux[1 - side].status(peer.id);
                        assert_eq!(status, Status::Over(End::Orderly));
                    }
                }
            }
        }
    }
}

impl Handle {
    fn new(id: StreamId, serial: usize, opener: bool) -> Self {
        Self {
            id,
            serial,
            opener,
            sent: 0,
            received: 0,
            closed: false,
            released: false,
            refused: false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_bytes_arrive_and_nothing_is_left_behind(
        delayed_ack: bool,
        max_payload in (300..2000u32, 300..2000u32),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut world = World::new(delayed_ack, [max_payload.0, max_payload.1]);
        ops.iter().for_each(|op| world.run(op));
        world.settle();
        world.check_delivery();
        for side in 0..2 {
            for which in 0..world.handles[side].len() {
                world.release(side, which);
            }
        }
        world.settle();
        for side in 0..2 {
            prop_assert_eq!(world.mux[side].streams(), 0, "streams left on side {}", side);
            prop_assert_eq!(world.mux[side].buffered(), (0, 0));
            prop_assert!(world.mux[side].is_drained());
        }
    }

    #[test]
    fn a_hostile_peer_cannot_make_it_grow_or_panic(
        delayed_ack: bool,
        packets in prop::collection::vec(
            (0..6usize, 0..6u32, prop_oneof![0..6u32, any::<u32>()],
             prop_oneof![0..12usize, 0..3000usize], any::<u8>()),
            1..300,
        ),
        drain: bool,
    ) {
        let config = MuxConfig {
            delayed_ack,
            recv_window: WINDOW,
            streams_max: STREAMS_MAX,
            unread_budget: 4000,
            ..MuxConfig::default()
        };
        let mut mux = Mux::new(config, Arc::new(Counters::default()));
        let ours: Vec<StreamId> = (0..2).map(|_| mux.open("test:x").unwrap()).collect();
        for (command, arg0, arg1, len, byte) in packets {
            let command = [Command::Open, Command::Okay, Command::Wrte, Command::Clse,
                Command::Wrte, Command::Okay][command];
            if mux.on_packet(Packet::new(command, arg0, arg1, vec![byte; len])).is_err() {
                continue;
            }
            while let Some(event) = mux.poll_event() {
                if let Event::Incoming { id, .. } = event {
                    if byte % 2 == 0 { mux.accept(id); } else { mux.refuse(id); mux.release(id); }
                }
            }
            for id in &ours {
                _ = mux.write(*id, &[1; 100]);
            }
            if drain {
                while mux.poll_packet().is_some() {}
                while mux.poll_event().is_some() {}
            }
            prop_assert!(mux.streams() <= STREAMS_MAX);
            prop_assert!(mux.buffered().0 <= 4000);
        }
        mux.disconnect();
        while mux.poll_event().is_some() {}
        prop_assert!(!mux.has_output());
    }
}
