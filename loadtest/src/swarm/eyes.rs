//! What one person sees, over all the connections that they have one after the other or at once: when
//! the last picture came, and how long nothing came. Written by viewers' threads, read by anybody.
//! Invariant: a picture counts when it is complete, right and can be decoded.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// First byte of messages towards a viewer (WIRE.md).
const RECONNECT: u8 = 0x84;
const PONG: u8 = 0x8a;
/// Bytes of a message's header, and of a pong.
const HEADER: usize = 12;
const PONG_BYTES: usize = 16;

/// One person's eyes.
#[derive(Debug)]
pub struct Eyes {
    start: Instant,
    /// Microseconds since `start`; 0: no picture yet.
    last_us: AtomicU64,
    longest_us: AtomicU64,
    frames: AtomicU64,
    packets: AtomicU64,
    messages: AtomicU64,
    /// Milliseconds; `u64::MAX`: no pong yet.
    round_trip_ms: AtomicU64,
    moved: Mutex<Option<String>>,
}

impl Eyes {
    /// Of a person who has seen nothing yet.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            last_us: AtomicU64::new(0),
            longest_us: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            round_trip_ms: AtomicU64::new(u64::MAX),
            moved: Mutex::default(),
        }
    }

    fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// A clock for pings: milliseconds, cut to 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "it goes round, as the wire's does")]
    pub fn clock_ms(&self, at: Instant) -> u32 {
        (self.us(at) / 1_000) as u32
    }

    pub(super) fn shown(&self, at: Instant) {
        let now = self.us(at).max(1);
        let last = self.last_us.fetch_max(now, Ordering::Relaxed);
        if last > 0 {
            self.longest_us.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn received(&self, packets: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
    }

    pub(super) fn message(&self, at: Instant, bytes: &[u8]) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        match bytes.first() {
            Some(&PONG) if bytes.len() == PONG_BYTES => {
                let sent = bytes.get(HEADER..).and_then(|rest| rest.first_chunk::<4>());
                let sent = sent.map_or(0, |t| u32::from_be_bytes(*t));
                let took = self.clock_ms(at).wrapping_sub(sent);
                self.round_trip_ms.store(u64::from(took), Ordering::Relaxed);
            }
            Some(&RECONNECT) => *self.moved.lock() = address(bytes),
            _ => {}
        }
    }

    /// Time since the last picture; `None` before the first.
    pub fn since(&self, at: Instant) -> Option<Duration> {
        let last = self.last_us.load(Ordering::Relaxed);
        (last > 0).then(|| Duration::from_micros(self.us(at).saturating_sub(last)))
    }

    /// Begins to look for the longest time without a picture. One that has begun already counts in
    /// full.
    pub fn open(&self) {
        self.longest_us.store(0, Ordering::Relaxed);
    }

    /// The longest time without a picture since [`Self::open`], the one that lasts included; `None`
    /// when there never was a picture.
    pub fn longest(&self, at: Instant) -> Option<Duration> {
        let longest = Duration::from_micros(self.longest_us.load(Ordering::Relaxed));
        Some(longest.max(self.since(at)?))
    }

    /// Pictures.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Packets of media.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Messages on data channels, and what the last pong said of the round trip.
    pub fn messages(&self) -> (u64, Option<Duration>) {
        let ms = self.round_trip_ms.load(Ordering::Relaxed);
        let round_trip = (ms < u64::MAX).then(|| Duration::from_millis(ms));
        (self.messages.load(Ordering::Relaxed), round_trip)
    }

    /// The address that the router said to go to, once.
    pub fn take_move(&self) -> Option<String> {
        self.moved.lock().take()
    }
}

/// The address in a Reconnect: two bytes of length, two of nothing, the text.
fn address(bytes: &[u8]) -> Option<String> {
    let rest = bytes.get(HEADER..)?;
    let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
    let text = rest.get(4..4 + length)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_without_a_picture_includes_the_one_that_lasts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let eyes = Eyes::new(start);
        assert_eq!(eyes.longest(at(500)), None, "nothing was ever seen");
        eyes.shown(at(100));
        eyes.open();
        eyes.shown(at(400));
        eyes.shown(at(433));
        assert_eq!(eyes.longest(at(450)), Some(Duration::from_millis(300)));
        assert_eq!(eyes.longest(at(1_000)), Some(Duration::from_millis(567)));
        eyes.open();
        eyes.shown(at(466));
        assert_eq!(eyes.longest(at(470)), Some(Duration::from_millis(33)));
    }

    #[test]
    fn pongs_tell_the_round_trip_and_moves_their_address() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let eyes = Eyes::new(start);
        let mut pong = vec![PONG; 1];
        pong.resize(HEADER, 0);
        pong.extend_from_slice(&eyes.clock_ms(at(1_000)).to_be_bytes());
        eyes.message(at(1_042), &pong);
        assert_eq!(eyes.messages(), (1, Some(Duration::from_millis(42))));
        let mut moved = vec![RECONNECT; 1];
        moved.resize(HEADER, 0);
        moved.extend_from_slice(&[0, 8, 0, 0]);
        moved.extend_from_slice(b"http://x");
        eyes.message(at(1_050), &moved);
        assert_eq!(eyes.take_move().as_deref(), Some("http://x"));
        assert_eq!(eyes.take_move(), None);
        eyes.message(at(1_060), &moved[..18]);
        assert_eq!(eyes.take_move(), None, "a message that is cut says nothing");
    }
}
