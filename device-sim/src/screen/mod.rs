//! The simulated screen: what is on it, how it is drawn, and the strip that says when.
//!
//! Nothing here knows ADB, scrcpy or H.264. Invariant: for the same model and the same time the
//! same pixels come out.

mod home;
pub mod model;
mod paint;
mod render;
pub mod strip;
mod text;
pub mod yuv;

pub use model::ScreenModel;
pub use render::{Moment, RenderError, Renderer};
