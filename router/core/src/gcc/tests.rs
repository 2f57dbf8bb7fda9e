//! The estimator alone: fed by hand, by garbage, and behind the simulated bottleneck.

use std::time::Duration;

use proptest::prelude::*;

use super::sim::{Path, Sim, Source, epoch};
use super::{Estimator, PacketResult, Usage};
use crate::pressure::Level;

/// Frames of `packets` packets at 60 per second, all of which arrive with the delays given.
fn frames(
    estimator: &mut Estimator,
    from_ms: u64,
    count: u64,
    packets: u64,
    delay_us: impl Fn(u64) -> i64,
) {
    for frame in 0..count {
        let sent_us = (from_ms * 1_000) + frame * 16_667;
        let results: Vec<PacketResult> = (0..packets)
            .map(|packet| PacketResult {
                sent_us,
                bytes: 1_200,
                arrived_us: Some(sent_us as i64 + delay_us(frame) + packet as i64 * 100),
            })
            .collect();
        let now = epoch() + Duration::from_micros(sent_us) + Duration::from_secs(1);
        estimator.feedback(now, &results, None);
    }
}

#[test]
fn without_evidence_there_is_no_estimate() {
    let mut estimator = Estimator::new();
    frames(&mut estimator, 0, 600, 5, |_| 20_000);
    assert_eq!(estimator.estimate_bps(), None);
    assert!((2_700_000..3_000_000).contains(&estimator.acked_bps()), "{}", estimator.acked_bps());
    assert_eq!(estimator.usage(), Usage::Normal);
}

#[test]
fn a_growing_queue_gives_an_estimate_below_what_arrives() {
    let mut estimator = Estimator::new();
    frames(&mut estimator, 0, 60, 5, |_| 20_000);
    // Each frame takes 33 ms instead of 17: half of the rate gets through.
    frames(&mut estimator, 1_000, 30, 5, |frame| 20_000 + frame as i64 * 16_667);
    assert_eq!(estimator.usage(), Usage::Overuse);
    assert!(estimator.evidence().congested);
    let estimate = estimator.estimate_bps().unwrap();
    assert!((1_000_000..1_500_000).contains(&estimate), "{estimate}");
}

#[test]
fn a_single_late_frame_is_no_congestion() {
    let mut estimator = Estimator::new();
    frames(&mut estimator, 0, 600, 5, |frame| if frame % 97 == 50 { 140_000 } else { 20_000 });
    assert_eq!(estimator.estimate_bps(), None);
}

#[test]
fn a_step_of_the_clock_is_forgotten() {
    let mut estimator = Estimator::new();
    frames(&mut estimator, 0, 60, 5, |_| 20_000);
    frames(&mut estimator, 1_000, 60, 5, |_| 3_600_000_000);
    frames(&mut estimator, 2_000, 60, 5, |_| -3_600_000_000);
    assert_eq!(estimator.estimate_bps(), None);
    assert_eq!(estimator.evidence().queue, Duration::ZERO);
}

#[test]
fn arrival_times_that_are_all_zero_thin_nobody() {
    let mut estimator = Estimator::new();
    frames(&mut estimator, 0, 600, 5, |frame| -(frame as i64 * 16_667));
    assert_eq!(estimator.estimate_bps(), None);
}

#[test]
fn behind_a_bottleneck_the_estimate_is_near_its_capacity() {
    for capacity in [400_000, 500_000, 1_000_000, 2_000_000] {
        let mut sim = Sim::new(Path::of(capacity), Source::THINNABLE, 7);
        sim.run(Duration::from_millis(1_500));
        let estimate = sim.estimator.estimate_bps().expect("congested");
        let share = estimate as f64 / capacity as f64;
        assert!((0.75..1.1).contains(&share), "{estimate} of {capacity}");
    }
}

#[test]
fn a_static_screen_lowers_nothing_and_the_burst_after_it_is_not_thinned() {
    let mut sim = Sim::new(Path::of(4_000_000), Source::STATIC, 1);
    sim.run(Duration::from_secs(20));
    assert_eq!(sim.estimator.estimate_bps(), None);
    sim.source = Source::THINNABLE;
    let report = sim.run(Duration::from_secs(20));
    assert_eq!(sim.pressure.level(), Level::Full);
    assert_eq!(report.full_ms, 20_000);
    assert!(report.age_ms(1.0) <= 100, "{}", report.age_ms(1.0));
}

fn result() -> impl Strategy<Value = PacketResult> {
    let time = prop_oneof![0..10_000_000_u64, Just(0), Just(u64::MAX), any::<u64>()];
    let arrival = prop_oneof![
        Just(None),
        (0..10_000_000_i64).prop_map(Some),
        Just(Some(0)),
        Just(Some(i64::MIN)),
        Just(Some(i64::MAX)),
        any::<i64>().prop_map(Some)
    ];
    (time, any::<u32>(), arrival).prop_map(|(sent_us, bytes, arrived_us)| PacketResult {
        sent_us,
        bytes,
        arrived_us,
    })
}

proptest! {
    #[test]
    fn garbage_neither_panics_nor_gives_nonsense(
        feedbacks in prop::collection::vec((0..5_000_u64, prop::collection::vec(result(), 0..40)), 1..40),
    ) {
        let mut estimator = Estimator::new();
        let mut now = epoch();
        for (passed_ms, results) in feedbacks {
            now += Duration::from_millis(passed_ms);
            estimator.feedback(now, &results, None);
            let evidence = estimator.evidence();
            prop_assert!((0.0..=1.0).contains(&evidence.excess_loss));
            prop_assert!((0.0..=1.0).contains(&estimator.loss()));
            prop_assert!(evidence.estimate_bps.is_none_or(|bps| bps >= 10_000));
        }
    }
}

#[test]
#[ignore = "a measurement, for release builds"]
#[expect(clippy::disallowed_methods, reason = "measures")]
fn cost_of_a_feedback_of_ten_packets() {
    let (mut estimator, mut pressure) = (Estimator::new(), crate::pressure::Pressure::new());
    let epoch = epoch();
    let count = 200_000_u64;
    let start = std::time::Instant::now();
    for feedback in 0..count {
        let base_us = feedback * 50_000;
        let results: [PacketResult; 10] = std::array::from_fn(|i| {
            let sent_us = base_us + (i as u64 / 4) * 16_667;
            PacketResult { sent_us, bytes: 1_200, arrived_us: Some(sent_us as i64 + i as i64) }
        });
        let now = epoch + Duration::from_micros(base_us);
        estimator.feedback(now, std::hint::black_box(&results), None);
        let rates = crate::pressure::Rates { full_bps: 2_500_000, reference_bps: 350_000 };
        pressure.on_feedback(now, &estimator.evidence(), rates, None);
    }
    let spent = start.elapsed();
    println!(
        "{} ns per feedback of 10; sizes {} + {} bytes",
        spent.as_nanos() / u128::from(count),
        size_of::<Estimator>(),
        size_of::<crate::pressure::Pressure>()
    );
}
