//! Calls that were made before, by their `request_id`. Not a cache of reads. Invariant: an id
//! stands for one body only, and an answer once given is given again until it is forgotten.

use bytes::Bytes;

use super::state::State;
use crate::{
    clock::{UnixUs, us},
    error::ControlError,
    store::RequestKey,
};

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    fingerprint: [u8; 32],
    /// `None`: it was begun and its answer is not known yet.
    answer: Option<Bytes>,
    until_us: UnixUs,
}

/// What is known of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    /// Never made.
    No,
    /// Begun.
    Open,
    /// Answered.
    Answered(Bytes),
}

impl State {
    /// Looks a call up.
    pub(super) fn seen(&self, key: Option<&RequestKey>) -> Result<Seen, ControlError> {
        match key.and_then(|k| self.requests.get(&k.id).map(|r| (k, r))) {
            None => Ok(Seen::No),
            Some((k, r)) if r.fingerprint != k.fingerprint => Err(ControlError::request_reused()),
            Some((_, Recorded { answer: Some(answer), .. })) => Ok(Seen::Answered(answer.clone())),
            Some(_) => Ok(Seen::Open),
        }
    }

    /// Records that a call was begun, or answered. At the bound the call that would be forgotten
    /// first is forgotten now.
    pub(super) fn record(&mut self, now: UnixUs, key: Option<&RequestKey>, answer: Option<Bytes>) {
        let Some(key) = key else {
            return;
        };
        let until_us = now.saturating_add(us(key.keep));
        let row = Recorded { fingerprint: key.fingerprint, answer, until_us };
        if let Some(old) = self.requests.insert(key.id, row) {
            self.due_requests.remove(&(old.until_us, key.id));
        }
        self.due_requests.insert((until_us, key.id));
        while self.requests.len() > self.limits.requests {
            let Some((_, id)) = self.due_requests.pop_first() else {
                break;
            };
            self.requests.remove(&id);
        }
    }

    pub(super) fn finish_request(&mut self, key: &RequestKey, answer: Option<Bytes>) {
        let Some(row) = self.requests.get_mut(&key.id) else {
            return;
        };
        if row.fingerprint != key.fingerprint {
            return;
        }
        match answer {
            Some(answer) => row.answer = Some(answer),
            None => {
                let until = row.until_us;
                self.requests.remove(&key.id);
                self.due_requests.remove(&(until, key.id));
            }
        }
    }

    pub(super) fn recall_request(&self, key: &RequestKey) -> Result<Option<Bytes>, ControlError> {
        Ok(match self.seen(Some(key))? {
            Seen::Answered(answer) => Some(answer),
            Seen::No | Seen::Open => None,
        })
    }

    pub(super) fn forget_requests(&mut self, now: UnixUs) {
        while self.due_requests.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = self.due_requests.pop_first() {
                self.requests.remove(&id);
            }
        }
    }
}
