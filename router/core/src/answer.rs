//! The answer that the client reads, put together from the protocol library's answer and the
//! offer's sections.
//!
//! The library answers a trimmed offer of one video and perhaps one data section. Here every
//! offered section gets its answer in its place (the rest inactive or refused), real `mid`s come
//! back, and the complete candidate list goes to the first accepted section. Pure text to text.
//! Invariant: as many `m=` lines as the offer, in its order.

use std::fmt::Write as _;

use crate::canonical::library_mid;
use crate::sdp::{OfferFacts, Plan, Section};

/// Puts the answer together.
pub(crate) fn assemble(library: &str, facts: &OfferFacts) -> String {
    let mut parts = Vec::new();
    let mut current: Vec<&str> = Vec::new();
    for line in library.lines() {
        if line.starts_with("m=") {
            parts.push(std::mem::take(&mut current));
        }
        current.push(line);
    }
    parts.push(current);
    let mut parts = parts.into_iter();
    let session = parts.next().unwrap_or_default();
    let bodies: Vec<Vec<&str>> = parts.collect();

    let mut out = String::with_capacity(library.len() + 512);
    write_session(&mut out, &session, facts);
    let candidates: Vec<&str> =
        bodies.iter().flatten().copied().filter(|l| l.starts_with("a=candidate:")).collect();
    let mut first = true;
    let mut library_index = 0;
    for section in &facts.sections {
        match section.plan {
            Plan::Refuse => {
                refuse(&mut out, section);
                continue;
            }
            Plan::InactiveAudio => inactive_audio(&mut out, section, &bodies),
            Plan::Video | Plan::Data => {
                if let Some(body) = bodies.get(library_index) {
                    write_body(&mut out, facts, section, body);
                }
                library_index += 1;
            }
        }
        if std::mem::take(&mut first) {
            for candidate in &candidates {
                line(&mut out, candidate);
            }
            line(&mut out, "a=end-of-candidates");
        }
    }
    out
}

/// The canonical name by which the library's answer calls our source.
pub(crate) fn cname(library: &str) -> &str {
    let named = library.lines().find_map(|l| l.strip_prefix("a=ssrc:")?.split_once(" cname:"));
    named.map_or("fanlight", |(_, name)| name)
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push_str("\r\n");
}

fn write_session(out: &mut String, session: &[&str], facts: &OfferFacts) {
    for text in session {
        if text.starts_with("a=group:") {
            out.push_str("a=group:BUNDLE");
            for section in facts.sections.iter().filter(|s| s.plan != Plan::Refuse) {
                let _ = write!(out, " {}", section.mid);
            }
            out.push_str("\r\n");
        } else {
            line(out, text);
        }
    }
}

fn write_body(out: &mut String, facts: &OfferFacts, section: &Section, body: &[&str]) {
    let has_round_trip = section.plan == Plan::Video && facts.round_trip;
    let stand_in = format!("a=mid:{}", library_mid(section).0);
    for text in body {
        if text.starts_with("a=candidate:") || text.starts_with("a=end-of-candidates") {
            continue;
        }
        if *text == stand_in {
            let _ = write!(out, "a=mid:{}\r\n", section.mid);
        } else if text.starts_with("m=application ") {
            // As offered: older clients say `DTLS/SCTP`.
            let _ = write!(out, "m=application 9 {} webrtc-datachannel\r\n", section.proto);
        } else {
            line(out, text);
        }
    }
    if has_round_trip {
        line(out, "a=rtcp-xr:rcvr-rtt=all");
    }
}

/// An audio section on the same transport that nothing is sent on.
fn inactive_audio(out: &mut String, section: &Section, bodies: &[Vec<&str>]) {
    let opus = section.opus.unwrap_or(111);
    let _ = write!(out, "m=audio 9 {} {opus}\r\nc=IN IP4 0.0.0.0\r\n", section.proto);
    for text in bodies.first().into_iter().flatten() {
        let transport =
            ["a=ice-ufrag:", "a=ice-pwd:", "a=ice-options:", "a=fingerprint:", "a=setup:"];
        if transport.iter().any(|t| text.starts_with(t)) {
            line(out, text);
        }
    }
    let _ = write!(
        out,
        "a=mid:{}\r\na=inactive\r\na=rtcp-mux\r\na=rtpmap:{opus} opus/48000/2\r\n",
        section.mid
    );
}

fn refuse(out: &mut String, section: &Section) {
    let _ = write!(
        out,
        "m={} 0 {} {}\r\nc=IN IP4 0.0.0.0\r\na=mid:{}\r\na=inactive\r\n",
        section.media, section.proto, section.first_format, section.mid
    );
}
