//! Tables and dispatch: which viewer, which stream, what is dirty, what is due. No policy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::api::{
    Answer, CoreConfig, DownReason, JoinRequest, LeaveReason, Output, Role, SessionId, StreamInfo,
    StreamKey, ViewerStats,
};
use crate::counters::Counters;
use crate::error::JoinError;
use crate::frame::Frame;

/// All streams and viewers of one shard. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Core {
    counters: Counters,
}

impl Core {
    /// A core without streams or viewers. `seed` drives what need not be secret (first sequence
    /// numbers); ICE credentials and keys come from the system.
    #[must_use]
    pub fn new(_cfg: CoreConfig, _now: Instant, _seed: u64) -> Self {
        Self { counters: Counters::default() }
    }

    /// A stream has a source: it is new, it came back, or its source restarted with a higher
    /// epoch. Viewers that waited go on with its next keyframe.
    pub fn stream_up(&mut self, _now: Instant, _stream: StreamKey, _info: StreamInfo) {}

    /// A stream lost its source. Viewers stay connected and wait.
    pub fn stream_down(&mut self, _now: Instant, _stream: StreamKey, _reason: DownReason) {}

    /// A stream is no longer served here. Its viewers are closed.
    pub fn stream_removed(&mut self, _now: Instant, _stream: StreamKey, _reason: DownReason) {}

    /// A picture arrived: cached, and given to every live viewer of the stream.
    pub fn frame(&mut self, _now: Instant, _stream: StreamKey, _frame: Arc<Frame>) {}

    /// A message from the device (clipboard, for example): goes to the `input` channel of every
    /// controller of the stream.
    pub fn device_output(&mut self, _now: Instant, _stream: StreamKey, _bytes: &[u8]) {}

    /// Answers an offer.
    ///
    /// # Errors
    /// See [`JoinError`]. Nothing of a refused join is kept.
    pub fn join(&mut self, _now: Instant, _request: JoinRequest) -> Result<Answer, JoinError> {
        Err(JoinError::UnknownStream)
    }

    /// Ends a viewer's session. Unknown sessions are ignored.
    pub fn leave(&mut self, _now: Instant, _session: SessionId, _reason: LeaveReason) {}

    /// Changes what a viewer may do; it is told by a session message.
    pub fn set_role(&mut self, _now: Instant, _session: SessionId, _role: Role) {}

    /// A datagram arrived on the shard's socket. `to` may be any local address: one that is not a
    /// configured candidate (wildcard bind, NAT) is replaced by the first of the same family.
    pub fn datagram(&mut self, _now: Instant, _from: SocketAddr, _to: SocketAddr, _bytes: &[u8]) {
        self.counters.datagrams_in += 1;
        self.counters.datagrams_unknown += 1;
    }

    /// The moment of [`Self::next_timeout`] has come (calling it early is harmless).
    pub fn timeout(&mut self, _now: Instant) {}

    /// The next thing to do, or `None` when there is nothing until the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// When [`Self::timeout`] must be called at the latest. Ask after draining.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Viewers that have state here, those that are closing included.
    #[must_use]
    pub fn viewer_count(&self) -> usize {
        0
    }

    /// Streams that have state here.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        0
    }

    /// Viewers of one stream that are not closing.
    #[must_use]
    pub fn viewers_of(&self, _stream: StreamKey) -> usize {
        0
    }

    /// One viewer's figures.
    #[must_use]
    pub fn viewer_stats(&self, _session: SessionId) -> Option<ViewerStats> {
        None
    }

    /// Every viewer's figures. Costs time in proportion to the viewers: for reports, about once a
    /// second.
    pub fn all_viewer_stats(&self) -> impl Iterator<Item = ViewerStats> + '_ {
        std::iter::empty()
    }
}
