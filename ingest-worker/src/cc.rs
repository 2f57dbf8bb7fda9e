//! Congestion control of the hop: the window follows what the devices may send, not what the path
//! might take. Not a bandwidth estimator. Isolated loss is ignored, because pictures are worth more
//! than fairness to a lossy link; more than a tenth lost, or a standing queue, takes rate away.
//! Invariant: the window stays between an eighth of the target and the target (times RTT), and
//! never below four packets.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// Loss is judged over this long.
const LOSS_PERIOD: Duration = Duration::from_millis(500);
/// Loss above this part takes rate away.
const LOSS_LIMIT: f64 = 0.10;
/// The rate never falls below this part of the target.
const LOWEST_PART: f64 = 1.0 / 8.0;
/// The smallest round trip is forgotten after this long, so that a route that became longer is not
/// taken for a queue for ever.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
/// A smoothed round trip this far above the smallest one is a standing queue.
const QUEUE_LIMIT: Duration = Duration::from_millis(60);

/// What the controller aims for.
#[derive(Clone, Debug)]
pub struct MediaConfig {
    /// Sum of the devices' greatest bitrates with headroom, bit/s.
    pub target_bps: u64,
    /// Smallest window at full rate, bytes: a keyframe goes out at once on a short path.
    pub floor_bytes: u64,
}

impl ControllerFactory for MediaConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Media::new((*self).clone(), now, current_mtu))
    }
}

#[derive(Clone)]
struct Media {
    config: MediaConfig,
    rate_bps: f64,
    acked: u64,
    lost: u64,
    period_start: Instant,
    rtt: Duration,
    min_rtt: [(Instant, Duration); 2],
    mtu: u16,
    last_decrease: Instant,
}

impl Media {
    fn new(config: MediaConfig, now: Instant, mtu: u16) -> Self {
        Self {
            rate_bps: config.target_bps as f64,
            config,
            acked: 0,
            lost: 0,
            period_start: now,
            rtt: Duration::from_millis(50),
            min_rtt: [(now, Duration::MAX); 2],
            mtu,
            last_decrease: now,
        }
    }

    /// Smallest round trip of the last one to two half windows.
    fn note_rtt(&mut self, now: Instant, rtt: Duration) -> Duration {
        self.rtt = rtt;
        let [old, new] = &mut self.min_rtt;
        if now.saturating_duration_since(new.0) > MIN_RTT_WINDOW / 2 {
            *old = *new;
            *new = (now, rtt);
        }
        new.1 = new.1.min(rtt);
        old.1.min(new.1)
    }

    fn acknowledged(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        self.acked += bytes;
        let smallest = self.note_rtt(now, rtt);
        let queue = rtt.saturating_sub(smallest);
        let since_decrease = now.saturating_duration_since(self.last_decrease);
        if queue > QUEUE_LIMIT.max(smallest / 2)
            && since_decrease > rtt.max(Duration::from_millis(50))
        {
            self.decrease(now, 0.85);
        }
        if now.saturating_duration_since(self.period_start) > LOSS_PERIOD {
            let loss = self.lost as f64 / (self.lost + self.acked).max(1) as f64;
            if loss > LOSS_LIMIT {
                self.decrease(now, 1.0 - loss / 2.0);
            } else if now.saturating_duration_since(self.last_decrease) > LOSS_PERIOD {
                self.rate_bps = (self.rate_bps * 1.08).min(self.config.target_bps as f64);
            }
            self.acked = 0;
            self.lost = 0;
            self.period_start = now;
        }
    }

    fn decrease(&mut self, now: Instant, factor: f64) {
        let lowest = self.config.target_bps as f64 * LOWEST_PART;
        self.rate_bps = (self.rate_bps * factor).max(lowest);
        self.last_decrease = now;
    }

    #[expect(clippy::cast_possible_truncation, reason = "windows are positive and below 2^53")]
    fn bytes(&self) -> u64 {
        let part = self.rate_bps / self.config.target_bps as f64;
        let follow = (self.rate_bps / 8.0 * self.rtt.as_secs_f64()) as u64;
        let floor = (self.config.floor_bytes as f64 * part * part) as u64;
        follow.max(floor).max(4 * u64::from(self.mtu))
    }
}

impl Controller for Media {
    fn on_ack(
        &mut self,
        now: Instant,
        _sent: Instant,
        bytes: u64,
        _app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acknowledged(now, bytes, rtt.get());
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.lost += lost_bytes;
        if is_persistent_congestion {
            self.decrease(now, LOWEST_PART);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
    }

    fn window(&self) -> u64 {
        self.bytes()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.config.floor_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    struct World {
        now: Instant,
        media: Media,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let config = MediaConfig { target_bps: 10_000_000, floor_bytes: 140_000 };
            Self { now, media: Media::new(config, now, 1200) }
        }

        fn run(&mut self, total: Duration, rtt_ms: u64, loss_percent: u64) {
            let end = self.now + total;
            while self.now < end {
                self.now += STEP;
                let lost = 12_500 * loss_percent / 100;
                self.media.lost += lost;
                let acked = 12_500 - lost;
                self.media.acknowledged(self.now, acked, Duration::from_millis(rtt_ms));
            }
        }
    }

    #[test]
    fn isolated_loss_takes_nothing_away() {
        let mut w = World::new();
        let before = w.media.bytes();
        w.run(Duration::from_secs(5), 40, 5);
        assert_eq!(w.media.bytes(), before);
    }

    #[test]
    fn heavy_loss_takes_rate_away_down_to_an_eighth_and_it_comes_back() {
        let mut w = World::new();
        w.run(Duration::from_secs(10), 40, 50);
        assert!((w.media.rate_bps - 1_250_000.0).abs() < 1.0, "{}", w.media.rate_bps);
        w.run(Duration::from_secs(20), 40, 0);
        assert!((w.media.rate_bps - 10_000_000.0).abs() < 1.0, "{}", w.media.rate_bps);
    }

    #[test]
    fn a_standing_queue_takes_rate_away_and_a_longer_path_does_not_for_ever() {
        let mut w = World::new();
        w.run(Duration::from_secs(1), 20, 0);
        w.run(Duration::from_secs(1), 200, 0);
        assert!(w.media.rate_bps < 5_000_000.0, "{}", w.media.rate_bps);
        w.run(Duration::from_secs(40), 200, 0);
        assert!((w.media.rate_bps - 10_000_000.0).abs() < 1.0, "{}", w.media.rate_bps);
    }
}
