//! What travels inside streams: shell, sync, reverse. Each knows bytes, none knows packets.
//!
//! Invariant: lengths that come from the other end are bounded before anything is reserved.

pub mod reverse;
pub mod shell;
pub mod shell_v2;
pub mod sync;
pub mod sync_device;
pub mod sync_host;
