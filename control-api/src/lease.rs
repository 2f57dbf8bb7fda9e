//! Leases and back-offs: how time alone changes the state of nodes, viewers and streams. Pure:
//! rows in, decisions out. Not the store that keeps the rows, nor the judge of what moves a
//! stream (`witness.rs`). Invariant: silence makes a node SUSPECT first and LOST only when its
//! lease ran out.

use std::time::Duration;

use fanlight_proto::types::v1::NodeState;

use crate::{
    clock::{UnixUs, us},
    store::rows::NodeRow,
};

/// Every duration of the control plane in one place.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Asked of nodes. One second: a thousand nodes cost a thousand small messages a second.
    pub heartbeat: Duration,
    /// A node silent for this long gets no new work: two beats and their jitter were missed.
    pub suspect_after: Duration,
    /// A node silent for this long is LOST: eight beats, longer than a process restart.
    pub lease: Duration,
    /// A LOST node without work is forgotten after this.
    pub forget_node: Duration,
    /// A gone viewer stays readable for this long.
    pub forget_viewer: Duration,
    /// Viewers have this long to leave an origin that their stream moved away from, and a node
    /// that is drained without a deadline.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            suspect_after: Duration::from_secs(3),
            lease: Duration::from_secs(8),
            forget_node: Duration::from_secs(3600),
            forget_viewer: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// The state a row stands for.
pub fn node_state(row: &NodeRow) -> NodeState {
    match row {
        NodeRow { lost: true, .. } => NodeState::Lost,
        NodeRow { link: None, .. } | NodeRow { suspect: true, .. } => NodeState::Suspect,
        NodeRow { draining: true, .. } | NodeRow { drain_us: Some(_), .. } => NodeState::Draining,
        NodeRow { agreed: false, .. } => NodeState::Starting,
        _ => NodeState::Serving,
    }
}

/// What time does to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeTick {
    /// Nothing.
    Stay,
    /// It becomes SUSPECT.
    Suspect,
    /// Its lease ran out.
    Lose,
    /// It was lost long ago and carries nothing.
    Forget,
}

/// What time does to a node.
pub fn tick_node(row: &NodeRow, now: UnixUs, timing: &Timing) -> NodeTick {
    if row.lost {
        let long_ago = now >= row.lease_us.saturating_add(us(timing.forget_node));
        return if long_ago && row.assignments == 0 { NodeTick::Forget } else { NodeTick::Stay };
    }
    if now >= row.lease_us {
        return NodeTick::Lose;
    }
    let silent = now >= row.beat_us.saturating_add(us(timing.suspect_after));
    if silent && !row.suspect { NodeTick::Suspect } else { NodeTick::Stay }
}

/// Back-off of placements that fail in a row: 1, 2, 4 … 60 s.
pub fn place_backoff(attempts: u32) -> Duration {
    Duration::from_secs(1u64 << attempts.min(6)).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::fixtures::node_row;

    #[test]
    fn silence_is_suspect_then_lost_then_forgotten() {
        let t = Timing::default();
        let mut row = node_row("r1", 0);
        row.lease_us = us(t.lease);
        let at = |s: u64| s * 1_000_000;
        assert_eq!(tick_node(&row, at(2), &t), NodeTick::Stay);
        assert_eq!(tick_node(&row, at(3), &t), NodeTick::Suspect);
        row.suspect = true;
        assert_eq!(tick_node(&row, at(4), &t), NodeTick::Stay);
        assert_eq!(node_state(&row), NodeState::Suspect);
        assert_eq!(tick_node(&row, at(8), &t), NodeTick::Lose);
        row.lost = true;
        assert_eq!(node_state(&row), NodeState::Lost);
        row.assignments = 1;
        assert_eq!(tick_node(&row, at(8000), &t), NodeTick::Stay);
        row.assignments = 0;
        assert_eq!(tick_node(&row, at(8000), &t), NodeTick::Forget);
    }

    #[test]
    fn backoff_grows_to_a_minute() {
        let secs: Vec<_> = (0..9).map(|n| place_backoff(n).as_secs()).collect();
        assert_eq!(secs, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
