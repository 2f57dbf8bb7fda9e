//! What a join costs: reading the offer (off the shard), the answer, and ICE, DTLS and the data
//! channels' opening (on the shard's thread), for viewers that join one after the other on a core
//! that has a stream. Not the time that a viewer waits: no network, no HTTP. Measured in turns with
//! the physical limit of sending (see `limit`), to say how many packets a join is worth.
//!
//! # Fields of the JSON object
//!
//! | field | meaning |
//! |---|---|
//! | `parse_us` | CPU for reading and trimming one offer, off the shard |
//! | `shard_us` | CPU on the shard per join: answer and handshake |
//! | `answer_us` | of it, the answer |
//! | `joins_per_cpu_s` | joins per second of CPU, parsing included |
//! | `limit_ns_per_packet`, `shard_us_in_packets` | the physical limit, and how many packets could be sent in `shard_us` |
//! | `offer_bytes` | size of the offer |
//! | `smoke` | true: not measured, only shown to run |

#![allow(clippy::print_stdout, reason = "a benchmark talks to its terminal")]

mod common;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Parser as _;
use common::{
    args::Args,
    contest::{Done, Figure, Work, clock_cost, contest, pin, thread_cpu, timed},
    floor::Floor,
    report,
    sinks::{self, Sinks},
};
use fanlight_router_core::{
    Core, CoreConfig, Role, SessionId, StreamInfo, StreamKey,
    bench::{Crowd, an_offer, join_request},
    parse_offer,
};
use serde_json::json;

const STREAM: StreamKey = StreamKey(1);
const SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 5_000);
/// Viewers whose handshakes are under way together.
const TOGETHER: u16 = 20;

fn main() -> Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let sinks = Sinks::new(200)?;
    let socket = sinks::sender("127.0.0.1:0")?;
    let mut floor = Floor::new(&sinks.addresses)?;
    let offer = an_offer(Instant::now());
    let entries: Vec<(&str, Work<'_>)> = vec![
        ("limit", Box::new(|| timed(|| floor.frame(Some(&socket))))),
        ("parse", Box::new(|| timed(|| parse(&offer)))),
        ("answer", Box::new(|| answers(&offer))),
        ("shard", Box::new(joins)),
    ];
    let order: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    let figures = contest(entries, args.rounds(), args.sample());
    println!("{:<8} {:>10} {:>10}   us of CPU (limit: per packet)", "", "best", "median");
    for name in order {
        let Figure { best, median } = figures[name];
        println!("{name:<8} {:>10.2} {:>10.2}", best / 1e3, median / 1e3);
    }
    let best_us = |name: &str| figures[name].best / 1e3;
    let joins_per_cpu_s = 1e6 / (best_us("parse") + best_us("shard"));
    println!("{joins_per_cpu_s:.0} joins per second of CPU");
    let object = json!({
        "bench": "join",
        "parse_us": report::round(best_us("parse")),
        "answer_us": report::round(best_us("answer")),
        "shard_us": report::round(best_us("shard")),
        "joins_per_cpu_s": report::round(joins_per_cpu_s),
        "limit_ns_per_packet": report::round(figures["limit"].best),
        "shard_us_in_packets": report::round(best_us("shard") / best_us("limit")),
        "offer_bytes": offer.len(),
        "rounds": args.rounds(),
        "smoke": args.is_smoke(),
        "machine": report::machine(),
    });
    report::write(args.json.as_deref(), object.as_object().cloned().unwrap_or_default())
}

fn parse(offer: &str) -> u64 {
    assert!(parse_offer(offer).is_ok(), "the offer is good");
    1
}

fn core() -> (Core, Instant) {
    let now = Instant::now();
    let mut core = Core::new(CoreConfig::new(vec![SERVER]), now, 7);
    core.stream_up(now, STREAM, StreamInfo::new("streams/bench", 1));
    (core, now)
}

/// Answers alone.
fn answers(offer: &str) -> Done {
    let (mut core, now) = core();
    let ids = 1..=u64::from(TOGETHER);
    let requests: Vec<_> =
        ids.map(|id| join_request(SessionId(id), STREAM, offer, Role::Observer)).collect();
    timed(|| {
        for request in requests {
            assert!(core.join(now, request).is_ok(), "the join is accepted");
        }
        u64::from(TOGETHER)
    })
}

/// Whole joins until all are connected; only the core's part is counted.
fn joins() -> Done {
    let (mut core, mut now) = core();
    let mut crowd = Crowd::new(SERVER).with_clock(thread_cpu);
    let addresses: Vec<_> = (0..TOGETHER).map(|n| ([192, 0, 2, 1], 4_000 + n).into()).collect();
    crowd.connect(&mut core, &mut now, STREAM, &addresses, false);
    let (spent, readings) = crowd.core_time();
    let clock = clock_cost() * u32::try_from(readings).unwrap_or(u32::MAX);
    Done { units: u64::from(TOGETHER), spent: spent.saturating_sub(clock).max(Duration::ZERO) }
}
