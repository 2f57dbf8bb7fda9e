//! `loadtest clicks`: touches of those who hold the control lease, from the viewer's data channel to
//! the device's side of the hop, while others watch. Not the device. Invariant: each touch has a
//! number of its own, and one that does not arrive is lost, not late.

use std::{collections::HashMap, time::Duration};

use fanlight_wire::input::{InputBody, InputMessage, Touch, TouchAction};

use super::{
    fanout::{Stamps, added, gather, packets, socket_drop_fault},
    set_up,
};
use crate::{
    lab::{Lab, LabArgs},
    publish::Pace,
    report::{Findings, OutputArgs, Plot},
    sample::{Sampler, tell},
    stats::{Times, whole},
    swarm::Milestone,
};

/// Time for the input channel to open.
const OPEN: Duration = Duration::from_secs(10);
/// Time for the last touches to arrive.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Viewers in all; the first of each stream touches
    #[arg(long, default_value_t = 20)]
    viewers: usize,
    /// Touches per second of each who may: downs and ups in turn
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How long they touch
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[command(flatten)]
    pub(super) lab: LabArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<Findings> {
    anyhow::ensure!(args.viewers >= args.lab.streams, "each stream needs a viewer who touches");
    anyhow::ensure!(args.rate > 0.0 && args.seconds > 0, "rate and seconds must be above zero");
    let mut lab = Lab::start(&args.lab, Pace::Moving, args.viewers, None).await?;
    let measured = measure(args, &mut lab).await;
    lab.stop().await;
    measured
}

async fn measure(args: &Args, lab: &mut Lab) -> anyhow::Result<Findings> {
    let joined = gather(lab, args.viewers, 50.0).await?;
    let hands = &joined[..args.lab.streams];
    for hand in hands {
        let open = lab.crowd.diaries().wait(hand.viewer, Milestone::ChannelOpen, OPEN).await;
        anyhow::ensure!(open.is_some(), "the input channel of viewer {} is not open", hand.viewer);
    }
    tokio::time::sleep(SETTLE).await;
    let sampler = Sampler::start(lab.fleet.router.pid());
    let before = lab.fleet.scrape_settled().await?;
    // What came while the viewers joined is not ours.
    while lab.inputs.try_recv().is_ok() {}
    lab.open_windows();
    let mut sent = HashMap::new();
    let mut refused = 0_u64;
    let total = u32::try_from(whole(args.rate * args.seconds as f64))?;
    let start = tokio::time::Instant::now();
    for n in 0..total {
        tokio::time::sleep_until(start + Duration::from_secs_f64(f64::from(n) / args.rate)).await;
        for (hand, place) in hands.iter().zip(0_u32..) {
            let seq = 1 + n * u32::try_from(hands.len())? + place;
            match lab.crowd.swarm().input(hand.viewer, touch(seq, n)?).await? {
                Some(at) => drop(sent.insert(seq, at)),
                None => refused += 1,
            }
        }
    }
    lab.close_windows();
    let after = lab.fleet.scrape_settled().await?;
    tokio::time::sleep(SETTLE).await;
    let mut times = Times::default();
    let (mut arrived, mut strange) = (0_u64, 0_u64);
    while let Ok(input) = lab.inputs.try_recv() {
        let seq = InputMessage::decode(&input.message).map(|m| m.seq);
        match seq.ok().and_then(|seq| sent.remove(&seq)) {
            Some(at) => {
                arrived += 1;
                times.note(input.at.saturating_duration_since(at));
            }
            None => strange += 1,
        }
    }
    let report = lab.crowd.swarm().report(false).await?;

    let mut findings = Findings::new("clicks");
    findings.set("viewers", args.viewers);
    findings.set("controllers", hands.len());
    findings.set("rate", args.rate);
    findings.set("seconds", args.seconds);
    set_up(&mut findings, &args.lab);
    findings.set("clicks_sent", arrived + sent.len() as u64);
    findings.set("clicks_arrived", arrived);
    findings.set("clicks_lost", sent.len());
    findings.set("clicks_not_taken_by_channel", refused);
    findings.set("clicks_unknown", strange);
    findings.measured("click_latency_us_p50", times.quantile_us(0.5));
    findings.measured("click_latency_us_p99", times.quantile_us(0.99));
    findings.measured("click_latency_us_max", times.max_us());
    packets(&mut findings, lab, &report)?;
    added(&mut findings, &before, &after, Stamps::Needed);
    socket_drop_fault(&mut findings, lab).await?;
    findings.plot(
        Plot::lines("Touch: viewer to device", "ms", "part of touches")
            .with("touches", times.curve(200)),
    );
    tell(&mut findings, &sampler.finish().await);
    Ok(findings)
}

fn touch(seq: u32, n: u32) -> anyhow::Result<Vec<u8>> {
    let down = n.is_multiple_of(2);
    let body = InputBody::Touch(Touch {
        action: if down { TouchAction::Down } else { TouchAction::Up },
        pointer_id: 0,
        pressure: if down { u16::MAX } else { 0 },
        x: 100,
        y: 200,
        w: 720,
        h: 1_280,
        buttons: 0,
    });
    let mut bytes = Vec::new();
    InputMessage { seq, lease_epoch: 0, body }.encode(&mut bytes)?;
    Ok(bytes)
}
