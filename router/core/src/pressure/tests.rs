//! The state machine behind the simulated bottleneck, and step by step.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Admit, Level, Pressure, Rates, SILENCE};
use crate::gcc::Evidence;
use crate::gcc::sim::{Path, Sim, Source, epoch};

const RATES: Rates = Rates { full_bps: 2_500_000, reference_bps: 350_000 };
const RTT: Duration = Duration::from_millis(40);

fn at(ms: u64) -> Instant {
    epoch() + Duration::from_millis(ms)
}

fn calm(estimate: Option<u64>) -> Evidence {
    Evidence { estimate_bps: estimate, rtt: RTT, ..Evidence::default() }
}

fn jam(estimate: u64, queue_ms: u64) -> Evidence {
    Evidence { congested: true, queue: Duration::from_millis(queue_ms), ..calm(Some(estimate)) }
}

#[test]
fn a_new_viewer_is_given_everything() {
    let mut pressure = Pressure::new();
    assert_eq!(pressure.admit(at(0), false, true, 5_000), Admit::Send);
    assert_eq!(pressure.on_feedback(at(50), &calm(None), RATES, None), None);
    assert_eq!(pressure.pace_bps(), None);
    // An estimate that is too low counts only while there is congestion.
    assert_eq!(pressure.on_feedback(at(90), &calm(Some(100_000)), RATES, None), None);
    assert_eq!(pressure.level(), Level::Full);
}

#[test]
fn congestion_leaves_out_disposable_frames_first() {
    let mut pressure = Pressure::new();
    let change = pressure.on_feedback(at(0), &jam(1_500_000, 60), RATES, None).unwrap();
    assert_eq!((change.from, change.to), (Level::Full, Level::NoDisposable));
    assert_eq!(pressure.admit(at(10), false, true, 5_000), Admit::SkipDisposable);
    assert_eq!(pressure.admit(at(20), false, false, 5_000), Admit::Send);
    assert_eq!(pressure.transitions().thinned, 1);
}

#[test]
fn congestion_on_a_path_that_carries_the_stream_thins_nobody() {
    let mut pressure = Pressure::new();
    assert_eq!(pressure.on_feedback(at(0), &jam(2_600_000, 60), RATES, None), None);
}

#[test]
fn a_backlog_that_would_not_drain_waits_for_a_keyframe() {
    let mut pressure = Pressure::new();
    let change = pressure.on_feedback(at(0), &jam(425_000, 1_000), RATES, None).unwrap();
    assert_eq!(change.to, Level::KeyframesOnly);
    assert_eq!(pressure.admit(at(10), false, false, 5_000), Admit::SkipUntilKey);
    assert_eq!(pressure.admit(at(100), true, false, 5_000), Admit::SkipUntilKey, "still full");
    assert!(!pressure.wants_keyframe(at(500)));
    assert!(pressure.wants_keyframe(at(1_000)));
    assert!(!pressure.wants_keyframe(at(1_001)), "one wish");
    assert_eq!(pressure.admit(at(1_100), true, false, 5_000), Admit::Send);
    assert_eq!(pressure.level(), Level::NoDisposable);
    assert_eq!((pressure.transitions().stopped, pressure.transitions().resumed), (1, 1));
}

#[test]
fn silence_stops_and_a_keyframe_tries_again() {
    let mut pressure = Pressure::new();
    assert_eq!(pressure.on_silence(at(600)).unwrap().to, Level::KeyframesOnly);
    assert_eq!(pressure.on_silence(at(700)), None);
    assert_eq!(pressure.admit(at(1_000), true, false, 5_000), Admit::Send);
    assert_eq!(pressure.on_silence(at(1_010)), None, "it has had no time to answer");
    assert!(pressure.on_silence(at(1_600)).is_some());
    assert_eq!(pressure.transitions().silenced, 2);
}

#[test]
fn packets_that_stay_uncovered_are_silence() {
    let mut pressure = Pressure::new();
    let old = SILENCE + RTT;
    let just = old - Duration::from_millis(1);
    assert_eq!(pressure.on_feedback(at(0), &calm(None), RATES, Some(just)), None);
    assert!(pressure.on_feedback(at(50), &calm(None), RATES, Some(old)).is_some());
}

#[test]
fn five_percent_of_random_loss_thins_nobody() {
    for seed in 0..10 {
        let mut sim =
            Sim::new(Path { loss: 0.05, ..Path::of(10_000_000) }, Source::THINNABLE, seed);
        let report = sim.run(Duration::from_secs(120));
        assert_eq!(report.full_ms, 120_000, "seed {seed}");
    }
}

#[test]
fn jitter_and_a_drifting_clock_thin_nobody() {
    for seed in 0..10 {
        let path = Path { jitter_ms: 30, drift_ppm: 100, ..Path::of(10_000_000) };
        let report = Sim::new(path, Source::THINNABLE, seed).run(Duration::from_secs(60));
        assert!(report.full_ms >= 57_000, "seed {seed}: {} ms", report.full_ms);
    }
}

#[test]
fn a_path_with_little_to_spare_carries_the_stream() {
    for capacity in [3_000_000, 4_000_000] {
        let report =
            Sim::new(Path::of(capacity), Source::THINNABLE, 1).run(Duration::from_secs(60));
        assert_eq!(report.full_ms, 60_000, "{capacity}");
        assert!(report.age_ms(0.95) <= 100);
    }
}

#[test]
fn a_viewer_of_half_a_megabit_keeps_a_current_picture() {
    for (seed, on_wish) in [(1, false), (2, true), (3, true)] {
        let path = Path { jitter_ms: 5 * (seed - 1), delay_ms: 10 * seed, ..Path::of(500_000) };
        let mut sim = Sim::new(path, Source::THINNABLE, seed);
        sim.keys_on_wish = on_wish;
        let report = sim.run(Duration::from_secs(60));
        let age = report.age_ms(0.95);
        println!("seed {seed}: age p95 {age} ms, max {} ms", report.age_ms(1.0));
        assert!(age <= 500, "seed {seed}: {age} ms");
        assert!(report.shown >= 380, "{} shown", report.shown);
        assert!(report.keys_asked <= 3, "{} keyframes asked", report.keys_asked);
    }
}

#[test]
fn capacity_that_comes_back_is_used_within_five_seconds() {
    for seed in 0..10 {
        let mut sim = Sim::new(Path::of(500_000), Source::THINNABLE, seed);
        sim.run(Duration::from_millis(20_000 + seed * 377));
        assert_ne!(sim.pressure.level(), Level::Full);
        sim.path.capacity_bps = 10_000_000;
        let took = sim.until_full(Duration::from_secs(10));
        println!("seed {seed}: {took:?}");
        assert!(took.is_some_and(|took| took <= Duration::from_secs(5)), "seed {seed}: {took:?}");
        assert_eq!(sim.run(Duration::from_secs(20)).full_ms, 20_000);
    }
}

#[test]
fn a_stream_without_disposable_frames_becomes_keyframes_and_what_fits_behind_them() {
    let report = Sim::new(Path::of(500_000), Source::SOLID, 1).run(Duration::from_secs(60));
    assert!(report.shown >= 30 + 60, "{} shown", report.shown);
    assert!(report.age_ms(0.95) <= 2_700, "{} ms", report.age_ms(0.95));
}

#[test]
fn a_path_that_drops_instead_of_queueing_is_found_by_its_loss() {
    let path = Path { queue_ms: 20, ..Path::of(1_000_000) };
    let report = Sim::new(path, Source::THINNABLE, 1).run(Duration::from_secs(60));
    assert!(report.full_ms <= 1_000, "{} ms", report.full_ms);
    // A group of pictures: such a path often has to wait for the next keyframe.
    assert!(report.age_ms(0.95) <= 2_500, "{} ms", report.age_ms(0.95));
}

#[test]
fn a_deep_queue_is_not_filled() {
    let path = Path { queue_ms: 3_000, ..Path::of(1_000_000) };
    let report = Sim::new(path, Source::THINNABLE, 1).run(Duration::from_secs(60));
    assert!(report.queue_ms(0.95) <= 300, "{} ms", report.queue_ms(0.95));
    assert!(report.age_ms(0.95) <= 500, "{} ms", report.age_ms(0.95));
}

proptest! {
    #[test]
    fn what_is_sent_always_decodes(
        steps in prop::collection::vec(
            (0..200_u64, 0..40_u8, any::<bool>(), 0..60_000_usize, 0..4_000_000_u64, 0..2_000_u64),
            1..300,
        ),
    ) {
        let mut pressure = Pressure::new();
        let (mut now, mut broken) = (epoch(), false);
        for (passed_ms, kind, congested, bytes, estimate, queue_ms) in steps {
            now += Duration::from_millis(passed_ms);
            let evidence = Evidence { congested, ..jam(estimate, queue_ms) };
            match kind {
                0..6 => drop(pressure.on_feedback(now, &evidence, RATES, None)),
                6 => drop(pressure.on_silence(now)),
                _ => {
                    let (key, discardable) = (kind == 7, kind > 20);
                    let admit = pressure.admit(now, key, discardable, bytes);
                    broken &= !(key && admit == Admit::Send);
                    prop_assert!(admit != Admit::Send || !broken);
                    prop_assert!(admit != Admit::SkipDisposable || discardable);
                    broken |= admit == Admit::SkipUntilKey;
                }
            }
        }
    }
}
