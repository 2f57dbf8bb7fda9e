//! What both ends of a WebRTC media path need beside the protocol library: SRTP and SRTCP
//! contexts, and the keys that DTLS agreed on. Not a session: no ICE, no SDP, no sockets, no
//! clock. Invariant: no key outlives the context that was made of it.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod fuzz;
pub mod keys;
mod signing;
pub mod srtp;
