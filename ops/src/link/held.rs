//! What a node was told: its wants with their version, and the actions done. Pure. Not a record of
//! what runs: that is the handler's. Invariant: an item the node refused is not held, so that the
//! next Hello asks for it again.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fanlight_proto::{
    node::v1::{Ack, Action, Apply, Refusal, Want},
    reason::Reason,
    types::v1::ItemStatus,
};
use tonic::Code;

use super::digest::want_digest;

/// Action ids remembered. Actions have deadlines of seconds, so this is minutes of them.
const ACTIONS_REMEMBERED: usize = 1024;

/// Clocks of nodes may differ by this much before a deadline counts as passed.
const CLOCK_SLACK: Duration = Duration::from_secs(5);

/// Wants and their version.
#[derive(Debug, Default)]
pub(super) struct Held {
    version: u64,
    wants: BTreeMap<String, Want>,
    done: VecDeque<(String, Ack)>,
}

impl Held {
    /// Version and digest, for Hello.
    pub(super) fn summary(&self) -> (u64, u64) {
        (self.version, want_digest(self.wants.values()))
    }

    /// Version, for heartbeats.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether an Apply says nothing new: a partial one that is not above what is held. A full one
    /// always counts, since a control plane that lost its store starts its versions again.
    pub(super) fn is_stale(&self, apply: &Apply) -> bool {
        !apply.full && apply.want_version <= self.version
    }

    /// Notes an Apply that the node answered.
    pub(super) fn applied(&mut self, apply: Apply, ack: &Ack) {
        if apply.full {
            self.wants.clear();
        }
        self.version = apply.want_version;
        for stop in apply.stops {
            let epoch = |w: &Want| w.assignment.as_ref().map_or(0, |a| a.epoch);
            if self.wants.get(&stop.stream).is_some_and(|w| epoch(w) <= stop.epoch) {
                self.wants.remove(&stop.stream);
            }
        }
        for want in apply.wants {
            let Some(assignment) = &want.assignment else { continue };
            if ack.refusals.iter().any(|r| r.stream == assignment.stream) {
                self.wants.remove(&assignment.stream);
            } else {
                self.wants.insert(assignment.stream.clone(), want);
            }
        }
    }

    /// The answer to an action that needs no doing: one done before, or one whose time is over.
    pub(super) fn answered(&self, action: &Action, now: SystemTime) -> Option<Ack> {
        if let Some((_, ack)) = self.done.iter().find(|(id, _)| *id == action.id) {
            return Some(ack.clone());
        }
        let deadline = action.deadline.as_ref()?;
        let seconds = u64::try_from(deadline.seconds).ok()?;
        let end = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        (end + CLOCK_SLACK < now).then(|| Ack {
            action_id: action.id.clone(),
            status: Some(status(
                Code::DeadlineExceeded,
                Reason::Internal,
                "came after its deadline",
            )),
            ..Ack::default()
        })
    }

    /// Remembers an action's answer.
    pub(super) fn acted(&mut self, ack: &Ack) {
        if self.done.len() == ACTIONS_REMEMBERED {
            self.done.pop_front();
        }
        self.done.push_back((ack.action_id.clone(), ack.clone()));
    }
}

fn status(code: Code, reason: Reason, message: &str) -> ItemStatus {
    ItemStatus {
        code: code as i32,
        message: message.to_owned(),
        reason: reason.as_str().to_owned(),
        retry_after: None,
    }
}

/// A refusal of one item of an Apply.
pub fn refused(stream: &str, epoch: u64, code: Code, reason: Reason, message: &str) -> Refusal {
    Refusal { stream: stream.to_owned(), epoch, status: Some(status(code, reason, message)) }
}

#[cfg(test)]
mod tests {
    use fanlight_proto::{node::v1::Stop, types::v1::Assignment};

    use super::*;

    fn want(stream: &str, epoch: u64) -> Want {
        let assignment = Assignment { stream: stream.into(), epoch, origin: None };
        Want { assignment: Some(assignment), role: None }
    }

    fn apply(full: bool, version: u64, wants: &[Want], stops: &[(&str, u64)]) -> Apply {
        let stop = |(stream, epoch): &(&str, u64)| Stop {
            stream: (*stream).into(),
            epoch: *epoch,
            reason: String::new(),
        };
        let stops = stops.iter().map(stop).collect();
        Apply { full, want_version: version, wants: wants.to_vec(), stops }
    }

    #[test]
    fn partial_changes_add_up_to_the_full_want() {
        let (mut a, mut b) = (Held::default(), Held::default());
        let ok = Ack::default();
        assert_eq!(a.summary(), (0, 0));
        a.applied(apply(true, 1, &[want("s/1", 1), want("s/2", 1)], &[]), &ok);
        a.applied(apply(false, 2, &[want("s/3", 5)], &[("s/1", 1)]), &ok);
        b.applied(apply(true, 2, &[want("s/3", 5), want("s/2", 1)], &[]), &ok);
        assert_eq!(a.summary(), b.summary());
    }

    #[test]
    fn a_stop_of_a_lower_epoch_stops_nothing() {
        let mut held = Held::default();
        held.applied(apply(true, 1, &[want("s/1", 4)], &[]), &Ack::default());
        let before = held.summary().1;
        held.applied(apply(false, 2, &[], &[("s/1", 3)]), &Ack::default());
        assert_eq!(held.summary().1, before);
    }

    #[test]
    fn what_was_refused_is_asked_for_again() {
        let mut held = Held::default();
        let no = refused("s/1", 1, Code::ResourceExhausted, Reason::NodeAtCapacity, "full");
        let ack = Ack { refusals: vec![no], ..Ack::default() };
        held.applied(apply(true, 3, &[want("s/1", 1)], &[]), &ack);
        assert_eq!(held.summary(), (3, 0));
    }

    #[test]
    fn old_partial_applies_are_stale_and_full_ones_never() {
        let mut held = Held::default();
        held.applied(apply(true, 9, &[], &[]), &Ack::default());
        assert!(held.is_stale(&apply(false, 9, &[], &[])));
        assert!(!held.is_stale(&apply(false, 10, &[], &[])));
        assert!(!held.is_stale(&apply(true, 1, &[], &[])));
    }

    #[test]
    fn an_action_is_done_once_and_not_after_its_time() {
        let mut held = Held::default();
        let now = SystemTime::now();
        let action = Action { id: "x".into(), ..Action::default() };
        assert_eq!(held.answered(&action, now), None);
        held.acted(&Ack { action_id: "x".into(), ..Ack::default() });
        assert!(held.answered(&action, now).is_some());
        let past = prost_types::Timestamp { seconds: 1000, nanos: 0 };
        let late = Action { id: "y".into(), deadline: Some(past), ..Action::default() };
        let ack = held.answered(&late, now).unwrap();
        assert_eq!(ack.status.unwrap().code, Code::DeadlineExceeded as i32);
        for i in 0..2 * ACTIONS_REMEMBERED {
            held.acted(&Ack { action_id: i.to_string(), ..Ack::default() });
        }
        assert_eq!(held.done.len(), ACTIONS_REMEMBERED);
    }
}
