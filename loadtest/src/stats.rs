//! Distributions of times. Not their display. Invariant: an empty distribution has no quantiles.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time that is told apart.
const MAX_US: u64 = 120_000_000;

/// Times, by the microsecond, to three digits.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_max(MAX_US, 3);
        // The bounds are constants that the library takes.
        Self(histogram.unwrap_or_else(|_| unreachable!("constant bounds")))
    }
}

impl Times {
    /// Notes one; those beyond two minutes count as two minutes.
    pub fn note(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(MAX_US));
    }

    /// Notes all of another's.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time below which the part `q` (0 to 1) lies, in microseconds.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(q) as f64)
    }

    /// The same in milliseconds.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        Some(self.quantile_us(q)? / 1_000.0)
    }

    /// How many are at most this long.
    pub fn within(&self, time: Duration) -> u64 {
        self.0.count_between(0, u64::try_from(time.as_micros()).unwrap_or(MAX_US))
    }

    /// Greatest, in microseconds.
    pub fn max_us(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.max() as f64)
    }

    /// Points of the distribution function, (milliseconds, part at or below), for plots.
    pub fn curve(&self, points: u32) -> Vec<(f64, f64)> {
        let at = |i| f64::from(i) / f64::from(points.max(1));
        (0..=points).filter_map(|i| Some((self.quantile_ms(at(i))?, at(i)))).collect()
    }
}

/// A number that counts something: the fraction is cut, what is below zero or none is zero.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as cast saturates")]
pub fn whole(value: f64) -> usize {
    value as usize
}

/// Growth per hour of a series of (seconds, value), by least squares; `None` for fewer than three
/// points or no time between them.
pub fn slope_per_hour(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let (mx, my) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in points {
        above += (x - mx) * (y - my);
        below += (x - mx) * (x - mx);
    }
    (below > 0.0).then(|| above / below * 3_600.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_nothing_are_not_zero() {
        let mut times = Times::default();
        assert_eq!(times.quantile_us(0.5), None);
        for ms in 1..=100 {
            times.note(Duration::from_millis(ms));
        }
        let median = times.quantile_ms(0.5).unwrap();
        assert!((median - 50.0).abs() < 0.1, "{median}");
        times.note(Duration::from_secs(10_000));
        assert!(times.max_us().unwrap() >= 119e6);
    }

    #[test]
    fn a_slope_is_per_hour() {
        let line: Vec<(f64, f64)> = (0..10).map(|i| (f64::from(i) * 10.0, f64::from(i))).collect();
        assert!((slope_per_hour(&line).unwrap() - 360.0).abs() < 1e-9);
        assert_eq!(slope_per_hour(&line[..2]), None);
        assert_eq!(slope_per_hour(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
    }
}
