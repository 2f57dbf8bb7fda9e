//! The bytes of Fanlight: what travels on the QUIC hop, in RTP, and on the data channels.
//!
//! What it is: pure encoders and decoders, and nothing else. What it is not: no sockets, no async,
//! no clocks, no protobuf, no policy. The one invariant: **no input panics and no input makes a
//! decoder hold more memory than its stated bound**; bad bytes become a typed error that names the
//! field.
//!
//! | module | bytes of |
//! |---|---|
//! | [`varint`] | QUIC variable-length integers |
//! | [`roq`] | RTP over QUIC: flow ids, stream and datagram framing, control frames, close codes |
//! | [`rtp`] | RTP headers and header extensions, wrapping sequence and time types |
//! | [`rtcp`] | RTCP compound packets: reports, NACK, PLI, FIR, transport-wide feedback, REMB |
//! | [`h264`] | Annex-B, NAL units, access units, SPS facts, the parameter set cache |
//! | [`pack`] | access unit to equal-size RTP payloads, and back |
//! | [`input`] | touches, keys, text, clipboard: the messages of the data channels |
//!
//! The rest of this page is `WIRE.md`, the normative description.
//!
#![doc = include_str!("../WIRE.md")]
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod fuzz;
pub mod h264;
pub mod input;
pub mod pack;
pub mod roq;
pub mod rtcp;
pub mod rtp;
pub mod varint;
