//! Bytes per time over the last 640 ms, in buckets of 10 ms.
//!
//! Not an estimate: a measurement, of sent or of arrived bytes. Invariant: fixed memory, and a
//! clock that jumps in either direction costs no more than the buckets.

const BUCKET_US: i64 = 10_000;
const BUCKETS: usize = 64;

/// A sliding sum.
#[derive(Debug, Clone)]
pub(crate) struct Rate {
    buckets: [u32; BUCKETS],
    /// Number of the newest bucket and of the oldest one ever, since the clock's zero.
    span: Option<(i64, i64)>,
}

impl Default for Rate {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], span: None }
    }
}

impl Rate {
    /// Counts bytes at a moment. What is older than all buckets is not counted.
    pub(crate) fn add(&mut self, at_us: i64, bytes: u32) {
        let number = at_us.div_euclid(BUCKET_US);
        let (oldest, newest) = *self.span.get_or_insert((number, number));
        if number > newest {
            let steps = number.saturating_sub(newest).min(BUCKETS as i64);
            for step in 0..steps {
                self.buckets[slot(number - step)] = 0;
            }
            self.span = Some((oldest, number));
        } else if newest.saturating_sub(number) >= BUCKETS as i64 {
            return;
        }
        let bucket = &mut self.buckets[slot(number)];
        *bucket = bucket.saturating_add(bytes);
    }

    /// Bits per second over the last `window_us` before the newest byte, or since the first.
    pub(crate) fn bps(&self, window_us: i64) -> f64 {
        let Some((oldest, newest)) = self.span else { return 0.0 };
        let wanted = (window_us / BUCKET_US).clamp(1, BUCKETS as i64);
        let count = newest.saturating_sub(oldest).saturating_add(1).clamp(1, wanted);
        let bytes: u64 =
            (0..count).map(|back| u64::from(self.buckets[slot(newest.saturating_sub(back))])).sum();
        bytes as f64 * 8.0 * 1e6 / (count * BUCKET_US) as f64
    }
}

#[expect(clippy::cast_possible_truncation, reason = "0..64")]
fn slot(number: i64) -> usize {
    number.rem_euclid(BUCKETS as i64) as usize
}
