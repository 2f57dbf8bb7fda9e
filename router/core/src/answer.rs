//! The answer that the client reads, written from the facts of its offer and what was agreed.
//!
//! Not a general SDP writer, and no decision: every offered section gets its answer in its place
//! (video, data, inactive, or refused), and the complete candidate list goes to the first accepted
//! one. Facts in, text out. Invariant: as many `m=` lines as the offer, in its order.

use std::fmt::Write as _;

use crate::codec::OfferedH264;
use crate::header::Terms;
use crate::sdp::{OfferFacts, Plan, Section, URI_CAPTURE, URI_MID, URI_PLAYOUT, URI_TWCC};

/// Largest message that a client may send: input messages are far smaller, and more is dropped.
const MESSAGE_BYTES_MAX: u32 = 262_144;

/// Our side of what was agreed.
pub(crate) struct Agreed<'a> {
    /// Identifies the session description (RFC 8866, 5.2).
    pub(crate) session: u64,
    pub(crate) ufrag: &'a str,
    pub(crate) pwd: &'a str,
    /// Of our certificate: the hash's name and its value in hex.
    pub(crate) fingerprint: &'a str,
    /// We begin the DTLS handshake, because the client will not.
    pub(crate) active: bool,
    /// Lines of our candidates, from `candidate:` on.
    pub(crate) candidates: &'a [String],
    pub(crate) format: &'a OfferedH264,
    pub(crate) terms: &'a Terms,
}

/// Writes the answer.
pub(crate) fn write(facts: &OfferFacts, agreed: &Agreed<'_>) -> String {
    let mut out = String::with_capacity(2_560);
    session(&mut out, facts, agreed);
    let mut first = true;
    for section in &facts.sections {
        match section.plan {
            Plan::Refuse => {
                refuse(&mut out, section);
                continue;
            }
            Plan::InactiveAudio => inactive_audio(&mut out, section, agreed),
            Plan::Video => video(&mut out, facts, section, agreed),
            Plan::Data => data(&mut out, section, agreed),
        }
        if std::mem::take(&mut first) {
            for candidate in agreed.candidates {
                line(&mut out, format_args!("a={candidate}"));
            }
            line(&mut out, format_args!("a=end-of-candidates"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
    out.push_str("\r\n");
}

fn session(out: &mut String, facts: &OfferFacts, agreed: &Agreed<'_>) {
    line(out, format_args!("v=0"));
    line(out, format_args!("o=fanlight {} 2 IN IP4 0.0.0.0", agreed.session));
    line(out, format_args!("s=-"));
    line(out, format_args!("t=0 0"));
    out.push_str("a=group:BUNDLE");
    for section in facts.sections.iter().filter(|s| s.plan != Plan::Refuse) {
        let _ = write!(out, " {}", section.mid);
    }
    out.push_str("\r\n");
    line(out, format_args!("a=extmap-allow-mixed"));
    line(out, format_args!("a=msid-semantic: WMS {}", agreed.terms.cname));
    line(out, format_args!("a=ice-lite"));
}

/// What every accepted section says of the one transport that all share.
fn transport(out: &mut String, section: &Section, agreed: &Agreed<'_>) {
    line(out, format_args!("c=IN IP4 0.0.0.0"));
    line(out, format_args!("a=ice-ufrag:{}", agreed.ufrag));
    line(out, format_args!("a=ice-pwd:{}", agreed.pwd));
    line(out, format_args!("a=ice-options:trickle"));
    line(out, format_args!("a=fingerprint:{}", agreed.fingerprint));
    line(out, format_args!("a=setup:{}", if agreed.active { "active" } else { "passive" }));
    line(out, format_args!("a=mid:{}", section.mid));
}

fn video(out: &mut String, facts: &OfferFacts, section: &Section, agreed: &Agreed<'_>) {
    let Agreed { format, terms, .. } = agreed;
    let pt = format.pt;
    let _ = write!(out, "m=video 9 {} {pt}", section.proto);
    // The repair format is named even where repairs are not asked for: it was offered.
    if let Some(rtx) = format.rtx {
        let _ = write!(out, " {rtx}");
    }
    out.push_str("\r\n");
    transport(out, section, agreed);
    let mut extensions = [
        (terms.mid.as_ref().map(|(id, _)| *id), URI_MID),
        (terms.twcc, URI_TWCC),
        (terms.playout_delay, URI_PLAYOUT),
        (terms.capture_time, URI_CAPTURE),
    ];
    extensions.sort_unstable();
    for (id, uri) in extensions {
        if let Some(id) = id {
            line(out, format_args!("a=extmap:{id} {uri}"));
        }
    }
    line(out, format_args!("a=sendonly"));
    line(out, format_args!("a=msid:{0} {0}-screen", terms.cname));
    line(out, format_args!("a=rtcp-mux"));
    line(out, format_args!("a=rtpmap:{pt} H264/90000"));
    for (on, name) in [
        (terms.twcc.is_some(), "transport-cc"),
        (format.fir, "ccm fir"),
        (format.nack, "nack"),
        (format.pli, "nack pli"),
    ] {
        if on {
            line(out, format_args!("a=rtcp-fb:{pt} {name}"));
        }
    }
    let [a, b, c] = format.id;
    let asymmetry = u8::from(format.level_asymmetry);
    line(
        out,
        format_args!(
            "a=fmtp:{pt} level-asymmetry-allowed={asymmetry};packetization-mode=1;\
             profile-level-id={a:02x}{b:02x}{c:02x}"
        ),
    );
    if let Some(rtx) = format.rtx {
        line(out, format_args!("a=rtpmap:{rtx} rtx/90000"));
        line(out, format_args!("a=fmtp:{rtx} apt={pt}"));
    }
    let repair = terms.rtx.map(|(_, ssrc)| ssrc);
    for ssrc in std::iter::once(terms.ssrc).chain(repair) {
        line(out, format_args!("a=ssrc:{ssrc} cname:{}", terms.cname));
        line(out, format_args!("a=ssrc:{ssrc} msid:{0} {0}-screen", terms.cname));
    }
    if let Some(repair) = repair {
        line(out, format_args!("a=ssrc-group:FID {} {repair}", terms.ssrc));
    }
    if facts.round_trip {
        line(out, format_args!("a=rtcp-xr:rcvr-rtt=all"));
    }
}

fn data(out: &mut String, section: &Section, agreed: &Agreed<'_>) {
    // As offered: older clients say `DTLS/SCTP`.
    line(out, format_args!("m=application 9 {} webrtc-datachannel", section.proto));
    transport(out, section, agreed);
    line(out, format_args!("a=sctp-port:5000"));
    line(out, format_args!("a=max-message-size:{MESSAGE_BYTES_MAX}"));
}

/// An audio section on the same transport that nothing is sent on.
fn inactive_audio(out: &mut String, section: &Section, agreed: &Agreed<'_>) {
    let opus = section.opus.unwrap_or(111);
    line(out, format_args!("m=audio 9 {} {opus}", section.proto));
    transport(out, section, agreed);
    line(out, format_args!("a=inactive"));
    line(out, format_args!("a=rtcp-mux"));
    line(out, format_args!("a=rtpmap:{opus} opus/48000/2"));
}

fn refuse(out: &mut String, section: &Section) {
    let Section { media, proto, first_format, mid, .. } = section;
    line(out, format_args!("m={media} 0 {proto} {first_format}"));
    line(out, format_args!("c=IN IP4 0.0.0.0"));
    line(out, format_args!("a=mid:{mid}"));
    line(out, format_args!("a=inactive"));
}
