//! A simulated Android device: real ADB over TCP, the scrcpy server's protocol in both layouts,
//! screenrecord, screencap, input, clipboard, rotation, a static screen.
//!
//! It draws a screen that shows every touch and carries a machine-readable [`screen::strip`] with
//! the capture time, and encodes it for real. Debian's `adb` accepts it. Not a mirror of the ingest
//! worker or the router: it shares no parser with them, so that both sides are held to the protocol.
//!
//! | module | what it is |
//! |---|---|
//! | [`sim`] | a running device: listener, timers, end |
//! | [`config`], [`run`](mod@run) | configuration, flags, the process |
//! | [`device`], [`input`] | state of the device, what was done to it |
//! | [`screen`] | what is on the screen, drawing, the strip |
//! | [`capture`], [`encode`], [`clip`], [`h264`] | the screen as video, live or replayed |
//! | [`services`] | shell, files, abstract sockets, reverse tunnels |
//! | [`scrcpy`] | the server's side of the protocol |

pub mod capture;
pub mod clip;
pub mod config;
pub mod device;
pub mod encode;
#[doc(hidden)]
pub mod fuzz;
pub mod h264;
pub mod input;
mod keys;
pub mod metrics;
pub mod run;
pub mod scrcpy;
pub mod screen;
pub mod services;
pub mod sim;

pub use config::{Args, SimConfig};
pub use input::InputRecord;
pub use run::run;
pub use scrcpy::{ScrcpyVersion, placeholder_jar};
pub use sim::{Simulator, StartError};
