//! What a device's tasks share: its feed, its input fence, its source's command queue. Called from
//! the uplink's readers and from the source; never waits. Not the life of the device (`device.rs`).
//! Invariant: a source that was stopped can change nothing any more, because every call of a
//! [`Sink`] is checked against the running capture's number.
//!
//! A capture may have an heir: a second source, at another bitrate, which takes over with its first
//! keyframe. Until then the running one goes on, so that nobody sees the change.

use std::{collections::HashMap, sync::Arc, time::Instant};

use fanlight_wire::{
    h264::AccessUnitInfo,
    input::{CLIPBOARD_TO_VIEWER_MAX, CopyKey, DeviceBody, DeviceMessage, InputBody, InputMessage},
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    feed::Feed,
    fence::Fence,
    hygiene::{Arrival, Dropped, Hygiene},
    inject::{Op, Press, scrcpy::cut_at_char},
    keyframe::KeyframePolicy,
    rate::Uplink,
    thrift::Thrift,
    uplink::{Host, Source},
};

/// Ops waiting for the device. Half of it is kept free for what must not be lost.
pub const COMMAND_QUEUE: usize = 256;

/// Parameter sets of an heir that are kept; real ones have some tens of bytes.
const MAX_PARAMETERS: usize = 64 * 1024;
/// Bits of a router's number of a viewer: it counts its sessions, so it never comes near.
const VIEWER_BITS: u32 = 48;

/// What a source is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Do this to the device.
    Op(Op),
    /// Start the encoder anew, for a keyframe.
    ResetVideo,
}

/// State of one device that several tasks use.
#[derive(Debug)]
pub struct Shared {
    name: String,
    feed: Feed,
    capture: Mutex<Capture>,
    input: Mutex<Input>,
    keyframes: Mutex<KeyframePolicy>,
    keyframe_asked: Notify,
    thrift: Mutex<Thrift>,
    /// Another bitrate is to be asked for, or the heir took over.
    turn: Notify,
    /// The last clipboard the device told, encoded for viewers. The server tells changes only and
    /// does not answer a plain question.
    clipboard: Mutex<Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Capture {
    /// The running capture's, or of none.
    number: u64,
    /// The last that was given out; grows with each start and each stop.
    last: u64,
    hygiene: Hygiene,
    heir: Option<Heir>,
}

impl Capture {
    /// A number that nobody had.
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// A source that waits for its first keyframe.
#[derive(Debug)]
struct Heir {
    number: u64,
    size: Option<(u32, u32)>,
    /// Parameter sets, the newest ones.
    parameters: Vec<u8>,
    commands: mpsc::Sender<Command>,
}

#[derive(Debug, Default)]
struct Input {
    fence: Fence,
    commands: Option<mpsc::Sender<Command>>,
    /// While a stream moves, two routers publish it and both may send input. The one of the newer
    /// epoch is heard from its first word on, and the older one not any more: a controller loses
    /// nothing before it has moved, and no two routers are ever heard in turns. By stream, the
    /// publish that was heard last. Bounded: one per stream that is published now.
    heard: HashMap<Arc<str>, Source>,
    sources: u16,
}

impl Input {
    /// Whether a publish may speak. The first word of a newer one lifts what the older one holds.
    fn hears(&mut self, from: &Source, ops: &mut Vec<Op>) -> bool {
        let before = self.heard.get(&from.stream);
        if before.is_some_and(|old| old.epoch > from.epoch) {
            return false;
        }
        if before != Some(from) {
            if let Some(old) = self.heard.insert(Arc::clone(&from.stream), from.clone()) {
                self.fence.release_of(|v| of_source(v, &old), ops);
            }
            self.fence.new_publish();
        }
        true
    }
}

/// Viewers are numbered by their routers: the publish tells equal numbers apart.
fn viewer_key(from: &Source, viewer: u64) -> u64 {
    (u64::from(from.number) << VIEWER_BITS) | (viewer & ((1 << VIEWER_BITS) - 1))
}

fn of_source(key: u64, from: &Source) -> bool {
    key >> VIEWER_BITS == u64::from(from.number)
}

impl Shared {
    /// For a device that was just configured, for this bitrate.
    pub fn new(name: String, bitrate_bps: u64) -> Self {
        let hygiene = Hygiene::new(Instant::now());
        Self {
            name,
            feed: Feed::default(),
            capture: Mutex::new(Capture { number: 0, last: 0, hygiene, heir: None }),
            input: Mutex::default(),
            keyframes: Mutex::default(),
            keyframe_asked: Notify::new(),
            thrift: Mutex::new(Thrift::new(bitrate_bps)),
            turn: Notify::new(),
            clipboard: Mutex::default(),
        }
    }

    /// The device's id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A capture starts: what it reads through, and what it is asked.
    pub fn start_capture(self: &Arc<Self>) -> (Sink, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(COMMAND_QUEUE);
        let number = {
            let mut capture = self.capture.lock();
            capture.number = capture.next();
            capture.heir = None;
            capture.hygiene.restart();
            capture.number
        };
        *self.clipboard.lock() = None;
        let mut input = self.input.lock();
        input.fence.forget_all();
        input.commands = Some(sender);
        (Sink { shared: Arc::clone(self), number }, receiver)
    }

    /// A second capture starts, which takes over with its first keyframe.
    pub fn start_heir(self: &Arc<Self>) -> (Sink, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let mut capture = self.capture.lock();
        let number = capture.next();
        capture.heir = Some(Heir { number, size: None, parameters: Vec::new(), commands });
        (Sink { shared: Arc::clone(self), number }, receiver)
    }

    /// Whether the running capture is this sink's, or none is.
    pub fn is_running(&self, number: u64) -> bool {
        self.capture.lock().number == number
    }

    /// Bitrate to ask of a source.
    pub fn bitrate_bps(&self) -> u64 {
        self.thrift.lock().asked_bps()
    }

    /// Ends when another bitrate is to be asked for, or an heir took over.
    pub async fn turned(&self) {
        self.turn.notified().await;
    }

    /// The heir becomes the capture, at its first keyframe. Fingers are lifted where they were put
    /// down; the old source ends when it has read its queue to the end.
    fn succeed(&self, capture: &mut Capture) {
        let Some(heir) = capture.heir.take() else { return };
        capture.number = heir.number;
        capture.hygiene.restart();
        if let Some((width, height)) = heir.size {
            capture.hygiene.declared_size(width, height);
        }
        capture.hygiene.parameter_sets(&heir.parameters);
        let mut input = self.input.lock();
        let mut ops = Vec::new();
        input.fence.release(None, &mut ops);
        submit(&mut input.commands, ops);
        input.commands = Some(heir.commands);
        self.turn.notify_one();
    }

    /// The capture ended or is to end, and its heir with it. Fingers are lifted first; the source
    /// ends when it has read its queue to the end.
    pub fn stop_capture(&self) {
        {
            let mut capture = self.capture.lock();
            capture.number = capture.next();
            capture.heir = None;
        }
        {
            let mut input = self.input.lock();
            let mut ops = Vec::new();
            input.fence.release(None, &mut ops);
            submit(&mut input.commands, ops);
            input.commands = None;
        }
        self.keyframes.lock().source_ended();
        self.feed.end();
    }

    /// When [`Self::reset_if_due`] is next worth a call.
    pub fn next_reset(&self) -> Option<Instant> {
        self.keyframes.lock().next_reset()
    }

    /// Ends when somebody asked for a keyframe.
    pub async fn keyframe_asked(&self) {
        self.keyframe_asked.notified().await;
    }

    /// Asks the source for a keyframe if that is due.
    pub fn reset_if_due(&self, now: Instant) {
        let due = self.keyframes.lock().poll_reset(now);
        if !due {
            return;
        }
        let commands = self.input.lock().commands.clone();
        if commands.is_some_and(|c| c.try_send(Command::ResetVideo).is_ok()) {
            metrics::counter!("fanlight_ingest_encoder_resets_total").increment(1);
            tracing::debug!(device = %self.name, "encoder reset for a keyframe");
        }
    }
}

impl Host for Shared {
    fn feed(&self) -> &Feed {
        &self.feed
    }

    fn source(&self, stream: &str, epoch: u64) -> Source {
        let mut input = self.input.lock();
        input.sources = input.sources.wrapping_add(1);
        Source { stream: stream.into(), epoch, number: input.sources }
    }

    fn input(&self, from: &Source, viewer: u64, message: &[u8]) {
        let message = match InputMessage::decode(message) {
            Ok(message) => message,
            Err(error) => {
                refused("malformed");
                tracing::debug!(device = %self.name, %error, "input is malformed");
                return;
            }
        };
        let mut input = self.input.lock();
        if input.commands.is_none() {
            refused("no_source");
            return;
        }
        let mut ops = Vec::new();
        // A release is no word of its viewer: the router says it of one that left.
        let release = matches!(message.body, InputBody::ReleaseAll);
        if !release && !input.hears(from, &mut ops) {
            return refused("stale_epoch");
        }
        let admitted = input.fence.admit(viewer_key(from, viewer), &message, &mut ops);
        submit(&mut input.commands, ops);
        if let Err(why) = admitted {
            return refused(why.as_str());
        }
        drop(input);
        if message.body == (InputBody::GetClipboard { copy_key: CopyKey::None })
            && let Some(known) = self.clipboard.lock().clone()
        {
            self.feed.output(known);
        }
    }

    fn accepted(&self, from: &Source) {
        let mut input = self.input.lock();
        let older = input.heard.get(&from.stream).is_some_and(|old| old.epoch > from.epoch);
        if !older {
            input.fence.new_publish();
        }
    }

    fn lost(&self, from: &Source) {
        let mut input = self.input.lock();
        let mut ops = Vec::new();
        input.fence.release_of(|v| of_source(v, from), &mut ops);
        submit(&mut input.commands, ops);
        if input.heard.get(&from.stream) == Some(from) {
            input.heard.remove(&from.stream);
        }
    }

    fn uplink(&self, state: Uplink) {
        let now = Instant::now();
        let mut thrift = self.thrift.lock();
        let changed = match state {
            Uplink::Calm => thrift.calm(now),
            Uplink::Busy => false,
            Uplink::Behind { delivered_bps } => thrift.behind(now, delivered_bps),
        };
        if changed {
            self.turn.notify_one();
        }
    }

    fn keyframe(&self) {
        metrics::counter!("fanlight_ingest_keyframe_requests_total").increment(1);
        self.keyframes.lock().request(Instant::now());
        self.keyframe_asked.notify_one();
    }
}

fn refused(reason: &'static str) {
    metrics::counter!("fanlight_ingest_input_refused_total", "reason" => reason).increment(1);
}

/// Queues ops in order. A move finds no room: it is dropped, the next one supersedes it. Anything
/// else finds none: the device does not take input, so its source is ended and starts anew, which
/// lifts every finger.
fn submit(commands: &mut Option<mpsc::Sender<Command>>, ops: Vec<Op>) {
    for op in ops {
        let Some(sender) = commands else { return };
        let is_move = matches!(op, Op::Touch { press: Press::Move, .. });
        if is_move && sender.capacity() < COMMAND_QUEUE / 2 {
            refused("queue_full");
            continue;
        }
        if sender.try_send(Command::Op(op)).is_err() {
            refused("queue_full");
            *commands = None;
            return;
        }
        metrics::counter!("fanlight_ingest_input_total").increment(1);
    }
}

/// What a source writes to. Calls of a source that was stopped do nothing.
#[derive(Clone, Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    number: u64,
}

impl Sink {
    /// The device's id, for logs.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Number of the capture.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The source told the picture's size.
    pub fn declared_size(&self, width: u32, height: u32) {
        let mut capture = self.shared.capture.lock();
        if capture.number == self.number {
            capture.hygiene.declared_size(width, height);
        } else if let Some(heir) = self.heir(&mut capture) {
            heir.size = Some((width, height));
        }
    }

    /// This sink's source as the heir, if it is.
    fn heir<'a>(&self, capture: &'a mut Capture) -> Option<&'a mut Heir> {
        capture.heir.as_mut().filter(|heir| heir.number == self.number)
    }

    /// The source starts another stream (its encoder was restarted, or a new process took over).
    pub fn restarted(&self) {
        let mut capture = self.shared.capture.lock();
        if capture.number == self.number {
            capture.hygiene.restart();
        }
    }

    /// Parameter sets by themselves.
    pub fn parameter_sets(&self, annex_b: &[u8]) {
        let mut capture = self.shared.capture.lock();
        if capture.number == self.number {
            capture.hygiene.parameter_sets(annex_b);
        } else if let Some(heir) = self.heir(&mut capture)
            && annex_b.len() <= MAX_PARAMETERS
        {
            heir.parameters = annex_b.to_vec();
        }
    }

    /// One access unit.
    pub fn picture(&self, arrival: Arrival, pts_us: u64, access_unit: &[u8]) {
        let mut capture = self.shared.capture.lock();
        if self.heir(&mut capture).is_some()
            && AccessUnitInfo::inspect(access_unit).is_ok_and(|info| info.key)
        {
            self.shared.succeed(&mut capture);
        }
        if capture.number != self.number {
            return;
        }
        let frame = match capture.hygiene.picture(arrival, pts_us, access_unit) {
            Ok(frame) => frame,
            Err(error) => {
                metrics::counter!("fanlight_ingest_pictures_dropped_total").increment(1);
                if !matches!(error, Dropped::WaitingForKey) {
                    tracing::warn!(device = %self.shared.name, "{error}");
                }
                return;
            }
        };
        metrics::counter!("fanlight_ingest_pictures_total").increment(1);
        if frame.key {
            self.shared.input.lock().fence.set_size(frame.width, frame.height);
            self.shared.keyframes.lock().keyframe();
        }
        if !self.shared.feed.push(frame) {
            self.shared.keyframes.lock().cache_lost();
        }
    }

    /// The device's clipboard, towards viewers.
    pub fn clipboard(&self, text: &str) {
        if self.shared.capture.lock().number != self.number {
            return;
        }
        let text = cut_at_char(text, CLIPBOARD_TO_VIEWER_MAX).to_owned();
        let message = DeviceMessage { seq: 0, lease_epoch: 0, body: DeviceBody::Clipboard(text) };
        let mut bytes = Vec::new();
        if message.encode(&mut bytes).is_ok() {
            *self.shared.clipboard.lock() = Some(bytes.clone());
            self.shared.feed.output(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use fanlight_wire::input::{Touch, TouchAction};

    use super::*;

    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x0a, 0xf4, 0xfb, 0x40];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
    const IDR: &[u8] = &[0, 0, 0, 1, 0x65, 0x88, 0x84, 1];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 2];

    fn running() -> (Arc<Shared>, Sink, mpsc::Receiver<Command>) {
        let shared = Arc::new(Shared::new("pixel".into(), 4_000_000));
        let (sink, commands) = shared.start_capture();
        sink.declared_size(720, 1280);
        sink.picture(Arrival::now(), 0, &[SPS, PPS, IDR].concat());
        (shared, sink, commands)
    }

    fn source(epoch: u64) -> Source {
        Source { stream: "streams/pixel".into(), epoch, number: u16::try_from(epoch).unwrap() }
    }

    fn touch(shared: &Shared, action: TouchAction) {
        touch_from(shared, &source(1), action);
    }

    fn touch_from(shared: &Shared, from: &Source, action: TouchAction) {
        let state = *shared.feed.state().borrow();
        let (w, h) = (state.width, state.height);
        let touch = Touch { action, pointer_id: 0, pressure: 1, x: 1, y: 1, w, h, buttons: 0 };
        let message = InputMessage { seq: 0, lease_epoch: 0, body: InputBody::Touch(touch) };
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        shared.input(from, 7, &bytes);
    }

    #[test]
    fn while_a_stream_moves_the_newer_router_is_heard_from_its_first_word_on() {
        let (shared, _sink, mut commands) = running();
        let (old, new) = (source(1), source(2));
        shared.accepted(&old);
        touch_from(&shared, &old, TouchAction::Down);
        shared.accepted(&new);
        touch_from(&shared, &old, TouchAction::Move);
        assert_eq!(presses(&mut commands), [Press::Down, Press::Move], "its viewer has not moved");
        // The same number of a viewer, of another router: the finger of the first is lifted.
        touch_from(&shared, &new, TouchAction::Down);
        assert_eq!(presses(&mut commands), [Press::Up, Press::Down]);
        touch_from(&shared, &old, TouchAction::Move);
        touch_from(&shared, &old, TouchAction::Down);
        shared.lost(&old);
        assert_eq!(presses(&mut commands), [], "what is left of the old router changes nothing");
        touch_from(&shared, &new, TouchAction::Up);
        assert_eq!(presses(&mut commands), [Press::Up]);
    }

    #[test]
    fn a_move_that_fails_gives_the_word_back_to_the_router_that_is_left() {
        let (shared, _sink, mut commands) = running();
        let (old, new) = (source(1), source(2));
        touch_from(&shared, &new, TouchAction::Down);
        touch_from(&shared, &old, TouchAction::Down);
        assert_eq!(presses(&mut commands), [Press::Down]);
        shared.lost(&new);
        touch_from(&shared, &old, TouchAction::Down);
        assert_eq!(presses(&mut commands), [Press::Up, Press::Down]);
    }

    fn presses(commands: &mut mpsc::Receiver<Command>) -> Vec<Press> {
        std::iter::from_fn(|| commands.try_recv().ok())
            .filter_map(|c| match c {
                Command::Op(Op::Touch { press, .. }) => Some(press),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn stopping_a_capture_lifts_every_finger_before_the_queue_ends() {
        let (shared, _sink, mut commands) = running();
        touch(&shared, TouchAction::Down);
        shared.stop_capture();
        assert_eq!(presses(&mut commands), [Press::Down, Press::Up]);
        assert!(matches!(commands.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }

    #[test]
    fn a_stopped_source_shows_nothing_any_more() {
        let (shared, old, _commands) = running();
        shared.stop_capture();
        old.picture(Arrival::now(), 1, &[SPS, PPS, IDR].concat());
        assert!(!shared.feed.state().borrow().live);
    }

    #[test]
    fn an_heir_takes_over_with_its_first_keyframe_and_fingers_are_lifted_where_they_are() {
        let (shared, old, mut old_commands) = running();
        let mut frames = shared.feed.subscribe().frames;
        touch(&shared, TouchAction::Down);
        let (heir, mut new_commands) = shared.start_heir();
        heir.declared_size(720, 1280);
        heir.parameter_sets(&[SPS, PPS].concat());
        heir.picture(Arrival::now(), 0, P);
        assert!(frames.try_recv().is_err(), "nothing of it before its keyframe");
        old.picture(Arrival::now(), 16_000, P);
        assert!(!frames.try_recv().unwrap().key, "the old one goes on until then");
        heir.picture(Arrival::now(), 33_000, IDR);
        assert!(frames.try_recv().unwrap().key);
        old.picture(Arrival::now(), 33_000, P);
        assert!(frames.try_recv().is_err(), "nothing of the old one any more");
        assert!(shared.feed.state().borrow().live, "viewers saw no end");
        assert_eq!(presses(&mut old_commands), [Press::Down, Press::Up]);
        assert!(matches!(old_commands.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        touch(&shared, TouchAction::Down);
        assert_eq!(presses(&mut new_commands), [Press::Down]);
        assert!(shared.is_running(heir.number()) && !shared.is_running(old.number()));
    }

    #[test]
    fn an_heir_goes_with_the_capture_that_is_stopped() {
        let (shared, _old, _commands) = running();
        let (heir, mut commands) = shared.start_heir();
        shared.stop_capture();
        heir.picture(Arrival::now(), 0, &[SPS, PPS, IDR].concat());
        assert!(!shared.feed.state().borrow().live);
        assert!(matches!(commands.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }

    #[test]
    fn a_router_that_vanishes_leaves_no_finger_down() {
        let (shared, _sink, mut commands) = running();
        touch(&shared, TouchAction::Down);
        shared.lost(&source(1));
        assert_eq!(presses(&mut commands), [Press::Down, Press::Up]);
    }

    #[test]
    fn a_device_that_takes_no_input_loses_moves_first_and_its_source_last() {
        let (shared, _sink, mut commands) = running();
        touch(&shared, TouchAction::Down);
        for _ in 0..10 * COMMAND_QUEUE {
            touch(&shared, TouchAction::Move);
        }
        touch(&shared, TouchAction::Up);
        let seen = presses(&mut commands);
        assert!(seen.len() < COMMAND_QUEUE);
        assert_eq!(seen.last(), Some(&Press::Up), "an up is not lost to a flood of moves");
        for _ in 0..2 * COMMAND_QUEUE {
            touch(&shared, TouchAction::Down);
        }
        assert_eq!(presses(&mut commands).len(), COMMAND_QUEUE);
        assert!(matches!(commands.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }

    #[test]
    fn malformed_input_reaches_nothing() {
        let (shared, _sink, mut commands) = running();
        shared.input(&source(1), 1, b"");
        shared.input(&source(1), 1, &[0xff; 40]);
        assert!(commands.try_recv().is_err());
    }
}
