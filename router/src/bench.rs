//! What the benchmarks in `benches` need of this package's inside. Not an interface: other packages
//! must not use it. Invariant: nothing here does work of its own.

use std::time::Instant;

use fanlight_wire::roq::{Limits, StreamReader};

use crate::{
    arrive::Arrive,
    frame::{Assembler, Params},
    stream::NewFrame,
};

pub use crate::udp::{
    BatchSender, Cursor, EgressCounts, Fate, Flow, IngressCounts, Mode, Sent, ShardSocket,
    send_bare,
};

/// One flow from an ingest worker, without QUIC and without its task.
#[derive(Debug)]
pub struct Intake {
    arrive: Arrive<NewFrame>,
    params: Params,
}

impl Default for Intake {
    fn default() -> Self {
        Self { arrive: Arrive::new(), params: Params::default() }
    }
}

impl Intake {
    /// Takes one QUIC stream, which holds one frame, in pieces. Gives the packets of the frames
    /// that came out, in order.
    pub fn stream<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
        let limits = Limits {
            max_packet_bytes: 2_048,
            max_buffered_bytes: 1 << 20,
            max_stream_bytes: 4 << 20,
        };
        let (mut roq, mut assembler) = (StreamReader::new(limits), Assembler::default());
        for piece in pieces {
            roq.push(piece);
            while let Ok(Some(packet)) = roq.next_packet() {
                if assembler.push(&packet).is_err() {
                    return 0;
                }
            }
        }
        let now = Instant::now();
        let Ok(assembled) = assembler.finish(now) else { return 0 };
        let mut out = Vec::new();
        self.arrive.push(now, assembled.position, assembled.frame, &mut out);
        let mut packets = 0;
        for released in out {
            let mut frame = released.frame;
            if frame.key {
                frame.params = self.params.of(&frame.payloads);
            }
            packets += frame.payloads.len() as u64;
        }
        packets
    }
}
