//! Life of one device: when to connect, when to capture, what to tell the control plane. Sans-IO:
//! time is an argument, actions are drained. Not the doing of it (`device.rs`). Invariant: capture
//! runs only while ADB is up and somebody wants it, and each of the two retries with its own
//! back-off.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::backoff::Backoff;

/// A capture that ran this long was sound: its next failure starts the back-off anew.
const SOUND_RUN: Duration = Duration::from_secs(10);
/// Captures that must fail in a row before the device counts as offline; one hiccup is not news.
const FAILURES_UNTIL_OFFLINE: u32 = 3;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants the picture, or nobody does any more.
    Wanted(bool),
    /// ADB is connected.
    AdbUp,
    /// ADB could not be connected, or was lost; one line of why.
    AdbDown(String),
    /// The first picture of a capture came.
    Picture,
    /// The capture ended by itself; one line of why. `lasting`: only a person can mend it (a
    /// missing server jar), so the device is offline at once.
    CaptureEnded {
        /// Why.
        reason: String,
        /// Whether a mere retry cannot help.
        lasting: bool,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect ADB.
    ConnectAdb,
    /// Start the source.
    StartCapture,
    /// Stop the source.
    StopCapture,
    /// Tell the control plane (and the log) that the device can be captured.
    Online,
    /// Tell that it cannot, and why.
    Offline(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adb {
    Waiting(Instant),
    Connecting,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capture {
    Idle,
    Waiting(Instant),
    Running { since: Instant },
}

/// The state machine. Feed [`Event`]s and timeouts, then drain [`Self::poll_action`].
#[derive(Debug)]
pub struct Life {
    adb: Adb,
    adb_backoff: Backoff,
    capture: Capture,
    capture_backoff: Backoff,
    failures: u32,
    wanted: bool,
    told: Option<Result<(), String>>,
    actions: VecDeque<Action>,
    jitter: fn() -> f64,
}

impl Life {
    /// A device that was just configured; asks for ADB at once. `jitter` yields 0..1.
    pub fn new(jitter: fn() -> f64) -> Self {
        Self {
            adb: Adb::Connecting,
            adb_backoff: Backoff::default(),
            capture: Capture::Idle,
            capture_backoff: Backoff::default(),
            failures: 0,
            wanted: false,
            told: None,
            actions: VecDeque::from([Action::ConnectAdb]),
            jitter,
        }
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, event: Event) {
        match event {
            Event::Wanted(wanted) => {
                self.wanted = wanted;
                self.capture_backoff.reset();
            }
            Event::AdbUp => {
                self.adb = Adb::Up;
                self.adb_backoff.reset();
                self.capture_backoff.reset();
                self.failures = 0;
                self.tell(Ok(()));
            }
            Event::AdbDown(reason) => {
                let delay = self.adb_backoff.next_delay((self.jitter)());
                self.adb = Adb::Waiting(now + delay);
                self.tell(Err(reason));
            }
            Event::Picture => {
                self.failures = 0;
                self.tell(Ok(()));
            }
            Event::CaptureEnded { reason, lasting } => self.capture_ended(now, reason, lasting),
        }
        self.settle(now);
    }

    /// The time of [`Self::next_timeout`] has come.
    pub fn timeout(&mut self, now: Instant) {
        if matches!(self.adb, Adb::Waiting(until) if until <= now) {
            self.adb = Adb::Connecting;
            self.actions.push_back(Action::ConnectAdb);
        }
        self.settle(now);
    }

    /// When to call [`Self::timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        match (self.adb, self.capture) {
            (Adb::Waiting(until), _) => Some(until),
            (Adb::Up, Capture::Waiting(until)) if self.wanted => Some(until),
            _ => None,
        }
    }

    /// The next thing to do, until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn capture_ended(&mut self, now: Instant, reason: String, lasting: bool) {
        let Capture::Running { since } = self.capture else { return };
        if now.saturating_duration_since(since) >= SOUND_RUN {
            self.capture_backoff.reset();
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.capture = Capture::Waiting(now + self.capture_backoff.next_delay((self.jitter)()));
        if lasting || self.failures >= FAILURES_UNTIL_OFFLINE {
            self.tell(Err(reason));
        }
    }

    /// Brings capture in line with what is wanted and possible.
    fn settle(&mut self, now: Instant) {
        let may_run = self.wanted && self.adb == Adb::Up;
        match self.capture {
            Capture::Running { .. } if !may_run => {
                self.capture = Capture::Idle;
                self.actions.push_back(Action::StopCapture);
            }
            Capture::Waiting(_) if !may_run => self.capture = Capture::Idle,
            Capture::Idle if may_run => self.start(now),
            Capture::Waiting(until) if until <= now => self.start(now),
            _ => {}
        }
    }

    fn start(&mut self, now: Instant) {
        self.capture = Capture::Running { since: now };
        self.actions.push_back(Action::StartCapture);
    }

    /// Says each change once.
    fn tell(&mut self, state: Result<(), String>) {
        if self.told.as_ref() == Some(&state) {
            return;
        }
        self.actions.push_back(match &state {
            Ok(()) => Action::Online,
            Err(reason) => Action::Offline(reason.clone()),
        });
        self.told = Some(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life in virtual time: events in, actions out, never more than a bounded number of steps.
    struct World {
        now: Instant,
        life: Life,
    }

    impl World {
        fn new() -> Self {
            Self { now: Instant::now(), life: Life::new(|| 1.0) }
        }

        fn actions(&mut self) -> Vec<Action> {
            std::iter::from_fn(|| self.life.poll_action()).collect()
        }

        fn on(&mut self, event: Event) -> Vec<Action> {
            self.life.handle(self.now, event);
            self.actions()
        }

        /// Goes to the next timeout; how long that took, and what came of it.
        fn next(&mut self) -> (Duration, Vec<Action>) {
            let at = self.life.next_timeout().expect("nothing is waited for");
            let waited = at.saturating_duration_since(self.now);
            self.now = self.now.max(at);
            self.life.timeout(self.now);
            (waited, self.actions())
        }

        fn up_and_wanted() -> Self {
            let mut w = Self::new();
            assert_eq!(w.actions(), [Action::ConnectAdb]);
            assert_eq!(w.on(Event::AdbUp), [Action::Online]);
            assert_eq!(w.on(Event::Wanted(true)), [Action::StartCapture]);
            w
        }
    }

    fn ended(reason: &str) -> Event {
        Event::CaptureEnded { reason: reason.into(), lasting: false }
    }

    #[test]
    fn an_unreachable_device_is_dialled_for_ever_with_growing_delays() {
        let mut w = World::new();
        assert_eq!(w.actions(), [Action::ConnectAdb]);
        let down = || Event::AdbDown("refused".into());
        assert_eq!(w.on(down()), [Action::Offline("refused".into())]);
        let mut delays = Vec::new();
        for _ in 0..8 {
            let (waited, actions) = w.next();
            delays.push(waited.as_millis());
            assert_eq!(actions, [Action::ConnectAdb]);
            assert_eq!(w.on(down()), [], "the same reason is told once");
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn capture_starts_only_when_wanted_and_reachable() {
        let mut w = World::new();
        w.actions();
        assert_eq!(w.on(Event::Wanted(true)), []);
        assert_eq!(w.on(Event::AdbUp), [Action::Online, Action::StartCapture]);
        assert_eq!(w.on(Event::Wanted(false)), [Action::StopCapture]);
        assert_eq!(w.life.next_timeout(), None);
    }

    #[test]
    fn losing_adb_stops_capture_and_both_come_back() {
        let mut w = World::up_and_wanted();
        assert_eq!(w.on(Event::Picture), []);
        assert_eq!(
            w.on(Event::AdbDown("reset".into())),
            [Action::Offline("reset".into()), Action::StopCapture]
        );
        assert_eq!(w.next().1, [Action::ConnectAdb]);
        assert_eq!(w.on(Event::AdbUp), [Action::Online, Action::StartCapture]);
    }

    #[test]
    fn a_hiccup_restarts_the_source_without_calling_the_device_offline() {
        let mut w = World::up_and_wanted();
        assert_eq!(w.on(ended("socket closed")), []);
        let (waited, actions) = w.next();
        assert_eq!((waited.as_millis(), actions), (100, vec![Action::StartCapture]));
        assert_eq!(w.on(Event::Picture), []);
    }

    #[test]
    fn a_source_that_keeps_failing_makes_the_device_offline_until_a_picture_comes() {
        let mut w = World::up_and_wanted();
        for _ in 0..2 {
            assert_eq!(w.on(ended("no encoder")), []);
            w.next();
        }
        assert_eq!(w.on(ended("no encoder")), [Action::Offline("no encoder".into())]);
        let (waited, actions) = w.next();
        assert_eq!((waited.as_millis(), actions), (400, vec![Action::StartCapture]));
        assert_eq!(w.on(Event::Picture), [Action::Online]);
    }

    #[test]
    fn what_only_a_person_can_mend_is_told_at_once_and_still_retried() {
        let mut w = World::up_and_wanted();
        let missing = Event::CaptureEnded { reason: "no jar".into(), lasting: true };
        assert_eq!(w.on(missing), [Action::Offline("no jar".into())]);
        assert_eq!(w.next().1, [Action::StartCapture]);
    }

    #[test]
    fn a_long_run_forgives_earlier_failures() {
        let mut w = World::up_and_wanted();
        for _ in 0..5 {
            w.on(ended("x"));
            w.next();
        }
        w.on(Event::Picture);
        w.now += SOUND_RUN;
        w.on(ended("x"));
        assert_eq!(w.next().0.as_millis(), 100);
    }
}
