//! Whether this router drains, and when a draining one may end. Pure but for the flags. Not what
//! drains (control moves the streams) and not the farewell. Invariant: an operator's word can take
//! back what the operator said, never the process's own decision to end.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// A link to the control API that was lost for so long will not save this router's viewers.
const UNLINKED_MAX: Duration = Duration::from_secs(1);

/// Who wants the router drained, and what the control API says to it.
#[derive(Debug, Default)]
pub(crate) struct Draining {
    own: AtomicBool,
    asked: AtomicBool,
    nowhere: AtomicBool,
}

impl Draining {
    /// The process is to end, or its admin listener was told. There is no way back.
    pub(crate) fn begin(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// The control API drains it, or no longer.
    pub(crate) fn ask(&self, on: bool) {
        self.asked.store(on, Ordering::Relaxed);
    }

    /// Whether it takes no new work.
    pub(crate) fn is_on(&self) -> bool {
        self.own.load(Ordering::Relaxed) || self.asked.load(Ordering::Relaxed)
    }

    /// The control API says whether there is no other router for what is served here.
    pub(crate) fn nowhere(&self, nowhere: bool) {
        self.nowhere.store(nowhere, Ordering::Relaxed);
    }

    pub(crate) fn has_nowhere(&self) -> bool {
        self.nowhere.load(Ordering::Relaxed)
    }
}

/// What a draining router looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// Streams that have a picture here and nowhere else.
    pub(crate) streams: usize,
    pub(crate) sessions: usize,
    /// For how long there has been no link; zero while there is one.
    pub(crate) unlinked: Duration,
    pub(crate) nowhere: bool,
    /// Since the drain began.
    pub(crate) elapsed: Duration,
    pub(crate) deadline: Duration,
}

/// Why a draining router ends now, as a word for the log; `None`: not yet.
pub(crate) fn over(view: &View) -> Option<&'static str> {
    let alone = view.nowhere || !view.unlinked.is_zero();
    match view {
        View { sessions: 0, streams: 0, .. } => Some("everything has moved"),
        // Nobody watches, and nobody will move the rest.
        View { sessions: 0, .. } if alone => Some("no viewers"),
        View { nowhere: true, .. } => Some("no other router"),
        View { unlinked, .. } if *unlinked >= UNLINKED_MAX => Some("no link to the control API"),
        View { elapsed, deadline, .. } if elapsed >= deadline => Some("the deadline has passed"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_ends_when_all_have_left_and_not_before_unless_waiting_is_of_no_use() {
        let view = View {
            streams: 2,
            sessions: 3,
            unlinked: Duration::ZERO,
            nowhere: false,
            elapsed: 29 * SECOND,
            deadline: 30 * SECOND,
        };
        let cases = [
            (view, None),
            (View { sessions: 0, ..view }, None),
            (View { streams: 0, ..view }, None),
            (View { sessions: 0, streams: 0, ..view }, Some("everything has moved")),
            (View { nowhere: true, ..view }, Some("no other router")),
            (View { nowhere: true, sessions: 0, ..view }, Some("no viewers")),
            (View { unlinked: SECOND / 2, ..view }, None),
            (View { unlinked: SECOND / 2, sessions: 0, ..view }, Some("no viewers")),
            (View { unlinked: SECOND, ..view }, Some("no link to the control API")),
            (View { elapsed: 30 * SECOND, ..view }, Some("the deadline has passed")),
        ];
        for (view, why) in cases {
            assert_eq!(over(&view), why, "{view:?}");
        }
    }

    #[test]
    fn an_operator_takes_back_its_own_word_only() {
        let draining = Draining::default();
        draining.ask(true);
        assert!(draining.is_on());
        draining.ask(false);
        assert!(!draining.is_on());
        draining.begin();
        draining.ask(false);
        assert!(draining.is_on());
    }
}
