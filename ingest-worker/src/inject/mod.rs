//! What is done to a device, in terms that no source owns. Not the encodings (`scrcpy.rs`,
//! `shell.rs`) and not the permission (`fence.rs`). Invariant: an [`Op`] was let through by the
//! fence, so its pointer is one of at most [`crate::fence::MAX_POINTERS`].

pub mod scrcpy;
pub mod shell;

/// Press, release, motion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// Goes down.
    Down,
    /// Goes up.
    Up,
    /// Moves while down (pointers only).
    Move,
}

/// A place on a video of a certain size, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// From the left.
    pub x: u16,
    /// From the top.
    pub y: u16,
    /// Width of the video it refers to.
    pub width: u16,
    /// Height of the video it refers to.
    pub height: u16,
}

/// One thing done to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A finger.
    Touch {
        /// What it does.
        press: Press,
        /// Which finger, dense from 0 over all viewers.
        pointer: u8,
        /// Where.
        at: Position,
        /// 0 to 65535 (full).
        pressure: u16,
        /// Mouse buttons held, Android's bits.
        buttons: u32,
    },
    /// A key.
    Key {
        /// Down or up; never move.
        press: Press,
        /// Android key code.
        keycode: u32,
        /// Auto-repeat count.
        repeat: u32,
        /// Android meta state.
        meta: u32,
    },
    /// The wheel. Full range of i16 is ±16 notches.
    Scroll {
        /// Where.
        at: Position,
        /// To the right.
        dx: i16,
        /// Up.
        dy: i16,
        /// Mouse buttons held.
        buttons: u32,
    },
    /// Text typed.
    Text(String),
    /// Clipboard of the device, pasted at once if wanted.
    SetClipboard {
        /// Paste it too.
        paste: bool,
        /// The text.
        text: String,
    },
    /// Asks the device for its clipboard; 0 as it is, 1 after "copy", 2 after "cut".
    GetClipboard {
        /// Which key first.
        copy_key: u8,
    },
    /// Back, or wakes the screen.
    BackOrScreenOn(Press),
    /// Turns the device by 90 degrees.
    RotateDevice,
    /// Pulls the notifications down.
    ExpandNotifications,
    /// Closes all panels.
    CollapsePanels,
}
