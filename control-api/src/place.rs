//! Placement: the fleet as it is seen and a request in, a router and the reasons for all others
//! out. Pure; chance comes from the caller. Not the commit (the store's compare-and-set) and not
//! the admission (the router has the last word). Invariant: a router that a hard filter excludes
//! is never picked, and the lowest of a stale fleet is never searched for.

use std::{fmt, sync::Arc};

use fanlight_proto::{id::NodeId, types::v1::NodeState};
use rand::{Rng, seq::IteratorRandom as _};

use crate::{
    lease::node_state,
    store::rows::NodeRow,
    stress::{CEILING_PERMILLE, corrected_permille},
};

/// In fleets under this size four candidates are drawn instead of two.
const SMALL_FLEET: usize = 32;
/// ICE attempts from which the failure rate means something.
const ICE_SAMPLE: u32 = 20;

/// Why a router is not considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// It is not a router.
    NotARouter,
    /// It is not in the state SERVING.
    State(NodeState),
    /// It gave no address for QUIC, or none for WHEP.
    NoAddress,
    /// Corrected stress is at the ceiling.
    AtCapacity,
    /// It carries as many streams as it said it can.
    StreamsFull,
    /// It serves as many viewers as it said it can.
    ViewersFull,
    /// More than half of its ICE sessions failed: it is cut off from users.
    FailingIce,
    /// It refused this stream a moment ago.
    Refused,
    /// It does not carry the stream.
    NotOnTree,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotARouter => f.write_str("not a router"),
            Self::State(s) => f.write_str(s.as_str_name()),
            Self::NoAddress => f.write_str("no address"),
            Self::AtCapacity => f.write_str("stress at the ceiling"),
            Self::StreamsFull => f.write_str("streams full"),
            Self::ViewersFull => f.write_str("viewers full"),
            Self::FailingIce => f.write_str("ICE sessions fail"),
            Self::Refused => f.write_str("refused it"),
            Self::NotOnTree => f.write_str("does not carry the stream"),
        }
    }
}

/// A router as placement saw it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The router.
    pub node: NodeId,
    /// Its life.
    pub incarnation: u64,
    /// Its corrected stress.
    pub stress_permille: u32,
    /// Step of the region ladder: 0 is the region asked for, 1 is anywhere.
    pub step: u8,
    /// Why it is out; `None` when it may be picked.
    pub excluded: Option<Exclusion>,
}

/// Result of a placement: enough to explain it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What to commit to.
    pub pick: Option<Candidate>,
    /// All that was looked at.
    pub candidates: Vec<Candidate>,
}

impl Decision {
    /// One line saying why nothing was picked, or how many routers could have been.
    pub fn explain(&self) -> String {
        if self.candidates.is_empty() {
            return "no router is linked".to_owned();
        }
        let say = |c: &Candidate| match c.excluded {
            Some(why) => format!("{} ({why})", c.node),
            None => format!("{} ({}‰)", c.node, c.stress_permille),
        };
        // Ten names are enough for people; the rest is counted.
        let mut line = self.candidates.iter().take(10).map(say).collect::<Vec<_>>().join(", ");
        if self.candidates.len() > 10 {
            line.push_str(&format!(" and {} more", self.candidates.len() - 10));
        }
        line
    }
}

/// What an origin is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct OriginAsk<'a> {
    /// Region asked for; empty: that of the ingest worker.
    pub region: &'a str,
    /// Routers that refused the stream.
    pub refused: &'a [NodeId],
    /// Control processes that place at the same time.
    pub replicas: u32,
}

/// Picks an origin router.
pub fn origin(fleet: &[Arc<NodeRow>], ask: &OriginAsk<'_>, rng: &mut impl Rng) -> Decision {
    let judge = |row: &NodeRow| {
        let full = row.capacity().streams_in;
        if ask.refused.contains(&row.id) {
            Some(Exclusion::Refused)
        } else if row.addresses().quic.is_empty() {
            Some(Exclusion::NoAddress)
        } else if full > 0 && row.assignments >= full {
            Some(Exclusion::StreamsFull)
        } else {
            None
        }
    };
    decide(fleet, ask.region, ask.replicas, judge, rng)
}

/// What an edge is wanted for.
#[derive(Clone, Copy, Debug)]
pub struct EdgeAsk<'a> {
    /// Region of the viewer; empty: unknown.
    pub region: &'a str,
    /// Routers that carry the stream.
    pub carriers: &'a [NodeId],
    /// Control processes that place at the same time.
    pub replicas: u32,
}

/// Picks the router a viewer joins, among those that carry the stream.
pub fn edge(fleet: &[Arc<NodeRow>], ask: &EdgeAsk<'_>, rng: &mut impl Rng) -> Decision {
    let judge = |row: &NodeRow| {
        let full = row.capacity().viewers;
        if !ask.carriers.contains(&row.id) {
            Some(Exclusion::NotOnTree)
        } else if row.addresses().whep_base_url.is_empty() {
            Some(Exclusion::NoAddress)
        } else if full > 0 && row.load.viewers.saturating_add(row.placed_viewers) >= full {
            Some(Exclusion::ViewersFull)
        } else {
            None
        }
    };
    decide(fleet, ask.region, ask.replicas, judge, rng)
}

/// Filters, ladder, power of two.
fn decide(
    fleet: &[Arc<NodeRow>],
    region: &str,
    replicas: u32,
    judge: impl Fn(&NodeRow) -> Option<Exclusion>,
    rng: &mut impl Rng,
) -> Decision {
    let candidates: Vec<Candidate> = fleet
        .iter()
        .map(|row| {
            let stress = corrected_permille(row, replicas);
            Candidate {
                node: row.id.clone(),
                incarnation: row.incarnation,
                stress_permille: stress,
                step: u8::from(!region.is_empty() && row.hello.region != region),
                excluded: common(row, stress).or_else(|| judge(row)),
            }
        })
        .collect();
    let eligible = || candidates.iter().filter(|c| c.excluded.is_none());
    let step = eligible().map(|c| c.step).min();
    let nearest = || eligible().filter(|c| Some(c.step) == step);
    let draws = if nearest().count() < SMALL_FLEET { 4 } else { 2 };
    let pick = nearest()
        .choose_multiple(rng, draws)
        .into_iter()
        .min_by_key(|c| c.stress_permille)
        .cloned();
    Decision { pick, candidates }
}

/// Hard filters of every placement.
fn common(row: &NodeRow, stress_permille: u32) -> Option<Exclusion> {
    let load = &row.load;
    match node_state(row) {
        _ if !row.is_router() => Some(Exclusion::NotARouter),
        NodeState::Serving if stress_permille >= CEILING_PERMILLE => Some(Exclusion::AtCapacity),
        NodeState::Serving
            if load.ice_attempts >= ICE_SAMPLE && load.ice_failures * 2 > load.ice_attempts =>
        {
            Some(Exclusion::FailingIce)
        }
        NodeState::Serving => None,
        other => Some(Exclusion::State(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::fixtures::{id, node_row};
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    fn ask<'a>(refused: &'a [NodeId]) -> OriginAsk<'a> {
        OriginAsk { region: "", refused, replicas: 1 }
    }

    #[test]
    fn each_filter_says_why() {
        type Spoil = fn(&mut NodeRow);
        let cases: [(&str, Spoil, Exclusion); 5] = [
            ("draining", |r| r.draining = true, Exclusion::State(NodeState::Draining)),
            ("suspect", |r| r.suspect = true, Exclusion::State(NodeState::Suspect)),
            ("hot", |r| r.load.stress_permille = 800, Exclusion::AtCapacity),
            (
                "ice",
                |r| {
                    r.load.ice_attempts = 40;
                    r.load.ice_failures = 30;
                },
                Exclusion::FailingIce,
            ),
            ("addr", |r| Arc::make_mut(&mut r.hello).addresses = None, Exclusion::NoAddress),
        ];
        for (name, spoil, why) in cases {
            let mut row = node_row("r1", 0);
            spoil(&mut row);
            let d = origin(&[Arc::new(row)], &ask(&[]), &mut StdRng::seed_from_u64(1));
            assert!(d.pick.is_none(), "{name}");
            assert_eq!(d.candidates[0].excluded, Some(why), "{name}");
        }
    }

    #[test]
    fn region_comes_before_load() {
        let mut near = node_row("near", 0);
        Arc::make_mut(&mut near.hello).region = "eu".to_owned();
        near.load.stress_permille = 700;
        let far = node_row("far", 0);
        let fleet = [Arc::new(near), Arc::new(far)];
        let ask = OriginAsk { region: "eu", refused: &[], replicas: 1 };
        let d = origin(&fleet, &ask, &mut StdRng::seed_from_u64(1));
        assert_eq!(d.pick.map(|c| c.node), Some(id("near")));
    }

    #[test]
    fn viewers_go_only_where_the_stream_is() {
        let fleet = [Arc::new(node_row("a", 0)), Arc::new(node_row("b", 0))];
        let carriers = [id("b")];
        let ask = EdgeAsk { region: "", carriers: &carriers, replicas: 1 };
        let d = edge(&fleet, &ask, &mut StdRng::seed_from_u64(1));
        assert_eq!(d.pick.map(|c| c.node), Some(id("b")));
        assert_eq!(d.candidates[0].excluded, Some(Exclusion::NotOnTree));
    }

    /// Joins arrive between heartbeats; corrected stress keeps a small fleet from piling up.
    #[test]
    fn a_burst_between_heartbeats_spreads() {
        let mut fleet: Vec<_> = (0..10).map(|n| Arc::new(node_row(&format!("r{n}"), 0))).collect();
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..1000 {
            let pick = origin(&fleet, &ask(&[]), &mut rng).pick.expect("a router").node;
            let row = fleet.iter_mut().find(|r| r.id == pick).expect("the picked router");
            Arc::make_mut(row).placed_streams += 1;
        }
        let most = fleet.iter().map(|r| r.placed_streams).max();
        assert!(most <= Some(115), "{most:?} of 100 on average");
    }

    proptest! {
        #[test]
        fn excluded_routers_are_never_picked(
            seed in 0u64..1000,
            routers in proptest::collection::vec((0u32..1000, any::<bool>(), any::<bool>()), 0..50),
        ) {
            let fleet: Vec<_> = routers.iter().enumerate().map(|(n, (stress, linked, refused))| {
                let mut row = node_row(&format!("r{n}"), 0);
                row.load.stress_permille = *stress;
                row.suspect = !linked;
                (Arc::new(row), *refused)
            }).collect();
            let refused: Vec<_> = fleet.iter().filter(|(_, r)| *r).map(|(n, _)| n.id.clone()).collect();
            let rows: Vec<_> = fleet.into_iter().map(|(r, _)| r).collect();
            let d = origin(&rows, &ask(&refused), &mut StdRng::seed_from_u64(seed));
            let any = d.candidates.iter().any(|c| c.excluded.is_none());
            prop_assert_eq!(d.pick.is_some(), any);
            if let Some(pick) = d.pick {
                prop_assert!(pick.excluded.is_none());
                prop_assert!(pick.stress_permille < CEILING_PERMILLE);
                prop_assert!(!refused.contains(&pick.node));
            }
        }
    }
}
