//! Sources.

pub mod scrcpy;
