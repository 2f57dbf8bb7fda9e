//! SRTP and SRTCP (RFC 3711, RFC 7714) for one DTLS association: four one-way contexts. Not a
//! session: sequence numbers and rollover counters of what is sent are the caller's. Invariant:
//! bytes that do not authenticate change no state and give out no plaintext; the keys of a context
//! are wiped when it is dropped (of AES counter mode, a move may leave a copy on the stack).
//!
//! | context | direction | keeps |
//! |---|---|---|
//! | [`RtpSealer`] | out | nothing: the caller counts |
//! | [`RtcpSealer`] | out | the 31-bit index, which never restarts |
//! | [`RtpOpener`] | in | per source the highest index and a replay window of 1,024 |
//! | [`RtcpOpener`] | in | per source a replay window of 128 |

mod cipher;
mod derive;
mod replay;
mod rtcp;
mod rtp;
#[cfg(test)]
mod vectors;

pub use derive::{Keying, Profile};
pub use rtcp::{MAX_RTCP_SOURCES, RtcpOpener, RtcpSealer};
pub(crate) use rtp::header_len;
pub use rtp::{MAX_RTP_SOURCES, RtpOpened, RtpOpener, RtpSealer};

/// Why a packet was not opened or sealed, or a context not made. Retrying does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SrtpError {
    /// The packet is too short for its header and tag, or is not of version 2.
    #[error("not an SRTP or SRTCP packet: {0} bytes")]
    Malformed(usize),
    /// An SRTCP packet without the encryption bit. Nobody sends these; they are not taken.
    #[error("SRTCP packet in clear")]
    NotEncrypted,
    /// It was not sealed with the peer's keys. Anybody can send such a packet.
    #[error("packet does not authenticate")]
    Forged,
    /// A packet of the peer's that was opened before, or is too old to tell.
    #[error("packet was seen before or is older than the replay window")]
    Replayed,
    /// A packet of the peer's from one source more than a context keeps state of.
    #[error("packet of one source too many")]
    TooManySources,
    /// All indices are used up: a new DTLS association is needed.
    #[error("no packet index is left under these keys")]
    Exhausted,
    /// Keying material whose length is not that of its profile. The caller is to blame.
    #[error("{have} bytes of keying material, the profile has {need}")]
    KeyingLength {
        /// The profile's length.
        need: usize,
        /// Length given.
        have: usize,
    },
    /// The cryptographic library refused a key or a length; not expected.
    #[error("the cryptographic library refused")]
    Library,
}

/// All contexts of one end of an association.
#[derive(Debug)]
pub struct Contexts {
    /// Seals what we send.
    pub rtp: RtpSealer,
    /// Seals the RTCP that we send.
    pub rtcp: RtcpSealer,
    /// Opens the peer's RTCP.
    pub rtcp_in: RtcpOpener,
    /// Opens the peer's RTP.
    pub rtp_in: RtpOpener,
}

impl Contexts {
    /// Makes all four. Each has its own `derive` too, for who needs fewer. At most one
    /// [`RtpSealer`] and one [`RtcpSealer`] may be made of one [`Keying`].
    pub fn derive(keying: &Keying) -> Result<Self, SrtpError> {
        Ok(Self {
            rtp: RtpSealer::derive(keying)?,
            rtcp: RtcpSealer::derive(keying)?,
            rtcp_in: RtcpOpener::derive(keying)?,
            rtp_in: RtpOpener::derive(keying)?,
        })
    }
}
