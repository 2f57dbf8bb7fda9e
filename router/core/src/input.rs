//! From a data channel message to the device: decode, permission, rate, coalescing.
//!
//! One [`Inputs`] per viewer. Not the channel (`viewer`) and not the fence against stale leases
//! and sizes, which is the worker's. Invariants: an observer's message never reaches a device; a
//! down that was let through gets its up through, whatever the rate; order is kept, but that a
//! newer move of a pointer replaces an older one that still waits.

use std::time::{Duration, Instant};

use fanlight_wire::input::{
    ButtonAction, DenyReason, DeviceBody, DeviceMessage, InputBody, InputMessage, KeyAction, Touch,
    TouchAction,
};
use smallvec::SmallVec;

use crate::api::Role;
use crate::counters::Counters;
use crate::limits::{HELD_KEYS_MAX, HELD_POINTERS_MAX, Limits};

/// What a message led to.
#[derive(Debug, Default)]
pub(crate) struct Handled {
    /// Messages for the device, in order.
    pub(crate) to_device: SmallVec<[Vec<u8>; 2]>,
    /// Answer to the viewer.
    pub(crate) reply: Option<DeviceMessage>,
}

/// What a viewer's permission to speak depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) role: Role,
    /// The device has a source here.
    pub(crate) online: bool,
}

#[derive(Debug)]
struct PendingMove {
    message: InputMessage,
    bytes: Vec<u8>,
}

/// One viewer's input.
#[derive(Debug)]
pub(crate) struct Inputs {
    tokens: Tokens,
    /// Pointers that are down, with the number of their last message.
    pointers: SmallVec<[(u8, u32); 4]>,
    keys: SmallVec<[u32; 4]>,
    /// Newest move per held pointer that the rate does not let through yet.
    waiting: SmallVec<[PendingMove; 2]>,
    waiting_until: Option<Instant>,
    last_seq: u32,
    lease_epoch: u32,
    /// Something reached the device, so that a release is due when the viewer leaves.
    touched: bool,
    pub(crate) accepted: u64,
    pub(crate) denied: u64,
}

impl Inputs {
    pub(crate) fn new(now: Instant, limits: &Limits) -> Self {
        Self {
            tokens: Tokens::new(now, limits.input_burst),
            pointers: SmallVec::new(),
            keys: SmallVec::new(),
            waiting: SmallVec::new(),
            waiting_until: None,
            last_seq: 0,
            lease_epoch: 0,
            touched: false,
            accepted: 0,
            denied: 0,
        }
    }

    /// A message arrived on either channel.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        standing: Standing,
        bytes: &[u8],
        limits: &Limits,
        counters: &mut Counters,
    ) -> Handled {
        let has_token = self.tokens.refill(now, limits);
        let Ok(message) = InputMessage::decode(bytes) else {
            counters.inputs_malformed += 1;
            return self.deny(raw_seq(bytes), bytes.first().copied(), DenyReason::Malformed);
        };
        let (seq, kind) = (message.seq, Some(message.body.kind()));
        if let InputBody::Ping { t_ms } = message.body {
            let reply = self.tokens.take().then_some(DeviceMessage {
                seq,
                lease_epoch: message.lease_epoch,
                body: DeviceBody::Pong { t_ms },
            });
            return Handled { reply, ..Handled::default() };
        }
        if standing.role != Role::Controller {
            counters.inputs_denied_role += 1;
            return self.deny(seq, kind, DenyReason::NotController);
        }
        if !standing.online {
            counters.inputs_denied_offline += 1;
            return self.deny(seq, kind, DenyReason::DeviceOffline);
        }
        if let InputBody::Touch(Touch { action: TouchAction::Move, pointer_id, .. }) = message.body
        {
            return self.handle_move(now, pointer_id, message, bytes, limits, counters);
        }
        if !has_token && !self.releases(&message.body) {
            counters.inputs_denied_rate += 1;
            return self.deny(seq, kind, DenyReason::RateLimited);
        }
        if !self.note(&message) {
            counters.inputs_denied_rate += 1;
            return self.deny(seq, kind, DenyReason::RateLimited);
        }
        self.tokens.take();
        // What was held back goes first, so that an up never overtakes its own moves.
        let mut handled = Handled { to_device: self.flush(counters), reply: None };
        self.accept(&message);
        counters.inputs_forwarded += 1;
        handled.to_device.push(bytes.to_vec());
        handled
    }

    /// A move goes out if the rate allows, else waits as the newest of its pointer.
    fn handle_move(
        &mut self,
        now: Instant,
        pointer: u8,
        message: InputMessage,
        bytes: &[u8],
        limits: &Limits,
        counters: &mut Counters,
    ) -> Handled {
        let held = self.pointers.iter_mut().find(|(id, _)| *id == pointer);
        // The channel of moves is unordered: one may come before its down or after its up, or
        // after a newer one, and says nothing then.
        let Some((_, last)) = held.filter(|(_, last)| is_newer(message.seq, *last)) else {
            counters.inputs_coalesced += 1;
            return Handled::default();
        };
        *last = message.seq;
        if self.waiting.is_empty() && self.tokens.take() {
            self.accept(&message);
            counters.inputs_forwarded += 1;
            return Handled { to_device: smallvec::smallvec![bytes.to_vec()], reply: None };
        }
        let pending = PendingMove { bytes: bytes.to_vec(), message };
        let older = self.waiting.iter_mut().find(|w| pending.message.coalesces_with(&w.message));
        if let Some(older) = older {
            *older = pending;
            counters.inputs_coalesced += 1;
        } else if self.waiting.len() < HELD_POINTERS_MAX {
            self.waiting.push(pending);
        } else {
            counters.inputs_coalesced += 1;
        }
        if self.waiting_until.is_none() {
            let wait = Duration::from_secs(1) / limits.input_rate.max(1);
            self.waiting_until = Some(now + wait * u32::try_from(self.waiting.len()).unwrap_or(1));
        }
        Handled::default()
    }

    /// When [`Self::release_waiting`] has something to send.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.waiting_until
    }

    /// Sends the moves that waited.
    pub(crate) fn release_waiting(
        &mut self,
        now: Instant,
        limits: &Limits,
        counters: &mut Counters,
    ) -> SmallVec<[Vec<u8>; 2]> {
        self.tokens.refill(now, limits);
        for _ in 0..self.waiting.len() {
            self.tokens.take();
        }
        self.flush(counters)
    }

    /// The message that releases all that this viewer holds on the device, if it ever did
    /// anything there. To be sent when it leaves or loses its role.
    pub(crate) fn release_all(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        self.pointers.clear();
        self.keys.clear();
        self.waiting.clear();
        self.waiting_until = None;
        let message = InputMessage {
            seq: self.last_seq.wrapping_add(1),
            lease_epoch: self.lease_epoch,
            body: InputBody::ReleaseAll,
        };
        let mut bytes = Vec::new();
        message.encode(&mut bytes).ok()?;
        Some(bytes)
    }

    fn flush(&mut self, counters: &mut Counters) -> SmallVec<[Vec<u8>; 2]> {
        self.waiting_until = None;
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .map(|w| {
                self.accept(&w.message);
                counters.inputs_forwarded += 1;
                w.bytes
            })
            .collect()
    }

    fn accept(&mut self, message: &InputMessage) {
        self.touched = true;
        self.accepted += 1;
        self.last_seq = message.seq;
        self.lease_epoch = message.lease_epoch;
    }

    /// Refusals cost a token too, so that a flood of nonsense is not answered by a flood.
    fn deny(&mut self, seq: u32, kind: Option<u8>, reason: DenyReason) -> Handled {
        self.denied += 1;
        let reply = self.tokens.take().then(|| DeviceMessage {
            seq,
            lease_epoch: self.lease_epoch,
            body: DeviceBody::Denied { reason, of_kind: kind.unwrap_or(0) },
        });
        Handled { reply, ..Handled::default() }
    }

    /// Whether the message lets go of something that is held.
    fn releases(&self, body: &InputBody) -> bool {
        match body {
            InputBody::Touch(t) => {
                matches!(t.action, TouchAction::Up | TouchAction::Cancel)
                    && self.pointers.iter().any(|(id, _)| *id == t.pointer_id)
            }
            InputBody::Key(k) => k.action == KeyAction::Up && self.keys.contains(&k.keycode),
            InputBody::Button { action, .. } => *action == ButtonAction::Up,
            InputBody::ReleaseAll => !(self.pointers.is_empty() && self.keys.is_empty()),
            _ => false,
        }
    }

    /// Keeps the books of what is held. `false` when there is no room for another.
    fn note(&mut self, message: &InputMessage) -> bool {
        match &message.body {
            InputBody::Touch(t) => match t.action {
                TouchAction::Down => {
                    self.pointers.retain(|(id, _)| *id != t.pointer_id);
                    if self.pointers.len() >= HELD_POINTERS_MAX {
                        return false;
                    }
                    self.pointers.push((t.pointer_id, message.seq));
                }
                TouchAction::Up | TouchAction::Cancel => {
                    self.pointers.retain(|(id, _)| *id != t.pointer_id);
                }
                TouchAction::Move => {}
            },
            InputBody::Key(k) => {
                self.keys.retain(|code| *code != k.keycode);
                if k.action == KeyAction::Down {
                    if self.keys.len() >= HELD_KEYS_MAX {
                        return false;
                    }
                    self.keys.push(k.keycode);
                }
            }
            InputBody::ReleaseAll => {
                self.pointers.clear();
                self.keys.clear();
            }
            _ => {}
        }
        true
    }
}

/// Whether `seq` comes after `last`, roll-over considered.
fn is_newer(seq: u32, last: u32) -> bool {
    (1..1 << 31).contains(&seq.wrapping_sub(last))
}

/// The sequence number of a message that does not parse, for its refusal.
fn raw_seq(bytes: &[u8]) -> u32 {
    bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// A token bucket in integer arithmetic: one token is a million parts.
#[derive(Debug)]
struct Tokens {
    parts: u64,
    at: Instant,
}

impl Tokens {
    const ONE: u64 = 1_000_000;

    fn new(now: Instant, burst: u32) -> Self {
        Self { parts: u64::from(burst) * Self::ONE, at: now }
    }

    /// Adds what has accrued; returns whether there is a token.
    fn refill(&mut self, now: Instant, limits: &Limits) -> bool {
        let passed = now.saturating_duration_since(self.at).as_micros();
        self.at = self.at.max(now);
        let full = u64::from(limits.input_burst) * Self::ONE;
        // Micros times messages per second are parts.
        let accrued = passed.saturating_mul(u128::from(limits.input_rate));
        let accrued = u64::try_from(accrued).unwrap_or(full);
        self.parts = self.parts.saturating_add(accrued).min(full);
        self.parts >= Self::ONE
    }

    fn take(&mut self) -> bool {
        let left = self.parts.checked_sub(Self::ONE);
        self.parts = left.unwrap_or(self.parts);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROLLER: Standing = Standing { role: Role::Controller, online: true };

    struct Bench {
        now: Instant,
        inputs: Inputs,
        limits: Limits,
        counters: Counters,
    }

    impl Bench {
        fn new(rate: u32, burst: u32) -> Self {
            #[allow(clippy::disallowed_methods, reason = "a test's epoch")]
            let now = Instant::now();
            let limits = Limits { input_rate: rate, input_burst: burst, ..Limits::default() };
            let inputs = Inputs::new(now, &limits);
            Self { now, inputs, limits, counters: Counters::default() }
        }

        fn send(&mut self, standing: Standing, message: &[u8]) -> Handled {
            self.inputs.handle(self.now, standing, message, &self.limits, &mut self.counters)
        }

        fn touch(&mut self, seq: u32, action: TouchAction, pointer_id: u8, x: u16) -> Handled {
            let bytes = touch(seq, action, pointer_id, x);
            self.send(CONTROLLER, &bytes)
        }
    }

    fn touch(seq: u32, action: TouchAction, pointer_id: u8, x: u16) -> Vec<u8> {
        let body = InputBody::Touch(Touch {
            action,
            pointer_id,
            pressure: 0,
            x,
            y: 0,
            w: 720,
            h: 1280,
            buttons: 0,
        });
        let mut bytes = Vec::new();
        InputMessage { seq, lease_epoch: 0, body }.encode(&mut bytes).unwrap();
        bytes
    }

    fn reason(handled: &Handled) -> Option<DenyReason> {
        match handled.reply.as_ref()?.body {
            DeviceBody::Denied { reason, .. } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn permission_presence_and_form_are_checked() {
        let mut b = Bench::new(100, 100);
        let down = touch(1, TouchAction::Down, 0, 5);
        let observer = Standing { role: Role::Observer, online: true };
        assert_eq!(reason(&b.send(observer, &down)), Some(DenyReason::NotController));
        let offline = Standing { role: Role::Controller, online: false };
        assert_eq!(reason(&b.send(offline, &down)), Some(DenyReason::DeviceOffline));
        assert_eq!(reason(&b.send(CONTROLLER, &down[..9])), Some(DenyReason::Malformed));
        assert_eq!(reason(&b.send(CONTROLLER, b"")), Some(DenyReason::Malformed));
        assert_eq!(b.send(CONTROLLER, &down).to_device.as_slice(), [down]);
        assert_eq!(b.inputs.release_all().map(|m| m[0]), Some(0x08));
        assert_eq!(b.inputs.release_all(), None);
    }

    #[test]
    fn a_flood_is_limited_but_ups_get_through() {
        let mut b = Bench::new(10, 4);
        assert_eq!(b.touch(1, TouchAction::Down, 0, 0).to_device.len(), 1);
        for seq in 2..5 {
            assert_eq!(b.touch(seq, TouchAction::Down, 1, 0).to_device.len(), 1);
        }
        let refused = b.touch(5, TouchAction::Down, 2, 0);
        assert!(refused.to_device.is_empty() && refused.reply.is_none(), "no token, no answer");
        assert_eq!(b.touch(6, TouchAction::Up, 0, 0).to_device.len(), 1);
        assert!(b.touch(7, TouchAction::Up, 0, 0).to_device.is_empty(), "it is not held any more");
        assert_eq!(b.counters.inputs_denied_rate, 2);
    }

    #[test]
    fn moves_beyond_the_rate_are_coalesced_and_stay_before_the_up() {
        let mut b = Bench::new(10, 2);
        b.touch(1, TouchAction::Down, 0, 0);
        assert_eq!(b.touch(2, TouchAction::Move, 0, 1).to_device.len(), 1);
        for seq in 3..100 {
            assert!(b.touch(seq, TouchAction::Move, 0, 3).to_device.is_empty());
        }
        let newest = touch(100, TouchAction::Move, 0, 700);
        b.send(CONTROLLER, &newest);
        let wake = b.inputs.wake().expect("a timer for what waits");
        assert!(wake > b.now);
        let up = touch(101, TouchAction::Up, 0, 700);
        assert_eq!(b.send(CONTROLLER, &up).to_device.as_slice(), [newest, up]);
        assert_eq!(b.inputs.wake(), None);
        assert_eq!(b.counters.inputs_coalesced, 97);
    }

    #[test]
    fn a_move_without_its_down_or_older_than_the_last_says_nothing() {
        let mut b = Bench::new(100, 100);
        assert!(b.touch(1, TouchAction::Move, 0, 1).to_device.is_empty());
        b.touch(2, TouchAction::Down, 0, 1);
        assert_eq!(b.touch(4, TouchAction::Move, 0, 1).to_device.len(), 1);
        assert!(b.touch(3, TouchAction::Move, 0, 9).to_device.is_empty());
    }

    #[test]
    fn an_observer_may_ping() {
        let mut b = Bench::new(100, 100);
        let mut ping = Vec::new();
        InputMessage { seq: 9, lease_epoch: 0, body: InputBody::Ping { t_ms: 77 } }
            .encode(&mut ping)
            .unwrap();
        let handled = b.send(Standing { role: Role::Observer, online: false }, &ping);
        let reply = handled.reply.expect("a pong");
        assert_eq!((reply.seq, reply.body), (9, DeviceBody::Pong { t_ms: 77 }));
    }
}
