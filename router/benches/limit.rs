//! The physical limit of sending media on this machine: CPU time per packet of one header, one
//! AES-256-GCM seal of 1,172 bytes and one share of `sendmmsg`, for 200 viewers of a 2.5 Mbit/s
//! stream (frames of 4, 4 and 5 packets), to loopback sockets that nobody reads. Not the router's
//! code, which `fanout` measures against this.
//!
//! # Fields of the JSON object
//!
//! | field | meaning, in nanoseconds of CPU per packet unless said otherwise |
//! |---|---|
//! | `limit_ns_per_packet` | seal and `sendmmsg` of segmented messages, 16 viewers a call |
//! | `limit_dual_stack_ns_per_packet` | the same through a socket of both families |
//! | `seal_ns_per_packet` | header and seal alone |
//! | `send_ns_per_packet` | object: `bare` (the same calls, nothing sealed), and the router's sender in each of its modes: `gso`, `sendmmsg`, `sendto` |
//! | `viewers`, `payload_bytes`, `rounds`, `machine` | what it was measured with |

#![allow(clippy::print_stdout, reason = "a benchmark talks to its terminal")]

mod common;

use anyhow::Result;
use clap::Parser as _;
use common::{
    args::Args,
    contest::{Figure, Work, contest, pin, timed},
    floor::{FRAMES, Floor, PACKET_BYTES, PAYLOAD_BYTES, VIEWERS_PER_CALL},
    report,
    sinks::{self, Sinks},
};
use fanlight_router::{
    Egress,
    bench::{BatchSender, Cursor, Flow, send_bare},
};
use fanlight_router_core::{Batch, Route, Run};
use mio::net::UdpSocket;
use serde_json::json;

const VIEWERS: usize = 200;

fn main() -> Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let sinks = Sinks::new(VIEWERS)?;
    let mapped: Vec<_> = sinks.addresses.iter().map(|a| mapped(*a)).collect();
    let (v4, both) = (sinks::sender("127.0.0.1:0")?, sinks::sender("[::]:0")?);
    let (mut seal, mut limit) = (Floor::new(&sinks.addresses)?, Floor::new(&sinks.addresses)?);
    let mut limit_both = Floor::new(&mapped)?;
    let batches = Batches::new(&sinks);
    let mut gso = BatchSender::new(&v4, Egress::Gso)?;
    let mut sendmmsg = BatchSender::new(&v4, Egress::Sendmmsg)?;
    let mut sendto = BatchSender::new(&v4, Egress::Sendto)?;
    let entries: Vec<(&str, Work<'_>)> = vec![
        ("limit", Box::new(|| timed(|| limit.frame(Some(&v4))))),
        ("limit_dual_stack", Box::new(|| timed(|| limit_both.frame(Some(&both))))),
        ("seal", Box::new(|| timed(|| seal.frame(None)))),
        ("bare", Box::new(|| timed(|| batches.bare(&v4)))),
        ("gso", Box::new(|| timed(|| batches.send(&v4, &mut gso)))),
        ("sendmmsg", Box::new(|| timed(|| batches.send(&v4, &mut sendmmsg)))),
        ("sendto", Box::new(|| timed(|| batches.send(&v4, &mut sendto)))),
    ];
    let order: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    let figures = contest(entries, args.rounds(), args.sample());
    println!("{:<20} {:>10} {:>10}   ns of CPU per packet", "", "best", "median");
    for name in order {
        let Figure { best, median } = figures[name];
        println!("{name:<20} {best:>10.1} {median:>10.1}");
    }
    let best = |name: &str| report::round(figures[name].best);
    let object = json!({
        "bench": "limit",
        "limit_ns_per_packet": best("limit"),
        "limit_dual_stack_ns_per_packet": best("limit_dual_stack"),
        "seal_ns_per_packet": best("seal"),
        "send_ns_per_packet": {
            "bare": best("bare"), "gso": best("gso"),
            "sendmmsg": best("sendmmsg"), "sendto": best("sendto"),
        },
        "viewers": VIEWERS,
        "payload_bytes": PAYLOAD_BYTES,
        "rounds": args.rounds(),
        "smoke": args.is_smoke(),
        "machine": report::machine(),
    });
    report::write(args.json.as_deref(), object.as_object().cloned().unwrap_or_default())
}

fn mapped(address: std::net::SocketAddr) -> std::net::SocketAddr {
    match address.ip() {
        std::net::IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        std::net::IpAddr::V6(_) => address,
    }
}

/// Frames that are sealed already, as the core hands them to the sender.
struct Batches(Vec<Batch>);

impl Batches {
    fn new(sinks: &Sinks) -> Self {
        let bytes = vec![7; 5 * PACKET_BYTES];
        let mut batches = Vec::new();
        for (viewers, packets) in
            sinks.addresses.chunks(VIEWERS_PER_CALL).zip(FRAMES.iter().cycle())
        {
            let mut batch = Batch::new(VIEWERS_PER_CALL, VIEWERS_PER_CALL * bytes.len());
            for to in viewers {
                let len = packets * PACKET_BYTES;
                let run = Run {
                    to: Route::udp(*to),
                    start: 0,
                    len,
                    segment: PACKET_BYTES,
                    count: *packets,
                    arrived: None,
                    controller: false,
                    viewer: 0,
                };
                batch.push_for_test(run, &bytes[..len]);
            }
            batches.push(batch);
        }
        Self(batches)
    }

    fn packets(&self) -> u64 {
        self.0.iter().flat_map(Batch::runs).map(|run| run.count as u64).sum()
    }

    fn send(&self, socket: &UdpSocket, sender: &mut BatchSender) -> u64 {
        for batch in &self.0 {
            let flow = sender.send(socket, batch, &mut Cursor::default(), |_, _| {});
            assert_eq!(flow, Flow::Done, "the socket's buffer is full");
        }
        self.packets()
    }

    fn bare(&self, socket: &UdpSocket) -> u64 {
        for batch in &self.0 {
            let segment = u16::try_from(PACKET_BYTES).ok();
            let runs = batch.runs();
            let messages: [_; VIEWERS_PER_CALL] = std::array::from_fn(|n| {
                let run = &runs[n % runs.len()];
                (run.to.addr, batch.bytes(run), segment)
            });
            let sent = send_bare(socket, &messages[..runs.len()]);
            assert!(matches!(sent, Ok(n) if n == runs.len()), "the kernel took {sent:?}");
        }
        self.packets()
    }
}
