//! The last gate before the device: who may press what, on which picture. Pure. Not the lease itself
//! (the router holds it); this only refuses what is older than what was seen. Invariant: every
//! pointer and key that went down is known here until its up went out, so a viewer that leaves
//! never leaves a finger on the screen.

use fanlight_wire::input::{
    Button, ButtonAction, InputBody, InputMessage, KeyAction, Touch, TouchAction,
};

use crate::inject::{Op, Position, Press};

/// Fingers at once, over all viewers: the device's server keeps no more.
pub const MAX_POINTERS: usize = 10;
/// Keys held at once, over all viewers; more than ten fingers hold on a keyboard.
const MAX_KEYS: usize = 16;

const KEYCODE_HOME: u32 = 3;
const KEYCODE_VOLUME_UP: u32 = 24;
const KEYCODE_VOLUME_DOWN: u32 = 25;
const KEYCODE_POWER: u32 = 26;
const KEYCODE_APP_SWITCH: u32 = 187;

/// Why an input was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refused {
    /// Its lease epoch is lower than one already seen.
    StaleLease,
    /// It was made on a picture of another size (before a rotation); the device would misplace it.
    StaleSize,
    /// There is no picture yet, so nobody can have touched it.
    NoVideo,
    /// [`MAX_POINTERS`] or `MAX_KEYS` are held.
    TooMany,
    /// A move or an up of a pointer that is not down.
    NotDown,
    /// A move that a later message of its pointer has overtaken on the way.
    Overtaken,
    /// Not for the device.
    NotForDevice,
}

impl Refused {
    /// Metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StaleLease => "stale_lease",
            Self::StaleSize => "stale_size",
            Self::NoVideo => "no_video",
            Self::TooMany => "too_many",
            Self::NotDown => "not_down",
            Self::Overtaken => "overtaken",
            Self::NotForDevice => "not_for_device",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Pointer {
    viewer: u64,
    id: u8,
    at: Position,
    /// Of the last message taken: moves travel on a channel of their own and may come late.
    seq: u32,
}

#[derive(Clone, Copy, Debug)]
struct Key {
    viewer: u64,
    keycode: u32,
}

/// State of one device's input.
#[derive(Debug, Default)]
pub struct Fence {
    size: Option<(u16, u16)>,
    greatest_lease: u32,
    pointers: [Option<Pointer>; MAX_POINTERS],
    keys: Vec<Key>,
}

impl Fence {
    /// The picture has this size from now on. Held pointers keep their place in proportion, so that
    /// their up still reaches the device.
    pub fn set_size(&mut self, width: u16, height: u16) {
        if self.size == Some((width, height)) {
            return;
        }
        self.size = Some((width, height));
        for pointer in self.pointers.iter_mut().flatten() {
            pointer.at = scaled(pointer.at, width, height);
        }
    }

    /// A router accepted the stream anew: its leases may count from the start.
    pub fn new_publish(&mut self) {
        self.greatest_lease = 0;
    }

    /// The device's server is gone, and with it everything that was held.
    pub fn forget_all(&mut self) {
        self.pointers = [None; MAX_POINTERS];
        self.keys.clear();
    }

    /// Pointers that are down.
    pub fn pointers_down(&self) -> usize {
        self.pointers.iter().flatten().count()
    }

    /// Judges one message of `viewer`; what may be done is appended to `out`.
    pub fn admit(
        &mut self,
        viewer: u64,
        message: &InputMessage,
        out: &mut Vec<Op>,
    ) -> Result<(), Refused> {
        // A release takes nothing from anybody else, so it needs no lease.
        if matches!(message.body, InputBody::ReleaseAll) {
            self.release(Some(viewer), out);
            return Ok(());
        }
        if message.lease_epoch < self.greatest_lease {
            return Err(Refused::StaleLease);
        }
        self.greatest_lease = message.lease_epoch;
        match &message.body {
            InputBody::Touch(t) => {
                let at = Position { x: t.x, y: t.y, width: t.w, height: t.h };
                self.touch((viewer, message.seq), t, at, out)
            }
            InputBody::Scroll(s) => {
                let at = Position { x: s.x, y: s.y, width: s.w, height: s.h };
                self.current(at)?;
                out.push(Op::Scroll { at, dx: s.dx, dy: s.dy, buttons: s.buttons });
                Ok(())
            }
            InputBody::Key(k) => {
                let press = match k.action {
                    KeyAction::Down => Press::Down,
                    KeyAction::Up => Press::Up,
                };
                self.key(viewer, press, k.keycode)?;
                let repeat = u32::from(k.repeat);
                out.push(Op::Key { press, keycode: k.keycode, repeat, meta: k.meta });
                Ok(())
            }
            InputBody::Text(text) => {
                out.push(Op::Text(text.clone()));
                Ok(())
            }
            InputBody::SetClipboard { paste, text } => {
                out.push(Op::SetClipboard { paste: *paste, text: text.clone() });
                Ok(())
            }
            InputBody::GetClipboard { copy_key } => {
                out.push(Op::GetClipboard { copy_key: *copy_key as u8 });
                Ok(())
            }
            InputBody::Button { button, action } => {
                button_ops(*button, *action, out);
                Ok(())
            }
            _ => Err(Refused::NotForDevice),
        }
    }

    /// Lets go of everything `viewer` holds; of everything at all for `None`.
    pub fn release(&mut self, viewer: Option<u64>, out: &mut Vec<Op>) {
        self.release_of(|v| viewer.is_none_or(|only| only == v), out);
    }

    /// Lets go of everything that these viewers hold.
    pub fn release_of(&mut self, mine: impl Fn(u64) -> bool, out: &mut Vec<Op>) {
        for (slot, held) in self.pointers.iter_mut().enumerate() {
            if let Some(pointer) = held.take_if(|p| mine(p.viewer)) {
                out.push(up(slot, pointer.at));
            }
        }
        self.keys.retain(|key| {
            if !mine(key.viewer) {
                return true;
            }
            out.push(Op::Key { press: Press::Up, keycode: key.keycode, repeat: 0, meta: 0 });
            false
        });
    }

    fn current(&self, at: Position) -> Result<(), Refused> {
        match self.size {
            None => Err(Refused::NoVideo),
            Some(size) if size == (at.width, at.height) => Ok(()),
            Some(_) => Err(Refused::StaleSize),
        }
    }

    fn touch(
        &mut self,
        (viewer, seq): (u64, u32),
        touch: &Touch,
        at: Position,
        out: &mut Vec<Op>,
    ) -> Result<(), Refused> {
        let id = touch.pointer_id;
        let held =
            self.pointers.iter().position(|p| p.is_some_and(|p| p.viewer == viewer && p.id == id));
        let current = self.current(at);
        let op = |press, slot, at| touch_op(press, slot, at, touch.pressure, touch.buttons);
        match touch.action {
            TouchAction::Down => {
                current?;
                // A second down without an up between: the first is over.
                if let Some(slot) = held {
                    out.extend(self.pointers[slot].take().map(|p| up(slot, p.at)));
                }
                let slot = self.free_slot(id).ok_or(Refused::TooMany)?;
                self.pointers[slot] = Some(Pointer { viewer, id, at, seq });
                out.push(op(Press::Down, slot, at));
            }
            TouchAction::Move => {
                let slot = held.ok_or(Refused::NotDown)?;
                current?;
                if let Some(pointer) = &mut self.pointers[slot] {
                    if seq.wrapping_sub(pointer.seq).cast_signed() < 0 {
                        return Err(Refused::Overtaken);
                    }
                    (pointer.at, pointer.seq) = (at, seq);
                }
                out.push(op(Press::Move, slot, at));
            }
            TouchAction::Up | TouchAction::Cancel => {
                let slot = held.ok_or(Refused::NotDown)?;
                let last = self.pointers[slot].take().map_or(at, |p| p.at);
                // An up is never lost to a rotation: it goes out where the finger was last known.
                let at = if current.is_ok() { at } else { last };
                out.push(touch_op(Press::Up, slot, at, 0, touch.buttons));
            }
        }
        Ok(())
    }

    /// The viewer's own number when it is free, so that one viewer's fingers keep their ids.
    fn free_slot(&self, id: u8) -> Option<usize> {
        let own = usize::from(id);
        if self.pointers.get(own).is_some_and(Option::is_none) {
            return Some(own);
        }
        self.pointers.iter().position(Option::is_none)
    }

    fn key(&mut self, viewer: u64, press: Press, keycode: u32) -> Result<(), Refused> {
        let held = self.keys.iter().position(|k| k.viewer == viewer && k.keycode == keycode);
        match (press, held) {
            (Press::Down, None) if self.keys.len() >= MAX_KEYS => Err(Refused::TooMany),
            (Press::Down, None) => {
                self.keys.push(Key { viewer, keycode });
                Ok(())
            }
            (Press::Up, Some(at)) => {
                self.keys.swap_remove(at);
                Ok(())
            }
            // A repeat, or an up whose down was refused: harmless to the device.
            _ => Ok(()),
        }
    }
}

fn touch_op(press: Press, slot: usize, at: Position, pressure: u16, buttons: u32) -> Op {
    // `slot` is below MAX_POINTERS.
    let pointer = u8::try_from(slot).unwrap_or(u8::MAX);
    Op::Touch { press, pointer, at, pressure, buttons }
}

fn up(slot: usize, at: Position) -> Op {
    touch_op(Press::Up, slot, at, 0, 0)
}

fn scaled(at: Position, width: u16, height: u16) -> Position {
    let scale = |v: u16, from: u16, to: u16| {
        let moved = u32::from(v) * u32::from(to) / u32::from(from.max(1));
        u16::try_from(moved).unwrap_or(to).min(to.saturating_sub(1))
    };
    Position { x: scale(at.x, at.width, width), y: scale(at.y, at.height, height), width, height }
}

fn button_ops(button: Button, action: ButtonAction, out: &mut Vec<Op>) {
    let presses: &[Press] = match action {
        ButtonAction::Down => &[Press::Down],
        ButtonAction::Up => &[Press::Up],
        ButtonAction::Press => &[Press::Down, Press::Up],
    };
    let keycode = match button {
        Button::BackOrScreenOn => {
            out.extend(presses.iter().map(|p| Op::BackOrScreenOn(*p)));
            return;
        }
        Button::RotateDevice | Button::ExpandNotifications | Button::CollapsePanels => {
            // These have no up: the press, or the down, is all there is.
            if action != ButtonAction::Up {
                out.push(match button {
                    Button::RotateDevice => Op::RotateDevice,
                    Button::ExpandNotifications => Op::ExpandNotifications,
                    _ => Op::CollapsePanels,
                });
            }
            return;
        }
        Button::Home => KEYCODE_HOME,
        Button::Recents => KEYCODE_APP_SWITCH,
        Button::Power => KEYCODE_POWER,
        Button::VolumeUp => KEYCODE_VOLUME_UP,
        Button::VolumeDown => KEYCODE_VOLUME_DOWN,
    };
    out.extend(presses.iter().map(|p| Op::Key { press: *p, keycode, repeat: 0, meta: 0 }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(action: TouchAction, pointer_id: u8, x: u16, size: (u16, u16)) -> InputBody {
        let (w, h) = size;
        InputBody::Touch(Touch { action, pointer_id, pressure: 9, x, y: 20, w, h, buttons: 0 })
    }

    fn message(lease_epoch: u32, body: InputBody) -> InputMessage {
        InputMessage { seq: 1, lease_epoch, body }
    }

    fn admit(f: &mut Fence, viewer: u64, body: InputBody) -> Result<Vec<Op>, Refused> {
        let mut out = Vec::new();
        f.admit(viewer, &message(0, body), &mut out).map(|()| out)
    }

    const TALL: (u16, u16) = (720, 1280);
    const WIDE: (u16, u16) = (1280, 720);

    fn fence() -> Fence {
        let mut f = Fence::default();
        f.set_size(720, 1280);
        f
    }

    #[test]
    fn a_touch_before_the_first_picture_is_refused() {
        let body = touch(TouchAction::Down, 0, 5, TALL);
        assert_eq!(admit(&mut Fence::default(), 1, body), Err(Refused::NoVideo));
    }

    #[test]
    fn a_touch_made_on_the_picture_before_a_rotation_is_refused() {
        let mut f = fence();
        f.set_size(1280, 720);
        assert_eq!(admit(&mut f, 1, touch(TouchAction::Down, 0, 5, TALL)), Err(Refused::StaleSize));
        assert!(admit(&mut f, 1, touch(TouchAction::Down, 0, 5, WIDE)).is_ok());
    }

    #[test]
    fn an_up_survives_a_rotation_at_the_place_the_finger_had() {
        let mut f = fence();
        admit(&mut f, 1, touch(TouchAction::Down, 0, 360, TALL)).unwrap();
        f.set_size(1280, 720);
        let ops = admit(&mut f, 1, touch(TouchAction::Up, 0, 360, TALL)).unwrap();
        let [Op::Touch { press: Press::Up, at, .. }] = ops[..] else { panic!("{ops:?}") };
        assert_eq!((at.x, at.width, at.height), (640, 1280, 720));
        assert_eq!(f.pointers_down(), 0);
    }

    #[test]
    fn a_viewer_that_leaves_lets_go_of_its_own_fingers_and_keys_only() {
        let mut f = fence();
        admit(&mut f, 1, touch(TouchAction::Down, 0, 1, TALL)).unwrap();
        admit(&mut f, 1, touch(TouchAction::Down, 1, 2, TALL)).unwrap();
        admit(&mut f, 2, touch(TouchAction::Down, 0, 3, TALL)).unwrap();
        let key =
            fanlight_wire::input::Key { action: KeyAction::Down, repeat: 0, keycode: 59, meta: 1 };
        admit(&mut f, 1, InputBody::Key(key)).unwrap();
        let ops = admit(&mut f, 1, InputBody::ReleaseAll).unwrap();
        assert_eq!(ops.len(), 3);
        assert!(ops.contains(&Op::Key { press: Press::Up, keycode: 59, repeat: 0, meta: 0 }));
        assert_eq!(f.pointers_down(), 1);
        assert_eq!(admit(&mut f, 1, InputBody::ReleaseAll).unwrap(), []);
    }

    #[test]
    fn two_viewers_with_the_same_finger_number_do_not_share_a_finger() {
        let mut f = fence();
        let pointer_of = |ops: Vec<Op>| match ops[..] {
            [Op::Touch { pointer, .. }] => pointer,
            _ => panic!("{ops:?}"),
        };
        let a = pointer_of(admit(&mut f, 1, touch(TouchAction::Down, 0, 1, TALL)).unwrap());
        let b = pointer_of(admit(&mut f, 2, touch(TouchAction::Down, 0, 1, TALL)).unwrap());
        assert_eq!(a, 0);
        assert_ne!(a, b);
        assert_eq!(b, pointer_of(admit(&mut f, 2, touch(TouchAction::Up, 0, 1, TALL)).unwrap()));
    }

    #[test]
    fn the_eleventh_finger_is_refused_and_an_up_makes_room() {
        let mut f = fence();
        for id in 0..10 {
            admit(&mut f, 1, touch(TouchAction::Down, id, 1, TALL)).unwrap();
        }
        let eleventh = || touch(TouchAction::Down, 10, 1, TALL);
        assert_eq!(admit(&mut f, 1, eleventh()), Err(Refused::TooMany));
        admit(&mut f, 1, touch(TouchAction::Up, 4, 1, TALL)).unwrap();
        assert!(admit(&mut f, 1, eleventh()).is_ok());
    }

    #[test]
    fn a_stale_lease_is_refused_until_a_router_starts_over() {
        let mut f = fence();
        let mut out = Vec::new();
        f.admit(1, &message(7, InputBody::Text("a".into())), &mut out).unwrap();
        let stale = message(6, InputBody::Text("b".into()));
        assert_eq!(f.admit(2, &stale, &mut out), Err(Refused::StaleLease));
        assert!(f.admit(2, &message(6, InputBody::ReleaseAll), &mut out).is_ok());
        f.new_publish();
        assert!(f.admit(2, &stale, &mut out).is_ok());
    }

    #[test]
    fn moves_and_ups_need_a_down() {
        let mut f = fence();
        for action in [TouchAction::Move, TouchAction::Up, TouchAction::Cancel] {
            assert_eq!(admit(&mut f, 1, touch(action, 0, 1, TALL)), Err(Refused::NotDown));
        }
    }

    #[test]
    fn a_second_down_of_a_finger_lifts_it_first() {
        let mut f = fence();
        admit(&mut f, 1, touch(TouchAction::Down, 0, 1, TALL)).unwrap();
        let ops = admit(&mut f, 1, touch(TouchAction::Down, 0, 9, TALL)).unwrap();
        assert!(matches!(
            ops[..],
            [Op::Touch { press: Press::Up, .. }, Op::Touch { press: Press::Down, .. }]
        ));
        assert_eq!(f.pointers_down(), 1);
    }

    #[test]
    fn a_move_that_comes_after_a_later_one_is_dropped() {
        let mut f = fence();
        let mut out = Vec::new();
        let mut send = |seq, action, x| {
            let body = touch(action, 0, x, TALL);
            f.admit(1, &InputMessage { seq, lease_epoch: 0, body }, &mut out)
        };
        send(u32::MAX, TouchAction::Down, 1).unwrap();
        send(2, TouchAction::Move, 9).unwrap();
        assert_eq!(send(1, TouchAction::Move, 5), Err(Refused::Overtaken));
        assert_eq!(send(u32::MAX - 1, TouchAction::Move, 5), Err(Refused::Overtaken));
        send(3, TouchAction::Up, 10).unwrap();
        assert_eq!(send(4, TouchAction::Move, 11), Err(Refused::NotDown));
    }

    #[test]
    fn buttons_become_keys_with_both_edges() {
        let mut f = fence();
        let body = InputBody::Button { button: Button::Home, action: ButtonAction::Press };
        let ops = admit(&mut f, 1, body).unwrap();
        assert!(matches!(
            ops[..],
            [Op::Key { press: Press::Down, keycode: 3, .. }, Op::Key { press: Press::Up, .. }]
        ));
        let body = InputBody::Button { button: Button::RotateDevice, action: ButtonAction::Press };
        assert_eq!(admit(&mut f, 1, body).unwrap(), [Op::RotateDevice]);
    }
}
