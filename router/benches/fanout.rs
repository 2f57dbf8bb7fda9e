//! One stream to many viewers by the router's own code: the core, the batch sender and the loop of
//! a shard, with viewers connected by real ICE and DTLS, to loopback sockets that nobody reads.
//! Measured in turns with the physical limit (see `limit`). Not a load test: no process, no
//! ingest, no joins while it runs.
//!
//! # Fields of the JSON object
//!
//! | field | meaning |
//! |---|---|
//! | `limit_ns_per_packet` | the physical limit, at 200 viewers |
//! | `limit_ns_per_packet_by_viewers` | object by number of viewers: the limit grows too, because the kernel has a socket for each |
//! | `ns_per_packet` | object by number of viewers: CPU per packet sent |
//! | `compute_ns_per_packet` | the same where nothing is given to the kernel |
//! | `ns_per_packet_with_feedback` | object by number of viewers: each sends arrival times 20 times a second, a receiver report each second and asks for 1 % of the packets again, all received through the socket and opened; per packet of media |
//! | `ratio_to_limit` | at 200 viewers |
//! | `ratio_with_feedback` | at 200 viewers, to the limit |
//! | `spread_50_to_2000` | greatest difference from the mean of the figures of 50 and more viewers, as a part of it |
//! | `allocations_per_packet`, `allocations_per_packet_with_feedback` | at 200 viewers: taking in frames, sealing, sending, receiving and reading feedback |
//! | `timer_allocations_per_viewer_s` | those of the protocol library's timers, which are not per packet |
//! | `receive_ns_per_datagram`, `look_ns` | receiving small datagrams, unread; looking at an empty socket, as after each batch |
//! | `rival_ns_per_packet`, `ratio_of_rival` | str0m's RTP mode with one `sendto` per packet at 200 viewers, and how many times more that is |
//! | `shards_speedup` | packets per second of two pinned shards at once, each with viewers of its own, over the mean of each alone; the median of some tries; null with one CPU |
//! | `limit_speedup` | the same of the physical limit: what this machine's two CPUs are worth together |
//! | `smoke` | true: not measured, only shown to run |
//!
//! Fields that need datagrams to arrive are null in a blackhole.

#![allow(clippy::print_stdout, reason = "a benchmark talks to its terminal")]

mod common;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser as _;
use common::{
    args::Args,
    contest::{Figure, Work, contest, pin, timed},
    floor::Floor,
    report,
    rig::{Allocations, Inlet, Rig},
    rival::Rival,
    sinks::{self, Sinks},
};
use serde_json::{Map, Value, json};

/// Where the ratios are taken.
const VIEWERS: usize = 200;
const CROWDS: [(usize, &str); 5] =
    [(1, "1"), (50, "50"), (200, "200"), (500, "500"), (2_000, "2000")];
const LIMITS: [(usize, &str); 4] =
    [(50, "limit 50"), (200, "limit"), (500, "limit 500"), (2_000, "limit 2000")];
const WITH_FEEDBACK: [(usize, &str); 3] =
    [(50, "50 feedback"), (200, "200 feedback"), (2_000, "2000 feedback")];

fn main() -> Result<()> {
    let args = Args::parse();
    pin(args.cpu)?;
    let most = if args.is_smoke() { 50 } else { 2_000 };
    let at = VIEWERS.min(most);
    let sinks = Sinks::new(most)?;
    let has_feedback = Sinks::is_connected()?;
    let v4 = sinks::sender("127.0.0.1:0")?;
    let mut floors: Vec<(&str, Floor)> = Vec::new();
    for (viewers, name) in LIMITS {
        // A smoke run has fewer sinks, but the limit is in every run.
        if viewers <= most || viewers == VIEWERS {
            floors.push((name, Floor::new(&sinks.addresses[..viewers.min(most)])?));
        }
    }
    let mut rival = Rival::new(&sinks, at)?;
    let mut mute = Rig::muted(&sinks, at)?;
    let (mut inlet, mut empty) = (Inlet::new(&sinks)?, Inlet::new(&sinks)?);
    let mut rigs: Vec<(&str, RefCell<Rig<'_>>)> = Vec::new();
    let wanted = |(n, name): &(usize, &str)| *n <= most && name.contains(&args.only);
    for (viewers, name) in CROWDS.into_iter().filter(wanted) {
        rigs.push((name, RefCell::new(Rig::new(&sinks, viewers, false)?)));
    }
    for (viewers, name) in WITH_FEEDBACK.into_iter().filter(|row| has_feedback && wanted(row)) {
        rigs.push((name, RefCell::new(Rig::new(&sinks, viewers, true)?)));
    }
    let mut entries: Vec<(&str, Work<'_>)> =
        vec![("compute", Box::new(|| mute.work())), ("rival", Box::new(|| rival.work()))];
    for (name, floor) in &mut floors {
        entries.push((*name, Box::new(|| timed(|| floor.frame(Some(&v4))))));
    }
    entries.push(("look", Box::new(|| empty.look())));
    if has_feedback {
        entries.push(("receive", Box::new(|| inlet.work())));
    }
    for (name, rig) in &rigs {
        entries.push((name, Box::new(|| rig.borrow_mut().work())));
    }
    let order: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    let figures = contest(entries, args.rounds(), args.sample());
    println!("{:<16} {:>9} {:>9} {:>9}   ns of CPU per packet", "", "best", "median", "of limit");
    for name in order {
        let Figure { best, median } = figures[name];
        let ratio = best / figures["limit"].best;
        println!("{name:<16} {best:>9.1} {median:>9.1} {ratio:>9.3}");
    }
    let mut allocations = Vec::new();
    for (name, rig) in &rigs {
        let mut rig = rig.borrow_mut();
        if name.ends_with("feedback") {
            let heard = rig.ns_per_datagram_heard();
            println!("{name}: {heard:.0} ns on average per datagram of a viewer's");
        }
        rig.check().with_context(|| format!("with {name} viewers"))?;
        if name.split(' ').next() == Some(at.to_string().as_str()) {
            allocations.push(rig.allocations());
        }
    }
    drop(rigs);
    println!("allocations per packet {allocations:?}");
    let all = args.only.is_empty();
    let speedups = if has_feedback && all { speedups(at, &args)? } else { None };
    let object = object(&figures, &allocations, speedups, &args);
    report::write(args.json.as_deref(), object)
}

fn object(
    figures: &BTreeMap<&'static str, Figure>,
    allocations: &[Allocations],
    speedups: Option<Speedups>,
    args: &Args,
) -> Map<String, Value> {
    let best = |name: &str| figures.get(name).map(|f| f.best);
    let value = |x: Option<f64>| x.map_or(Value::Null, report::round);
    let ratio = |a: Option<f64>, b: Option<f64>| {
        a.zip(b).map_or(Value::Null, |(a, b)| report::round_to(a / b, 1_000.0))
    };
    let by_viewers = |names: &[(usize, &str)]| {
        let found = names.iter().filter_map(|(n, name)| Some((n.to_string(), best(name)?)));
        Value::Object(found.map(|(n, f)| (n, report::round(f))).collect())
    };
    let many: Vec<f64> = CROWDS[1..].iter().filter_map(|(_, name)| best(name)).collect();
    let mean = many.iter().sum::<f64>() / many.len() as f64;
    let spread = many.iter().map(|f| (f / mean - 1.0).abs()).fold(0.0, f64::max);
    let object = json!({
        "bench": "fanout",
        "limit_ns_per_packet": value(best("limit")),
        "limit_ns_per_packet_by_viewers": by_viewers(&LIMITS),
        "ns_per_packet": by_viewers(&CROWDS),
        "compute_ns_per_packet": value(best("compute")),
        "ns_per_packet_with_feedback": by_viewers(&WITH_FEEDBACK),
        "ratio_to_limit": ratio(best("200"), best("limit")),
        "ratio_with_feedback": ratio(best("200 feedback"), best("limit")),
        "spread_50_to_2000": report::round_to(spread, 1_000.0),
        "allocations_per_packet": allocations.first().map(|a| a.per_packet),
        "allocations_per_packet_with_feedback": allocations.get(1).map(|a| a.per_packet),
        "timer_allocations_per_viewer_s": allocations.first().map(|a| a.timers_per_viewer_s),
        "receive_ns_per_datagram": value(best("receive")),
        "look_ns": value(best("look")),
        "rival_ns_per_packet": value(best("rival")),
        "ratio_of_rival": ratio(best("rival"), best("200")),
        "shards_speedup": speedups.map(|s| report::round_to(s.shards, 1_000.0)),
        "limit_speedup": speedups.map(|s| report::round_to(s.limit, 1_000.0)),
        "rounds": args.rounds(),
        "smoke": args.is_smoke(),
        "machine": report::machine(),
    });
    object.as_object().cloned().unwrap_or_default()
}

/// How much more two CPUs do than one.
#[derive(Clone, Copy, Debug)]
struct Speedups {
    shards: f64,
    limit: f64,
}

/// Packets per second of wall time on both of two CPUs at once over the mean of each alone: they
/// are not equally fast. The median of some tries.
fn speedups(viewers: usize, args: &Args) -> Result<Option<Speedups>> {
    if report::cpus() < 2 {
        return Ok(None);
    }
    let time = args.sample() * 10;
    let speedup = |prepare: Prepare| {
        let speed = |cpus: &[usize]| speed(prepare, viewers, cpus, time);
        let mut tries = Vec::new();
        for _ in 0..args.rounds().min(7) {
            tries.push(2.0 * speed(&[0, 1])? / (speed(&[0])? + speed(&[1])?));
        }
        tries.sort_by(f64::total_cmp);
        tries.get(tries.len() / 2).copied().context("no try")
    };
    let both = Speedups { shards: speedup(a_shard)?, limit: speedup(the_limit)? };
    println!("two shards {:.3} times one; the limit on two CPUs {:.3}", both.shards, both.limit);
    Ok(Some(both))
}

/// Makes something that sends to these sinks, and gives its packets.
type Prepare = for<'a> fn(&'a Sinks, usize) -> Result<Box<dyn FnMut() -> u64 + 'a>>;

fn a_shard(sinks: &Sinks, viewers: usize) -> Result<Box<dyn FnMut() -> u64 + '_>> {
    let mut rig = Rig::new(sinks, viewers, false)?;
    Ok(Box::new(move || rig.work().units))
}

fn the_limit(sinks: &Sinks, viewers: usize) -> Result<Box<dyn FnMut() -> u64 + '_>> {
    let mut floor = Floor::new(&sinks.addresses[..viewers])?;
    let socket = sinks::sender("127.0.0.1:0")?;
    Ok(Box::new(move || floor.frame(Some(&socket))))
}

/// Packets per second of as many threads as there are `cpus`, each with sinks of its own.
fn speed(prepare: Prepare, viewers: usize, cpus: &[usize], time: Duration) -> Result<f64> {
    let start = Barrier::new(cpus.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|cpu| {
                scope.spawn(|| {
                    let sinks = pin(*cpu).and_then(|()| Sinks::new(viewers));
                    let work = match &sinks {
                        Ok(sinks) => prepare(sinks, viewers),
                        Err(e) => Err(anyhow!("{e:#}")),
                    };
                    // Also when it failed, so that nobody waits for ever.
                    start.wait();
                    let mut work = work?;
                    let (began, mut packets) = (Instant::now(), 0);
                    while began.elapsed() < time {
                        packets += work();
                    }
                    Ok(packets as f64 / began.elapsed().as_secs_f64())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("the thread does not panic")).sum()
    })
}
