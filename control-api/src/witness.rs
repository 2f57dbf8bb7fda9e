//! What moves a stream: the origin's link and the ingest worker's word, as one table. Pure. Not
//! the placement of the move. Invariant: silence alone never moves a stream that a linked ingest
//! worker calls healthy.
//!
//! | origin's link | worker says of its push | verdict |
//! |---|---|---|
//! | up, or restarted and back | anything | keep |
//! | reset or silent | broken | move now: two witnesses |
//! | reset or silent | healthy, or nothing yet | keep; the router gets no new work |
//! | lease ran out, or goodbye | healthy, from a linked worker | keep until its word changes |
//! | lease ran out, or goodbye | broken, nothing, or the worker is silent too | move |
//! | up, and the router drains | anything | leave it gently: make-before-break |
//! | up, and the stream is on its way to it | broken | try another one; the one that is left goes on |
//!
//! A router that comes back as a new process needs no verdict: the store gives it its streams
//! again, under greater epochs, in the step that links it.

use fanlight_proto::{reason::Reason, types::v1::NodeState};

use crate::{
    lease::node_state,
    store::rows::{NodeRow, PushWord, StreamRow},
};

/// What is to be done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It has no origin: place it.
    Place,
    /// Its origin is gone: place it elsewhere.
    Move(Reason),
    /// Its origin is to be left, and works: place it elsewhere, make-before-break.
    Leave(Reason),
}

/// Judges a stream. `origin` and `worker` are the nodes that its newest assignment names.
pub fn verdict(row: &StreamRow, origin: Option<&NodeRow>, worker: Option<&NodeRow>) -> Verdict {
    let Some(assigned) = &row.assigned else {
        return Verdict::Place;
    };
    let Some(origin) = origin.filter(|o| o.incarnation == assigned.incarnation) else {
        return Verdict::Move(Reason::OriginLost);
    };
    let worker_linked =
        worker.is_some_and(|w| !matches!(node_state(w), NodeState::Suspect | NodeState::Lost));
    match (node_state(origin), row.push) {
        (NodeState::Suspect, PushWord::Broken) => Verdict::Move(Reason::PushBroken),
        // The worker cannot reach where the stream moves to, and still pushes to where it was.
        (_, PushWord::Broken) if row.leaving.as_ref().is_some_and(|l| l.push) => {
            Verdict::Move(Reason::PushBroken)
        }
        (NodeState::Lost, PushWord::Healthy) if worker_linked => Verdict::Keep,
        (NodeState::Lost, _) => Verdict::Move(Reason::OriginLost),
        // One move at a time: while viewers of an earlier one are on their way, this one waits.
        (NodeState::Draining, _) if row.leaving.is_none() => Verdict::Leave(Reason::OriginDraining),
        _ => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        memory::fixtures::{id, node_row, stream_row},
        rows::{Assigned, Leaving},
    };

    #[test]
    fn the_table_holds() {
        let mut row = stream_row("s", "r1", 7);
        let up = node_row("r1", 0);
        let silent = NodeRow { suspect: true, ..up.clone() };
        let lost = NodeRow { lost: true, ..up.clone() };
        let worker = node_row("w1", 0);
        let deaf = NodeRow { suspect: true, ..worker.clone() };
        let gone = Verdict::Move(Reason::OriginLost);
        let cases = [
            (&up, PushWord::Broken, &worker, Verdict::Keep),
            (&silent, PushWord::Broken, &worker, Verdict::Move(Reason::PushBroken)),
            (&silent, PushWord::Healthy, &worker, Verdict::Keep),
            (&silent, PushWord::Unknown, &worker, Verdict::Keep),
            (&lost, PushWord::Healthy, &worker, Verdict::Keep),
            (&lost, PushWord::Healthy, &deaf, gone),
            (&lost, PushWord::Broken, &worker, gone),
            (&lost, PushWord::Unknown, &worker, gone),
        ];
        for (origin, push, worker, want) in cases {
            row.push = push;
            assert_eq!(verdict(&row, Some(origin), Some(worker)), want, "{origin:?} {push:?}");
        }
        assert_eq!(verdict(&row, None, Some(&worker)), gone);
        let reborn = NodeRow { incarnation: 99, ..up };
        assert_eq!(verdict(&row, Some(&reborn), None), gone);
        row.assigned = None;
        assert_eq!(verdict(&row, None, None), Verdict::Place);
    }

    #[test]
    fn a_draining_origin_is_left_gently_and_one_move_at_a_time() {
        let mut row = stream_row("s", "r2", 7);
        let (by_itself, worker) =
            (NodeRow { draining: true, ..node_row("r2", 0) }, node_row("w1", 0));
        let asked = NodeRow { drain_us: Some(9), ..node_row("r2", 0) };
        let leave = Verdict::Leave(Reason::OriginDraining);
        assert_eq!(verdict(&row, Some(&by_itself), Some(&worker)), leave);
        assert_eq!(verdict(&row, Some(&asked), Some(&worker)), leave);
        // Silent: not what drains, but what may be lost.
        let silent = NodeRow { suspect: true, ..asked.clone() };
        assert_eq!(verdict(&row, Some(&silent), Some(&worker)), Verdict::Keep);
        let from = Assigned { node: id("r1"), ..row.assigned.clone().unwrap() };
        row.leaving = Some(Leaving { from, push: true, until_us: 1 });
        assert_eq!(verdict(&row, Some(&asked), Some(&worker)), Verdict::Keep);
        // Where it goes cannot be reached, and where it was it still runs.
        let serving = node_row("r2", 0);
        assert_eq!(verdict(&row, Some(&serving), Some(&worker)), Verdict::Keep);
        row.push = PushWord::Broken;
        let other = Verdict::Move(Reason::PushBroken);
        assert_eq!(verdict(&row, Some(&serving), Some(&worker)), other);
    }
}
