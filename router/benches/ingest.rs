//! What a frame from an ingest worker costs before the shards have it: the packets of one QUIC
//! stream become one frame, in order. Without QUIC itself, and without the shards. Measured in
//! turns with the physical limit of sending (see `limit`): a packet is taken in once and sent to
//! each viewer.
//!
//! # Fields of the JSON object
//!
//! | field | meaning |
//! |---|---|
//! | `ns_per_packet` | CPU per packet, at 2.5 Mbit/s and 60 frames per second |
//! | `ns_per_frame` | the same per frame |
//! | `limit_ns_per_packet`, `ratio_to_limit` | the physical limit of sending one packet, and this divided by it |
//! | `allocations_per_packet` | memory allocations |
//! | `smoke` | true: not measured, only shown to run |

#![allow(clippy::print_stdout, reason = "a benchmark talks to its terminal")]

mod common;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use common::{
    args::Args,
    contest::{Figure, Work, contest, pin, timed},
    floor::{FRAMES, Floor, PAYLOAD_BYTES},
    report,
    sinks::{self, Sinks},
};
use fanlight_router::bench::Intake;
use fanlight_wire::{
    roq::{FlowId, Slot, write_packet, write_stream_header},
    rtp::{
        HOP_ABS_CAPTURE_TIME_ID, HOP_H264_PAYLOAD_TYPE, RtpBuilder, RtpTime, SeqNo, Ssrc,
        ntp_from_unix_us,
    },
};
use serde_json::json;

/// A second of frames.
const COUNT: usize = 60;
/// QUIC gives out about this much at once.
const CHUNK_BYTES: usize = 1_400;

fn main() -> Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let sinks = Sinks::new(200)?;
    let socket = sinks::sender("127.0.0.1:0")?;
    let mut floor = Floor::new(&sinks.addresses)?;
    let (streams, packets) = streams()?;
    let mut first = 0;
    let allocations = allocation_counter::measure(|| first = take(&streams)).count_total;
    ensure!(first == packets, "{first} of {packets} packets came out");
    let entries: Vec<(&str, Work<'_>)> = vec![
        ("limit", Box::new(|| timed(|| floor.frame(Some(&socket))))),
        ("ingest", Box::new(|| timed(|| take(&streams)))),
    ];
    let figures = contest(entries, args.rounds(), args.sample());
    println!("{:<8} {:>10} {:>10}   ns of CPU per packet", "", "best", "median");
    for (name, Figure { best, median }) in &figures {
        println!("{name:<8} {best:>10.1} {median:>10.1}");
    }
    let best = figures["ingest"].best;
    let object = json!({
        "bench": "ingest",
        "ns_per_packet": report::round(best),
        "ns_per_frame": report::round(best * packets as f64 / COUNT as f64),
        "limit_ns_per_packet": report::round(figures["limit"].best),
        "ratio_to_limit": report::round_to(best / figures["limit"].best, 1_000.0),
        "allocations_per_packet": report::round(allocations as f64 / packets as f64),
        "rounds": args.rounds(),
        "smoke": args.is_smoke(),
        "machine": report::machine(),
    });
    report::write(args.json.as_deref(), object.as_object().cloned().unwrap_or_default())
}

/// All frames of a second through a new flow. Gives the packets of the frames that came out.
fn take(streams: &[Vec<u8>]) -> u64 {
    let mut intake = Intake::default();
    streams.iter().map(|stream| intake.stream(stream.chunks(CHUNK_BYTES))).sum()
}

/// What an ingest worker writes: one QUIC stream per frame.
fn streams() -> Result<(Vec<Vec<u8>>, u64)> {
    let slot = Slot::new(1).context("a slot")?;
    let mut seq: u16 = 65_000;
    let mut total = 0;
    let mut streams = Vec::new();
    for frame in 0..COUNT {
        let packets = FRAMES[frame % FRAMES.len()];
        let mut stream = Vec::new();
        write_stream_header(FlowId::video(slot), &mut stream);
        for n in 0..packets {
            let mut payload = vec![0xaa; PAYLOAD_BYTES];
            // A fragment of an IDR slice, then of others: FU-A, start and end as they are due.
            let kind = if frame == 0 { 5 } else { 1 };
            payload[0] = 0x7c;
            payload[1] = kind | u8::from(n == 0) << 7 | u8::from(n + 1 == packets) << 6;
            let mut rtp = RtpBuilder::new(
                HOP_H264_PAYLOAD_TYPE,
                SeqNo(seq),
                RtpTime(u32::try_from(frame)? * 1_500),
                Ssrc(7),
            )
            .marker(n + 1 == packets);
            if n == 0 {
                let ntp = ntp_from_unix_us(1_700_000_000_000_000);
                rtp = rtp.abs_capture_time(HOP_ABS_CAPTURE_TIME_ID, ntp)?;
            }
            let mut packet = Vec::new();
            rtp.write(&payload, &mut packet);
            write_packet(&packet, &mut stream);
            seq = seq.wrapping_add(1);
        }
        total += packets as u64;
        streams.push(stream);
    }
    Ok((streams, total))
}
