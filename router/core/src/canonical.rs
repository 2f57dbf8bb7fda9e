//! Writes the only offer that the protocol library ever reads.
//!
//! From checked facts, our video section and the data section, nothing else: less to parse, and
//! nothing of the client's text but checked tokens. Invariant: the result depends on the facts
//! alone.

use std::fmt::Write as _;

use crate::codec::OfferedH264;
use crate::sdp::{OfferFacts, Plan, Section, URI_CAPTURE, URI_MID, URI_PLAYOUT, URI_TWCC};

/// The mid under which the protocol library knows a section: the real one where it survives the
/// library's sixteen alphanumeric characters, else a stand-in.
pub(crate) fn library_mid(section: &Section) -> (&str, bool) {
    let clean = section.mid.len() <= 16 && section.mid.bytes().all(|b| b.is_ascii_alphanumeric());
    match (clean, section.plan) {
        (true, _) => (&section.mid, true),
        (false, Plan::Video) => ("fanlightv", false),
        (false, _) => ("fanlightd", false),
    }
}

/// Writes the offer that the protocol library reads: our video section and the data section,
/// nothing else, every value from the checked facts.
pub(crate) fn canonical_offer(facts: &OfferFacts) -> String {
    let mut out = String::with_capacity(2_048);
    let used = || facts.sections.iter().filter(|s| matches!(s.plan, Plan::Video | Plan::Data));
    let _ = write!(out, "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE");
    for section in used() {
        let _ = write!(out, " {}", library_mid(section).0);
    }
    out.push_str("\r\n");
    for section in used() {
        let mid = library_mid(section).0;
        if section.plan == Plan::Data {
            let _ = write!(out, "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n");
            transport_lines(&mut out, facts, mid);
            out.push_str("a=sctp-port:5000\r\na=max-message-size:262144\r\n");
            continue;
        }
        out.push_str("m=video 9 UDP/TLS/RTP/SAVPF");
        for codec in &facts.h264 {
            let _ = write!(out, " {}", codec.pt);
            if let Some(rtx) = codec.rtx {
                let _ = write!(out, " {rtx}");
            }
        }
        out.push_str("\r\n");
        transport_lines(&mut out, facts, mid);
        let ext = &facts.extensions;
        for (id, uri) in [
            (ext.mid, URI_MID),
            (ext.twcc, URI_TWCC),
            (ext.playout_delay, URI_PLAYOUT),
            (ext.capture_time, URI_CAPTURE),
        ] {
            if let Some(id) = id {
                let _ = write!(out, "a=extmap:{id} {uri}\r\n");
            }
        }
        out.push_str("a=recvonly\r\na=rtcp-mux\r\n");
        for codec in &facts.h264 {
            codec_lines(&mut out, codec);
        }
    }
    out
}

fn transport_lines(out: &mut String, facts: &OfferFacts, mid: &str) {
    let _ = write!(
        out,
        "c=IN IP4 0.0.0.0\r\na=ice-ufrag:{}\r\na=ice-pwd:{}\r\na=fingerprint:sha-256 {}\r\n\
         a=setup:{}\r\na=mid:{mid}\r\n",
        facts.ufrag, facts.pwd, facts.fingerprint, facts.setup
    );
}

fn codec_lines(out: &mut String, codec: &OfferedH264) {
    let pt = codec.pt;
    let _ = write!(out, "a=rtpmap:{pt} H264/90000\r\n");
    for (on, name) in [
        (codec.twcc, "transport-cc"),
        (codec.fir, "ccm fir"),
        (codec.nack, "nack"),
        (codec.pli, "nack pli"),
    ] {
        if on {
            let _ = write!(out, "a=rtcp-fb:{pt} {name}\r\n");
        }
    }
    let [a, b, c] = codec.id;
    let _ = write!(
        out,
        "a=fmtp:{pt} level-asymmetry-allowed={};packetization-mode=1;profile-level-id={a:02x}{b:02x}{c:02x}\r\n",
        u8::from(codec.level_asymmetry)
    );
    if let Some(rtx) = codec.rtx {
        let _ = write!(out, "a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={pt}\r\n");
    }
}
