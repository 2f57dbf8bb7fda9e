//! scrcpy.

pub mod stream;
pub mod table;
