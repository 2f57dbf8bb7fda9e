//! The control plane's clock: microseconds since 1970 that never step back while the process
//! lives. Not the clock of token expiry, which compares with other machines' wall clocks.
//! Invariant: two readings never go backwards; under tokio's paused time it moves with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Microseconds since 1970.
pub type UnixUs = u64;

/// Wall clock at start, moved on by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_unix_us: UnixUs,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_unix_us: us(unix) }
    }

    /// Now.
    pub fn now_us(&self) -> UnixUs {
        self.started_unix_us.saturating_add(us(self.started.elapsed()))
    }
}

/// A duration in microseconds, at most `u64::MAX`.
pub fn us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// Seconds since 1970 on the wall clock, for token times.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A protobuf timestamp.
pub fn timestamp(at: UnixUs) -> prost_types::Timestamp {
    let nanos = i32::try_from(at % 1_000_000 * 1_000).unwrap_or_default();
    prost_types::Timestamp { seconds: i64::try_from(at / 1_000_000).unwrap_or(i64::MAX), nanos }
}

/// A protobuf duration.
pub fn duration(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn moves_with_virtual_time() {
        let clock = Clock::start();
        let a = clock.now_us();
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now_us() - a, 1_500_000);
    }

    #[test]
    fn timestamps_keep_microseconds() {
        let t = timestamp(1_700_000_000_123_456);
        assert_eq!((t.seconds, t.nanos), (1_700_000_000, 123_456_000));
    }
}
