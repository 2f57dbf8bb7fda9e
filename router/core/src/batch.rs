//! Sealed media on its way out: one buffer, and which stretch of it goes to whom.
//!
//! The core fills it, the driver sends it, in turns (see [`crate::Core::poll_media`]). Not a queue:
//! it is emptied before it is filled again. Invariant: the datagrams of a [`Run`] are of one size
//! but the last, which is not longer, so that one segmented send carries them.

use std::time::Instant;

use crate::api::Route;
use crate::limits::PAYLOAD_BYTES_MAX;

/// Largest datagram: the largest payload taken from the hop, the longest header, the tag.
const DATAGRAM_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 80;

/// Consecutive datagrams to one viewer.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Where to.
    pub to: Route,
    /// First byte in the batch's buffer.
    pub start: usize,
    /// Bytes of all its datagrams.
    pub len: usize,
    /// Size of each datagram but the last.
    pub segment: usize,
    /// Datagrams.
    pub count: usize,
    /// When the frame reached the router, for the added latency. `None` for repairs and replays.
    pub arrived: Option<Instant>,
    /// Whether the viewer controls the device.
    pub controller: bool,
    /// The viewer's slot in the core, to tell runs apart.
    pub viewer: usize,
}

/// A bounded buffer of sealed datagrams.
#[derive(Debug)]
pub struct Batch {
    bytes: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    runs_max: usize,
}

impl Batch {
    /// A batch of at most `runs_max` runs and `bytes_max` bytes. The buffer should stay within the
    /// second-level cache.
    #[must_use]
    pub fn new(runs_max: usize, bytes_max: usize) -> Self {
        Self {
            bytes: vec![0; bytes_max].into(),
            used: 0,
            runs: Vec::with_capacity(runs_max),
            runs_max,
        }
    }

    /// What is to be sent, in order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The datagrams of a run, one after the other.
    #[must_use]
    pub fn bytes(&self, run: &Run) -> &[u8] {
        self.bytes.get(run.start..run.start + run.len).unwrap_or_default()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Empties it for the next turn.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }

    /// Whether another run may be added: there is a place for it, and room for a datagram.
    pub(crate) fn has_room(&self) -> bool {
        self.runs.len() < self.runs_max && self.bytes.len() - self.used >= DATAGRAM_BYTES_MAX
    }

    /// The unused part of the buffer.
    pub(crate) fn free(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.used..).unwrap_or_default()
    }

    /// Adds a run whose datagrams were written to the front of [`Self::free`].
    pub(crate) fn push(&mut self, run: Run) {
        self.runs.push(Run { start: self.used, ..run });
        self.used += run.len;
    }

    /// Adds a run by hand: for drivers' tests and benchmarks.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn push_for_test(&mut self, mut run: Run, bytes: &[u8]) {
        run.start = self.used;
        run.len = bytes.len();
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        self.runs.push(run);
    }
}
