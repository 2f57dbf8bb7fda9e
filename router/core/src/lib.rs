//! The router's mind, sans-IO: streams, viewers, GOP cache, keyframe merging, input permission.
//!
//! It is not a server: no sockets, no clock, no threads, no locks, no async. A shard (one pinned
//! thread in the `router` crate) owns one [`Core`], feeds it what happened and does what it says.
//!
//! # The contract
//!
//! **Call inputs, then drain [`Core::poll_media`] and [`Core::poll_output`] until both have nothing,
//! then arm a timer for [`Core::next_timeout`].** Time only enters as the `now` argument, and never
//! runs backwards. Inputs are every `&mut self` method that takes `now` but `poll_media`. Inputs may
//! be given between two batches of media (a shard does so, that a burst delays nobody's touch), and
//! media may wait while the socket is full; what must not happen is to wait for the network with
//! outputs undrained.
//!
//! ```
//! # use std::time::{Duration, Instant};
//! use fanlight_router_core::{Batch, Core, CoreConfig, Output, Route};
//!
//! # let mut now = Instant::now();
//! let here = "127.0.0.1:5000".parse().unwrap();
//! let mut core = Core::new(CoreConfig::new(vec![here]), now, 1);
//! let mut batch = Batch::new(16, 192 * 1024);
//! for _turn in 0..3 {
//!     // 1. Inputs: a datagram from the socket, a frame from the ring, a join from the inbox.
//!     core.datagram(now, Route::udp("192.0.2.7:4000".parse().unwrap()), here, b"?");
//!     core.timeout(now);
//!     // 2. Media, a batch at a time; then everything small.
//!     while core.poll_media(now, &mut batch) {
//!         for run in batch.runs() {
//!             let datagrams = batch.bytes(run).chunks(run.segment);
//!             let _ = (run.to, datagrams); /* one segmented send */
//!         }
//!     }
//!     while let Some(output) = core.poll_output() {
//!         match output {
//!             Output::Transmit { to, bytes, .. } => { let _ = (to, bytes); /* socket.send_to */ }
//!             Output::ToDevice { message, .. } => { let _ = message; /* hop control stream */ }
//!             Output::KeyframeRequest { .. } => { /* hop control stream */ }
//!             Output::ViewerConnected { .. } | Output::ViewerGone { .. } => { /* tell the node */ }
//!         }
//!     }
//!     // 3. Sleep until the socket is readable or this moment comes.
//!     let wait = core.next_timeout().map(|at| at.saturating_duration_since(now));
//!     now += wait.unwrap_or(Duration::from_millis(10));
//! }
//! assert_eq!(core.counters().datagrams_unknown, 3);
//! ```
//!
//! # Invariants
//!
//! * Nothing a viewer sends can panic the shard: every call that takes a viewer's bytes is behind
//!   `catch_unwind`, and the viewer whose bytes did it is dropped and counted. Therefore no
//!   profile may be built with `panic = "abort"`.
//! * Every table, queue and buffer has a bound in [`limits`].
//! * An [`str0m::Rtc`] is polled only when it is dirty, and never for media; no input looks at all
//!   viewers but a frame, which looks at the viewers of its own stream.
//! * The protocol library never has a viewer's media keys, and no packet index is sealed twice (the
//!   hot path in `ARCHITECTURE.md`).
//! * A viewer never makes another viewer wait, and a join never costs the encoder a keyframe while
//!   the current group of pictures is in the cache.
//!
//! # Reading order
//!
//! [`core`](crate::Core) (tables and dispatch) → `viewer` (life of one viewer) → `join` (offer to
//! answer) → `stream`, `history`, `keyframe` (media) → `core/media`, `feed`, `egress` (the hot path)
//! → `core/feedback`, `sent`, `gcc`, `pressure` (what viewers say of it) → `input` (data channel to
//! device) → `demux`.
#![forbid(unsafe_code)]

mod answer;
mod api;
mod batch;
mod budget;
mod codec;
mod core;
mod counters;
mod demux;
mod egress;
mod error;
mod feed;
mod feedback;
mod frame;
mod gcc;
mod header;
mod history;
mod input;
mod join;
mod keyframe;
pub mod limits;
mod pressure;
mod report;
mod rewrite;
mod sdp;
mod sent;
mod stream;
mod viewer;

pub use api::{
    Answer, CoreConfig, DownReason, GoneReason, IceCredentials, JoinRequest, KeyframeReason,
    LeaveReason, Output, Proto, Role, Route, SessionId, Share, StreamInfo, StreamKey, ViewerState,
    ViewerStats,
};
pub use batch::{Batch, Run};
pub use core::Core;
pub use counters::Counters;
pub use error::JoinError;
pub use fanlight_wire::h264::SpsFacts;
pub use frame::Frame;
pub use join::{ParsedOffer, parse_offer};
pub use limits::Limits;

#[cfg(any(test, feature = "test-util"))]
#[doc(hidden)]
pub mod bench;
#[cfg(any(test, feature = "test-util"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod scenarios;
#[cfg(any(test, feature = "test-util"))]
mod world;
