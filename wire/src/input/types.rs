//! Bodies of viewer messages and the small enums in them. Not the messages themselves. Invariant:
//! an enum's discriminant is its byte on the wire.

use super::InputError;
use super::cursor::{Cursor, bad, check_position};

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident ($field:literal) {
        $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant = $value,)* }

        impl $name {
            /// Every value, in the order of their bytes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Reads the byte on the wire.
            pub fn from_wire(byte: u8) -> Result<Self, InputError> {
                match byte {
                    $($value => Ok(Self::$variant),)*
                    other => Err(bad($field, other)),
                }
            }
        }
    };
}
pub(super) use wire_enum;

wire_enum! {
    /// What a pointer does.
    TouchAction ("touch action") {
        /// Touches.
        Down = 0,
        /// Leaves.
        Up = 1,
        /// Moves while touching.
        Move = 2,
        /// The gesture is called off.
        Cancel = 3,
    }
}

wire_enum! {
    /// What a key does.
    KeyAction ("key action") {
        /// Goes down.
        Down = 0,
        /// Goes up.
        Up = 1,
    }
}

wire_enum! {
    /// The key pressed before the clipboard is read.
    CopyKey ("copy key") {
        /// None: only read.
        None = 0,
        /// Copy.
        Copy = 1,
        /// Cut.
        Cut = 2,
    }
}

wire_enum! {
    /// A button of the device or its system.
    Button ("button") {
        /// Back; wakes the screen when it is off.
        BackOrScreenOn = 1,
        /// Home.
        Home = 2,
        /// Recent applications.
        Recents = 3,
        /// Power.
        Power = 4,
        /// Volume up.
        VolumeUp = 5,
        /// Volume down.
        VolumeDown = 6,
        /// Turns the device by a quarter.
        RotateDevice = 7,
        /// Pulls the notifications down.
        ExpandNotifications = 8,
        /// Pushes panels away.
        CollapsePanels = 9,
    }
}

wire_enum! {
    /// What a button does.
    ButtonAction ("button action") {
        /// Goes down.
        Down = 0,
        /// Goes up.
        Up = 1,
        /// Down and up.
        Press = 2,
    }
}

/// A pointer event. Positions are pixels of a picture of `w` by `h`: a worker whose picture has
/// another size by now refuses it, because it was aimed at something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Touch {
    /// What happens.
    pub action: TouchAction,
    /// Which pointer of this viewer.
    pub pointer_id: u8,
    /// 0 to 65,535; 0 on the way up.
    pub pressure: u16,
    /// From the left; less than `w`.
    pub x: u16,
    /// From the top; less than `h`.
    pub y: u16,
    /// Width of the picture aimed at.
    pub w: u16,
    /// Height of the picture aimed at.
    pub h: u16,
    /// Android's `MotionEvent` button bits; 0 for fingers.
    pub buttons: u32,
}

impl Touch {
    pub(super) fn read(c: &mut Cursor<'_>) -> Result<Self, InputError> {
        let touch = Self {
            action: TouchAction::from_wire(c.u8("touch action")?)?,
            pointer_id: c.u8("pointer id")?,
            pressure: c.u16("pressure")?,
            x: c.u16("touch x")?,
            y: c.u16("touch y")?,
            w: c.u16("touch width")?,
            h: c.u16("touch height")?,
            buttons: c.u32("touch buttons")?,
        };
        check_position(touch.x, touch.y, touch.w, touch.h)?;
        Ok(touch)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        check_position(self.x, self.y, self.w, self.h)?;
        out.extend_from_slice(&[self.action as u8, self.pointer_id]);
        for field in [self.pressure, self.x, self.y, self.w, self.h] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.buttons.to_be_bytes());
        Ok(())
    }
}

/// A key event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// What happens.
    pub action: KeyAction,
    /// How often the key has repeated since it went down.
    pub repeat: u16,
    /// Android's `KeyEvent` key code.
    pub keycode: u32,
    /// Android's `KeyEvent` meta state bits.
    pub meta: u32,
}

impl Key {
    pub(super) fn read(c: &mut Cursor<'_>) -> Result<Self, InputError> {
        let action = KeyAction::from_wire(c.u8("key action")?)?;
        c.zero("reserved byte of key", 1)?;
        Ok(Self {
            action,
            repeat: c.u16("key repeat")?,
            keycode: c.u32("key code")?,
            meta: c.u32("meta state")?,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.action as u8, 0]);
        out.extend_from_slice(&self.repeat.to_be_bytes());
        out.extend_from_slice(&self.keycode.to_be_bytes());
        out.extend_from_slice(&self.meta.to_be_bytes());
    }
}

/// A wheel event at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scroll {
    /// From the left; less than `w`.
    pub x: u16,
    /// From the top; less than `h`.
    pub y: u16,
    /// Width of the picture aimed at.
    pub w: u16,
    /// Height of the picture aimed at.
    pub h: u16,
    /// Notches to the right, see [`Scroll::from_notches`].
    pub dx: i16,
    /// Notches up, see [`Scroll::from_notches`].
    pub dy: i16,
    /// Android's `MotionEvent` button bits.
    pub buttons: u32,
}

impl Scroll {
    /// Notches that the greatest value stands for.
    pub const MAX_NOTCHES: f32 = 16.0;

    /// The wire value of a number of notches: clamped to ±16, which is ±32,767.
    pub fn from_notches(notches: f32) -> i16 {
        let share = (notches / Self::MAX_NOTCHES).clamp(-1.0, 1.0);
        #[expect(clippy::cast_possible_truncation, reason = "the share is within ±1 (or NaN: 0)")]
        let value = (share * f32::from(i16::MAX)).round() as i16;
        value
    }

    /// The number of notches of a wire value.
    pub fn to_notches(value: i16) -> f32 {
        f32::from(value) / f32::from(i16::MAX) * Self::MAX_NOTCHES
    }

    pub(super) fn read(c: &mut Cursor<'_>) -> Result<Self, InputError> {
        let scroll = Self {
            x: c.u16("scroll x")?,
            y: c.u16("scroll y")?,
            w: c.u16("scroll width")?,
            h: c.u16("scroll height")?,
            dx: c.i16("scroll dx")?,
            dy: c.i16("scroll dy")?,
            buttons: c.u32("scroll buttons")?,
        };
        check_position(scroll.x, scroll.y, scroll.w, scroll.h)?;
        Ok(scroll)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        check_position(self.x, self.y, self.w, self.h)?;
        let (dx, dy) = (self.dx.cast_unsigned(), self.dy.cast_unsigned());
        for field in [self.x, self.y, self.w, self.h, dx, dy] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.buttons.to_be_bytes());
        Ok(())
    }
}
