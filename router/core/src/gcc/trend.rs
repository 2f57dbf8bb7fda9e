//! Whether the delay grows: slope of a line through the last 20 bursts, against a threshold that
//! adapts to how restless the path is.
//!
//! Not aware of what causes it. Invariant: the threshold stays within 6 and 600, so that neither a
//! quiet path makes it deaf to nothing nor a wild one deaf to all.

use super::Usage;

const WINDOW: usize = 20;
/// Fewer bursts give no line. The gain grows with their number, so that few need to be steep.
const POINTS_MIN: usize = 4;
const GAIN: f64 = 4.0;
/// Bursts from which on the gain no longer grows.
const GAIN_POINTS_MAX: u32 = 60;
const SMOOTHING: f64 = 0.7;
const THRESHOLD_START: f64 = 12.5;
const THRESHOLD_RANGE: (f64, f64) = (6.0, 600.0);
/// A slope this far above the threshold is an event, not restlessness.
const ADAPT_MAX: f64 = 15.0;
const K_UP: f64 = 0.0087;
const K_DOWN: f64 = 0.039;
/// The slope must stay above the threshold for this long, in milliseconds.
const OVERUSE_MS: f64 = 10.0;

/// The line.
#[derive(Debug, Clone)]
pub(crate) struct Trend {
    /// Milliseconds of arrival since the first burst, and smoothed delay.
    points: [(f64, f64); WINDOW],
    sums: Sums,
    seen: u32,
    first_us: i64,
    first_delay_us: i64,
    last_ms: f64,
    smoothed: f64,
    threshold: f64,
    slope: f64,
    over_ms: f64,
    over_count: u32,
    usage: Usage,
}

impl Default for Trend {
    fn default() -> Self {
        Self {
            points: [(0.0, 0.0); WINDOW],
            sums: Sums::default(),
            seen: 0,
            first_us: 0,
            first_delay_us: 0,
            last_ms: 0.0,
            smoothed: 0.0,
            threshold: THRESHOLD_START,
            slope: 0.0,
            over_ms: 0.0,
            over_count: 0,
            usage: Usage::Normal,
        }
    }
}

impl Trend {
    /// How the delay moves.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// One more burst: when it arrived and what delay it found.
    pub(crate) fn add(&mut self, arrived_us: i64, delay_us: i64) {
        if self.seen == 0 {
            self.first_us = arrived_us;
            self.first_delay_us = delay_us;
        }
        let at_ms = arrived_us.saturating_sub(self.first_us) as f64 / 1e3;
        let delay_ms = delay_us.saturating_sub(self.first_delay_us) as f64 / 1e3;
        self.smoothed += (1.0 - SMOOTHING) * (delay_ms - self.smoothed);
        let place = self.seen as usize % WINDOW;
        let leaving = std::mem::replace(&mut self.points[place], (at_ms, self.smoothed));
        self.seen = self.seen.saturating_add(1);
        let full = self.seen as usize > WINDOW;
        if place == 0 {
            // From scratch once per window, so that rounding does not add up.
            let held = if full { WINDOW } else { 1 };
            self.sums = Sums::of(&self.points[..held], at_ms);
        } else {
            self.sums.change(1.0, (at_ms, self.smoothed));
            if full {
                self.sums.change(-1.0, leaving);
            }
        }
        let passed_ms = (at_ms - self.last_ms).max(0.0);
        self.last_ms = at_ms;
        let count = (self.seen as usize).min(WINDOW);
        if count >= POINTS_MIN {
            let slope = self.sums.slope().unwrap_or(self.slope);
            self.judge(slope, passed_ms);
        }
    }

    fn judge(&mut self, slope: f64, passed_ms: f64) {
        let steep = f64::from(self.seen.min(GAIN_POINTS_MAX)) * slope * GAIN;
        if steep > self.threshold {
            self.over_ms += passed_ms;
            self.over_count = self.over_count.saturating_add(1);
            if self.over_ms > OVERUSE_MS && self.over_count > 1 && slope >= self.slope {
                self.usage = Usage::Overuse;
            }
        } else {
            self.over_ms = 0.0;
            self.over_count = 0;
            self.usage = if steep < -self.threshold { Usage::Underuse } else { Usage::Normal };
        }
        self.slope = slope;
        self.adapt(steep.abs(), passed_ms);
    }

    fn adapt(&mut self, steep: f64, passed_ms: f64) {
        if steep > self.threshold + ADAPT_MAX {
            return;
        }
        let k = if steep < self.threshold { K_DOWN } else { K_UP };
        self.threshold += k * (steep - self.threshold) * passed_ms.min(100.0);
        self.threshold = self.threshold.clamp(THRESHOLD_RANGE.0, THRESHOLD_RANGE.1);
    }
}

/// Running sums of a least-squares line, with times counted from an origin among them.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    origin: f64,
    count: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Sums {
    fn of(points: &[(f64, f64)], origin: f64) -> Self {
        let mut sums = Self { origin, ..Self::default() };
        for point in points {
            sums.change(1.0, *point);
        }
        sums
    }

    /// A point comes (1) or goes (-1).
    fn change(&mut self, sign: f64, (at, y): (f64, f64)) {
        let x = at - self.origin;
        self.count += sign;
        self.x += sign * x;
        self.y += sign * y;
        self.xx += sign * x * x;
        self.xy += sign * x * y;
    }

    /// `None` when all points are at one moment.
    fn slope(&self) -> Option<f64> {
        let under = self.xx - self.x * self.x / self.count;
        (under > 1e-6).then(|| (self.xy - self.x * self.y / self.count) / under)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same in two passes.
    fn least_squares(points: &[(f64, f64)]) -> Option<f64> {
        let count = points.len() as f64;
        let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        let (mean_x, mean_y) = (sum_x / count, sum_y / count);
        let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), p| {
            let x = p.0 - mean_x;
            (over + x * (p.1 - mean_y), under + x * x)
        });
        (under > 1e-6).then(|| over / under)
    }

    proptest! {
        #[test]
        fn the_running_line_is_the_line_through_the_window(
            steps in prop::collection::vec((1_000_i64..60_000, 0_i64..400_000), 4..200),
        ) {
            let mut trend = Trend::default();
            let mut at = 7_000_000_000;
            for (step, delay) in steps {
                at += step;
                trend.add(at, delay);
                let held = (trend.seen as usize).min(WINDOW);
                let Some(expected) = least_squares(&trend.points[..held]) else { continue };
                let found = trend.sums.slope().unwrap();
                prop_assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{found} {expected}");
            }
        }
    }
}
