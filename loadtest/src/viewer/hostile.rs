//! What a hostile client can send: garbage, lies, repeats and floods, as plain packets. Not their
//! sealing and not their pace. Invariant: everything here is what a real attacker with a valid join
//! token could do, nothing needs more than that.

use fanlight_wire::{
    rtcp::{self, TransportCcReport},
    rtp::Ssrc,
};

/// A kind of abuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Abuse {
    /// RTCP that was never sealed with the viewer's keys
    ForgedRtcp,
    /// The same sealed RTCP packet again and again
    ReplayedRtcp,
    /// Sealed NACKs of what was really sent, each for 170 packets
    NackFlood,
    /// Sealed NACKs of what was never sent, or long ago
    NackUnknown,
    /// Sealed transport-wide feedback with made-up numbers and times
    TwccLies,
    /// Sealed requests for keyframes
    PliFlood,
    /// STUN requests with the right user and a wrong password
    StunFlood,
    /// DTLS handshake fragments that never complete
    DtlsFragments,
    /// Messages on the input channel that are no input
    ChannelFlood,
    /// Takes nothing any more and says nothing any more
    Mute,
}

/// How a hostile packet has to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hostile {
    /// Seal it as RTCP.
    Seal(Vec<u8>),
    /// As it is.
    Raw(Vec<u8>),
    /// Seal this once and send it ever again.
    SealOnce(Vec<u8>),
    /// On the input channel.
    Channel(Vec<u8>),
    /// Nothing, from now on.
    Silence,
}

/// What an attacker knows.
#[derive(Clone, Debug)]
pub(super) struct Knows {
    pub(super) ours: Ssrc,
    pub(super) theirs: Ssrc,
    /// Highest sequence number received.
    pub(super) highest: u16,
    /// The router's ICE user fragment.
    pub(super) ufrag: String,
}

impl Abuse {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::ForgedRtcp => "forged_rtcp",
            Self::ReplayedRtcp => "replayed_rtcp",
            Self::NackFlood => "nack_flood",
            Self::NackUnknown => "nack_unknown",
            Self::TwccLies => "twcc_lies",
            Self::PliFlood => "pli_flood",
            Self::StunFlood => "stun_flood",
            Self::DtlsFragments => "dtls_fragments",
            Self::ChannelFlood => "channel_flood",
            Self::Mute => "mute",
        }
    }

    /// The next packet of this kind.
    pub(super) fn packet(self, knows: &Knows) -> Hostile {
        let Knows { ours, theirs, highest, .. } = *knows;
        let report = || {
            let mut packet = Vec::new();
            rtcp::write_receiver_report(ours, &[], &mut packet);
            packet
        };
        match self {
            Self::ForgedRtcp => {
                let mut packet = vec![0x81, 205, 0, 12];
                packet.extend(rand::random::<[u8; 60]>());
                // "Encrypted", so that only the tag tells.
                packet[46] |= 0x80;
                Hostile::Raw(packet)
            }
            Self::ReplayedRtcp => Hostile::SealOnce(report()),
            Self::NackFlood => {
                let mut packet = report();
                let wanted: Vec<u16> = (0..170).map(|n| highest.wrapping_sub(n)).rev().collect();
                rtcp::write_nack(ours, theirs, &wanted, &mut packet);
                Hostile::Seal(packet)
            }
            Self::NackUnknown => {
                let mut packet = report();
                let far = highest.wrapping_add(rand::random_range(5_000..60_000));
                let wanted: Vec<u16> = (0..170).map(|n| far.wrapping_add(n)).collect();
                rtcp::write_nack(ours, theirs, &wanted, &mut packet);
                Hostile::Seal(packet)
            }
            Self::TwccLies => Hostile::Seal(lies(ours, theirs)),
            Self::PliFlood => {
                let mut packet = report();
                rtcp::write_pli(ours, theirs, &mut packet);
                Hostile::Seal(packet)
            }
            Self::StunFlood => Hostile::Raw(stun(&knows.ufrag)),
            Self::DtlsFragments => Hostile::Raw(dtls_fragment()),
            Self::ChannelFlood => Hostile::Channel((0..64).map(|_| rand::random()).collect()),
            Self::Mute => Hostile::Silence,
        }
    }
}

fn lies(ours: Ssrc, theirs: Ssrc) -> Vec<u8> {
    let mut at = 0_i64;
    let arrivals_us: Vec<Option<i64>> = (0..rand::random_range(1..200))
        .map(|_| {
            at += rand::random_range(-4_000_000..4_000_000);
            rand::random::<bool>().then_some(at)
        })
        .collect();
    let report = TransportCcReport {
        sender: ours,
        media: theirs,
        feedback_count: rand::random(),
        reference_time: rand::random(),
        base_seq: rand::random(),
        arrivals_us: &arrivals_us,
    };
    let mut packet = Vec::new();
    // Lies that cannot be written are an empty report.
    if rtcp::write_transport_cc(&report, &mut packet).is_err() {
        rtcp::write_receiver_report(ours, &[], &mut packet);
    }
    packet
}

/// A binding request whose integrity is noise.
fn stun(ufrag: &str) -> Vec<u8> {
    let user = format!("{ufrag}:load");
    let padded = user.len().next_multiple_of(4);
    let mut body = Vec::new();
    body.extend_from_slice(&[0x00, 0x06]);
    body.extend_from_slice(&u16::try_from(user.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(user.as_bytes());
    body.resize(4 + padded, 0);
    body.extend_from_slice(&[0x00, 0x08, 0x00, 20]);
    body.extend(rand::random::<[u8; 20]>());
    let mut packet = vec![0x00, 0x01];
    packet.extend_from_slice(&u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    packet.extend_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    packet.extend(rand::random::<[u8; 12]>());
    packet.extend(body);
    packet
}

/// The first 100 bytes of a ClientHello of 10,000, each time of another one.
fn dtls_fragment() -> Vec<u8> {
    let mut packet = vec![22, 0xfe, 0xfd, 0, 0];
    packet.extend(rand::random::<[u8; 6]>());
    packet.extend_from_slice(&112_u16.to_be_bytes());
    packet.extend_from_slice(&[1, 0x00, 0x27, 0x10]);
    packet.extend(rand::random::<[u8; 2]>());
    packet.extend_from_slice(&[0, 0, 0, 0, 0, 100]);
    packet.extend((0..100).map(|_| rand::random::<u8>()));
    packet
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn sealed_kinds_are_well_formed_and_raw_ones_pass_for_their_protocol() {
        let knows = Knows { ours: Ssrc(1), theirs: Ssrc(2), highest: 10, ufrag: "abcd".into() };
        for kind in Abuse::value_variants() {
            for _ in 0..50 {
                match kind.packet(&knows) {
                    Hostile::Seal(p) | Hostile::SealOnce(p) => {
                        assert!(rtcp::packets(&p).all(|p| p.is_ok()), "{kind:?}");
                    }
                    Hostile::Raw(p) => {
                        let first = if *kind == Abuse::ForgedRtcp { 128..=191 } else { 0..=63 };
                        assert!(first.contains(&p[0]), "{kind:?}");
                    }
                    Hostile::Channel(_) | Hostile::Silence => {}
                }
            }
        }
        let request = stun("abcdef");
        assert_eq!(usize::from(u16::from_be_bytes([request[2], request[3]])), request.len() - 20);
    }
}
