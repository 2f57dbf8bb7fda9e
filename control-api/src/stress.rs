//! Corrected stress: what a router's load will be once it has felt what was placed on it since it
//! last spoke. Pure. Not a measurement. Invariant: the correction never makes a router look less
//! loaded than it says it is.

use fanlight_proto::types::v1::NodeLoad;

use crate::store::rows::NodeRow;

/// Above this nothing new is placed, in permille.
pub const CEILING_PERMILLE: u32 = 800;
/// What a viewer is taken to cost while a router has too few to tell, in permille: 1,000 viewers
/// fill a router, a cautious figure for one core.
const VIEWER_PRIOR_PERMILLE: f64 = 1.0;
/// What a stream is taken to cost, in permille, besides its viewers.
const STREAM_PRIOR_PERMILLE: f64 = 2.0;
/// Viewers from which a router's own average counts more than the prior.
const TRUST_VIEWERS: f64 = 20.0;

/// Cost of one more viewer on a router, in permille: its own average, drawn to the prior while
/// there are few viewers.
fn viewer_cost(load: &NodeLoad) -> f64 {
    let viewers = f64::from(load.viewers);
    let stress = f64::from(load.stress_permille.min(1000));
    (stress + VIEWER_PRIOR_PERMILLE * TRUST_VIEWERS) / (viewers + TRUST_VIEWERS)
}

/// Stress after correction, in permille; may exceed 1,000. `replicas` control processes place at
/// the same time and each sees only its own placements.
pub fn corrected_permille(row: &NodeRow, replicas: u32) -> u32 {
    let placed = f64::from(row.placed_viewers) * viewer_cost(&row.load)
        + f64::from(row.placed_streams) * STREAM_PRIOR_PERMILLE;
    let sum = f64::from(row.load.stress_permille) + placed * f64::from(replicas.max(1));
    // The value is finite, not negative, and capped before the cast.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "capped above")]
    let whole = sum.min(1e9).ceil() as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::fixtures::node_row;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn correction_only_adds(stress in 0u32..=1000, viewers in 0u32..5000, pv in 0u32..5000, ps in 0u32..500) {
            let mut row = node_row("r1", 0);
            row.load.stress_permille = stress;
            row.load.viewers = viewers;
            let before = corrected_permille(&row, 1);
            prop_assert_eq!(before, stress);
            row.placed_viewers = pv;
            row.placed_streams = ps;
            let one = corrected_permille(&row, 1);
            prop_assert!(one >= before);
            prop_assert!(corrected_permille(&row, 3) >= one);
        }
    }

    #[test]
    fn what_was_placed_since_the_heartbeat_counts() {
        let mut row = node_row("r1", 0);
        row.load.stress_permille = 400;
        row.load.viewers = 400;
        row.placed_viewers = 100;
        assert_eq!(corrected_permille(&row, 1), 500);
    }
}
